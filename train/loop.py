"""The training loop: from a run's configuration to its record."""

from pathlib import Path
from typing import Any

from configs.cli import Status
from data.loading.mixture import Mixture
from train.checkpoint import checkpoint
from train.checkpoint.fragments import without_gradient
from train.config import RunConfig
from train.distributed.topology import Topology
from train.engine.ds_config import derive
from train.engine.engine import build_engine, gradient_norm, release, train_step
from train.engine.lr_schedule import lr_multiplier
from train.engine.micro_batches import training_batches
from train.engine.random_state import seed_all
from train.engine.validation_loss import Losses, Validation
from train.exit_codes import RunEnded
from train.stability.spike_detector import Kind, Verdict
from train.stability.spike_guard import RecoveryState, Rollback, SpikeGuard
from train.supervision.heartbeat import HeartbeatWriter
from train.supervision.preemption import Preempted, StopRequest
from train.telemetry.record import make_record
from train.telemetry.reporter import Reporter, StepClock

_LOOK = 20
"""Steps after a start at which every parameter must have had a gradient; fp16 has found its loss scale by then."""


class TrainingDiverged(RunEnded):
    """The loss stopped being a number, or spikes came back after every rollback."""

    status = Status.DIVERGED


def train(
    run: RunConfig,
    run_dir: Path,
    mixture: Mixture,
    topology: Topology,
    ds_config: dict[str, Any] | None,
    heartbeat: HeartbeatWriter,
) -> None:
    """Train one run to its end, continuing from the newest checkpoint in `run_dir`.

    The process group must be connected. Writes `metrics.jsonl`, `checkpoints/` and, last, `record.json`; the
    `heartbeat` beats with every step. Leaves the process ready for the next run, whatever its topology, also
    when it raises one of the errors below.

    Raises:
        TrainingDiverged: when a spike comes back after every rollback, or the loss is not finite without a guard.
        CheckpointError: when checkpoints exist but none can be loaded.
        Preempted: when a signal asked any of the processes to end; the state has been saved.
    """
    report = Reporter(run, run_dir, topology) if topology.is_main else None
    rollback: Rollback | None = None
    while True:
        seed_all(run.seed)
        engine = build_engine(run, topology, ds_config or derive(run, topology.data_parallel))
        try:
            rollback = _attempt(engine, run, run_dir, mixture, topology, heartbeat, report, rollback)
        except RunEnded:  # raised by all processes together, as `release` needs it
            release(engine)
            if report is not None:
                report.close()
            raise
        release(engine)
        if rollback is None:
            return


def _attempt(
    engine: Any,
    run: RunConfig,
    run_dir: Path,
    mixture: Mixture,
    topology: Topology,
    heartbeat: HeartbeatWriter,
    report: Reporter | None,
    after: Rollback | None,
) -> Rollback | None:
    """Train to the end, or to a spike that does not pass; `after` is the one that ended the attempt before."""
    validation = Validation(mixture, run, topology)
    first_step, guard = _resume(engine, run, run_dir, topology, after)
    if report is not None:
        report.begin(first_step, guard.recovery.attempt)

    losses: Losses | None = None
    clock = StepClock(first_step)
    with StopRequest(topology) as stop:
        for step in range(first_step, run.steps):
            heartbeat.begin_step(step)
            stop.begin_step()
            lr = run.optimizer.lr * lr_multiplier(run.schedule, step, run.steps)
            batches = training_batches(mixture, run, guard.recovery.data_step(step), topology)
            loss = train_step(engine, batches, lr, topology)

            done = step + 1
            is_last = done == run.steps
            stops = stop.agreed() and not is_last
            evaluates = is_last or _due(done, run.eval.interval)
            saves = stops or run.checkpoint.due(done) or (is_last and run.checkpoint.interval is not None)
            logs = evaluates or done == 1 or _due(done, run.log_every)
            verdicts = guard.judge(done, loss, engine.get_global_grad_norm(), now=logs or saves)
            ends = verdicts[-1] if verdicts and verdicts[-1].ends_attempt else None
            if logs:
                loss_value = loss.item()  # waits for the step, so that the clock below times training alone
                steps_per_second = clock.lap(done)
                loss_mean, losses = guard.take_loss_mean(), None
                if evaluates and ends is None:
                    heartbeat.begin("evaluating", done)
                    losses = validation.measure(engine)
                if report is not None:
                    report.step(done, loss_value, loss_mean, gradient_norm(engine), lr, steps_per_second, losses)
            if report is not None:
                report.verdicts(verdicts)
            if done - first_step == _LOOK:
                frozen = without_gradient(engine, run, topology)
                if frozen and report is not None:
                    report.frozen(done, frozen)
            if ends is not None:
                return _go_back(ends, guard, run_dir, topology)
            if saves:
                heartbeat.begin("saving", done)
                if report is not None:
                    report.make_durable()
                checkpoint.save(engine, run, run_dir, done, guard.recovery.to_json(), topology)
            if stops:
                raise Preempted(f"{run_dir}: stopped after step {done} and saved; the same command continues")
            if evaluates or saves:
                clock.restart(done)

    heartbeat.begin("finishing", run.steps)
    if losses is None:  # resumed after the last step
        losses = validation.measure(engine)
    if report is not None:
        spikes = guard.recovery.describe(run.tokens_per_step)
        report.finish(make_record(run, topology, mixture, validation, losses, spikes, report.seconds))
    return None


def _resume(
    engine: Any, run: RunConfig, run_dir: Path, topology: Topology, after: Rollback | None
) -> tuple[int, SpikeGuard]:
    """Load the newest checkpoint; after a rollback, save it again as the next attempt's, so that the rollback lasts."""
    resumed = checkpoint.resume(engine, run, run_dir, topology)
    recovery = RecoveryState.from_json(resumed.extra)
    if after is not None:
        recovery = after.next_attempt(resumed.step, recovery)
        if run.checkpoint.interval is not None:
            checkpoint.save(engine, run, run_dir, resumed.step, recovery.to_json(), topology)
    return resumed.step, SpikeGuard(run.spikes, run.precision, recovery)


def _go_back(verdict: Verdict, guard: SpikeGuard, run_dir: Path, topology: Topology) -> Rollback:
    if verdict.kind is Kind.DIVERGED:
        raise TrainingDiverged(f"{run_dir}: {verdict.reason} at step {verdict.step}; try a lower optimizer.lr")
    rollback = Rollback(guard.recovery, verdict)
    checkpoint.quarantine(run_dir, rollback.latest_step(guard.config.rollback_margin), topology)
    return rollback


def _due(done: int, every: int | None) -> bool:
    return every is not None and done % every == 0
