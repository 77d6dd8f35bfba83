import numpy as np
import pytest

from scaling.laws import LAWS
from tests.scaling_tables import TRUTH, grid

N, D = 3e8, 7e9
# Formulas written out once more, as they are printed in the papers.
BY_HAND = {
    "chinchilla": (TRUTH, lambda p: p["E"] + p["A"] / N ** p["alpha"] + p["B"] / D ** p["beta"]),
    "kaplan_n": ({"N_c": 8.8e13, "alpha": 0.076}, lambda p: (p["N_c"] / N) ** p["alpha"]),
    "kaplan_d": ({"D_c": 5.4e13, "alpha": 0.095}, lambda p: (p["D_c"] / D) ** p["alpha"]),
    "kaplan_c": ({"C_c": 3.1e8 * 8.64e19, "alpha": 0.05}, lambda p: (p["C_c"] / (6 * N * D)) ** p["alpha"]),
}
EVERY_LAW = pytest.mark.parametrize("name", list(LAWS))


@EVERY_LAW
def test_law_equals_its_printed_formula(name):
    params, by_hand = BY_HAND[name]
    columns = {"N": np.array(N), "D": np.array(D), "C": np.array(6 * N * D)}
    assert LAWS[name].evaluate(params, columns) == pytest.approx(by_hand(params), rel=1e-12)


@EVERY_LAW
def test_gradient_equals_finite_differences(name):
    law = LAWS[name]
    columns = grid() | {"C": 6 * grid()["N"] * grid()["D"]}
    features = law.features(columns)
    x = features - law.centre(features)[:, None]
    theta = law.encode(np.array([list(BY_HAND[name][0].values())]), law.centre(features))
    _, gradient = law.model(theta, x)
    for i in range(theta.shape[1]):
        step = np.zeros_like(theta)
        step[0, i] = 1e-6
        numeric = (law.model(theta + step, x)[0] - law.model(theta - step, x)[0]) / 2e-6
        np.testing.assert_allclose(gradient[:, i], numeric, rtol=1e-6, atol=1e-8)


@EVERY_LAW
def test_coordinates_and_parameters_are_inverse(name):
    law, params = LAWS[name], np.array([list(BY_HAND[name][0].values())])
    centre = np.linspace(18.0, 22.0, len(law.variables))
    np.testing.assert_allclose(law.decode(law.encode(params, centre), centre), params, rtol=1e-12)


def test_draws_broadcast_against_points():
    draws = {k: np.full((7, 1), v) for k, v in TRUTH.items()}
    values = LAWS["chinchilla"].evaluate(draws, {"N": np.array([1e8, 1e9, 1e10]), "D": np.array([2e9])})
    assert values.shape == (7, 3)
    assert LAWS["chinchilla"].evaluate(TRUTH, {"N": 1e9, "D": 2e10}).shape == ()
