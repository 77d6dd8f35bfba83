import numpy as np
import pytest

from scaling.errors import FitError
from scaling.fit.bootstrap import bootstrap, cluster_index, predictive_draws
from scaling.fit.estimate import fit
from scaling.laws import LAWS
from tests.helpers.scaling_tables import grid, simulated, table

CHINCHILLA = LAWS["chinchilla"]


def test_pairs_draw_equals_a_fit_of_the_resampled_rows():
    points = simulated(noise=0.01)
    fitted = fit(CHINCHILLA, points)
    boot = bootstrap(fitted, points.run, "pairs", draws=20, seed=5)
    counts = np.random.default_rng(5).multinomial(20, np.full(20, 1 / 20), size=20)
    counts = counts[:, cluster_index(points.run)]
    for i in (0, 7):
        resampled = table({k: np.repeat(v, counts[i]) for k, v in points.columns.items()})
        again = fit(CHINCHILLA, resampled)
        rows = np.repeat(np.arange(20), counts[i])
        prediction = CHINCHILLA.evaluate({k: v[i] for k, v in boot.params.items()}, resampled.columns)
        residual = np.log(prediction / points.columns["loss"][rows])
        assert fitted.problem.loss.rho(residual).sum() == pytest.approx(again.certificate.objective, rel=1e-4)


def test_runs_move_together():
    run = ["a", "b", "a", "c"]
    index = cluster_index(run)
    assert index[0] == index[2]
    assert len(set(index)) == 3
    assert len(set(cluster_index(run, clustered=False))) == 4


@pytest.mark.parametrize("method", ["pairs", "wild"])
def test_clustered_noise_needs_clustered_resampling(method):
    """Eight runs of five checkpoints that share a run's noise: iid resampling is overconfident."""
    columns = grid(np.geomspace(1e7, 1e9, 8), np.geomspace(5, 300, 5))
    rng, run = np.random.default_rng(0), [f"run{i // 5}" for i in range(40)]
    loss = CHINCHILLA.evaluate({"E": 1.7, "A": 400.0, "B": 400.0, "alpha": 0.34, "beta": 0.28}, columns)
    loss = loss * np.exp(np.repeat(0.01 * rng.standard_normal(8), 5) + 0.001 * rng.standard_normal(40))
    points = table({**columns, "loss": loss}, run)
    fitted = fit(CHINCHILLA, points)
    width = {}
    for clustered in (True, False):
        low, high = bootstrap(fitted, run, method, clustered, 400).intervals()["alpha"]
        width[clustered] = high - low
    assert width[True] > 1.15 * width[False]


def test_prediction_interval_is_wider_than_that_of_the_mean():
    points = simulated(noise=0.02)
    fitted = fit(CHINCHILLA, points)
    draws = bootstrap(fitted, points.run, draws=400).params
    columns = {"N": np.array([1e9]), "D": np.array([2e10])}
    new = predictive_draws(CHINCHILLA, draws, columns, fitted.residuals, 5)
    mean = CHINCHILLA.evaluate({k: v[:, None] for k, v in draws.items()}, columns)
    assert new.shape == mean.shape == (400, 1)
    assert np.log(new).std() > 1.3 * np.log(mean).std()


def test_the_seed_decides_the_draws():
    points = simulated(noise=0.01)
    fitted = fit(CHINCHILLA, points)
    first, again, other = (bootstrap(fitted, points.run, draws=50, seed=s).params["E"] for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    with pytest.raises(FitError, match="not one of wild"):
        bootstrap(fitted, points.run, "jackknife")
