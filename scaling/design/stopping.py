"""When a ladder may end: the interval of its forecast is narrow enough, or the runs that are left cannot narrow it.

The law is fitted anew whenever a run has finished. An interval that is looked at after each run and stops the ladder
when it happens to be narrow is narrow by luck more often than its level says (Anscombe 1953, Sequential Estimation).
So a rule waits for `MIN_RUNS`, and asks the clustered bootstrap, whose scale has the freedom of the runs
that there are.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scaling.design.optimal_design import SAME, Candidates, covariance
from scaling.errors import FitError
from scaling.fit.bootstrap import LEVEL, bootstrap, interval, residual_sigma
from scaling.fit.estimate import fit
from scaling.laws import LAWS, Array
from scaling.tables.table import Table

MIN_RUNS = 10
"""Complete runs before anything is judged: twice the parameters of the law, so that its residuals have a scale."""
DRAWS = 500
NEGLIGIBLE = 0.05
"""Runs are left out that all together would narrow the forecast's standard deviation by less than this share of it.
Of so many draws the deviation is known to 1 / sqrt(2 DRAWS) = 3 %, so that less could not be told from nothing."""


@dataclass(frozen=True)
class StoppingRule:
    """What is asked of the forecast for ``N`` parameters on ``D`` tokens.

    ``width`` of the interval of its expected loss at `LEVEL`, relative to the loss.
    """

    N: float
    D: float
    width: float


@dataclass(frozen=True)
class StopDecision:
    """``width`` of the interval now, relative to the loss, and which of the candidates (m,) are not needed."""

    width: float
    enough: bool
    unneeded: NDArray[np.bool_]


def should_stop(table: Table, rule: StoppingRule, left: Candidates) -> StopDecision:
    """Judge the runs ``left`` by those measured in ``table``. A run of the target itself is always needed.

    ``left.flops`` are those still to be spent. Raises FitError where the table cannot identify Chinchilla's law.
    """
    law = LAWS["chinchilla"]
    fitted = fit(law, table)
    draws = bootstrap(fitted, table.cluster, draws=DRAWS).params
    at = {k: np.append(v, left.columns[k]) for k, v in (("N", rule.N), ("D", rule.D))}
    target = {k: v[:1] for k, v in at.items()}
    low, high = interval(law.evaluate({k: v[:, None] for k, v in draws.items()}, target)[:, 0], LEVEL)
    width = (high - low) / float(law.evaluate(fitted.params, target)[0])
    measures = np.all([np.abs(np.log(at[k][1:] / at[k][0])) < SAME for k in at], axis=0)
    if width <= rule.width:
        return StopDecision(width, True, ~measures)
    noise = residual_sigma(fitted.residuals, fitted.problem.free) ** 2
    K = covariance(law, draws, at)
    if not np.isfinite(K).all():
        raise FitError(f"{table.source}: the rows determine no forecast at N={rule.N:g}, D={rule.D:g}")
    return StopDecision(width, False, skippable(K, noise, left.flops, NEGLIGIBLE) & ~measures)


def skippable(K: Array, noise: float, cost: Array, tolerance: float) -> NDArray[np.bool_]:
    """Runs (m,) without which all others together determine the target nearly as well as with them.

    Backward elimination: the run that saves most FLOPs for what it would have narrowed goes first, as long as the
    standard deviation of the target stays within a factor 1 + ``tolerance`` of that with all runs.

    Args:
        K: covariance (1 + m, 1 + m) of the log losses, the target's first, over the draws of the law.
        noise: variance of a measured log loss.
        cost: FLOPs (m,).
        tolerance: share of the standard deviation that may be given away; 0 gives away none.
    """
    kept: NDArray[np.bool_] = np.ones(len(cost), dtype=bool)
    now = _sigma(K, noise, kept)
    limit = now * (1 + tolerance)
    while tolerance > 0 and kept.any():
        without = {int(i): _sigma(K, noise, kept & (np.arange(len(cost)) != i)) for i in np.flatnonzero(kept)}
        allowed = [i for i, sigma in without.items() if sigma <= limit]
        if not allowed:
            break
        first = min(allowed, key=lambda i: (max(without[i] - now, 0.0) / cost[i], -cost[i]))
        kept[first], now = False, without[first]
    return ~kept


def _sigma(K: Array, noise: float, kept: NDArray[np.bool_]) -> float:
    """Standard deviation of the target once the runs ``kept`` are measured: that of a Gaussian, conditioned."""
    runs = 1 + np.flatnonzero(kept)
    cross = K[0, runs]
    seen = cross @ np.linalg.solve(K[np.ix_(runs, runs)] + noise * np.eye(len(runs)), cross) if len(runs) else 0.0
    return float(np.sqrt(max(K[0, 0] - seen, 0.0)))


def reasons(rule: StoppingRule, verdict: StopDecision, names: list[str]) -> Mapping[str, str]:
    """Why each of the candidates ``names`` (m,) that are not needed is not."""
    known = f"the forecast's {100 * LEVEL:g} % interval is {100 * verdict.width:.3g} % wide"
    enough = f"{known}, within the {100 * rule.width:g} % asked for"
    little = f"{known}; this run would hardly narrow it"
    return {n: enough if verdict.enough else little for n, u in zip(names, verdict.unneeded, strict=True) if u}
