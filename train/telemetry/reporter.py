"""What a run tells the outside world: metrics, W&B, progress on the terminal, the record."""

import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from configs.curve_band import BAND
from configs.metrics_rows import METRICS
from configs.run_record import RECORD, RunRecord
from train.engine.validation_loss import Losses
from train.stability.band_monitor import Monitor
from train.stability.spike_detector import Kind, Verdict
from train.telemetry.metrics import MetricsLog
from train.telemetry.record import peak_flops
from train.telemetry.wandb_tracker import Tracker


@dataclass(frozen=True)
class RunScale:
    """What a run's steps amount to."""

    steps: int
    tokens_per_step: int
    flops_per_token: int
    """Exact."""
    devices: int
    mixed: bool
    """Whether it reads a mixture, whose components are then told apart."""


class Reporter:
    """The voice of a run; only its main process has one."""

    def __init__(self, run_dir: Path, scale: RunScale, tracker: Tracker) -> None:
        """Open the logs of `run_dir`; rows go to `tracker` too."""
        self.run_dir, self.scale, self.tracker = run_dir, scale, tracker
        self.metrics = MetricsLog(run_dir / METRICS)
        self.events = MetricsLog(run_dir / "events.jsonl")
        self.peak = peak_flops()
        self.progress = _progress_bar(run_dir.name, scale.steps) if sys.stderr.isatty() else None

    def begin(self, first_step: int, attempt: int) -> None:
        """Announce an attempt, which goes on after `first_step` steps."""
        self.attempt = attempt
        # Time goes on from where the checkpoint was written; what was lost after it does not count.
        earlier = [row.get("seconds") or 0.0 for row in self.metrics.rows if row["step"] <= first_step]
        self.started = time.perf_counter() - max(earlier, default=0.0)
        self.monitor = Monitor(self.run_dir / BAND, self.scale.steps)
        for row in self.metrics.rows:
            loss = row.get("loss_mean", row.get("loss"))
            if row["step"] <= first_step and loss is not None:
                self.monitor.follow(row["step"], loss)
        if attempt > 1:
            print(f"attempt {attempt} begins after step {first_step}", flush=True)

    def step(
        self,
        done: int,
        loss: float,
        loss_mean: float | None,
        grad_norm: float,
        lr: float,
        steps_per_second: float | None,
        losses: Losses | None,
    ) -> None:
        """Log the step that has just been done; `loss_mean` is that of the steps since the last one logged."""
        row: dict[str, Any] = {
            **self._where(done),
            "tokens": done * self.scale.tokens_per_step,
            "flops": done * self.scale.tokens_per_step * self.scale.flops_per_token,
            "loss": loss,
            "grad_norm": grad_norm,
            "lr": lr,
            "seconds": self.seconds,
        }
        if loss_mean is not None:
            row["loss_mean"] = loss_mean
        if steps_per_second is not None:
            row["tokens_per_second"] = steps_per_second * self.scale.tokens_per_step
            achieved = row["tokens_per_second"] * self.scale.flops_per_token / self.scale.devices
            row["flops_per_second_per_device"] = achieved
            row["mfu"] = achieved / self.peak if self.peak else None
        if losses is not None:
            row["val_loss"], row["val_loss_stderr"] = losses.mean, losses.stderr
            if self.scale.mixed:
                row["val_loss_by_component"] = losses.by_component
        expected, alert = self.monitor.follow(done, row.get("loss_mean", loss))
        row |= expected
        if alert is not None:
            row["alert"] = alert
            print(f"step {done}  {alert}", flush=True)
        if self.metrics.write(row):
            self.tracker.log(row)
            if alert is not None:
                self.tracker.alert(f"loss outside its band at step {done}", alert)
        if self.progress is not None:
            text = f"step {done}  loss {loss:.4f}  {row.get('tokens_per_second', 0):,.0f} tokens/s"
            self.progress.update(self.progress.task_ids[0], completed=done, text=text)
        else:
            speed = f"  {row['tokens_per_second']:,.0f} tokens/s" if steps_per_second is not None else ""
            validation = f"  val_loss {losses.mean:.4f}" if losses is not None else ""
            text = f"step {done}/{self.scale.steps}  loss {loss:.4f}  grad_norm {grad_norm:.3f}"
            print(f"{text}{speed}{validation}", flush=True)

    def verdicts(self, verdicts: list[Verdict]) -> None:
        """Log what the spike guard says of steps; what it does about them is said aloud."""
        for verdict in verdicts:
            event = {
                **self._where(verdict.step),
                "kind": verdict.kind,
                "onset": verdict.onset,
                "reason": verdict.reason,
            }
            if self.events.write(event) and verdict.kind is not Kind.OUTLIER:
                print(f"step {verdict.step}  {verdict.kind.upper()}  {verdict.reason}", flush=True)
                if verdict.ends_attempt:
                    self.tracker.alert(f"{verdict.kind} at step {verdict.step}", verdict.reason)

    def make_durable(self) -> None:
        """Keep the rows so far from being lost: no row is written again after the checkpoint that follows."""
        self.metrics.make_durable()
        self.events.make_durable()

    def frozen(self, done: int, names: list[str]) -> None:
        """Alert that these parameters do not learn."""
        reason = f"no gradient has reached {len(names)} parameters: {', '.join(names[:8])}{', ...' * (len(names) > 8)}"
        if self.events.write({**self._where(done), "kind": "frozen", "reason": reason}):
            print(f"step {done}  FROZEN  {reason}", flush=True)
            self.tracker.alert(f"parameters that do not learn at step {done}", reason)

    def _where(self, step: int) -> dict[str, Any]:
        return {"step": step} if self.attempt == 1 else {"step": step, "attempt": self.attempt}

    @property
    def seconds(self) -> float:
        """Wall-clock time of the steps that count, over all resumes."""
        return time.perf_counter() - self.started

    def finish(self, record: RunRecord) -> None:
        """Write the record; it is the last file of a run."""
        self.make_durable()
        record.write(self.run_dir / RECORD)
        self.close({k: v for k, v in record.flat().items() if isinstance(v, int | float)})
        text = f"val_loss {record.result.val_loss:.4f} nats/token, {record.result.bits_per_byte:.4f} bits/byte"
        print(f"{text} -> {self.run_dir / RECORD}", flush=True)

    def close(self, summary: dict[str, Any] | None = None) -> None:
        """Close the log and give W&B a little time for what is queued, with its `summary` if the run is complete."""
        self.metrics.close()
        self.events.close()
        if self.progress is not None:
            self.progress.stop()
        self.tracker.finish(summary or {})


def _progress_bar(name: str, steps: int) -> Progress:
    text = TextColumn("{task.fields[text]}")
    bar = Progress(TextColumn("{task.description}"), BarColumn(), text, TimeRemainingColumn())
    bar.add_task(name, total=steps, text="")
    bar.start()
    return bar


class StepClock:
    """Steps per second between laps. The first step after the start is left out: it warms caches and compilers up."""

    def __init__(self, step: int) -> None:
        """Begin before the step that follows `step` done ones."""
        self.step, self.time = step, math.nan

    def lap(self, done: int) -> float | None:
        """Return the speed since the last lap, or None where there is none yet."""
        now = time.perf_counter()
        speed = (done - self.step) / (now - self.time) if done > self.step and not math.isnan(self.time) else None
        self.step, self.time = done, now
        return speed

    def restart(self, done: int) -> None:
        """Begin a lap here: what came before was not training."""
        self.step, self.time = done, time.perf_counter()
