"""Figures that others published, from the tables that they published."""

import numpy as np
import pandas as pd
import pytest

from scaling.fit.estimate import fit, loss_named, make_problem, minimise
from scaling.laws import LAWS
from scaling.tables.read import read_table
from scaling.tables.table import Table
from tests.helpers.scaling_tables import TABLES

CHINCHILLA = LAWS["chinchilla"]


def gadre(dataset: str) -> tuple[Table, pd.DataFrame]:
    frame = pd.read_csv(TABLES / "gadre.csv")
    keep = (frame.dataset == dataset).to_numpy()
    return read_table(TABLES / "gadre.csv").select(keep), frame[keep].reset_index(drop=True)


def single_epoch() -> Table:
    table = read_table(TABLES / "datablations.csv")
    return table.select(table.columns["D"] <= table.columns["U"])


# E, A, B, alpha, beta and objective of fits made with other code, to the digits that two optimizers share.
INDEPENDENT = {
    ("kyo", "log-huber"): (1.78389, 442.164, 1271.81, 0.342626, 0.342002, 0.0008400931199574277),
    ("kyo", "log-mse"): (1.79624, 510.787, 1335.56, 0.351261, 0.344062, 0.0035052886883897042),
    ("c4_original", "log-huber"): (1.62002, 122.553, 242.609, 0.252574, 0.262229, 0.0005299541304503398),
    ("c4_original", "log-mse"): (1.53602, 125.274, 162.624, 0.259009, 0.231803, 0.01217545369026854),
    ("rpj", "log-huber"): (1.72024, 106.091, 297.976, 0.243084, 0.273005, 0.0004265108271538937),
    ("rpj", "log-mse"): (1.52738, 61.9821, 285.282, 0.209210, 0.263497, 0.011960621985675527),
    ("rw_original", "log-huber"): (1.70134, 76.7742, 384.160, 0.222587, 0.289773, 0.00047572550163028725),
    ("rw_original", "log-mse"): (1.63132, 70.5107, 257.623, 0.221641, 0.259934, 0.009642177704574062),
    ("datablations", "log-huber"): (1.91107, 452.888, 5405.07, 0.339006, 0.387303, 0.0009496429001450983),
    ("datablations", "log-mse"): (1.99328, 357.212, 7442.35, 0.334397, 0.402600, 0.03113970519140936),
}


@pytest.mark.parametrize(("name", "loss"), list(INDEPENDENT))
def test_independent_fits_are_matched(name, loss):
    tables = {"kyo": lambda: read_table(TABLES / "kyo_takano.csv"), "datablations": single_epoch}
    table = tables[name]() if name in tables else gadre(name)[0]
    *params, objective = INDEPENDENT[name, loss]
    fitted = fit(CHINCHILLA, table, loss_named(loss))
    assert fitted.certificate.objective <= objective * (1 + 1e-10)
    assert fitted.certificate.starts_agreeing == fitted.certificate.starts
    np.testing.assert_allclose(list(fitted.params.values()), params, rtol=2e-5)


def five_small_runs(dataset: str) -> tuple[Table, Table, pd.DataFrame]:
    """Gadre et al.'s five small runs (20 tokens per parameter, and the smallest size at 320), and the large ones."""
    table, frame = gadre(dataset)
    ratio = np.round(frame.D / frame.N)
    small = ((ratio == 20) & (frame.N < 5e8)) | ((ratio == 320) & (frame.N < 2e7))
    large = frame.N > 1e9
    return table.select(small.to_numpy()), table.select(large.to_numpy()), frame[large]


def errors(dataset: str, loss: str) -> dict[tuple[float, int], float]:
    """Relative error by size (billions) and tokens per parameter."""
    small, large, frame = five_small_runs(dataset)
    assert len(small) == 5
    fitted = fit(LAWS["chinchilla_tied"], small, loss_named(loss))
    error = fitted.predict(large.columns) / large.columns["loss"] - 1
    keys = zip(np.round(frame.N / 1e9, 1), np.round(frame.D / frame.N).astype(int), strict=True)
    return dict(zip(keys, error, strict=True))


def test_gadre_errors_are_reproduced_and_then_beaten_by_the_default():
    published = errors("rpj", "mse")
    assert published[1.4, 640] == pytest.approx(0.00710, abs=5e-6)
    assert published[6.9, 20] == pytest.approx(0.00732, abs=5e-6)
    assert errors("rw_original", "mse")[6.9, 20] == pytest.approx(-0.0162, abs=5e-5)
    assert errors("c4_original", "mse")[6.9, 20] == pytest.approx(-0.0430, abs=5e-5)
    default = errors("rpj", "log-huber")
    assert abs(default[1.4, 640]) < abs(published[1.4, 640])
    assert abs(default[6.9, 20]) < abs(published[6.9, 20])


def test_muennighoff_constants_are_reproduced_and_are_not_the_best():
    """R*_N = 5.309743 and R*_D = 15.387756 are a local minimum of their objective on their 182 rows.

    The objective is almost flat from there to a lower one that values repeated tokens far longer.
    """
    used = pd.read_csv(TABLES / "datablations.csv").used.to_numpy() == 1
    table = read_table(TABLES / "datablations.csv").select(used)
    assert len(table) == 182
    law = LAWS["data_constrained"]
    single = {"E": np.exp(0.6254804), "A": np.exp(6.255414), "B": np.exp(7.3049974)}
    fixed = {**single, "alpha": 0.3526596, "beta": 0.3526596}
    problem = make_problem(law, table, fixed=fixed)
    published = law.encode(np.array([[*fixed.values(), 5.309743, 15.387756]]), problem.centre)
    near = minimise(problem, published, tolerance=0.0, iterations=1000)
    R_N, R_D = law.decode(near.theta, problem.centre)[0, 5:]
    assert near.gradient_norm[0] < 1e-9
    assert pytest.approx(5.309743, rel=2e-3) == R_N
    assert pytest.approx(15.387756, rel=2e-3) == R_D
    best = fit(law, table, fixed=fixed)
    assert best.certificate.objective < 0.999 * near.objective[0]
    assert best.params["R_D"] > 50
    assert best.certificate.starts_agreeing < best.certificate.starts  # and the certificate says so
