"""The training loop: from a run's configuration to its record."""

import dataclasses
from pathlib import Path
from typing import Any

from torch import Tensor

from configs.cli import Status
from configs.run_record import RunRecord
from data.loading.mixture import Mixture
from model.parameters import ParameterTable, parameter_table
from train.checkpoint.branching import branch_point
from train.checkpoint.checkpoint import Checkpoints, describe_spread
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
from train.stability.spike_detector import Kind, Verdict, rollback_reach
from train.stability.spike_guard import RecoveryState, Rollback, SpikeGuard
from train.supervision.heartbeat import HeartbeatWriter
from train.supervision.preemption import Preempted, StopRequest
from train.telemetry.metrics import inherit_curve
from train.telemetry.record import (
    describe_components,
    describe_compute,
    describe_identity,
    describe_model,
    describe_recipe,
    describe_result,
    describe_tokens,
)
from train.telemetry.reporter import Reporter, RunScale, StepClock
from train.telemetry.wandb_tracker import Tracker

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
    report = reporter_of(run, run_dir, topology.world_size) if topology.is_main else None
    table = parameter_table(run.model)
    checkpoints = checkpoints_of(run, run_dir, table, topology)
    rollback: Rollback | None = None
    while True:
        seed_all(run.seed)
        plan = run.step_plan
        engine = build_engine(plan, table, run.seed, ds_config or derive(plan, topology.data_parallel))
        try:
            rollback = _TrainingAttempt(
                run, mixture, topology, engine, checkpoints, heartbeat, report, rollback
            ).train()
        except RunEnded:  # raised by all processes together, as `release` needs it
            release(engine)
            if report is not None:
                report.close()
            raise
        release(engine)
        if rollback is None:
            return


def checkpoints_of(run: RunConfig, run_dir: Path, table: ParameterTable, topology: Topology) -> Checkpoints:
    """Return the checkpoints of a run in `run_dir`, as this process writes and reads them."""
    return Checkpoints(
        run_dir,
        run.checkpoint,
        reach=rollback_reach(run.spikes),
        table=table,
        topology=topology,
        spread=describe_spread(topology, run.step_plan.zero_stage, run.precision),
        begins_at=None if run.branch is None else branch_point(run.branch, run_dir),
    )


def reporter_of(run: RunConfig, run_dir: Path, devices: int) -> Reporter:
    """Return the voice of a run in `run_dir`; a branch begins with the curve of its trunk. For the main process."""
    inherited = inherit_curve(run.branch, run_dir)
    tracker = Tracker(run.wandb, run_dir.name, run_dir, {**dataclasses.asdict(run), "devices": devices})
    for row in inherited:
        tracker.log(row)
    scale = RunScale(run.steps, run.tokens_per_step, run.flops_per_token, devices, bool(run.data.mixture))
    return Reporter(run_dir, scale, tracker)


class _TrainingAttempt:
    """Training from the newest checkpoint to the end, or to a spike that does not pass."""

    def __init__(
        self,
        run: RunConfig,
        mixture: Mixture,
        topology: Topology,
        engine: Any,
        checkpoints: Checkpoints,
        heartbeat: HeartbeatWriter,
        report: Reporter | None,
        after: Rollback | None,
    ) -> None:
        """Resume; `after` is what ended the attempt before. The main process alone has a `report`."""
        self.run, self.mixture, self.topology, self.engine = run, mixture, topology, engine
        self.checkpoints, self.heartbeat, self.report = checkpoints, heartbeat, report
        self.validation = Validation(mixture, run.eval.tokens, run.train, topology)
        self.first_step, recovery = _resume(engine, checkpoints, after)
        self.guard = SpikeGuard(run.spikes, run.precision, recovery)
        self.clock = StepClock(self.first_step)
        self.losses: Losses | None = None
        """Of the last step that was logged, where it was evaluated."""
        if report is not None:
            report.begin(self.first_step, recovery.attempt)

    def train(self) -> Rollback | None:
        """Train to the end and return None, or to a spike and return how to go back before it."""
        run = self.run
        with StopRequest(self.topology) as stop:
            for step in range(self.first_step, run.steps):
                self.heartbeat.begin_step(step)
                stop.begin_step()
                lr = run.optimizer.lr * lr_multiplier(run.schedule, step, run.steps)
                data_step = self.guard.recovery.data_step(step)
                batches = training_batches(self.mixture, run.train, run.seed, data_step, self.topology)
                loss = train_step(self.engine, batches, lr, self.topology)

                done = step + 1
                stops = stop.agreed() and done < run.steps
                logs, evaluates, saves = _due(run, done, stops)
                verdicts = self.guard.judge(done, loss, self.engine.get_global_grad_norm(), now=logs or saves)
                ends = bool(verdicts) and verdicts[-1].ends_attempt
                if logs:
                    self._log(done, loss, lr, evaluates=evaluates and not ends)
                self._tell(done, verdicts)
                if ends:
                    return self._go_back(verdicts[-1])
                if saves:
                    self._save(done)
                if stops:
                    where = f"{self.checkpoints.run_dir}: stopped after step {done} and saved"
                    raise Preempted(f"{where}; the same command continues")
                if evaluates or saves:
                    self.clock.restart(done)
        self._finish()
        return None

    def _log(self, done: int, loss: Tensor, lr: float, evaluates: bool) -> None:
        loss_value = loss.item()  # waits for the step, so that the clock below times training alone
        steps_per_second = self.clock.lap(done)
        loss_mean, self.losses = self.guard.take_loss_mean(), None
        if evaluates:
            self.heartbeat.begin("evaluating", done)
            self.losses = self.validation.measure(self.engine)
        if self.report is not None:
            norm = gradient_norm(self.engine)
            self.report.step(done, loss_value, loss_mean, norm, lr, steps_per_second, self.losses)

    def _tell(self, done: int, verdicts: list[Verdict]) -> None:
        """Say what the guard has found, and soon after the start which parameters do not learn."""
        if self.report is not None:
            self.report.verdicts(verdicts)
        if done - self.first_step == _LOOK:
            frozen = without_gradient(self.engine, self.checkpoints.table, self.topology)
            if frozen and self.report is not None:
                self.report.frozen(done, frozen)

    def _go_back(self, verdict: Verdict) -> Rollback:
        if verdict.kind is Kind.DIVERGED:
            where = f"{self.checkpoints.run_dir}: {verdict.reason} at step {verdict.step}"
            raise TrainingDiverged(f"{where}; try a lower optimizer.lr")
        rollback = Rollback(self.guard.recovery, verdict)
        self.checkpoints.quarantine(rollback.latest_step(self.run.spikes.rollback_margin))
        return rollback

    def _save(self, done: int) -> None:
        self.heartbeat.begin("saving", done)
        if self.report is not None:
            self.report.make_durable()
        self.checkpoints.save(self.engine, done, dataclasses.asdict(self.guard.recovery))

    def _finish(self) -> None:
        """Measure the model where the last step has not, as when resumed after it, and write the record."""
        self.heartbeat.begin("finishing", self.run.steps)
        losses = self.losses or self.validation.measure(self.engine)
        if self.report is not None:
            self.report.finish(self._record(losses, self.report.seconds))

    def _record(self, losses: Losses, seconds: float) -> RunRecord:
        run, mixture, validation = self.run, self.mixture, self.validation
        plan, length = run.step_plan, run.train.sequence_length
        return RunRecord(
            identity=describe_identity(run.name, run.seed, mixture),
            size=describe_model(run.model),
            tokens=describe_tokens(mixture, validation, length, run.tokens),
            compute=describe_compute(plan, run.tokens, run.tokens_spent, self.topology, seconds),
            recipe=describe_recipe(plan, run.schedule, run.branch, run.steps),
            result=describe_result(losses, validation, self.guard.recovery.describe(run.tokens_per_step)),
            components=describe_components(mixture, validation, losses, length, run.tokens)
            if run.data.mixture
            else None,
            others={},
        )


def _resume(engine: Any, checkpoints: Checkpoints, after: Rollback | None) -> tuple[int, RecoveryState]:
    """Load the newest checkpoint; after a rollback, save it again as the next attempt's, so that the rollback lasts."""
    resumed = checkpoints.resume(engine)
    recovery = RecoveryState.from_json(resumed.extra)
    if after is not None:
        recovery = after.next_attempt(resumed.step, recovery)
        if checkpoints.config.interval is not None:
            checkpoints.save(engine, resumed.step, dataclasses.asdict(recovery))
    return resumed.step, recovery


def _due(run: RunConfig, done: int, stops: bool) -> tuple[bool, bool, bool]:
    """Return whether a row, an evaluation and a checkpoint follow step `done`, the last of this process if `stops`."""
    is_last = done == run.steps
    evaluates = is_last or _is_multiple(done, run.eval.interval)
    saves = stops or run.checkpoint.due(done) or (is_last and run.checkpoint.interval is not None)
    return evaluates or done == 1 or _is_multiple(done, run.log_every), evaluates, saves


def _is_multiple(done: int, interval: int | None) -> bool:
    return interval is not None and done % interval == 0
