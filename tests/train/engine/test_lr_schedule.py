"""The learning rate over a run."""

import itertools

import pytest

from train.config import ScheduleConfig
from train.engine.lr_schedule import lr_multiplier


def test_cosine_warms_up_peaks_and_ends() -> None:
    schedule = ScheduleConfig(kind="cosine", warmup_fraction=0.1, min_lr_ratio=0.1)
    curve = [lr_multiplier(schedule, step, 100) for step in range(100)]
    assert curve[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert curve[54] == pytest.approx(0.1 + 0.9 * 0.5)  # half-way between warmup and end
    assert curve[99] == pytest.approx(0.1)
    assert all(a > b for a, b in itertools.pairwise(curve[9:]))


def test_wsd_holds_then_falls_in_a_line() -> None:
    schedule = ScheduleConfig(kind="wsd", warmup_fraction=0.1, cooldown_fraction=0.2, min_lr_ratio=0.0)
    curve = [lr_multiplier(schedule, step, 100) for step in range(100)]
    assert curve[10:80] == [1.0] * 70
    assert curve[80:] == pytest.approx([1 - (i + 1) / 20 for i in range(20)])


def test_constant_and_no_warmup() -> None:
    assert {lr_multiplier(ScheduleConfig(kind="constant", warmup_fraction=0.0), s, 7) for s in range(7)} == {1.0}
