"""The spike guard's judgement of single sequences, and its score on curves that nobody tuned on."""

import json
import math
import random
from dataclasses import asdict

import pytest
import torch

from configs.reader import ConfigError, build
from scripts.bench.bench_spikes import TEST_SEEDS, curves_of, ours, score
from train.config import SpikeConfig
from train.stability.spike_detector import Kind, SpikeState, Verdict, after_rollback, detect_spike
from train.stability.spike_guard import RecoveryState, SpikeGuard

CONFIG = SpikeConfig()

BLOOM = [  # loss and gradient norm of iterations 31214 to 31222 of BLOOM-176B, from its published log
    (2.1988, 0.242),
    (2.2204, 0.947),
    (2.5952, 2.390),
    (2.2416, 15.886),
    (2.3453, 145.119),
    (5.0981, 960.351),
    (3.4920, 353.201),
    (3.2131, 379.330),
    (2.8049, 650.246),
]


def calm(steps: int, seed: int = 0) -> list[tuple[float, float]]:
    """Losses about 2.2 and gradient norms about 0.24, as noisy as BLOOM's."""
    draw = random.Random(seed)
    return [(2.2 + draw.gauss(0, 0.015), 0.24 * math.exp(draw.gauss(0, 0.1))) for _ in range(steps)]


def follow(
    values: list[tuple[float, float]], state: SpikeState | None = None, first: int = 0
) -> tuple[SpikeState, list[Verdict]]:
    """Judge a sequence up to the first decision to go back; return the last state and all verdicts."""
    state, verdicts = state or SpikeState(), []
    for step, (loss, norm) in enumerate(values, first):
        state, verdict = detect_spike(state, step, loss, norm, CONFIG)
        verdicts.append(verdict)
        if verdict.kind in (Kind.ROLLBACK, Kind.DIVERGED):
            break
    return state, verdicts


def kinds(verdicts: list[Verdict]) -> list[Kind]:
    """The verdicts other than ok and outlier."""
    return [v.kind for v in verdicts if v.kind not in (Kind.OK, Kind.OUTLIER)]


def test_calm_steps_are_ok() -> None:
    _, verdicts = follow(calm(2000))
    assert not kinds(verdicts)


def test_bloom_is_recognised_at_its_third_iteration_three_before_the_loss_peaks() -> None:
    state, _ = follow(calm(200))
    after, verdicts = follow(BLOOM, state, first=31214)
    assert [v.step for v in verdicts if v.kind is Kind.SOFT] == [31216]
    assert after.onset == 31215
    # It came back by itself within about 30 iterations, and so it does here.
    back = [(2.2 + 0.6 * math.exp(-k / 8), 0.24 * math.exp(6 * math.exp(-k / 8))) for k in range(28)]
    after, verdicts = follow([*back, *calm(20, seed=1)], after, first=31223)
    assert kinds(verdicts) == [Kind.TRANSIENT]
    assert after.onset is None


def test_a_bad_batch_is_an_outlier_and_does_not_move_the_baseline() -> None:
    state, _ = follow(calm(200))
    after, verdicts = follow([(6.0, 30.0), *calm(100, seed=1)], state, first=200)
    assert verdicts[0].kind is Kind.OUTLIER
    assert not kinds(verdicts)
    assert 6.0 not in after.losses
    for bad in range(0, 100, 10):  # not even one in ten
        _, (verdict,) = follow([(6.0, 30.0)], follow(calm(bad, seed=2), after)[0])
        assert verdict.kind is Kind.OUTLIER


def test_a_loss_that_stays_up_is_rolled_back_after_its_patience() -> None:
    state, _ = follow(calm(200))
    up = [(loss * 1.2, norm) for loss, norm in calm(100, seed=1)]
    _, verdicts = follow(up, state, first=200)
    soft, rollback = (v for v in verdicts if v.kind not in (Kind.OK, Kind.OUTLIER))
    assert (soft.step, soft.onset) == (202, 200)
    assert (rollback.step, rollback.onset) == (202 + CONFIG.patience, 200)


def test_a_rise_that_noise_hides_in_every_single_step_is_a_spike_all_the_same() -> None:
    draw = random.Random(3)
    noisy = [(2.2 * (1 + draw.gauss(0, 0.1)), 0.24 * math.exp(draw.gauss(0, 0.3))) for _ in range(2100)]
    state, verdicts = follow(noisy[:2000])
    assert not kinds(verdicts)
    _, verdicts = follow([(loss + 0.66, norm) for loss, norm in noisy[2000:]], state, first=2000)
    assert kinds(verdicts) == [Kind.SOFT, Kind.ROLLBACK]
    assert verdicts[-1].onset is not None
    assert 2000 <= verdicts[-1].onset < 2005


def test_a_loss_far_up_is_rolled_back_at_once() -> None:
    state, _ = follow(calm(200))
    _, verdicts = follow([(4.4, 5.0)] * 5, state, first=200)
    assert kinds(verdicts) == [Kind.SOFT, Kind.ROLLBACK]
    assert (verdicts[-1].step, verdicts[-1].onset) == (202, 200)


@pytest.mark.parametrize("bad", [(math.nan, 1.0), (2.2, math.nan), (math.inf, math.inf)])
def test_steps_that_are_not_finite_are_skipped_and_the_third_in_a_row_is_a_rollback(bad: tuple[float, float]) -> None:
    state, _ = follow(calm(10))  # even before there is a history
    _, verdicts = follow([bad, bad, *calm(1), bad, bad, bad], state, first=10)
    assert kinds(verdicts) == [Kind.HARD, Kind.HARD, Kind.HARD, Kind.HARD, Kind.ROLLBACK]
    assert verdicts[-1].onset == 13


def test_a_spike_that_always_comes_back_diverges_after_three_rollbacks() -> None:
    at_checkpoint, _ = follow(calm(200))
    state, decisions = at_checkpoint, []
    for _ in range(4):
        given_up, (*_, last) = follow([*calm(30, seed=1), *[(9.0, 100.0)] * 5], state, first=200)
        decisions.append(last.kind)
        state = after_rollback(at_checkpoint, given_up, onset=230)
    assert decisions == [*[Kind.ROLLBACK] * 3, Kind.DIVERGED]


def test_rollbacks_are_forgotten_after_the_window() -> None:
    state, _ = follow(calm(200))
    for first in range(200, 6000, 1100):
        state, verdicts = follow([(9.0, 100.0)] * 5, state, first=first)
        assert verdicts[-1].kind is Kind.ROLLBACK


def test_the_state_survives_json_at_any_moment() -> None:
    values = [*calm(100), *BLOOM, (math.nan, 1.0), *calm(80, seed=1), *[(9.0, 100.0)] * 6]
    state = copy = SpikeState()
    for step, (loss, norm) in enumerate(values):
        copy = SpikeState.from_json(json.loads(json.dumps(asdict(copy), allow_nan=False)))
        state, verdict = detect_spike(state, step, loss, norm, CONFIG)
        copy, same = detect_spike(copy, step, loss, norm, CONFIG)
        assert (copy, same) == (state, verdict)


def test_the_mean_loss_is_of_all_steps_since_the_last_row_whatever_interrupts_them() -> None:
    guard = SpikeGuard(SpikeConfig(), "fp32", RecoveryState())
    guard.judge(1, torch.tensor(9.0), 1.0, now=True)
    assert guard.take_loss_mean() == 9
    guard.judge(2, torch.tensor(4.0), 1.0, now=False)
    guard.judge(3, torch.tensor(2.0), 1.0, now=True)
    saved = json.dumps(asdict(guard.recovery))
    guard = SpikeGuard(SpikeConfig(), "fp32", RecoveryState.from_json(json.loads(saved)))
    assert not guard.recovery.describe(8)["tainted"]
    guard.judge(4, torch.tensor(6.0), 1.0, now=False)
    guard.judge(5, torch.tensor(math.nan), 1.0, now=True)
    assert guard.take_loss_mean() == 4
    assert guard.take_loss_mean() is None


def test_impossible_thresholds_are_named() -> None:
    with pytest.raises(ConfigError) as caught:
        build(SpikeConfig, {"patience": 0, "loss_z": -1.0}, "run.yaml")
    assert {problem.key for problem in caught.value.problems} == {"patience", "loss_z"}


def test_targets_on_curves_that_nobody_tuned_on() -> None:
    found = score(ours, curves_of(TEST_SEEDS, 20))
    assert found.spikes == 40
    assert found.recall >= 0.95
    assert found.precision >= 0.95
    assert found.false_per_10k <= 0.5
    assert found.outlier_alarms <= 1
