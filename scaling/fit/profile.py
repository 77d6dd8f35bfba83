"""The profile of one parameter: how far the objective rises when it is held away from its best value."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from scaling.errors import FitError
from scaling.fit.bootstrap import LEVEL, cluster_index, wild_noise, with_noise
from scaling.fit.estimate import Fit, minimise
from scaling.laws import Array

DRAWS, POINTS = 400, 61  # refits behind the threshold, and values of the parameter


@dataclass(frozen=True)
class Profile:
    """Profile of one parameter: the least objective (k,) with the parameter held at ``values`` (k,).

    ``threshold`` is the objective below which a value belongs to the interval.
    """

    values: Array
    objective: Array
    threshold: float
    low: float
    high: float


def profile(
    fit: Fit, run: Sequence[str], parameter: str = "E", level: float = LEVEL, clustered: bool = True, seed: int = 0
) -> Profile:
    """Profile interval of a parameter whose coordinate is itself, such as E, alpha or beta.

    The threshold is not that of a likelihood, which the Huber loss is not: it is the ``level`` quantile of how much
    the objective falls, in refits to new noise about the fitted law, when the parameter is freed from its true value.
    Raises FitError for a parameter that is entangled with others or pinned.
    """
    law, problem = fit.law, fit.problem
    i = law.parameters.index(parameter)
    if parameter in law.entangled or problem.is_fixed[i]:
        raise FitError(f"{parameter} of the law {law.name} cannot be profiled")
    is_fixed = problem.is_fixed.copy()
    is_fixed[i] = True
    cluster = cluster_index(run, clustered)
    y = with_noise(fit, wild_noise(fit, cluster, DRAWS, np.random.default_rng(seed)))
    start = np.repeat(fit.theta[None], DRAWS, axis=0)
    held = replace(problem, is_fixed=is_fixed, fixed=fit.theta)
    freed, bound = (minimise(p, start, y=y, tolerance=1e-7).objective for p in (problem, held))
    with np.errstate(invalid="ignore"):  # a draw whose noise overflows has no objective
        fall = np.nan_to_num(np.maximum(bound, freed) - freed)
    threshold = fit.certificate.objective + float(np.quantile(fall, level))
    lower, upper = law.bounds[i]

    def least(values: Array) -> Array:
        """Objective with the parameter held at each of ``values``."""
        starts = np.repeat(fit.theta[None], len(values), axis=0)
        starts[:, i] = values
        return minimise(held, starts, tolerance=1e-9).objective

    best = float(fit.theta[i])
    ends = [_crossing(least, best, bound, threshold) for bound in (lower, upper)]
    reach = max([abs(end - best) for end in ends if np.isfinite(end)] + [1e-6])
    values = np.linspace(max(lower, best - 1.5 * reach), min(upper, best + 1.5 * reach), POINTS)
    return Profile(values, least(values), threshold, *ends)


def _crossing(least: Callable[[Array], Array], best: float, bound: float, threshold: float) -> float:
    """Where the profile leaves the region below ``threshold`` between ``best`` and ``bound``; ``bound`` if nowhere."""
    furthest = min(abs(bound - best), 100 * max(abs(best), 1.0))
    distances = np.concatenate([[0.0], np.geomspace(1e-4, 1.0, 33) * furthest])
    for _ in range(3):
        outside = least(best + np.sign(bound - best) * distances) > threshold
        outside[0] = False
        if not outside.any():
            return bound
        first = int(outside.argmax())
        distances = np.linspace(distances[first - 1], distances[first], 33)
    return float(best + np.sign(bound - best) * distances[16])
