"""Where the loss curve of a run should lie, by its finished siblings: the law, fitted at every stage of the schedule.

Runs of one ladder follow one schedule, so that their losses can be compared at equal progress x = step / steps, and at
each x obey a law in N and D of their own; with x = 1 it is the usual one. (Normalised by their ends, such curves
collapse onto each other when they are compute-optimal: Qiu et al. 2025, arXiv:2507.02119. A law at each x asks for
less: the ladder may hold any sizes and budgets.) The interval of its prediction is the band. A healthy run stays
inside; a wrong learning rate, broken data or a frozen layer shows long before the end.
"""

from collections.abc import Sequence

import numpy as np
from scipy.stats import t

from configs.curve_band import CurveBand
from scaling.errors import FitError
from scaling.laws import Array
from scaling.tables.curves import Curve, smoothed

POINTS = 20  # stages of a run
FIRST = 0.1  # progress before which curves differ too much from each other to say anything
WINDOW = 0.1  # the loss at x is the mean since (1 - WINDOW) x
LEVEL = 0.998  # of the band: three standard deviations of normal noise
LEAST_LOG = 0.01  # half the band's least width, in log loss: agreement beyond that is luck
MIN_RUNGS = 6
# Standard deviation of the second-order coefficients. For L = E + A/N^α they are α² f (1 - f) / 2, with f the share
# of L that is not E: at most .02 for any exponent that has been published.
CURVATURE = 0.02


def stages() -> Array:
    """The fractions of a run at which a band is stated, (POINTS,), evenly spaced in their logarithm."""
    return np.geomspace(FIRST, 1.0, POINTS)


def course(progress: Array, loss: Array, at: Array) -> Array:
    """Geometric mean of ``loss`` over ((1 - WINDOW) x, x] for each x of ``at``; NaN outside what was logged.

    Each logged loss stands for the steps since the one before it. ``progress`` (n,) rises; losses that are not
    positive numbers are passed over.
    """
    keep = np.isfinite(loss) & (loss > 0)
    progress = np.concatenate([[0.0], progress[keep]])
    integral = np.concatenate([[0.0], np.cumsum(np.diff(progress) * np.log(loss[keep]))])
    means = (np.interp(at, progress, integral) - np.interp(at * (1 - WINDOW), progress, integral)) / (WINDOW * at)
    return np.where(at <= progress[-1] * (1 + 1e-9), np.exp(means), np.nan)


def band(rungs: Sequence[tuple[float, float, Curve]], N: float, D: float) -> CurveBand:
    """Predict the course of a run of ``N`` parameters on ``D`` tokens.

    Args:
        rungs: (N, D, curve) of each finished run with the same schedule, batch and data.
        N: parameters of the run.
        D: its tokens.

    Raises:
        FitError: when there are fewer than ``MIN_RUNGS`` rungs, or they do not differ in N or in D.
    """
    if len(rungs) < MIN_RUNGS:
        raise FitError(f"a band needs at least {MIN_RUNGS} finished runs of the same schedule; there are {len(rungs)}")
    at = stages()
    sizes = np.log([[n, d] for n, d, _ in rungs])
    losses = np.log([course(curve.tokens / tokens, curve.loss_mean, at) for _, tokens, curve in rungs])
    known = np.isfinite(losses).all(axis=0)
    losses = losses[:, known]
    centre, spread, freedom = _predict(sizes, losses, np.log([[N, D]]))
    spread = np.hypot(spread, _backtest(sizes, losses))
    # A few rungs determine the scale of the noise badly; neighbouring stages share it. Their noise is not all their
    # own, so that of five stages three are counted.
    width = t.ppf((1 + LEVEL) / 2, 3 * freedom) * np.exp(smoothed(np.log(spread), 5))
    width = np.maximum(width, LEAST_LOG)
    low, centre, high = np.exp([centre - width, centre, centre + width])
    curves = {"progress": at[known], "low": low, "centre": centre, "high": high}
    return CurveBand(**{key: tuple(curve.tolist()) for key, curve in curves.items()}, window=WINDOW, rungs=len(rungs))


def _predict(sizes: Array, losses: Array, new: Array) -> tuple[Array, Array, Array]:
    """Log loss at one ``new`` size (1, 2) by those of ``sizes`` (n, 2), at every stage of ``losses`` (n, k): each (k,).

    Returns the mean, the standard deviation and the degrees of freedom.
    """
    design, at = _expand(sizes, sizes), _expand(new, sizes)[0]
    mean, spread, freedom = np.array([_regress(design, column, at) for column in losses.T]).T
    return mean, spread, freedom


def _backtest(sizes: Array, losses: Array) -> Array:
    """Error (k,) of predicting the rungs of the largest size from the others, root mean square; what no residual shows.

    Zero where the others are too few to predict anything.
    """
    largest = sizes[:, 0] == sizes[:, 0].max()
    if (~largest).sum() < MIN_RUNGS - 1:
        return np.zeros(losses.shape[1])
    pairs = zip(sizes[largest], losses[largest], strict=True)
    errors = [loss - _predict(sizes[~largest], losses[~largest], size[None])[0] for size, loss in pairs]
    return np.asarray(np.sqrt((np.array(errors) ** 2).mean(axis=0)))


def _expand(points: Array, about: Array) -> Array:
    """Terms (n, 6) of a second-order expansion in log N and log D about the mean of ``about``."""
    n, d = (points - about.mean(axis=0)).T
    return np.stack([np.ones_like(n), n, d, n * n, n * d, d * d], axis=1)


def _regress(design: Array, y: Array, new: Array) -> tuple[float, float, float]:
    """Bayesian regression with a normal prior on the second-order terms: (mean, standard deviation, freedom) at new.

    The noise's variance and the prior's weight against it are iterated to agree.
    """
    prior = np.array([0.0, 0.0, 0.0, *[CURVATURE**-2.0] * 3])
    variance = float(np.var(y)) / 10 + 1e-12
    for _ in range(20):
        inverse = np.linalg.pinv(design.T @ design + variance * np.diag(prior))
        weights = inverse @ design.T @ y
        freedom = max(1.0, len(y) - float(np.trace(design @ inverse @ design.T)))
        variance = max(float(((y - design @ weights) ** 2).sum()) / freedom, 1e-12)
    return float(new @ weights), float(np.sqrt(variance * (1 + new @ inverse @ new))), freedom
