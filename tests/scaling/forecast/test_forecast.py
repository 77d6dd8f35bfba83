"""Weights, profiles, averaging, windows, sensitivity, two-step prediction and registered forecasts."""

import json
from dataclasses import replace

import numpy as np
import pytest

from scaling.errors import ArtifactError, ForecastError
from scaling.fit import model_averaging as averaging
from scaling.forecast.forecast import forecast, task_score
from scaling.forecast.law_file import read_draws, read_law, write_draws
from scaling.forecast.preregistration import FOLDER, read_forecasts, register, score_forecasts
from scaling.laws import LAWS
from scaling.study import FitOptions, fit_law
from tests.helpers.scaling_tables import TRUTH, simulated, table

CHINCHILLA = LAWS["chinchilla"]
POINT = {"N": 1e10, "D": 2e11, "C": 1.2e22}


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
