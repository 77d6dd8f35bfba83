import numpy as np
import pytest

from scaling.fit.bootstrap import bootstrap
from scaling.fit.estimate import fit
from scaling.laws import LAWS
from scaling.tables.table import Excluded, Table
from scaling.validation.diagnostics import diagnose
from tests.helpers.scaling_tables import TRUTH, grid, simulated, table

CHINCHILLA = LAWS["chinchilla"]


def names(points: Table, clustered: bool = True) -> set[str]:
    fitted = fit(CHINCHILLA, points)
    found = diagnose(points, fitted, bootstrap(fitted, points.run, clustered=clustered, draws=100))
    assert all(w.message and w.advice for w in found)
    return {w.name for w in found}


def noisy(columns: dict[str, np.ndarray], run: list[str] | None = None, sigma: float = 0.005, **truth: float) -> Table:
    loss = CHINCHILLA.evaluate({**TRUTH, **truth}, columns)
    noise = sigma * np.random.default_rng(0).standard_normal(len(loss))
    return table({**columns, "loss": loss * np.exp(noise)}, run)


def test_a_sound_design_raises_no_warning():
    assert names(noisy(grid(np.geomspace(1e7, 3e9, 7), np.array([5.0, 20, 80, 320])), sigma=0.002)) == set()


def doubled() -> Table:
    points = simulated(noise=0.005)
    return table({k: np.concatenate([v, v[:3]]) for k, v in points.columns.items()})


def in_billions() -> Table:
    points = simulated(noise=0.005)
    return table({**points.columns, "D": points.columns["D"] / 1e9})


def with_outlier() -> Table:
    points = simulated(noise=0.003)
    loss = points.columns["loss"].copy()
    loss[7] *= 1.3
    return table({**points.columns, "loss": loss})


def replicated() -> Table:
    """Three seeds of every cell, ten times closer to each other than the law is to the data."""
    columns = {k: np.repeat(v, 3) for k, v in grid().items()}
    rng = np.random.default_rng(0)
    misfit = np.repeat(0.02 * rng.standard_normal(20), 3)
    loss = CHINCHILLA.evaluate(TRUTH, columns) * np.exp(misfit + 0.001 * rng.standard_normal(60))
    return table({**columns, "loss": loss})


def checkpoints() -> Table:
    return noisy(grid(), run=[f"run{i // 4}" for i in range(20)])


def left_out() -> Table:
    points = simulated(noise=0.005)
    return Table(points.columns, points.run, points.rows, [Excluded("x", "tainted")], "", "t")


def size_alone() -> Table:
    """Losses that do not depend on D at all."""
    noise = 0.005 * np.random.default_rng(0).standard_normal(20)
    return table({**grid(), "loss": (8.8e13 / grid()["N"]) ** 0.076 * np.exp(noise)})


LADDER = np.geomspace(1e7, 1e9, 8)
CASES = {
    "too_few_sizes": lambda: noisy(grid(np.array([1e7, 2e7, 4e7]), np.array([5.0, 20, 80, 320]))),
    "too_few_ratios": lambda: noisy(grid(LADDER, np.array([20.0, 80.0]))),
    "collinear_design": lambda: noisy(grid(LADDER, np.array([18.0, 20.0, 22.5]))),
    "duplicate_rows": doubled,
    "mixed_units": in_billions,
    "mid_schedule_rows": checkpoints,
    "few_runs": checkpoints,
    "excluded_rows": left_out,
    "outliers": with_outlier,
    "misfit": replicated,
    "at_bound": size_alone,
    "ill_conditioned": lambda: noisy({"N": LADDER, "D": 20 * LADDER}),
}


@pytest.mark.parametrize("name", list(CASES))
def test_each_flaw_is_named(name):
    assert name in names(CASES[name]())


def test_independent_resampling_of_repeated_runs_is_warned_of():
    assert "iid_with_repeated_runs" in names(checkpoints(), clustered=False)
    assert "iid_with_repeated_runs" not in names(checkpoints())


def test_an_optimum_that_never_moved_is_named():
    from scaling.fit.estimate import fit_problem, make_problem

    points = simulated(noise=0.005)
    problem = make_problem(CHINCHILLA, points)
    stuck = fit_problem(problem, fit(CHINCHILLA, points).theta[None])
    found = diagnose(points, stuck, bootstrap(stuck, points.run, draws=100))
    assert "unconverged" in {w.name for w in found}
