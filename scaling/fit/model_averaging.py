"""Predict from several laws at once, so that the interval knows that the law itself is a guess.

Each law is weighted by how well it predicts the larger runs of the table from the smaller ones, which is the task at
hand, rather than by how well it fits. The spread between laws joins the interval.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from scaling.errors import FitError
from scaling.fit.bootstrap import LEVEL, METHODS, bootstrap, interval, predictive_draws
from scaling.fit.estimate import Fit, Loss, fit
from scaling.fit.folds import compute_folds
from scaling.laws import LAWS, Array, Law
from scaling.tables.table import Table

MIXED = 4000  # draws of an averaged prediction


@dataclass(frozen=True)
class Candidate:
    """A law to average over, with the parameters that are pinned in it."""

    label: str
    law: str
    fixed: Mapping[str, float]


@dataclass(frozen=True)
class Member:
    """A fitted candidate: parameters, draws, residuals (n,) and how it did.

    ``log`` tells the scale of the residuals, ``free`` how many parameters were fitted, ``error`` is the root mean
    square relative error of the backtest and ``weight`` the share in the average.
    """

    label: str
    law: Law
    fixed: dict[str, float]
    params: dict[str, float]
    draws: dict[str, Array]
    residuals: Array
    free: int
    log: bool
    error: float
    weight: float


@dataclass(frozen=True)
class Average:
    """Members and candidates that could not be fitted, with the reason."""

    members: list[Member]
    failed: dict[str, str]


def candidates(pinned_E: float | None = None) -> list[Candidate]:
    """Chinchilla, with tied exponents, Kaplan and the coupled form; with E pinned where a value is known."""
    found = [Candidate(name, name, {}) for name in ("chinchilla", "chinchilla_tied", "kaplan_nd", "coupled")]
    if pinned_E is not None:
        found.append(Candidate(f"chinchilla, E = {pinned_E:g}", "chinchilla", {"E": pinned_E}))
    return found


def average(
    table: Table,
    laws: list[Candidate],
    loss: Loss | None = None,
    method: str = METHODS[0],
    clustered: bool = True,
    draws: int = 1000,
    seed: int = 0,
) -> Average:
    """Fit every candidate and weight it by exp(-(e² - e_best²) / 2s²), e its backtest error, s the best one.

    The error is over every expanding window that leaves all candidates enough to fit; without one, weights are equal.
    Raises FitError where no candidate can be fitted.
    """
    fits: list[tuple[Candidate, Fit]] = []
    failed: dict[str, str] = {}
    for candidate in laws:
        try:
            fits.append((candidate, fit(LAWS[candidate.law], table, loss, candidate.fixed, seed=seed)))
        except FitError as error:
            failed[candidate.label] = str(error)
    if not fits:
        raise FitError(f"no law could be fitted to average over: {next(iter(failed.values()))}")
    errors = _errors(table, [candidate for candidate, _ in fits], loss, seed)
    best = max(float(errors.min()), 1e-6)
    weights = np.exp(-(errors**2 - errors.min() ** 2) / (2 * best**2))
    weights /= weights.sum()
    members = [
        Member(
            label=candidate.label,
            law=fitted.law,
            fixed=dict(candidate.fixed),
            params=fitted.params,
            draws=bootstrap(fitted, table.cluster, method, clustered, draws, seed).params,
            residuals=fitted.residuals,
            free=fitted.problem.free,
            log=fitted.problem.loss.scale == "log",
            error=float(error),
            weight=float(weight),
        )
        for (candidate, fitted), error, weight in zip(fits, errors, weights, strict=True)
    ]
    return Average(members, failed)


def _errors(table: Table, laws: list[Candidate], loss: Loss | None, seed: int) -> Array:
    """Root mean square relative error of each candidate over the windows that all of them can fit; zeros if none."""
    squares: list[list[Array]] = [[] for _ in laws]
    for out in compute_folds(table):
        kept, unseen = table.select(~out), table.select(out)
        try:
            fits = [fit(LAWS[c.law], kept, loss, c.fixed, seed=seed) for c in laws]
        except FitError:
            continue
        for found, fitted in zip(squares, fits, strict=True):
            found.append((fitted.predict(unseen.columns) / unseen.columns["loss"] - 1) ** 2)
    if not squares[0]:
        return np.zeros(len(laws))
    return np.array([np.sqrt(np.concatenate(found).mean()) for found in squares])


def _combined_draws(average: Average, columns: Mapping[str, Array], seed: int) -> Array:
    """Draws (MIXED, points) of the mixture: a law by its weight, then its parameters, then residual noise."""
    rng = np.random.default_rng(seed + 2)
    parts = []
    for m, share in zip(average.members, rng.multinomial(MIXED, [m.weight for m in average.members]), strict=True):
        rows = rng.integers(0, len(next(iter(m.draws.values()))), share)
        draws = {k: v[rows] for k, v in m.draws.items()}
        parts.append(predictive_draws(m.law, draws, columns, m.residuals, m.free, m.log, seed))
    return np.concatenate(parts)


def predict(average: Average, columns: Mapping[str, Array], level: float = LEVEL, seed: int = 0) -> dict[str, Any]:
    """Averaged prediction (nats per token) at one point, its interval and the two parts of its variance.

    ``between`` is the standard deviation between the laws' predictions, ``within`` that of a new measurement under
    one law.
    """
    inputs = {k: np.atleast_1d(np.asarray(v, dtype=float)) for k, v in columns.items()}
    weights = np.array([m.weight for m in average.members])
    points = np.array([float(m.law.evaluate(m.params, inputs)[0]) for m in average.members])
    mean = float(weights @ points)
    draws = _combined_draws(average, inputs, seed)[:, 0]
    low, high = interval(draws, level)
    between = float(np.sqrt(weights @ (points - mean) ** 2))
    return {
        "loss": mean,
        "low": low,
        "high": high,
        "between": between,
        "within": float(np.sqrt(max(draws.var() - between**2, 0.0))),
        "by_law": {
            m.label: {"loss": float(p), "weight": m.weight, "backtest_error": m.error}
            for m, p in zip(average.members, points, strict=True)
        },
    }


def all_draws(average: Average) -> dict[str, Array]:
    """Draws of every member as one flat mapping, "0/alpha" for alpha of the first law."""
    return {f"{i}/{k}": v for i, m in enumerate(average.members) for k, v in m.draws.items()}
