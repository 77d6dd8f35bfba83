"""A fitted law as something to draw: its value and its band at any N and D, and the best of it at any budget."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from scaling.forecast.law_file import LawFile
from scaling.laws import Array, Law
from scaling.tables.compute import Compute
from scaling.tables.table import Table

PLOTTED_DRAWS = 400  # bootstrap draws that a picture uses


@dataclass(frozen=True)
class Band:
    """A curve (points,) and the bounds of its interval (points,)."""

    middle: Array
    low: Array
    high: Array


@dataclass(frozen=True)
class FittedLaw:
    """The content of a law.json, the table it was fitted to and the bootstrap draws (may be empty)."""

    law: LawFile
    table: Table
    draws: Mapping[str, Array]

    @cached_property
    def declared(self) -> Law:
        """The law's formula."""
        return self.law.declared

    @property
    def level(self) -> float:
        """Level of every interval."""
        return self.law.fit.level

    @property
    def is_surface(self) -> bool:
        """Whether the law is a loss over N and D, so that slices and a best allocation exist."""
        variables = set(self.declared.variables)
        return {"N", "D"} <= variables <= {"N", "D", "U"} and self.is_loss

    @property
    def has_slices(self) -> bool:
        """Whether the law can be drawn against N and D; steps are then those of the table's batch."""
        variables = set(self.declared.variables)
        return "N" in variables and variables <= {"N", "D", "U", "S"} and len(variables) > 1 and self.is_loss

    @property
    def is_loss(self) -> bool:
        """Whether the law predicts a loss, not the score of a task."""
        return self.declared.response == "loss"

    @property
    def unit(self) -> str:
        """What the law predicts, with its unit."""
        return f"loss ({self.loss_unit})" if self.is_loss else self.declared.response

    @property
    def loss_unit(self) -> str:
        """Unit of the losses that were fitted."""
        return self.law.data.loss_unit

    @property
    def baselines(self) -> Mapping[str, float]:
        """Losses of other models on the same tokens, by name."""
        return self.law.data.baselines

    @cached_property
    def thinned(self) -> dict[str, Array]:
        """At most DRAWN of the draws, evenly taken, each (draws, 1)."""
        if not set(self.declared.parameters) <= set(self.draws):
            return {}
        total = len(self.draws[self.declared.parameters[0]])
        keep = np.linspace(0, total - 1, min(PLOTTED_DRAWS, total)).round().astype(int)
        return {k: np.asarray(self.draws[k], dtype=float)[keep, None] for k in self.declared.parameters}

    def bounds(self, samples: Array) -> tuple[Array, Array]:
        """Equal-tailed interval of samples (draws, points)."""
        low, high = np.quantile(samples, [(1 - self.level) / 2, (1 + self.level) / 2], axis=0)
        return low, high

    def band(self, columns: Mapping[str, Array]) -> Band:
        """The law at ``columns`` (points,), with the interval of its parameters' uncertainty."""
        middle = self.declared.evaluate(self.law.fit.params, columns)
        if not self.thinned:
            return Band(middle, middle, middle)
        return Band(middle, *self.bounds(self.declared.evaluate(self.thinned, columns)))

    def at(self, N: Array, D: Array) -> Band:
        """The law at N parameters and D tokens, none of them repeated, in steps of the table's usual batch."""
        columns = {"N": N, "D": D, "U": D}
        if "S" in self.table.columns:
            columns["S"] = D * float(np.median(self.table.columns["S"] / self.table.columns["D"]))
        return self.band(columns)

    @property
    def compute(self) -> Compute:
        """How C follows from N and D, as in the fit."""
        return self.law.compute

    def best(self, C: Array) -> Band:
        """The least loss that the law allows at each budget C (points,), over all N and the D that it leaves."""
        sizes = self.table.columns["N"]
        N = np.geomspace(sizes.min() / 1e2, sizes.max() * 1e4, 320)[:, None]
        columns = dict(zip("ND", np.broadcast_arrays(N, self.compute.tokens(N, C)), strict=True))
        flat = {k: v.ravel() for k, v in columns.items()}
        flat["U"] = flat["D"]

        def least(params: Mapping[str, float | Array]) -> Array:
            values = self.declared.evaluate(params, flat)
            return np.asarray(values.reshape(*values.shape[:-1], *columns["N"].shape).min(axis=-2))

        middle = least(self.law.fit.params)
        if not self.thinned:
            return Band(middle, middle, middle)
        chunks = [least({k: v[i : i + 50] for k, v in self.thinned.items()}) for i in range(0, PLOTTED_DRAWS, 50)]
        return Band(middle, *self.bounds(np.concatenate([c for c in chunks if len(c)])))
