"""The training loop: from a run's configuration to its record."""

import dataclasses
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch

from data.batches import Windows, repetition, target_bytes, validation_windows
from data.shards import Corpus
from train import checkpoint
from train.batches import training_batches, validation_batches
from train.config import RunConfig
from train.ds_config import derive
from train.engine import build_engine, evaluate, gradient_norm, train_step
from train.files import write_json
from train.metrics import MetricsLog
from train.record import make_record, peak_flops
from train.schedule import lr_multiplier
from train.topology import Topology
from train.tracking import Tracker


class TrainingDiverged(RuntimeError):
    """The loss stopped being a number."""


def train(run: RunConfig, run_dir: Path, corpus: Corpus, topology: Topology, ds_config: dict[str, Any] | None) -> None:
    """Train one run to its end, continuing from the newest checkpoint in `run_dir`.

    The process group must be connected. Writes `metrics.jsonl`, `checkpoints/` and, last, `record.json`.

    Raises:
        TrainingDiverged: when the loss is not finite at a logged step.
        CheckpointError: when checkpoints exist but none can be loaded.
    """
    torch.manual_seed(run.seed)
    engine = build_engine(run, topology, ds_config or derive(run, topology.data_parallel))
    windows = validation_windows(corpus, run.train.sequence_length, run.evaluate.tokens)
    validation, to_nats_per_token = validation_batches(windows, run, topology)
    first_step = checkpoint.resume(engine, run_dir, topology)
    report = _Reporter(run, run_dir, topology, first_step) if topology.is_main else None

    val_loss = None
    clock = _StepClock(first_step)
    for step in range(first_step, run.steps):
        lr = run.optimizer.lr * lr_multiplier(run.schedule, step, run.steps)
        loss = train_step(engine, training_batches(corpus, run, step, topology), lr, topology)

        done = step + 1
        is_last = done == run.steps
        evaluates = is_last or _due(done, run.evaluate.every)
        saves = _due(done, run.checkpoint.every) or (is_last and run.checkpoint.every is not None)
        if evaluates or done == 1 or _due(done, run.log_every):
            loss_value = loss.item()  # waits for the step, so that the clock below times training alone
            steps_per_second = clock.lap(done)
            if not math.isfinite(loss_value):
                raise TrainingDiverged(f"{run_dir}: the loss is {loss_value} at step {done}; try a lower optimizer.lr")
            val_loss = evaluate(engine, validation, topology) * to_nats_per_token if evaluates else None
            if report is not None:
                report.step(done, loss_value, gradient_norm(engine), lr, steps_per_second, val_loss)
        if saves:
            checkpoint.save(engine, run_dir, done, run.checkpoint.keep, topology)
        if evaluates or saves:
            clock.restart(done)

    if val_loss is None:  # resumed after the last step
        val_loss = evaluate(engine, validation, topology) * to_nats_per_token
    if report is not None:
        report.finish(val_loss, _describe_data(run, corpus, windows))


class _StepClock:
    """Steps per second between laps. The first step after the start is left out: it warms caches and compilers up."""

    def __init__(self, step: int) -> None:
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


def _due(done: int, every: int | None) -> bool:
    return every is not None and done % every == 0


def _describe_data(run: RunConfig, corpus: Corpus, windows: Windows) -> dict[str, Any]:
    """Return what the record says of the data."""
    repeated = repetition(corpus, run.train.sequence_length, run.tokens)
    tokens = len(windows) * windows.sequence_length
    return {
        "validation_tokens": tokens,
        "validation_bytes_per_token": target_bytes(corpus, windows) / tokens,
        "epochs": repeated.epochs,
        "unique_tokens": repeated.unique_tokens,
        "corpus": corpus.directory.name,
        "corpus_fingerprint": corpus.fingerprint,
    }


class _Reporter:
    """Everything the main process tells the outside world: metrics, W&B, progress, the record."""

    def __init__(self, run: RunConfig, run_dir: Path, topology: Topology, first_step: int) -> None:
        self.run, self.run_dir, self.topology = run, run_dir, topology
        self.metrics = MetricsLog(run_dir / "metrics.jsonl")
        settings = {**dataclasses.asdict(run), "devices": topology.world_size}
        self.tracker = Tracker(run.wandb, run_dir.name, run_dir, settings)
        self.peak = peak_flops()
        # Time goes on from where the checkpoint was written; what was lost after it does not count.
        earlier = [row.get("seconds", 0.0) for row in self.metrics.earlier_rows if row["step"] <= first_step]
        self.begin = time.perf_counter() - max(earlier, default=0.0)
        self.progress = _ProgressBar(run) if sys.stderr.isatty() else None

    def step(
        self,
        done: int,
        loss: float,
        grad_norm: float,
        lr: float,
        steps_per_second: float | None,
        val_loss: float | None,
    ) -> None:
        """Log the step that has just been done."""
        row: dict[str, Any] = {
            "step": done,
            "tokens": done * self.run.tokens_per_step,
            "flops": done * self.run.tokens_per_step * self.run.flops_per_token,
            "loss": loss,
            "grad_norm": grad_norm,
            "lr": lr,
            "seconds": time.perf_counter() - self.begin,
        }
        if steps_per_second is not None:
            row["tokens_per_second"] = steps_per_second * self.run.tokens_per_step
            achieved = row["tokens_per_second"] * self.run.flops_per_token / self.topology.world_size
            row["flops_per_second_per_device"] = achieved
            row["mfu"] = achieved / self.peak if self.peak else None
        if val_loss is not None:
            row["val_loss"] = val_loss
        if self.metrics.write(row):
            self.tracker.log(row)
        if self.progress is not None:
            self.progress.show(row)
        else:
            speed = f"  {row['tokens_per_second']:,.0f} tokens/s" if steps_per_second is not None else ""
            validation = f"  val_loss {val_loss:.4f}" if val_loss is not None else ""
            text = f"step {done}/{self.run.steps}  loss {loss:.4f}  grad_norm {grad_norm:.3f}"
            print(f"{text}{speed}{validation}", flush=True)

    def finish(self, val_loss: float, data: dict[str, Any]) -> None:
        """Write the record; it is the last file of a run."""
        seconds = time.perf_counter() - self.begin
        record = make_record(self.run, self.topology, val_loss, seconds, data)
        write_json(self.run_dir / "record.json", record)
        self.metrics.close()
        if self.progress is not None:
            self.progress.close()
        self.tracker.finish({k: v for k, v in record.items() if isinstance(v, int | float)})
        text = f"val_loss {val_loss:.4f} nats/token, {record['bits_per_byte']:.4f} bits/byte"
        print(f"{text} -> {self.run_dir}/record.json", flush=True)


class _ProgressBar:
    """A progress bar on a terminal."""

    def __init__(self, run: RunConfig) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        text = TextColumn("{task.fields[text]}")
        self.bar = Progress(TextColumn("{task.description}"), BarColumn(), text, TimeRemainingColumn())
        self.task = self.bar.add_task(run.name, total=run.steps, text="")
        self.bar.start()

    def show(self, row: dict[str, Any]) -> None:
        text = f"step {row['step']}  loss {row['loss']:.4f}  {row.get('tokens_per_second', 0):,.0f} tokens/s"
        self.bar.update(self.task, completed=row["step"], text=text)

    def close(self) -> None:
        self.bar.stop()
