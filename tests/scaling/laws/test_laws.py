from importlib import import_module
from pkgutil import iter_modules

import numpy as np
import pytest

import scaling.laws
from scaling.fit.estimate import fit, loss_named
from scaling.laws import LAWS, Law
from tests.helpers.scaling_tables import TRUTH, grid, table

N, D, S, U = 3e8, 7e9, 2e4, 1e9
COUPLED = {"E": 1.2, "A": 300.0, "B": 900.0, "alpha": 0.4, "beta": 0.5, "gamma": 0.6}
REPEATED = {**TRUTH, "R_N": 5.31, "R_D": 15.4}
L = 2.9


def repeated(p):
    """Muennighoff et al., equations 5 and 6, with U_N from their appendix on compute-optimal allocation."""
    G = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / (p["alpha"] + p["beta"]))
    U_N = min(N, G * (U * G) ** (p["beta"] / p["alpha"]))
    N_ = U_N + U_N * p["R_N"] * (1 - np.exp(-(N / U_N - 1) / p["R_N"]))
    D_ = U + U * p["R_D"] * (1 - np.exp(-(D / U - 1) / p["R_D"]))
    assert N_ < N
    return p["E"] + p["A"] / N_ ** p["alpha"] + p["B"] / D_ ** p["beta"]


# Formulas written out once more, as they are printed in the papers.
BY_HAND = {
    "chinchilla": (TRUTH, lambda p: p["E"] + p["A"] / N ** p["alpha"] + p["B"] / D ** p["beta"]),
    "kaplan_n": ({"N_c": 8.8e13, "alpha": 0.076}, lambda p: (p["N_c"] / N) ** p["alpha"]),
    "kaplan_d": ({"D_c": 5.4e13, "alpha": 0.095}, lambda p: (p["D_c"] / D) ** p["alpha"]),
    "chinchilla_tied": (
        {"E": 1.7, "A": 400.0, "B": 900.0, "alpha": 0.35},
        lambda p: p["E"] + p["A"] / N ** p["alpha"] + p["B"] / D ** p["alpha"],
    ),
    "kaplan_nd": (
        {"N_c": 6.4e13, "D_c": 1.8e13, "alpha_N": 0.076, "alpha_D": 0.103},
        lambda p: ((p["N_c"] / N) ** (p["alpha_N"] / p["alpha_D"]) + p["D_c"] / D) ** p["alpha_D"],
    ),
    "kaplan_ns": (
        {"N_c": 6.5e13, "S_c": 2.1e3, "alpha_N": 0.077, "alpha_S": 0.76},
        lambda p: (p["N_c"] / N) ** p["alpha_N"] + (p["S_c"] / S) ** p["alpha_S"],
    ),
    "coupled": (
        COUPLED,
        lambda p: p["E"] + (p["A"] / N ** p["alpha"] + p["B"] / D ** p["beta"]) ** p["gamma"],
    ),
    "data_constrained": (REPEATED, repeated),
    "task_sigmoid": (
        {"a": 0.7, "k": 2.5, "L_0": 2.6, "b": 0.25},
        lambda p: p["b"] + p["a"] / (1 + np.exp(p["k"] * (L - p["L_0"]))),
    ),
    "kaplan_c": ({"C_c": 3.1e8 * 8.64e19, "alpha": 0.05}, lambda p: (p["C_c"] / (6 * N * D)) ** p["alpha"]),
}
EVERY_LAW = pytest.mark.parametrize("name", list(LAWS))


def test_every_declared_law_is_listed():
    modules = [import_module(f"scaling.laws.{m.name}") for m in iter_modules(scaling.laws.__path__)]
    declared = {v.name: v for module in modules for v in vars(module).values() if isinstance(v, Law)}
    assert declared == LAWS


@EVERY_LAW
def test_law_equals_its_printed_formula(name):
    params, by_hand = BY_HAND[name]
    columns = {"N": N, "D": D, "C": 6 * N * D, "S": S, "U": U, "loss": L}
    assert LAWS[name].evaluate(params, columns) == pytest.approx(by_hand(params), rel=1e-12)


@EVERY_LAW
def test_gradient_equals_finite_differences(name):
    law = LAWS[name]
    points = grid()
    columns = points | {"C": 6 * points["N"] * points["D"], "S": np.sqrt(points["D"]), "U": points["D"] / 7}
    columns["loss"] = np.linspace(2.0, 4.0, len(points["N"]))
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
    centre = np.linspace(18.0, 20.0, len(law.variables))
    np.testing.assert_allclose(law.decode(law.encode(params, centre), centre), params, rtol=1e-12)


def test_draws_broadcast_against_points():
    draws = {k: np.full((7, 1), v) for k, v in TRUTH.items()}
    values = LAWS["chinchilla"].evaluate(draws, {"N": np.array([1e8, 1e9, 1e10]), "D": np.array([2e9])})
    assert values.shape == (7, 3)
    assert LAWS["chinchilla"].evaluate(TRUTH, {"N": 1e9, "D": 2e10}).shape == ()


def test_coupled_law_interpolates_kaplan_and_chinchilla():
    columns = grid()
    coupled = LAWS["coupled"].evaluate({**TRUTH, "gamma": 1.0}, columns)
    np.testing.assert_allclose(coupled, LAWS["chinchilla"].evaluate(TRUTH, columns), rtol=1e-12)
    kaplan = BY_HAND["kaplan_nd"][0]
    ratio = kaplan["alpha_N"] / kaplan["alpha_D"]
    same = {"E": 0.0, "A": kaplan["N_c"] ** ratio, "B": kaplan["D_c"], "alpha": ratio, "beta": 1.0}
    coupled = LAWS["coupled"].evaluate({**same, "gamma": kaplan["alpha_D"]}, columns)
    np.testing.assert_allclose(coupled, LAWS["kaplan_nd"].evaluate(kaplan, columns), rtol=1e-10)


def test_data_seen_once_is_not_repeated():
    columns = grid()
    tokens = {**columns, "U": columns["D"]}
    law = LAWS["data_constrained"].evaluate({**REPEATED, "R_N": 1e5}, tokens)
    np.testing.assert_allclose(law, LAWS["chinchilla"].evaluate(TRUTH, columns), rtol=2e-3)


def test_every_law_recovers_its_own_truth():
    rng = np.random.default_rng(0)
    columns = grid(np.geomspace(1e7, 3e9, 7), np.array([3.0, 10, 30, 100, 300]))
    columns |= {"C": 6 * columns["N"] * columns["D"], "S": columns["D"] / 5e5}
    columns["U"] = columns["D"] / rng.choice([1.0, 3.0, 12.0, 50.0], len(columns["N"]))
    truths = {
        "chinchilla_tied": {"E": 1.7, "A": 400.0, "B": 900.0, "alpha": 0.35},
        "kaplan_n": {"N_c": 8.8e13, "alpha": 0.076},
        "kaplan_d": {"D_c": 5.4e13, "alpha": 0.095},
        "kaplan_c": {"C_c": 2.7e28, "alpha": 0.05},
        "kaplan_nd": {"N_c": 6.4e13, "D_c": 1.8e13, "alpha_N": 0.076, "alpha_D": 0.103},
        "kaplan_ns": {"N_c": 6.5e13, "S_c": 2.1e3, "alpha_N": 0.077, "alpha_S": 0.76},
        "coupled": {"E": 1.2, "A": 300.0, "B": 900.0, "alpha": 0.4, "beta": 0.5, "gamma": 0.6},
        "data_constrained": {"E": 1.87, "A": 521.0, "B": 1488.0, "alpha": 0.353, "beta": 0.36, "R_N": 5.3, "R_D": 15.4},
    }
    for name, truth in truths.items():
        points = table({**columns, "loss": LAWS[name].evaluate(truth, columns)})
        assert fit(LAWS[name], points).params == pytest.approx(truth, rel=1e-6), name
    loss = np.linspace(2.0, 4.0, 35)
    truth = {"a": 0.7, "k": 2.5, "L_0": 2.6, "b": 0.25}
    score = LAWS["task_sigmoid"].evaluate(truth, {"loss": loss})
    points = table({**columns, "loss": loss, "score": score})
    assert fit(LAWS["task_sigmoid"], points, loss_named("mse")).params == pytest.approx(truth, rel=1e-6)
    assert set(truths) | {"chinchilla", "task_sigmoid"} == set(LAWS)
