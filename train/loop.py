"""The training loop: from a run's configuration to its record."""

import dataclasses
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
from train.tracking import Tracker, stable_id


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
    report = _Reporter(run, run_dir, topology) if topology.is_main else None

    val_loss = None
    for step in range(first_step, run.steps):
        lr = run.optimizer.lr * lr_multiplier(run.schedule, step, run.steps)
        loss = train_step(engine, training_batches(corpus, run, step, topology), lr, topology)

        done = step + 1
        is_last = done == run.steps
        evaluates = is_last or _due(done, run.evaluate.every)
        val_loss = evaluate(engine, validation, topology) * to_nats_per_token if evaluates else None
        if evaluates or done == 1 or _due(done, run.log_every):
            if not torch.isfinite(loss):
                raise TrainingDiverged(f"{run_dir}: the loss is {loss.item()} at step {done}; try a lower optimizer.lr")
            if report is not None:
                report.step(done, loss.item(), gradient_norm(engine), lr, val_loss)
        if _due(done, run.checkpoint.every) or (is_last and run.checkpoint.every is not None):
            checkpoint.save(engine, run_dir, done, run.checkpoint.keep, topology)

    if val_loss is None:  # resumed after the last step
        val_loss = evaluate(engine, validation, topology) * to_nats_per_token
    if report is not None:
        report.finish(val_loss, _describe_data(run, corpus, windows))


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

    def __init__(self, run: RunConfig, run_dir: Path, topology: Topology) -> None:
        self.run, self.run_dir, self.topology = run, run_dir, topology
        self.metrics = MetricsLog(run_dir / "metrics.jsonl")
        settings = {**dataclasses.asdict(run), "devices": topology.world_size}
        self.tracker = Tracker(run.wandb, stable_id(run_dir), run_dir.name, run_dir, settings)
        self.peak = peak_flops()
        self.begin = self.last_time = time.perf_counter()
        self.last_step: int | None = None
        self.progress = _ProgressBar(run) if sys.stderr.isatty() else None

    def step(self, done: int, loss: float, grad_norm: float, lr: float, val_loss: float | None) -> None:
        """Log the step that has just been done."""
        now = time.perf_counter()
        row: dict[str, Any] = {
            "step": done,
            "tokens": done * self.run.tokens_per_step,
            "flops": done * self.run.tokens_per_step * self.run.flops_per_token,
            "loss": loss,
            "grad_norm": grad_norm,
            "lr": lr,
        }
        if self.last_step is not None:  # the first step pays for warm-up of caches and compilers
            tokens_per_second = (done - self.last_step) * self.run.tokens_per_step / (now - self.last_time)
            row["tokens_per_second"] = tokens_per_second
            achieved = tokens_per_second * self.run.flops_per_token / self.topology.world_size
            row["flops_per_second_per_device"] = achieved
            row["mfu"] = achieved / self.peak if self.peak else None
        if val_loss is not None:
            row["val_loss"] = val_loss
        self.last_step, self.last_time = done, time.perf_counter()
        if self.metrics.write(row):
            self.tracker.log(row)
        if self.progress is not None:
            self.progress.show(row)
        else:
            speed = f"{row.get('tokens_per_second', float('nan')):,.0f} tokens/s"
            validation = f"  val_loss {val_loss:.4f}" if val_loss is not None else ""
            text = f"step {done}/{self.run.steps}  loss {loss:.4f}  grad_norm {grad_norm:.3f}"
            print(f"{text}  {speed}{validation}", flush=True)

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
