"""Does a 90 % interval cover 90 times in 100? Simulated studies with a known truth answer it for any design."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scaling.errors import FitError
from scaling.fit.bootstrap import LEVEL, METHODS, bootstrap, cluster_index, predictive_draws
from scaling.fit.estimate import Loss, fit_problem, loss_named, make_problem, starting_points
from scaling.laws import Array, Law
from scaling.tables.table import Table


@dataclass(frozen=True)
class SimulatedDesign:
    """Which runs a study has. ``columns`` are (n,); rows of one run share ``shared`` of the noise's variance.

    ``sigma`` is the relative standard deviation of the noise of a loss.
    """

    name: str
    columns: dict[str, Array]
    run: list[str]
    sigma: float
    shared: float = 0.0


@dataclass(frozen=True)
class Coverage:
    """Share of studies in which each interval held the truth, and the median width of the intervals.

    ``mean`` is the noiseless loss at the extrapolated point under the interval of the parameters alone; ``new`` is a
    new noisy measurement there under the prediction interval. ``failed`` studies could not be fitted.
    """

    design: str
    studies: int
    failed: int
    covered: dict[str, float]
    width: dict[str, float]
    bias: float


def ladder(points: int, clustered: bool = False, sigma: float = 0.01) -> SimulatedDesign:
    """20 points: 5 sizes from 10 M to 1 B at 5 to 320 tokens per parameter; 60 points: 10 sizes at 6 ratios.

    ``clustered``: rows of 2 (of 3) neighbouring ratios come from one run and share 70 % of the variance.
    """
    sizes, ratios = (5, 4) if points == 20 else (10, points // 10)
    N = np.repeat(np.geomspace(1e7, 1e9, sizes), ratios)
    ratio = np.tile(np.geomspace(5, 320, ratios), sizes)
    per_run = (2 if ratios == 4 else 3) if clustered else 1
    run = [f"run{i // per_run}" for i in range(len(N))]
    name = f"{len(N)} points, {len(set(run))} runs"
    return SimulatedDesign(name, {"N": N, "D": N * ratio}, run, sigma, 0.7 if clustered else 0.0)


def _noise(design: SimulatedDesign, cluster: NDArray[np.int64], rng: np.random.Generator) -> Array:
    runs = rng.standard_normal(cluster.max() + 1)[cluster]
    own = rng.standard_normal(len(cluster))
    return np.asarray(design.sigma * (np.sqrt(design.shared) * runs + np.sqrt(1 - design.shared) * own))


def coverage(
    law: Law,
    truth: Mapping[str, float],
    design: SimulatedDesign,
    point: Mapping[str, float],
    fitted_law: Law | None = None,
    studies: int = 500,
    draws: int = 200,
    method: str = METHODS[0],
    loss: Loss | None = None,
    level: float = LEVEL,
    seed: int = 0,
) -> Coverage:
    """Draw ``studies`` tables from ``law`` at ``truth``, fit ``fitted_law`` to each, count what its intervals hold.

    Parameters are counted only where the law fitted is the law drawn from. The fit starts from a twelfth of the
    default grid. Without noise a bias of the extrapolation (relative, mean over studies) is that of the law itself.
    """
    model = fitted_law or law
    loss = loss or loss_named(model.default_loss)
    rng = np.random.default_rng(seed)
    cluster = cluster_index(design.run)
    exact = law.evaluate(truth, design.columns)
    there = {k: np.array([v]) for k, v in point.items()}
    target = float(law.evaluate(truth, there)[0])
    counted = model.parameters if model is law else ()
    names = (*counted, "mean", "new")
    tails = [(1 - level) / 2, (1 + level) / 2]
    hits, widths, errors, failed = [], [], [], 0
    for study in range(studies):
        columns = {**design.columns, "loss": exact * np.exp(_noise(design, cluster, rng))}
        rows = np.arange(1, len(exact) + 1)
        table = Table(columns, design.run, rows, [], "", design.name).redefine()
        measured = target * np.exp(design.sigma * rng.standard_normal())
        try:
            problem = make_problem(model, table, loss)
            fitted = fit_problem(problem, starting_points(problem)[study % 12 :: 12])
        except FitError:
            failed += 1
            continue
        boot = bootstrap(fitted, table.cluster, method, draws=draws, seed=seed + study)
        mean = model.evaluate({k: v[:, None] for k, v in boot.params.items()}, there)[:, 0]
        log = loss.scale == "log"
        new = predictive_draws(model, boot.params, there, fitted.residuals, problem.free, log, seed + study)[:, 0]
        low, high = np.quantile([*(boot.params[k] for k in counted), mean, new], tails, axis=1)
        true = np.array([*(truth[k] for k in counted), target, measured])
        hits.append((low <= true) & (true <= high))
        widths.append(high - low)
        errors.append(float(fitted.predict(there)[0]) / target - 1)
    covered = dict(zip(names, np.mean(hits, axis=0).tolist(), strict=True))
    width = dict(zip(names, np.median(widths, axis=0).tolist(), strict=True))
    return Coverage(design.name, studies, failed, covered, width, float(np.mean(errors)))
