"""The training loop: from a run's configuration to its record."""

import math
from pathlib import Path
from typing import Any

import torch

from data.batches import validation_windows
from data.shards import Corpus
from train import checkpoint
from train.batches import training_batches, validation_batches
from train.config import RunConfig
from train.ds_config import derive
from train.engine import build_engine, evaluate, gradient_norm, release, train_step
from train.heartbeat import Heart
from train.preemption import Preempted, StopRequest
from train.record import describe_data
from train.reporter import Reporter, StepClock
from train.schedule import lr_multiplier
from train.status import RunEnded, Status
from train.topology import Topology


class TrainingDiverged(RunEnded):
    """The loss stopped being a number."""

    status = Status.DIVERGED


def train(
    run: RunConfig, run_dir: Path, corpus: Corpus, topology: Topology, ds_config: dict[str, Any] | None, heart: Heart
) -> None:
    """Train one run to its end, continuing from the newest checkpoint in `run_dir`.

    The process group must be connected. Writes `metrics.jsonl`, `checkpoints/` and, last, `record.json`; the `heart`
    beats with every step. Leaves the process ready for the next run, whatever its topology, also when it raises one
    of the errors below.

    Raises:
        TrainingDiverged: when the loss is not finite at a logged step.
        CheckpointError: when checkpoints exist but none can be loaded.
        Preempted: when a signal asked any of the processes to end; the state has been saved.
    """
    torch.manual_seed(run.seed)
    engine = build_engine(run, topology, ds_config or derive(run, topology.data_parallel))
    try:
        _train(engine, run, run_dir, corpus, topology, heart)
    except RunEnded:  # raised by all processes together, as `release` needs it
        release(engine)
        raise
    release(engine)


def _train(engine: Any, run: RunConfig, run_dir: Path, corpus: Corpus, topology: Topology, heart: Heart) -> None:
    windows = validation_windows(corpus, run.train.sequence_length, run.evaluate.tokens)
    validation, to_nats_per_token = validation_batches(windows, run, topology)
    first_step = checkpoint.resume(engine, run, run_dir, topology).step
    report = Reporter(run, run_dir, topology, first_step) if topology.is_main else None

    val_loss = None
    clock = StepClock(first_step)
    with StopRequest(topology) as stop:
        for step in range(first_step, run.steps):
            heart.begin_step(step)
            stop.begin_step()
            lr = run.optimizer.lr * lr_multiplier(run.schedule, step, run.steps)
            loss = train_step(engine, training_batches(corpus, run, step, topology), lr, topology)

            done = step + 1
            is_last = done == run.steps
            stops = stop.agreed() and not is_last
            evaluates = is_last or _due(done, run.evaluate.every)
            saves = stops or _due(done, run.checkpoint.every) or (is_last and run.checkpoint.every is not None)
            if evaluates or done == 1 or _due(done, run.log_every):
                loss_value = loss.item()  # waits for the step, so that the clock below times training alone
                steps_per_second = clock.lap(done)
                if not math.isfinite(loss_value):
                    message = f"{run_dir}: the loss is {loss_value} at step {done}; try a lower optimizer.lr"
                    raise TrainingDiverged(message)
                val_loss = None
                if evaluates:
                    heart.begin("evaluating", done)
                    val_loss = evaluate(engine, validation, topology) * to_nats_per_token
                if report is not None:
                    report.step(done, loss_value, gradient_norm(engine), lr, steps_per_second, val_loss)
            if saves:
                heart.begin("saving", done)
                checkpoint.save(engine, run, run_dir, done, {}, topology)
            if stops:
                if report is not None:
                    report.close()
                raise Preempted(f"{run_dir}: stopped after step {done} and saved; the same command continues")
            if evaluates or saves:
                clock.restart(done)

    heart.begin("finishing", run.steps)
    if val_loss is None:  # resumed after the last step
        val_loss = evaluate(engine, validation, topology) * to_nats_per_token
    if report is not None:
        report.finish(val_loss, describe_data(run, corpus, windows))


def _due(done: int, every: int | None) -> bool:
    return every is not None and done % every == 0
