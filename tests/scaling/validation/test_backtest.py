import numpy as np
import pytest

from scaling.errors import FitError
from scaling.fit.folds import compute_folds
from scaling.laws import LAWS
from scaling.validation.backtest import backtest, expanding_windows, held_out
from tests.helpers.scaling_tables import simulated

CHINCHILLA = LAWS["chinchilla"]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("none", 0),
        ("largest", 4),
        ("N>=3e8", 8),
        ("N > 3e8", 4),
        ("D>=8e10", 3),
        ("compute:16x", 3),
    ],
)
def test_rules_hold_out_the_rows_they_name(rule, expected):
    assert held_out(simulated(), rule).sum() == expected


@pytest.mark.parametrize("rule", ["N>=1e12", "N>=1", "biggest", "compute:x", "N=>3"])
def test_rules_that_make_no_sense_are_refused(rule):
    with pytest.raises(FitError, match="holdout"):
        held_out(simulated(), rule)


def test_held_out_losses_do_not_reach_the_prediction():
    points = simulated(noise=0.005)
    changed = {**points.columns, "loss": np.where(held_out(points), 9.0, points.columns["loss"])}
    spoilt = type(points)(changed, points.run, points.rows, [], points.sha256, points.source)
    honest, blind = (backtest(LAWS["chinchilla"], t, draws=100) for t in (points, spoilt))
    assert [s.predicted for s in honest.scored] == [s.predicted for s in blind.scored]
    assert [s.high for s in honest.scored] == [s.high for s in blind.scored]
    assert all(s.loss == 9.0 and not s.covered for s in blind.scored)


def test_a_true_law_predicts_what_it_has_not_seen():
    scored = backtest(LAWS["chinchilla"], simulated(noise=0.002), draws=200).scored
    assert len(scored) == 4
    assert max(abs(s.error) for s in scored) < 0.01
    assert all(s.low < s.predicted < s.high for s in scored)


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
