"""How far a fit can be trusted: bootstrap draws, parameter intervals and prediction intervals.

Rows of one run share its noise, so whole runs are resampled unless asked otherwise: intervals that treat them as
independent have been seen five times too narrow. The draws are refits of the whole law, batched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .estimate import Fit, FitError, minimise
from .laws import Array, Law

METHODS = ("pairs", "wild")
DRAWS = 2000
LEVEL = 0.9


@dataclass(frozen=True)
class Bootstrap:
    """Refits to resampled data. ``params`` maps each parameter to (draws,); ``boundary`` to the share at a bound."""

    params: dict[str, Array]
    method: str
    clustered: bool
    clusters: int
    boundary: dict[str, float]
    seed: int

    def intervals(self, level: float = LEVEL) -> dict[str, tuple[float, float]]:
        """Equal-tailed interval of every parameter."""
        return {name: interval(values, level) for name, values in self.params.items()}


def interval(values: Array, level: float = LEVEL) -> tuple[float, float]:
    """Equal-tailed percentile interval of draws (draws,) or (draws, 1)."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def cluster_index(run: Sequence[str], clustered: bool = True) -> NDArray[np.int64]:
    """Number (n,) of the cluster of each row: its run, or the row itself."""
    if not clustered:
        return np.arange(len(run))
    return np.unique(np.asarray(run, dtype=object).astype(str), return_inverse=True)[1].astype(np.int64)


def bootstrap(
    fit: Fit,
    run: Sequence[str],
    method: str = "pairs",
    clustered: bool = True,
    draws: int = DRAWS,
    seed: int = 0,
) -> Bootstrap:
    """Refit ``draws`` resampled tables, each from the optimum of ``fit``. Raises FitError for an unknown method.

    ``pairs``: clusters drawn with replacement. ``wild``: the design is kept and the residuals of a cluster are all
    multiplied by +1 or -1 (Rademacher), after inflation by sqrt(n / (n - p)) for the freedom that the fit used up.
    """
    problem, rng = fit.problem, np.random.default_rng(seed)
    cluster = cluster_index(run, clustered)
    clusters, n = int(cluster.max()) + 1, len(cluster)
    starts = np.repeat(fit.theta[None], draws, axis=0)
    if method == "pairs":
        counts = rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=draws).astype(float)
        solution = minimise(problem, starts, weights=counts[:, cluster] * problem.weights, tolerance=1e-7)
    elif method == "wild":
        signs = rng.choice([-1.0, 1.0], size=(draws, clusters))
        noise = signs[:, cluster] * fit.residuals * np.sqrt(n / max(n - problem.free, 1))
        prediction = fit.law.model(fit.theta[None], problem.x)[0]
        y = prediction * np.exp(noise) if problem.loss.scale == "log" else prediction + noise
        solution = minimise(problem, starts, y=y, tolerance=1e-7)
    else:
        raise FitError(f"bootstrap method {method!r} is not one of {', '.join(METHODS)}")
    values = fit.law.decode(solution.theta, problem.centre)
    lower, upper = np.array(fit.law.bounds).T
    at_bound = ((solution.theta <= lower) | (solution.theta >= upper)) & ~problem.fixed
    return Bootstrap(
        params={k: values[:, i] for i, k in enumerate(fit.law.parameters)},
        method=method,
        clustered=clustered,
        clusters=clusters,
        boundary={k: float(at_bound[:, i].mean()) for i, k in enumerate(fit.law.parameters)},
        seed=seed,
    )


def residual_sigma(residuals: Array, free: int) -> float:
    """Standard deviation of the residuals (n,) after a fit of ``free`` parameters."""
    return float(np.sqrt((residuals**2).sum() / max(len(residuals) - free, 1)))


def predictive_draws(
    law: Law,
    params: Mapping[str, Array],
    columns: Mapping[str, Array],
    residuals: Array,
    free: int,
    log: bool = True,
    seed: int = 0,
) -> Array:
    """Draws (draws, points) of a new measurement at ``columns``: parameter uncertainty plus residual noise.

    ``residuals`` (n,) of the fit are resampled, inflated for the ``free`` parameters that were fitted.
    """
    draws = {k: np.asarray(v).reshape(-1, 1) for k, v in params.items()}
    mean = law.evaluate(draws, {k: np.atleast_1d(v) for k, v in columns.items()})
    rng = np.random.default_rng(seed + 1)
    n = len(residuals)
    noise = rng.choice(residuals, size=mean.shape) * np.sqrt(n / max(n - free, 1))
    return np.asarray(mean * np.exp(noise) if log else mean + noise)
