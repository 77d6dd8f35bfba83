"""Mixing laws: found again from made-up losses, the best mixture, and the command on a directory of runs."""

import json

import numpy as np
import pytest

from scaling.errors import MixingError
from scaling.studies.data_mixing import (
    MixingLaw,
    best_shares,
    bootstrap,
    fit_mixing,
    fit_sizes,
    forecast,
    read_mixtures,
    target_of,
)
from tests.scripts.test_prepare import script

TRUE = (MixingLaw(1.2, np.array([-1.5, 0.3])), MixingLaw(1.5, np.array([0.1, -0.9])))
SIZES, WEIGHTS, LARGE = (1e4, 2e4, 4e4), (0.1, 0.3, 0.5, 0.7, 0.9), 4e5


def shares(weights):
    return np.array([[w, 1 - w] for w in weights])


def true_losses(N, at):
    """Losses that are a mixing law at every size: a power of N with one exponent for each text."""
    return np.stack([law(at) + size / N**0.4 for law, size in zip(TRUE, (20, 30), strict=True)], axis=-1)


def write_runs(directory, noise=0.0):
    draw = np.random.default_rng(0)
    for N in (*SIZES, LARGE):
        for weight in WEIGHTS if N < LARGE else (0.3, 0.5, 0.7):
            losses = true_losses(N, np.array([weight, 1 - weight])) + noise * draw.normal(size=2)
            record = {
                "complete": True,
                "N": int(N),
                "D": 1000,
                "val_loss": float(losses @ [weight, 1 - weight]),
                "weight_by_component": {"code": weight, "prose": 1 - weight},
                "val_loss_by_component": dict(zip(("code", "prose"), losses.tolist(), strict=True)),
            }
            run = directory / f"{N:g}-{weight}"
            run.mkdir()
            (run / "record.json").write_text(json.dumps(record))


def test_the_law_is_found_again():
    for law in (*TRUE, MixingLaw(0.4, np.array([-2.0, 0.0, 0.5]))):
        draw = np.random.default_rng(1)
        at = draw.dirichlet(np.ones(len(law.t)), size=12)
        found = fit_mixing(at, law(at))
        assert found.c == pytest.approx(law.c, abs=1e-4)
        assert found.t == pytest.approx(law.t, abs=1e-3)
    with pytest.raises(MixingError, match="3 coefficients need as many different mixtures; there are 2"):
        fit_mixing(shares([0.1, 0.1, 0.5]), np.array([1.0, 1.1, 1.2]))


def test_the_best_mixture_is_the_least_of_a_fine_grid():
    for target in ([0.5, 0.5], [0.2, 0.8], [1.0, 0.0]):
        grid = shares(np.linspace(0, 1, 100_001))
        loss = np.stack([law(grid) for law in TRUE], axis=1) @ target
        assert best_shares(TRUE, np.array(target))[0] == pytest.approx(grid[loss.argmin(), 0], abs=2e-4)


def test_small_sizes_predict_a_large_one(tmp_path):
    write_runs(tmp_path)
    runs = read_mixtures(tmp_path)
    small = runs.select(runs.N < LARGE)
    assert fit_sizes(small.N, small.shares, small.losses[:, 0]).alpha == pytest.approx(0.4, abs=1e-3)
    target = target_of(runs.names, {})
    found = forecast(small, LARGE, target)
    large = runs.select(runs.N == LARGE)
    assert found.losses(large.shares) == pytest.approx(large.losses, abs=1e-3)
    assert found.best[0] == pytest.approx(best_shares(TRUE, target)[0], abs=0.01)
    with pytest.raises(MixingError, match="two sizes or more, and at least one at three"):
        forecast(runs.select(runs.N < 3e4), LARGE, target)


def test_intervals_cover_what_noise_hides(tmp_path):
    write_runs(tmp_path, noise=0.003)
    runs = read_mixtures(tmp_path)
    target = target_of(runs.names, {})
    draws = bootstrap(runs.select(runs.N < LARGE), LARGE, target, draws=60)
    low, high = np.quantile([draw.best[0] for draw in draws], [0.01, 0.99])
    assert low < best_shares(TRUE, target)[0] < high
    assert 0 < high - low < 0.5


def test_the_command_compares_with_the_large_runs(tmp_path, capsys):
    write_runs(tmp_path)
    assert script("studies/data_mixing").main([str(tmp_path), "--target", "code=1", "prose=3"]) == 0
    out = capsys.readouterr().out
    assert "best of these: code 0.30, prose 0.70, as predicted" in out
    written = json.loads((tmp_path / "mixing.json").read_text())
    assert written["target"] == {"code": 0.25, "prose": 0.75}
    assert len(written["checks"]) == 3
    low, high = written["best_interval"]["code"]
    assert low - 1e-6 <= written["best"]["code"] <= high + 1e-6
    assert (tmp_path / "mixing.png").read_bytes()[:4] == b"\x89PNG"
    assert script("studies/data_mixing").main([str(tmp_path), "--target", "poems=1"]) == 2
    assert "there is no component 'poems'; the components are code, prose" in capsys.readouterr().err
