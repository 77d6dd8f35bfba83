"""Weights, profiles, averaging, windows, sensitivity, two-step prediction and registered forecasts."""

import json
from dataclasses import replace

import numpy as np
import pytest

from scaling.errors import ArtifactError, FitError, ForecastError
from scaling.fit import model_averaging as averaging
from scaling.fit.estimate import fit, loss_named
from scaling.fit.folds import compute_folds
from scaling.fit.profile import profile
from scaling.fit.weights import noise_weights, replicate_sigma, weights_for
from scaling.forecast.forecast import forecast, task_score
from scaling.forecast.law_file import read_draws, read_law, write_draws
from scaling.forecast.preregistration import FOLDER, read_forecasts, register, score_forecasts
from scaling.laws import LAWS
from scaling.study import FitOptions, fit_law
from scaling.tables.table import frontier
from scaling.validation.backtest import expanding_windows
from scaling.validation.sensitivity import sensitivity
from tests.helpers.scaling_tables import TRUTH, grid, simulated, table

CHINCHILLA = LAWS["chinchilla"]
POINT = {"N": 1e10, "D": 2e11, "C": 1.2e22}


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


def test_weights_are_inverse_variances_of_seeds_and_evaluation():
    columns = {k: np.repeat(v, 2) for k, v in grid().items()}
    rng = np.random.default_rng(1)
    loss = CHINCHILLA.evaluate(TRUTH, columns) * np.exp(0.01 * rng.standard_normal(40))
    points = table({**columns, "loss": loss, "stderr": np.where(np.arange(40) < 20, 1e-9, 0.1)})
    sigma, cells = replicate_sigma(points)
    assert sigma == pytest.approx(0.01, rel=0.4)
    assert cells == 20
    noise = noise_weights(points)
    variance = sigma**2 + (points.columns["stderr"] / loss) ** 2
    np.testing.assert_allclose(noise.weights * variance, (noise.weights * variance)[0], rtol=1e-12)
    assert noise.weights.mean() == pytest.approx(1.0)
    assert noise.weights[0] > noise.weights[-1]  # the noisy half counts less, not more
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


def test_profile_of_E_holds_the_estimate_and_widens_with_noise():
    width = []
    for noise in (0.002, 0.008):
        points = simulated(noise=noise, seed=2)
        fitted = fit(CHINCHILLA, points)
        found = profile(fitted, points.run)
        assert found.low < fitted.params["E"] < found.high
        assert found.objective.min() == pytest.approx(fitted.certificate.objective, rel=1e-3)
        inside = found.objective <= found.threshold
        assert (inside == ((found.values >= found.low) & (found.values <= found.high))).mean() > 0.95
        width.append(found.high - found.low)
    assert width[1] > 2 * width[0]
    with pytest.raises(FitError, match="cannot be profiled"):
        profile(fitted, points.run, "A")


def test_windows_expand_and_never_look_ahead():
    points = simulated(noise=0.003)
    folds = compute_folds(points)
    sizes = [int((~out).sum()) for out in folds]
    assert sizes == sorted(sizes)
    for out in folds:
        assert points.columns["C"][out].min() > points.columns["C"][~out].max()
    windows = expanding_windows(CHINCHILLA, points, draws=100)
    assert windows
    assert all(w.reach > 1 and w.held_out == len(w.scored) for w in windows)
    assert windows[-1].rms_error < 0.02


def test_frontier_is_the_lower_envelope():
    columns = {"N": np.array([1.0, 2, 3, 4]), "D": np.ones(4), "loss": np.array([4.0, 5.0, 3.0, 3.5])}
    assert list(frontier(table(columns), "N")) == [True, False, True, False]


def test_average_prefers_the_true_law_and_knows_that_laws_differ():
    points = simulated(noise=0.002)
    mixed = averaging.average(points, averaging.candidates(pinned_E=1.69), draws=200)
    weight = {m.label: m.weight for m in mixed.members}
    assert sum(weight.values()) == pytest.approx(1.0)
    assert weight["chinchilla"] > weight["kaplan_nd"]
    assert weight["kaplan_nd"] < 0.05
    answer = averaging.predict(mixed, POINT)
    truth = float(CHINCHILLA.evaluate(TRUTH, POINT))
    assert answer["low"] < truth < answer["high"]
    assert answer["between"] > 0
    equal = averaging.Average([replace(m, weight=1 / len(mixed.members)) for m in mixed.members], {})
    wide = averaging.predict(equal, POINT)
    assert wide["between"] > answer["between"]
    assert wide["high"] - wide["low"] > answer["high"] - answer["low"]


def test_sensitivity_spans_the_choices_and_says_which_axis_moves_what():
    points = simulated(noise=0.01)
    extra = {"N_non_embedding": points.columns["N"] * 0.8, "N_head": points.columns["N"] * 0.1}
    points = points.with_columns({**points.columns, **extra})
    found = sensitivity(CHINCHILLA, points, POINT)
    assert len(found.settings) + len(found.failed) == 6 * 2 * 3 * 2
    low, middle, high = found.spread["prediction"]
    assert low < middle < high
    assert found.by_axis.keys() == {"objective", "outliers", "N definition", "smallest size"}
    # N counted as a constant share of the total changes A only.
    assert found.by_axis["N definition"]["alpha"][0] == pytest.approx(
        found.by_axis["N definition"]["alpha"][2], rel=1e-5
    )
    assert found.by_axis["N definition"]["prediction"][2] == pytest.approx(
        found.by_axis["N definition"]["prediction"][0], rel=1e-6
    )
    assert "C" in found.fixed_axes["C definition"]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A directory with a law, its draws and those of the average."""
    out = tmp_path_factory.mktemp("law")
    result = fit_law(simulated(noise=0.003), FitOptions(draws=300, sensitivity=False))
    write_draws(out / "average.npz", averaging.all_draws(result.average))
    result.law.write(out, result.draws)
    return out


def test_law_json_is_complete_and_finite(fitted):
    law = read_law(fitted)
    assert json.loads((fitted / "law.json").read_text()) == law.flat()
    assert read_draws(fitted)["alpha"].shape == (300,)
    assert law.uncertainty.profile_E.interval[0] < law.fit.params["E"] < law.uncertainty.profile_E.interval[1]
    assert law.checks.backtest.predictions > 0
    assert law.checks.certificate.moved_from_start is True
    assert law.checks.certificate.versions["numpy"] == np.__version__
    assert {m.label for m in law.others.averaged.members} == {"chinchilla", "chinchilla_tied", "kaplan_nd", "coupled"}


def test_average_survives_the_files(fitted):
    law = read_law(fitted)
    given = {"N": 1e10, "D": 2e11}
    alone, mixed = forecast(fitted, law, given), forecast(fitted, law, given, average=True)
    assert mixed.averaged["by_law"]["chinchilla"]["loss"] == pytest.approx(alone.loss, rel=1e-12)
    assert mixed.low < mixed.loss < mixed.high


def test_two_of_three_inputs_are_enough(fitted):
    law = read_law(fitted)
    whole = forecast(fitted, law, {"N": 1e10, "D": 2e11})
    assert forecast(fitted, law, {"N": 1e10, "C": 1.2e22}).loss == pytest.approx(whole.loss, rel=1e-12)
    assert forecast(fitted, law, {"D": 2e11, "C": 1.2e22}).loss == pytest.approx(whole.loss, rel=1e-12)
    assert whole.extrapolation == pytest.approx(max(whole.extrapolation_by.values()))
    with pytest.raises(ForecastError, match="--tokens"):
        forecast(fitted, law, {"N": 1e10})
    with pytest.raises(ForecastError, match="positive"):
        forecast(fitted, law, {"N": -1.0, "D": 2e11})


def test_two_step_prediction_carries_the_loss_through_the_sigmoid(fitted, tmp_path):
    loss = np.linspace(2.2, 4.0, 30)
    rng = np.random.default_rng(0)
    truth = {"a": 0.7, "k": 2.5, "L_0": 2.6, "b": 0.25}
    score = LAWS["task_sigmoid"].evaluate(truth, {"loss": loss}) + 0.005 * rng.standard_normal(30)
    points = table({"N": np.full(30, 1e8), "D": np.full(30, 1e9), "loss": loss, "score": score})
    result = fit_law(points, FitOptions(law="task_sigmoid", draws=200))
    result.law.write(tmp_path, result.draws)
    answer = task_score(fitted, read_law(fitted), tmp_path, read_law(tmp_path), {"N": 1e10, "D": 2e11})
    expected = float(LAWS["task_sigmoid"].evaluate(truth, {"loss": CHINCHILLA.evaluate(TRUTH, POINT)}))
    assert answer["score_low"] < expected < answer["score_high"]
    assert answer["score"] == pytest.approx(expected, abs=0.03)
    with pytest.raises(ForecastError, match="does not predict a score"):
        task_score(fitted, read_law(fitted), fitted, read_law(fitted), {"N": 1e10, "D": 2e11})


def test_a_registered_forecast_is_scored_when_its_run_lands(fitted):
    law = read_law(fitted)
    before = simulated(noise=0.003)
    path = register(fitted, law, forecast(fitted, law, {"N": 1e10, "D": 2e11}))
    with pytest.raises(ForecastError, match="already registered"):
        register(fitted, law, forecast(fitted, law, {"N": 1e10, "D": 2e11}))
    with pytest.raises(ForecastError, match="part of the fit"):
        register(fitted, law, forecast(fitted, law, {"N": 1e9, "D": 5e9}))
    assert score_forecasts([fitted], before).pending == 1

    truth = float(CHINCHILLA.evaluate(TRUTH, POINT))
    landed = {
        k: np.append(v, w) for (k, v), w in zip(before.columns.items(), (1e10, 2e11, truth, 1e10, 1.2e22), strict=True)
    }
    after = replace(before, columns=landed, run=[*before.run, "big"], rows=np.arange(1, 22), sha256="1" * 64)
    scored = score_forecasts([fitted], after)
    assert (scored.pending, len(scored.scored), scored.covered) == (0, 1, 1)
    assert scored.scored[0].runs == ["big"]
    assert abs(scored.scored[0].error) < 0.02

    content = json.loads(path.read_text())
    (fitted / FOLDER / "bent.json").write_text(json.dumps({**content, "loss": truth}))
    found, changed = read_forecasts([fitted])
    assert len(found) == 1
    assert changed == ["bent.json"]


def test_artifacts_that_are_not_laws_are_refused(tmp_path):
    for content, message in [("{", "not JSON"), ("[]", "not a law"), ("{}", "missing")]:
        (tmp_path / "law.json").write_text(content)
        with pytest.raises(ArtifactError, match=message):
            read_law(tmp_path)
    with pytest.raises(ArtifactError, match="draws"):
        read_draws(tmp_path)
