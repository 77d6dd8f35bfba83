"""Spike guard in the loop: what a run remembers of its spikes, and how it goes back before one.

The order of the data is a function of the data step alone, so batches are left out by a shift: optimizer step s reads
data step s + (batches skipped at or before s). The shift, the detector and the number of the attempt travel in every
checkpoint. A rollback sets the later checkpoints aside and ends the attempt; the next one begins with the checkpoint
before the spike and saves it again with the new shift. A run that is killed anywhere in between repeats the same
steps, finds the same spike and goes back the same way.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict

import torch
from torch import Tensor

from train.config import Precision, SpikeConfig
from train.distributed.topology import uses_gpu
from train.stability.spike_detector import Kind, SpikeState, Verdict, after_rollback, detect_spike


class Alterations(TypedDict):
    """Whether anything altered a run, and what: keys of its record."""

    tainted: bool
    rollbacks: int
    skipped_tokens: int
    skipped_updates: int
    ended_in_spike: bool


@dataclass(frozen=True)
class RecoveryState:
    """How a run came to where it is."""

    detector: SpikeState = field(default_factory=SpikeState)
    """What the detector remembers."""
    skips: tuple[tuple[int, int], ...] = ()
    """(s, n): from optimizer step s (from 0) on, n more batches have been left out."""
    attempt: int = 1
    """Rollbacks so far, plus one."""
    lost_updates: int = 0
    """Steps whose update was skipped because loss or gradient were not finite."""
    unlogged: tuple[float, int] = (0.0, 0)
    """Sum and number of the finite losses since the last row of `metrics.jsonl`."""

    def data_step(self, step: int) -> int:
        """Return which batch, in the order of the data, optimizer step `step` (from 0) reads."""
        return step + sum(batches for first, batches in self.skips if step >= first)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "RecoveryState":
        """Return the state that `dataclasses.asdict` described; the start of one where it is empty."""
        if not content:
            return cls()
        skips = tuple((first, batches) for first, batches in content["skips"])
        unlogged = tuple(content.get("unlogged", cls.unlogged))
        detector = SpikeState.from_json(content["detector"])
        return cls(**content | {"detector": detector, "skips": skips, "unlogged": unlogged})

    def describe(self, tokens_per_step: int) -> Alterations:
        """Return what the record says: whether anything altered the run, and what."""
        in_spike = self.detector.onset is not None
        return {
            "tainted": self != RecoveryState(self.detector, unlogged=self.unlogged) or in_spike,
            "rollbacks": self.attempt - 1,
            "skipped_tokens": sum(batches for _, batches in self.skips) * tokens_per_step,
            "skipped_updates": self.lost_updates,
            "ended_in_spike": in_spike,
        }


class SpikeGuard:
    """Judges the steps of one run. All ranks see the same values, and so come to the same verdicts.

    A step is judged when the next one has been queued, so that an accelerator never waits for the judgement; nothing
    depends on the delay, because a rollback counts from the step that was judged.
    """

    def __init__(self, config: SpikeConfig, precision: Precision, recovery: RecoveryState) -> None:
        """Go on from the state of a run's recovery."""
        self.config, self.precision, self.recovery = config, precision, recovery
        self._queued: list[tuple[int, Tensor | float, Tensor | float, torch.cuda.Event | None]] = []
        """Step, loss and gradient norm, which may still be on their way from the GPU, and when they have arrived."""

    def judge(self, step: int, loss: Tensor, grad_norm: Tensor | float, now: bool) -> list[Verdict]:
        """Take the measurements of a step and return the verdicts that are not `ok`, up to one that ends the attempt.

        Args:
            step: the step, counted from 1.
            loss: its loss.
            grad_norm: its gradient norm before clipping; not finite where the update was skipped.
            now: judge this step at once; otherwise those before it.
        """
        if not self.config.enabled:
            ended = now and not math.isfinite(float(loss))
            return [Verdict(Kind.DIVERGED, step, step, f"the loss is {float(loss)}")] if ended else []
        arrived = torch.cuda.Event() if uses_gpu() else None
        self._queued.append((step, _to_host(loss), _to_host(grad_norm), arrived))
        if arrived is not None:
            arrived.record()
        verdicts = []
        while len(self._queued) > (0 if now else 1):
            verdict = self._judge(*self._queued.pop(0))
            if verdict is not None and verdict.kind is not Kind.OK:
                verdicts.append(verdict)
                if verdict.ends_attempt:
                    self._queued.clear()
        return verdicts

    def take_loss_mean(self) -> float | None:
        """Return the mean loss since the last call, over steps judged and finite; None where there were none."""
        total, steps = self.recovery.unlogged
        self.recovery = replace(self.recovery, unlogged=(0.0, 0))
        return total / steps if steps else None

    def _judge(
        self, step: int, measured_loss: Tensor | float, measured_norm: Tensor | float, arrived: torch.cuda.Event | None
    ) -> Verdict | None:
        if arrived is not None:
            arrived.synchronize()
        loss, grad_norm = float(measured_loss), float(measured_norm)
        if math.isfinite(loss):
            total, steps = self.recovery.unlogged
            self.recovery = replace(self.recovery, unlogged=(total + loss, steps + 1))
        if self.precision == "fp16" and math.isfinite(loss) and not math.isfinite(grad_norm):
            return None  # the loss scaler is looking for its scale
        detector, verdict = detect_spike(self.recovery.detector, step, loss, grad_norm, self.config)
        lost = self.recovery.lost_updates + (verdict.kind is Kind.HARD)
        self.recovery = replace(self.recovery, detector=detector, lost_updates=lost)
        return verdict


@dataclass(frozen=True)
class Rollback:
    """The end of an attempt: a spike that did not pass."""

    recovery: RecoveryState
    """Up to the spike."""
    verdict: Verdict

    def latest_step(self, margin: int) -> int:
        """Return the largest number of optimizer steps done at which the next attempt may begin."""
        assert self.verdict.onset is not None
        return max(0, self.verdict.onset - 1 - margin)

    def next_attempt(self, step: int, there: RecoveryState) -> RecoveryState:
        """Return the recovery of the next attempt.

        The batches up to the verdict are left out; twice as many for each rollback that is counted before this one.

        Args:
            step: optimizer steps done where it begins.
            there: the state when they were done, `RecoveryState()` at the start of the run.
        """
        recovery, verdict = self.recovery, self.verdict
        assert verdict.onset is not None
        repeats = len(recovery.detector.rollbacks) - 1
        batches = (recovery.data_step(verdict.step) - recovery.data_step(step)) * 2**repeats
        return RecoveryState(
            detector=after_rollback(there.detector, recovery.detector, verdict.onset),
            skips=(*(skip for skip in recovery.skips if skip[0] <= step), (step, batches)),
            attempt=recovery.attempt + 1,
            lost_updates=there.lost_updates,
            unlogged=there.unlogged,
        )


def _to_host(value: Tensor | float) -> Tensor | float:
    return value.detach().to("cpu", non_blocking=True) if isinstance(value, Tensor) else value
