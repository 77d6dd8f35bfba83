"""How training compute C (FLOPs) follows from parameters N and tokens D: the one place that knows C = 6ND.

A law is fitted to one definition of C, and everything that is asked of it later must use the same. With ``6nd``
C = 6ND (Kaplan et al. 2020, arXiv:2001.08361, section 2.1). With ``exact`` C is what the table says, attention and
output projection included: C/D depends on the shape of the model, so it is known at the fitted sizes, interpolated
between them, and beyond them C/(ND) is kept at that of the nearest size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np
from scipy.interpolate import PchipInterpolator

from scaling.laws import Array

Definition = Literal["exact", "6nd"]
C_DEFINITIONS: tuple[Definition, ...] = ("exact", "6nd")
_ROUNDING = 1e-7  # relative
_SIX = 6.0  # forward 2, backward 4: a multiplication and an addition each


@dataclass(frozen=True)
class Compute:
    """C as a law was fitted to it; ``sizes`` (parameters, rising) and their ``flops_per_token`` are empty under 6nd."""

    definition: Definition = "6nd"
    sizes: tuple[float, ...] = ()
    flops_per_token: tuple[float, ...] = ()
    assumed: bool = False
    """6ND stands in for an exact C of which a file of schema 1 does not say how it follows from N and D."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (key, message) for sizes that no curve can be drawn through."""
        if len(self.sizes) != len(self.flops_per_token):
            yield "flops_per_token", f"has {len(self.flops_per_token)} values for {len(self.sizes)} sizes"
        if self.definition == "exact" and not self.sizes:
            yield "sizes", "are missing"
        if any(value <= 0 for value in (*self.sizes, *self.flops_per_token)):
            yield "sizes", "and flops_per_token must be positive"
        if any(b <= a for a, b in pairwise(self.sizes)):
            yield "sizes", "must rise"

    @classmethod
    def of_rows(cls, definition: Definition, N: Array, D: Array, C: Array) -> "Compute":
        """The compute of measured rows (n,). A column C that holds 6ND to rounding is 6ND.

        Where rows of one N differ in C/D, as after a change of sequence length, that N has their geometric mean.
        """
        if definition == "6nd" or np.allclose(C, _SIX * N * D, rtol=_ROUNDING, atol=0):
            return cls()
        sizes, index = np.unique(N, return_inverse=True)
        per_token = np.bincount(index, np.log(C / D)) / np.bincount(index)
        return cls("exact", tuple(sizes.tolist()), tuple(np.exp(per_token).tolist()))

    @property
    def words(self) -> str:
        """The definition, for people."""
        if self.assumed:
            return "C = 6ND in place of the exact C of the fit, which this file of schema 1 does not tell: fit again"
        return "C = 6ND" if self.definition == "6nd" else "C exact, FLOPs per token from the fitted sizes"

    @cached_property
    def _curve(self) -> tuple[Array, PchipInterpolator]:
        """log N of the sizes, and log C/D between them: it rises with N wherever the sizes' own does."""
        sizes, per_token = np.log(self.sizes), np.log(self.flops_per_token)
        if len(sizes) == 1:
            sizes, per_token = sizes + np.arange(2), per_token + np.arange(2)
        return sizes, PchipInterpolator(sizes, per_token)

    def per_token(self, N: Array | float) -> Array:
        """C / D of models of N parameters, FLOPs per token; the shape of N."""
        if self.definition == "6nd":
            return np.asarray(_SIX * np.asarray(N, dtype=float))
        log_sizes, curve = self._curve
        log_N = np.log(N)
        nearest = np.clip(log_N, log_sizes[0], log_sizes[-1])
        return np.asarray(np.exp(curve(nearest) + (log_N - nearest)))

    def flops(self, N: Array | float, D: Array | float) -> Array:
        """C of N parameters on D tokens."""
        return np.asarray(self.per_token(N) * D)

    def tokens(self, N: Array | float, C: Array | float) -> Array:
        """D on which C FLOPs train N parameters."""
        return np.asarray(C / self.per_token(N))

    def params(self, D: Array | float, C: Array | float) -> Array:
        """N that C FLOPs train on D tokens; where several do, because C/D falls somewhere, one of them."""
        wanted = np.asarray(C, dtype=float) / D
        if self.definition == "6nd":
            return np.asarray(wanted / _SIX)
        # C/(ND) between two sizes leaves the range of theirs at most by the factor between the sizes.
        ratio, span = np.divide(self.flops_per_token, self.sizes), np.log(self.sizes[-1] / self.sizes[0])
        low, high = np.log(wanted / ratio.max()) - span - 1, np.log(wanted / ratio.min()) + span + 1
        for _ in range(64):
            middle = (low + high) / 2
            below = self.per_token(np.exp(middle)) < wanted
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return np.asarray(np.exp((low + high) / 2))

    def beyond(self, N: Array | float | Sequence[float]) -> bool:
        """Whether any N lies beyond the fitted sizes, so that its FLOPs per token are carried on from the nearest."""
        if self.definition == "6nd":
            return False
        return bool(np.any(~np.isclose(np.clip(N, self.sizes[0], self.sizes[-1]), N, rtol=1e-9, atol=0)))

    def caution(self, N: Array | float | Sequence[float]) -> Sequence[str]:
        """What to print beside an answer for N: a sentence where it lies beyond the fitted sizes, else nothing."""
        return ["C is beyond the fitted sizes: C/(ND) is that of the nearest"] if self.beyond(N) else []


SIX_ND = Compute()
