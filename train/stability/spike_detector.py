"""Spike guard: judge every optimizer step by its loss and gradient norm. Plain floats in, a verdict out, no torch.

A step is compared with the steps accepted before it, by medians and median absolute deviations (MAD), which the spike
itself cannot move: z = (value - median) / (1.4826 MAD), with the gradient norm taken as a logarithm. One bad batch is
an outlier and changes nothing. A spike shows in several steps: PaLM (Chowdhery et al. 2022, arXiv 2204.02311, section
5.1) rewinds to about 100 steps before it and leaves out the batches up to its end; the same batches caused no spike
from another state. `docs/reliability.md` has the score of this rule beside the published ones.

The thresholds below were chosen together, on curves of seeds below 1,000 that `scripts/bench/bench_spikes.py` makes,
and scored once on others. The score holds for these values; what depends on the run is a key of `spikes`.
"""

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, NamedTuple

from train.config import SpikeConfig

WINDOW = 128
"""Accepted steps that the median and MAD are taken over: OLMo-core's window (`SkipStepOptimizer`). Over a longer one
the spread would be that of a falling loss more than that of its noise."""
HISTORY = 64
"""Accepted steps before the first judgement: half a window, as in OLMo-core."""
SPAN = 5
"""Neighbouring steps that are looked at together: a spike shows in several of them, a bad batch in one."""
LOSS_RISE = 0.05
"""Least rise above the median loss, as a fraction of it, of an outlier and of a step that drifts: where the loss hardly
varies, a deviation of many MAD may harm nothing."""
LOSS_COUNT = 3
"""Loss outliers within `SPAN` steps that make a spike: more than half, so that two bad batches do not."""
NORM_COUNT = 2
"""Gradient outliers within `SPAN` steps that make a spike together with one loss outlier: the gradient often grows
first, in BLOOM-176B's log three steps before the loss peaks."""
DRIFT_SPAN = 20
"""Steps of which half must lie `DRIFT_Z` above to make a spike that the noise of a small batch hides in each."""
DRIFT_Z = 2.0
"""Deviation of such steps, in robust standard deviations: under Gaussian noise one step in 44 is as far up."""
RECOVERY_Z = 3.0
"""A spike is over when `SPAN` losses in a row deviate by less, and under a quarter of `DRIFT_SPAN` drift. It lies below
the default of `spikes.loss_z`, so that a loss about that threshold does not end and begin spikes in turn."""
SEVERE_RISE = 0.5
"""Rise above the median loss, as a fraction of it, that is given no patience in `LOSS_COUNT` steps of `SPAN`: only two
steps of BLOOM-176B's spike, which healed by itself, were higher."""
NON_FINITE = 3
"""Steps in a row without a finite loss and gradient norm, none of which updates the weights, before a rollback: one or
two may be the fault of their batches, and a third batch that fails on the same weights says that it is theirs."""
ROLLBACK_WINDOW = 1000
"""Steps within which rollbacks are counted; each of them skips twice as many batches as the one before. It is
several times the default `rollback_reach`, so that the returns of one spike are counted together."""

_MAD_TO_SIGMA = 1.4826
_SMALLEST_MAD = 1e-3
"""As a fraction of the median loss; for the logarithm of the gradient norm as it is."""


class Kind(StrEnum):
    """What a step is judged to be."""

    OK = "ok"
    OUTLIER = "outlier"
    """Far off, alone so far: left out of the baseline, nothing else."""
    HARD = "hard"
    """Not finite: the update was skipped."""
    SOFT = "soft"
    """A spike has begun; it may still pass."""
    TRANSIENT = "transient"
    """The spike has passed by itself."""
    ROLLBACK = "rollback"
    """It has not: go back."""
    DIVERGED = "diverged"
    """It comes back whatever batches are skipped."""


@dataclass(frozen=True)
class Verdict:
    """The judgement of one step."""

    kind: Kind
    step: int
    onset: int | None = None
    """First sign of the spike that is going on."""
    reason: str = ""
    """For people."""

    @property
    def ends_attempt(self) -> bool:
        """Whether training cannot go on from here."""
        return self.kind in (Kind.ROLLBACK, Kind.DIVERGED)


class Reading(NamedTuple):
    """How far one step is from the accepted ones."""

    step: int
    loss_z: float
    norm_z: float
    rise: float
    """Loss / median loss - 1."""


@dataclass(frozen=True)
class SpikeState:
    """What the detector remembers. It travels in checkpoints as JSON."""

    losses: tuple[float, ...] = ()
    """Of the accepted steps, at most `WINDOW`."""
    log_norms: tuple[float, ...] = ()
    """Logarithms of their gradient norms."""
    recent: tuple[Reading, ...] = ()
    """Of the last `DRIFT_SPAN` judged steps, accepted or not."""
    non_finite: int = 0
    """Steps in a row that were not finite."""
    onset: int | None = None
    """First sign of the spike that is going on, if one is."""
    alarm: int | None = None
    """Step at which it was recognised; patience counts from here."""
    rollbacks: tuple[int, ...] = ()
    """Steps at which a rollback was decided, within `ROLLBACK_WINDOW`."""

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "SpikeState":
        """Return the state that `dataclasses.asdict` described, after a trip through JSON or not."""
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in content.items()}
        plain["recent"] = tuple(Reading(*reading) for reading in plain["recent"])
        return cls(**plain)


def detect_spike(
    state: SpikeState, step: int, loss: float, grad_norm: float, config: SpikeConfig
) -> tuple[SpikeState, Verdict]:
    """Judge one step and return the detector's next state with the verdict. A pure function.

    Args:
        state: what is remembered of the steps before; `SpikeState()` at the first.
        step: the step's number, rising.
        loss: its training loss before the update, nats per token, the mean over the global batch.
        grad_norm: its global gradient norm before clipping.
        config: those of its thresholds that depend on the run.
    """
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        state = replace(state, non_finite=state.non_finite + 1)
        reason = f"loss {loss}, gradient norm {grad_norm}, {state.non_finite} step(s) in a row"
        if state.non_finite < NON_FINITE:
            return state, Verdict(Kind.HARD, step, state.onset, reason)
        first = step - state.non_finite + 1
        return _give_up(state, step, first if state.onset is None else state.onset, reason, config)
    state = replace(state, non_finite=0)
    if len(state.losses) < HISTORY:
        return _accept(state, loss, grad_norm), Verdict(Kind.OK, step)
    reading = _measure(state, step, loss, grad_norm)
    state = replace(state, recent=(*state.recent, reading)[-DRIFT_SPAN:])
    if state.onset is None:
        return _watch(state, reading, loss, grad_norm, config)
    return _follow(state, reading, config)


def after_rollback(restored: SpikeState, given_up: SpikeState, onset: int) -> SpikeState:
    """Return the state to go on with: the baseline of the checkpoint, nothing of the spike, all rollbacks counted."""
    clean = tuple(reading for reading in restored.recent if reading.step < onset)
    return replace(restored, recent=clean, non_finite=0, onset=None, alarm=None, rollbacks=given_up.rollbacks)


def rollback_reach(config: SpikeConfig) -> int:
    """Return the most steps that a rollback goes back from where it is decided, but for the distance of checkpoints."""
    return config.rollback_margin + config.patience + DRIFT_SPAN if config.enabled else 0


def _watch(
    state: SpikeState, reading: Reading, loss: float, grad_norm: float, config: SpikeConfig
) -> tuple[SpikeState, Verdict]:
    """Judge a step while all is well: is it the beginning of a spike?"""
    near = state.recent[-SPAN:]
    losses = [r for r in near if _loss_outlier(r, config)]
    norms = [r for r in near if r.norm_z > config.norm_z]
    drift = _drifting(state)
    if 2 * len(drift) < DRIFT_SPAN:
        drift = []
    if len(losses) >= LOSS_COUNT or (losses and len(norms) >= NORM_COUNT) or drift:
        onset = min(r.step for r in (*losses, *norms, *drift))
        state = replace(state, onset=onset, alarm=reading.step)
        return state, Verdict(Kind.SOFT, reading.step, onset, _describe(reading))
    if _loss_outlier(reading, config) or reading.norm_z > config.norm_z:
        return state, Verdict(Kind.OUTLIER, reading.step, None, _describe(reading))
    return _accept(state, loss, grad_norm), Verdict(Kind.OK, reading.step)


def _follow(state: SpikeState, reading: Reading, config: SpikeConfig) -> tuple[SpikeState, Verdict]:
    """Judge a step during a spike: is it over, or has it gone too far? The baseline stays that of the time before."""
    assert state.onset is not None
    assert state.alarm is not None
    near = state.recent[-SPAN:]
    if sum(_loss_outlier(r, config) and r.rise > SEVERE_RISE for r in near) >= LOSS_COUNT:
        return _give_up(state, reading.step, state.onset, _describe(reading), config)
    calm = [r for r in near if r.step > state.alarm and r.loss_z < RECOVERY_Z]
    if len(calm) >= SPAN and 4 * len(_drifting(state)) < DRIFT_SPAN:
        over = replace(state, onset=None, alarm=None)
        return over, Verdict(Kind.TRANSIENT, reading.step, state.onset, _describe(reading))
    if reading.step - state.alarm >= config.patience:
        return _give_up(state, reading.step, state.onset, _describe(reading), config)
    far = _loss_outlier(reading, config) or reading.norm_z > config.norm_z
    return state, Verdict(Kind.OUTLIER if far else Kind.OK, reading.step, state.onset, _describe(reading))


def _give_up(state: SpikeState, step: int, onset: int, reason: str, config: SpikeConfig) -> tuple[SpikeState, Verdict]:
    """Decide on a rollback, or on divergence when there were too many; the spike is closed either way."""
    counted = tuple(s for s in state.rollbacks if abs(step - s) <= ROLLBACK_WINDOW)
    kind = Kind.DIVERGED if len(counted) >= config.max_rollbacks else Kind.ROLLBACK
    state = replace(state, recent=(), non_finite=0, onset=None, alarm=None, rollbacks=(*counted, step))
    return state, Verdict(kind, step, onset, reason)


def _measure(state: SpikeState, step: int, loss: float, grad_norm: float) -> Reading:
    median, sigma = _centre_and_spread(state.losses)
    log_median, log_sigma = _centre_and_spread(state.log_norms)
    median = max(median, 1e-9)  # a model that knows its text by heart has a loss of zero
    loss_z = (loss - median) / max(sigma, _MAD_TO_SIGMA * _SMALLEST_MAD * median)
    norm_z = (_log(grad_norm) - log_median) / max(log_sigma, _MAD_TO_SIGMA * _SMALLEST_MAD)
    return Reading(step, loss_z, norm_z, loss / median - 1)


def _accept(state: SpikeState, loss: float, grad_norm: float) -> SpikeState:
    losses = (*state.losses, loss)[-WINDOW:]
    return replace(state, losses=losses, log_norms=(*state.log_norms, _log(grad_norm))[-WINDOW:])


def _loss_outlier(reading: Reading, config: SpikeConfig) -> bool:
    return reading.loss_z > config.loss_z and reading.rise > LOSS_RISE


def _drifting(state: SpikeState) -> list[Reading]:
    return [r for r in state.recent if r.loss_z > DRIFT_Z and r.rise > LOSS_RISE]


def _centre_and_spread(values: tuple[float, ...]) -> tuple[float, float]:
    """Return the median and the standard deviation that a normal distribution of the same MAD has."""
    median = _median(values)
    return median, _MAD_TO_SIGMA * _median([abs(value - median) for value in values])


def _median(values: tuple[float, ...] | list[float]) -> float:
    # statistics.median is three times as slow on floats, and this runs four times a step.
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _log(norm: float) -> float:
    return math.log(max(norm, 1e-30))  # a gradient of zero has a logarithm too


def _describe(reading: Reading) -> str:
    return f"loss {reading.rise:+.1%} ({reading.loss_z:+.1f} sigma), gradient norm {reading.norm_z:+.1f} sigma"
