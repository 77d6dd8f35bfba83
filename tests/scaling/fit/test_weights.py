"""Weights of rows: replicates, seeds and errors of evaluation."""

import numpy as np
import pytest

from scaling.errors import FitError
from scaling.fit.estimate import fit
from scaling.fit.weights import noise_weights, replicate_sigma, weights_for
from scaling.laws import LAWS
from tests.helpers.scaling_tables import TRUTH, grid, simulated, table

CHINCHILLA = LAWS["chinchilla"]


def test_weights_are_inverse_variances_of_seeds_and_evaluation():
    columns = {k: np.repeat(v, 2) for k, v in grid().items()}
    rng = np.random.default_rng(1)
    loss = CHINCHILLA.evaluate(TRUTH, columns) * np.exp(0.01 * rng.standard_normal(40))
    points = table({**columns, "loss": loss, "stderr": np.where(np.arange(40) < 20, 1e-9, 0.1)})
    sigma, cells = replicate_sigma(points)
    assert sigma == pytest.approx(0.01, rel=0.4)
    assert cells == 20
    weights = noise_weights(points)
    variance = sigma**2 + (points.columns["stderr"] / loss) ** 2
    np.testing.assert_allclose(weights * variance, (weights * variance)[0], rtol=1e-12)
    assert weights.mean() == pytest.approx(1.0)
    assert weights[0] > weights[-1]  # the noisy half counts less, not more
    assert "weight" in weights_for(points, "noise").columns
    assert "weight" not in weights_for(weights_for(points, "noise"), "none").columns
    with pytest.raises(FitError, match="replicates"):
        noise_weights(simulated())


def test_a_row_with_half_the_error_counts_as_four() -> None:
    """Weights change the fit as inverse variances do: as if the row had been measured four times."""
    noisy = simulated(noise=0.02, seed=3)
    stderr = 0.01 * noisy.columns["loss"]  # the same on the scale of the logarithm
    halved = np.where(np.arange(20) == 7, stderr / 2, stderr)
    weighted = weights_for(noisy.with_columns({**noisy.columns, "stderr": halved}), "noise")
    assert weighted.columns["weight"] / weighted.columns["weight"][0] == pytest.approx(np.where(halved < stderr, 4, 1))
    repeated = table({k: np.append(v, [v[7]] * 3) for k, v in noisy.columns.items()})
    found, expected, plain = (fit(CHINCHILLA, points).params for points in (weighted, repeated, noisy))
    assert found == pytest.approx(expected, rel=1e-4)
    assert found != pytest.approx(plain, rel=1e-2)
