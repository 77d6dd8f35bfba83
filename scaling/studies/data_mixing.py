"""Data mixing laws: the loss on each text by the shares in training, and the best mixture for a larger run.

Ye et al. 2024, Data Mixing Laws, arXiv:2403.16952, equation 6. With r_j the share of component j, the loss on text i is

    L_i(r) = c_i + k_i exp(Σ_j t_ij r_j)

Shares sum to 1, so that k_i can be moved into t_i and is 1 here. A larger model is reached as in section 4 of the
paper, by a law in size for each mixture, here L(N) = E_r + A_r / N^α with one α for all mixtures of a text; the mixing
law is fitted to what those predict. All losses are in nats per token.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import LinearConstraint, least_squares, minimize, minimize_scalar

from configs.run_record import RunRecord
from scaling.errors import MixingError
from scaling.laws import Array
from scaling.tables.runs import read_records

EXPONENTS = (0.02, 2.0)  # of N, searched
DRAWS = 200  # of the bootstrap


@dataclass(frozen=True)
class Mixtures:
    """Finished runs on mixtures: sizes N (n,), shares (n, K) and losses on every component (n, K)."""

    names: tuple[str, ...]
    runs: tuple[str, ...]
    N: Array
    shares: Array
    losses: Array

    def select(self, keep: NDArray[np.bool_]) -> "Mixtures":
        """The runs where ``keep`` (n,) is true."""
        runs = tuple(itertools.compress(self.runs, keep))
        return Mixtures(self.names, runs, self.N[keep], self.shares[keep], self.losses[keep])


def read_mixtures(directory: Path) -> Mixtures:
    """The complete, untainted runs of a directory whose record.json has losses by component.

    Raises MixingError where they make no table, TableError for a record that cannot be read.
    """
    runs: list[tuple[str, RunRecord, Mapping[str, float], Mapping[str, float]]] = []
    for path, record in read_records(directory).items():
        if record.components is not None and record.identity.complete and not record.result.tainted:
            weights, losses = record.components.weight_by_component, record.components.val_loss_by_component
            if weights is None or weights.keys() != losses.keys():
                raise MixingError(f"{path}: weight_by_component: does not name what val_loss_by_component names")
            runs.append((path.parent.name, record, weights, losses))
    if not runs:
        raise MixingError(f"{directory}: no finished runs on a mixture (looked for val_loss_by_component)")
    components = {tuple(sorted(losses)) for *_, losses in runs}
    if len(components) > 1:
        raise MixingError(f"{directory}: the runs mix different components: {sorted(components)}")
    if len({record.tokens.D for _, record, *_ in runs}) > 1:
        raise MixingError(f"{directory}: the runs differ in tokens; a mixing law compares runs of one budget D")
    names = components.pop()
    return Mixtures(
        names,
        tuple(run for run, *_ in runs),
        np.array([record.size.N for _, record, *_ in runs]),
        np.array([[weights[name] for name in names] for *_, weights, _ in runs]),
        np.array([[losses[name] for name in names] for *_, losses in runs]),
    )


@dataclass(frozen=True)
class MixingLaw:
    """L(r) = c + exp(t · r) of one text; ``t`` (K,)."""

    c: float
    t: Array

    def __call__(self, shares: Array) -> Array:
        """The loss at ``shares`` (..., K)."""
        return np.asarray(self.c + np.exp(shares @ self.t))


def fit_mixing(shares: Array, losses: Array) -> MixingLaw:
    """Fit the law by least squares to losses (n,) at shares (n, K); given c, its logarithm is linear in the shares.

    Raises MixingError for fewer different mixtures than coefficients.
    """
    coefficients, mixtures = shares.shape[1] + 1, len(np.unique(shares, axis=0))
    if mixtures < coefficients:
        raise MixingError(f"{coefficients} coefficients need as many different mixtures; there are {mixtures}")
    least = float(losses.min())
    floors = least * np.concatenate([[0.0, 0.5], 1 - np.geomspace(0.3, 1e-3, 12)])
    starts = [np.append(c, np.linalg.lstsq(shares, np.log(losses - c), rcond=None)[0]) for c in floors]

    def residuals(theta: Array) -> Array:
        return np.asarray(theta[0] + np.exp(shares @ theta[1:]) - losses)

    start = min(starts, key=lambda theta: float((residuals(theta) ** 2).sum()))
    bounds = ([0.0, *[-np.inf] * shares.shape[1]], [least, *[np.inf] * shares.shape[1]])
    found = least_squares(residuals, start, bounds=bounds, x_scale="jac")
    return MixingLaw(float(found.x[0]), found.x[1:])


@dataclass(frozen=True)
class SizeLaw:
    """L(N, r) = E_r + A_r / N^alpha of one text, for the mixtures (m, K) that were measured; E and A are (m,)."""

    mixtures: Array
    E: Array
    A: Array
    alpha: float

    def at(self, N: float) -> Array:
        """The loss of every mixture (m,) at N parameters."""
        return np.asarray(self.E + self.A * N**-self.alpha)


def fit_sizes(N: Array, shares: Array, losses: Array) -> SizeLaw:
    """Fit a power law in N for every mixture, with one exponent for all. Raises MixingError for too few sizes."""
    mixtures, which = np.unique(shares, axis=0, return_inverse=True)
    which = which.ravel()
    sizes = [len(np.unique(N[which == m])) for m in range(len(mixtures))]
    if min(sizes) < 2 or max(sizes) < 3:
        raise MixingError("a law in size needs every mixture at two sizes or more, and at least one at three")

    def solve(alpha: float) -> tuple[Array, float]:
        design = np.zeros((len(N), 2 * len(mixtures)))
        rows = np.arange(len(N))
        design[rows, which] = 1
        design[rows, len(mixtures) + which] = (N / N.min()) ** -alpha
        solution = np.linalg.lstsq(design, losses, rcond=None)[0]
        return np.asarray(solution, dtype=float), float(((design @ solution - losses) ** 2).sum())

    grid = np.geomspace(*EXPONENTS, 25)
    best = int(np.argmin([solve(alpha)[1] for alpha in grid]))
    near = (grid[max(0, best - 1)], grid[min(len(grid) - 1, best + 1)])
    alpha = float(minimize_scalar(lambda a: solve(a)[1], bounds=near, method="bounded").x)
    solution, _ = solve(alpha)
    return SizeLaw(mixtures, solution[: len(mixtures)], solution[len(mixtures) :] * N.min() ** alpha, alpha)


@dataclass(frozen=True)
class MixtureForecast:
    """Mixing laws of every text at N parameters, and the shares (K,) that make the target loss least."""

    N: float
    laws: tuple[MixingLaw, ...]
    target: Array
    best: Array

    def losses(self, shares: Array) -> Array:
        """The loss on every text at ``shares`` (..., K): (..., K)."""
        return np.stack([law(shares) for law in self.laws], axis=-1)

    def target_loss(self, shares: Array) -> Array:
        """The loss that is made small: over all texts by their weight in the target."""
        return np.asarray(self.losses(shares) @ self.target)


def best_shares(laws: Sequence[MixingLaw], target: Array) -> Array:
    """The shares (K,) of least target loss. Every law is convex in them, so that a minimum is the minimum."""
    parts = len(target)

    def loss(shares: Array) -> float:
        return float(sum(weight * law(shares) for weight, law in zip(target, laws, strict=True)))

    found = minimize(
        loss,
        np.full(parts, 1 / parts),
        method="SLSQP",
        bounds=[(0.0, 1.0)] * parts,
        constraints=LinearConstraint(np.ones((1, parts)), 1.0, 1.0),
        options={"ftol": 1e-12, "maxiter": 500},
    )
    shares = np.clip(found.x, 0, 1)
    return np.asarray(shares / shares.sum())


def forecast(runs: Mixtures, N: float, target: Array) -> MixtureForecast:
    """Predict the mixing laws at N parameters from smaller runs. Raises MixingError where they are too few."""
    laws = []
    for column in runs.losses.T:
        sizes = fit_sizes(runs.N, runs.shares, column)
        laws.append(fit_mixing(sizes.mixtures, sizes.at(N)))
    return MixtureForecast(N, tuple(laws), target, best_shares(laws, target))


def bootstrap(runs: Mixtures, N: float, target: Array, draws: int = DRAWS, seed: int = 0) -> list[MixtureForecast]:
    """Forecasts from resampled residuals of the laws in size, each text's own, enlarged for the coefficients spent."""
    random = np.random.default_rng(seed)
    fitted, residuals = np.empty_like(runs.losses), np.empty_like(runs.losses)
    for i, column in enumerate(runs.losses.T):
        law = fit_sizes(runs.N, runs.shares, column)
        which = [int(np.flatnonzero((law.mixtures == r).all(axis=1))[0]) for r in runs.shares]
        fitted[:, i] = law.E[which] + law.A[which] * runs.N**-law.alpha
        spent = 2 * len(law.mixtures) + 1
        residuals[:, i] = (column - fitted[:, i]) * np.sqrt(len(column) / max(1, len(column) - spent))
    picks = (random.integers(len(residuals), size=len(residuals)) for _ in range(draws))
    return [forecast(replace(runs, losses=fitted + residuals[pick]), N, target) for pick in picks]


def target_of(names: Sequence[str], weights: Mapping[str, float]) -> Array:
    """The target's weights (K,): as given, 0 for those not named, equal where none is. Raises MixingError."""
    unknown = [name for name in weights if name not in names]
    if unknown:
        raise MixingError(f"there is no component {unknown[0]!r}; the components are {', '.join(names)}")
    given = np.array([weights.get(name, 0.0 if weights else 1.0) for name in names], dtype=float)
    if (given < 0).any() or given.sum() <= 0:
        raise MixingError("the weights of the target must not be negative, nor all zero")
    return np.asarray(given / given.sum())
