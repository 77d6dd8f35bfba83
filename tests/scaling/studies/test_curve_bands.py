"""Bands: a ladder of simulated curves, whose course is known."""

import json
import os
import runpy

import numpy as np
import pytest

from configs.curve_band import BAND, CurveBand, read_band
from configs.reader import dump_yaml
from model.counts import count_parameters
from scaling.errors import FitError
from scaling.studies.curve_bands import MIN_RUNGS, WINDOW, band, course, stages
from scaling.tables.curves import Curve, read_curves
from tests.conftest import ROOT
from train.config import load_run
from train.stability.band_monitor import Monitor

SIZES, BUDGETS = (3e4, 1e5, 3e5, 1e6), (1e6, 3e6)


def simulated(N: float, D: float, noise: float, seed: int, rows: int = 400, scale: float = 1.0) -> Curve:
    """A run whose loss at progress x is a Chinchilla law of N and x D, with the noise of batches."""
    x = np.arange(1, rows + 1) / rows
    truth = scale * (1.5 + 15 * N**-0.25 + 80 * (x * D) ** -0.3)
    loss = truth * np.exp(noise * np.random.default_rng(seed).standard_normal(rows))
    nothing = np.full(rows, np.nan)
    return Curve(f"{N:g}-{D:g}", N, True, x * D, nothing, loss, loss, nothing, x * rows, nothing)


def ladder(noise: float = 0.01, seed: int = 0) -> list[tuple[float, float, Curve]]:
    return [(N, D, simulated(N, D, noise, seed + i)) for i, (N, D) in enumerate((N, D) for N in SIZES for D in BUDGETS)]


def follow(curve: Curve, expected: CurveBand, tmp_path) -> list[str]:
    """Alerts of a run that logs `curve` under a band."""
    expected.write(tmp_path / BAND)
    monitor = Monitor(tmp_path / BAND, int(curve.step[-1]))
    said = [monitor.follow(round(step), float(loss))[1] for step, loss in zip(curve.step, curve.loss, strict=True)]
    return [sentence for sentence in said if sentence]


def test_course_of_a_power_law_is_its_mean_over_the_window() -> None:
    x = np.arange(1, 10_001) / 10_000
    loss = 3 * x**-0.1
    at = np.array([0.1, 0.5, 1.0])
    # Mean of -0.1 log x over ((1 - w) x, x], by its primitive x log x - x.
    low = (1 - WINDOW) * at
    mean = ((at * np.log(at) - at) - (low * np.log(low) - low)) / (at - low)
    assert course(x, loss, at) == pytest.approx(np.exp(np.log(3) - 0.1 * mean), rel=1e-4)


def test_course_does_not_depend_on_how_often_a_constant_is_logged() -> None:
    for rows in (50, 1000):
        x = np.arange(1, rows + 1) / rows
        assert course(x, np.full(rows, 2.5), stages()) == pytest.approx(2.5)


def test_course_ends_where_the_log_ends_and_passes_over_what_is_no_loss() -> None:
    x = np.arange(1, 101) / 200
    loss = np.full(100, 2.0)
    loss[[3, 50]] = np.nan, -1.0
    found = course(x, loss, np.array([0.25, 0.5, 0.6]))
    assert found[:2] == pytest.approx([2.0, 2.0])
    assert np.isnan(found[2])


def test_a_curve_has_the_mean_since_the_row_before_or_else_the_loss(tmp_path) -> None:
    rows = [{"step": s, "tokens": 8 * s, "loss": 3.0 + s} for s in (1, 10, 20)]
    rows[1] |= {"loss_mean": 5.0}
    rows[2] |= {"loss": None, "loss_mean": 4.0}
    (tmp_path / "run").mkdir()
    (tmp_path / "run/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    [curve] = read_curves(tmp_path)
    assert curve.loss_mean.tolist() == [4.0, 5.0, 4.0]


def test_band_holds_a_healthy_run_of_four_times_the_size() -> None:
    covered, widths = [], []
    for seed in range(20):
        expected = band(ladder(seed=100 * seed), 4e6, 3e6)
        truth = simulated(4e6, 3e6, 0.01, seed + 7)
        y = course(truth.tokens / 3e6, truth.loss, np.array(expected.progress))
        covered.append((expected.low <= y) & (y <= expected.high))
        widths.append(np.divide(expected.high, expected.low))
    assert np.mean(covered) > 0.99
    assert np.median(widths) < 1.2  # narrow enough to say something


def test_monitor_is_silent_on_healthy_runs_and_speaks_early_of_a_loss_that_is_too_high(tmp_path) -> None:
    expected = band(ladder(), 4e6, 3e6)
    for seed in range(10):
        assert not follow(simulated(4e6, 3e6, 0.01, 50 + seed), expected, tmp_path)
    high = simulated(4e6, 3e6, 0.01, 99)
    broken = simulated(4e6, 3e6, 0.01, 98, scale=1.2)
    half = len(high.loss) // 2
    loss = np.concatenate([high.loss[:half], broken.loss[half:]])
    spoilt = Curve(**{**vars(high), "loss": loss, "loss_mean": loss})
    [sentence] = follow(spoilt, expected, tmp_path)
    assert "above the band" in sentence
    until = next(k for k in range(half, len(loss)) if follow(Curve(**_until(spoilt, k)), expected, tmp_path))
    assert until <= half * (1 + 2 * WINDOW)


def _until(curve: Curve, rows: int) -> dict[str, object]:
    """The first rows of a curve, on the scale of the whole run."""
    cut = {key: value[:rows] for key, value in vars(curve).items() if isinstance(value, np.ndarray)}
    cut["step"] = np.append(cut["step"][:-1], curve.step[-1])  # its last row is out of place, and read last
    return {**vars(curve), **cut}


def test_monitor_smooths_as_bands_do(tmp_path) -> None:
    expected = band(ladder(), 1e6, 3e6)
    run = simulated(1e6, 3e6, 0.05, 5)
    follow(run, expected, tmp_path)
    monitor = Monitor(tmp_path / BAND, 400)
    logged = {round(s): monitor.follow(round(s), float(v))[0] for s, v in zip(run.step, run.loss, strict=True)}
    for step in (60, 120, 400):
        smooth = course(run.tokens / 3e6, run.loss, np.array([step / 400]))[0]
        assert logged[step]["loss_smooth"] == pytest.approx(smooth)
    nearest = {step: logged[step] for step in (400,)}
    assert nearest[400]["band_low"] == pytest.approx(expected.low[-1])


def test_a_band_may_appear_change_and_be_torn_while_a_run_trains(tmp_path) -> None:
    path = tmp_path / BAND
    monitor = Monitor(path, 100)
    assert monitor.follow(1, 3.0) == ({}, None)
    CurveBand(progress=(0.01, 1.0), low=(2.0, 2.0), centre=(3.0, 3.0), high=(4.0, 4.0), window=0.1, rungs=6).write(path)
    assert monitor.follow(2, 3.0)[0]["band_high"] == pytest.approx(4.0)
    path.write_text("{")
    os.utime(path, ns=(1, 1))
    assert monitor.follow(3, 3.0)[0]["band_high"] == pytest.approx(4.0)
    assert monitor.follow(3, 3.0) == ({}, None)  # a row again, after a resume
    assert monitor.follow(4, float("nan")) == ({}, None)


def test_too_few_rungs_are_said() -> None:
    with pytest.raises(FitError, match=f"at least {MIN_RUNGS} finished runs"):
        band(ladder()[: MIN_RUNGS - 1], 1e6, 1e6)


def test_the_script_predicts_the_unfinished_runs_of_a_ladder(tmp_path, capsys) -> None:
    shapes = ["tiny-1k", "tiny-3k", "tiny-6k", "tiny-14k", "tiny-25k", "tiny-55k"]
    for i, size in enumerate([*shapes, "tiny-98k"]):
        run = load_run(ROOT / "configs/runs/tiny.yaml", [f"--model.size={size}", "--log_every=1"])
        N, D = float(count_parameters(run.model).total), float(run.tokens)
        folder = tmp_path / size
        folder.mkdir()
        (folder / "config.yaml").write_text(dump_yaml(run))
        curve = simulated(N, D, 0.01, i, rows=run.steps)
        rows = zip(curve.step, curve.tokens, curve.loss, strict=True)
        lines = [json.dumps({"step": round(s), "tokens": t, "loss": v}) for s, t, v in rows]
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        if size != "tiny-98k":
            record = {"complete": True, "tainted": False, "N": N, "D": D, "val_loss": 2.0}
            (folder / "record.json").write_text(json.dumps(record))
    script = runpy.run_path(str(ROOT / "scripts/studies/curve_bands.py"))
    assert script["main"]([str(tmp_path)]) == 0
    assert "bands for 1 of 1 unfinished runs" in capsys.readouterr().out
    found = read_band(tmp_path / "tiny-98k" / BAND)
    y = course(curve.tokens / D, curve.loss, np.array(found.progress))
    assert ((found.low <= y) & (y <= found.high)).all()
    assert not (tmp_path / "tiny-25k/band.json").exists()

    (tmp_path / "tiny-25k/record.json").write_text(json.dumps(record | {"tainted": True}))
    assert script["main"]([str(tmp_path)]) == 2
    assert f"at least {MIN_RUNGS} finished runs" in capsys.readouterr().err
