"""Run a sweep: a warm worker on each slot, which trains one run after another, until all have ended."""

import math
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from configs.cli import DESCRIPTIONS, Status
from configs.reader import as_tree, dump_yaml
from configs.run_record import RunRecord, complete_record
from data.files import only_process, require_writable, write_text
from train.checkpoint.branching import branch_point
from train.checkpoint.stored_config import require_unchanged
from train.distributed.ports import reserve_port
from train.exit_codes import NOT_RETRYABLE
from train.launch.devices import Pool, Slot
from train.launch.display import SweepProgress
from train.launch.events import last_meaningful_lines, note_event
from train.launch.launcher import Worker, deepspeed_program, launch_command, start_worker
from train.launch.plan import Plan
from train.launch.run_state import RunState, checkpoint_step, read_states
from train.supervision.heartbeat import HeartbeatReader, forget_beats, hung_ranks
from train.supervision.processes import start_guard, stop
from train.sweep.run import Run
from train.sweep.trunk import start_of
from train.telemetry.redact import redact

Command = Callable[[Path, int, Slot, int], list[str]]
"""(directory, processes, slot, port) -> the command that starts a worker."""

_WORKER = ".worker-"  # directories of workers, inside the sweep's, are named so and something unique

_POLL = 0.2  # seconds
_RANK_KILLED = {256 - number: number.name for number in signal.Signals if number > 1}
"""Exit status of the launcher when a signal ended a rank -> the signal; 255 has other meanings, too."""


@dataclass(frozen=True)
class Failure:
    """A run that did not end with a complete record."""

    run: Run
    reason: str
    lines: list[str]
    """The end of its log, without the chatter."""


@dataclass(frozen=True)
class SweepOutcome:
    """How a sweep ended."""

    states: dict[str, RunState]
    failures: list[Failure]
    interrupted_by: int | None
    """The signal that ended it, or None."""


@dataclass(frozen=True)
class _Attempt:
    """A run that a worker is training."""

    run: Run
    number: int
    """Counts the attempts at this run, from 1."""
    started: float
    log_start: int
    """Where its part of log.txt begins, in bytes."""
    launcher_log_start: int
    """Where its part of the worker's log begins, in bytes."""
    listener: HeartbeatReader
    """Hears its ranks."""


def run_sweep(
    plan: Plan,
    prepare: Callable[[], None],
    command: Command | None = None,
    completed: Callable[[], None] = lambda: None,
    unneeded: Callable[[], Mapping[str, str]] = dict,
) -> SweepOutcome:
    """Run what is not complete, in the order of the plan; return when every run has ended or is not needed.

    A run that fails leaves the others alone. SIGINT, SIGTERM and SIGHUP end all of them, a second one at once; if this
    process is killed, a guard ends them.

    Args:
        plan: the runs, their expected durations and the devices.
        prepare: called once before the first run is launched, when there is one to launch; makes the corpora.
        command: how a worker is launched; by the `deepspeed` launcher if it is None.
        completed: called whenever a run has become complete; must return at once.
        unneeded: called at the start and whenever a run has become complete; returns runs that are not to be started,
            with the reason. One that a needed branch waits for is started all the same.

    Raises:
        ConfigError: when a run was begun under another configuration; nothing has been started then.
        BlockingIOError: when another sweep uses the same directory.
        OSError: when the directory cannot be written, or the `deepspeed` launcher is not installed.
    """
    sweep, directory = plan.sweep, plan.sweep.config.directory
    command = command or _deepspeed(plan)
    require_writable(directory)
    with only_process(directory / ".sweep.lock", f"the sweep directory {directory}"):
        require_unchanged([(as_tree(run.config), run.directory) for run in sweep.runs])
        if strays := stop(directory, sweep.config.grace_seconds):
            print(f"ended {strays} process(es) that an earlier sweep left in {directory}", file=sys.stderr)
        for left in directory.glob(f"{_WORKER}*"):
            shutil.rmtree(left, ignore_errors=True)
        waiting = [run for run in plan.order() if complete_record(run.directory) is None]
        skipped = unneeded()
        if all(run.name in skipped for run in waiting):
            return SweepOutcome(read_states(sweep.runs, skipped, set()), [], None)
        prepare()
        guard = start_guard(directory, sweep.config.grace_seconds)
        try:
            with _interrupts() as interrupts, SweepProgress(plan) as progress:
                scheduler = _Scheduler(plan, command, completed, unneeded, skipped, progress, interrupts)
                return scheduler.run(waiting)
        finally:
            guard.communicate()  # closes its input; it finds nothing to end


def _deepspeed(plan: Plan) -> Command:
    deepspeed_program()  # raises where it is missing
    more = plan.sweep.config.launcher_args
    return lambda worker, processes, slot, port: launch_command(worker, processes, slot, port, plan.devices, more)


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Collect signals that ask this process to end, instead of dying of them."""
    interrupts: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    # What is ignored already stays ignored: that is what nohup asks for.
    heard = [number for number in signals if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, lambda received, frame: interrupts.append(received)) for number in heard}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Scheduler:
    def __init__(
        self,
        plan: Plan,
        command: Command,
        completed: Callable[[], None],
        unneeded: Callable[[], Mapping[str, str]],
        skipped: Mapping[str, str],
        progress: SweepProgress,
        interrupts: list[int],
    ) -> None:
        self.plan, self.command, self.completed, self.ask = plan, command, completed, unneeded
        self.unneeded = skipped
        self.progress, self.interrupts = progress, interrupts
        self.config = plan.sweep.config
        self.pool = Pool(plan.devices)
        self.workers: list[Worker] = []
        self.running: dict[Worker, _Attempt] = {}
        self.attempts: dict[str, int] = {}
        self.failures: list[Failure] = []

    def run(self, waiting: list[Run]) -> SweepOutcome:
        waiting = list(waiting)
        while (self._needed(waiting) or self.workers) and not self.interrupts:
            waiting = self._with_hope(waiting)
            for run in filter(self._is_ready, self._needed(waiting)):
                worker = self._warm_worker(run.devices) or self._launch(run)
                if worker is not None:
                    waiting.remove(run)
                    self._hand_over(run, worker)
            for worker in self._idle_workers():  # no run that waits is for them
                worker.enqueue(None)
            time.sleep(_POLL)
            for worker in list(self.workers):
                run_again = self._look_after(worker)
                if run_again is not None:
                    waiting.insert(0, run_again)
            if self.progress.due():
                self.progress.update(self._states())
        if self.interrupts:
            self._stop_all()
        else:
            for run in waiting:
                note_event(self.config.directory, run.name, "not needed", reason=self.unneeded[run.name])
                self.progress.say(f"{run.name}: not needed, {self.unneeded[run.name]}")
        return SweepOutcome(self._states(), self.failures, self.interrupts[0] if self.interrupts else None)

    def _hurry(self) -> bool:
        return len(self.interrupts) > 1

    def _needed(self, waiting: list[Run]) -> list[Run]:
        """Return the runs that are needed, or whose branches are."""
        needed = [run for run in waiting if run.name not in self.unneeded]
        trunks = {run.config.branch.run for run in needed if run.config.branch and not self._is_ready(run)}
        return [run for run in waiting if run in needed or run.name in trunks]

    def _is_ready(self, run: Run) -> bool:
        """Return whether what the run branches off from, if anything, has come that far."""
        branch = run.config.branch
        return (
            branch is None
            or branch_point(branch, run.directory).exists()
            or complete_record(run.directory.parent / branch.run) is not None
            or checkpoint_step(run.directory) > 0
        )

    def _with_hope(self, waiting: list[Run]) -> list[Run]:
        """Leave out the branches of trunks that failed before them, and account for these."""
        failed = {failure.run.name for failure in self.failures}
        lost = [r for r in waiting if r.config.branch and r.config.branch.run in failed and not self._is_ready(r)]
        for run in lost:
            assert run.config.branch is not None
            reason = f"not started: its trunk {run.config.branch.run} failed before step {run.config.branch.step}"
            note_event(self.config.directory, run.name, "failed", reason=reason)
            self.progress.say(f"{run.name}: {reason}")
            self.failures.append(Failure(run, reason, []))
        return [run for run in waiting if run not in lost]

    def _idle_workers(self) -> list[Worker]:
        """Return the workers that have no run and have not been told to end."""
        return [worker for worker in self.workers if worker not in self.running and worker.ending_since is None]

    def _warm_worker(self, processes: int) -> Worker | None:
        """Return an idle worker of that size that may take another run."""
        most = self.config.runs_per_launch or math.inf
        fitting = (w for w in self._idle_workers() if w.processes == processes and w.handed < most)
        return next((worker for worker in fitting if worker.process.poll() is None), None)

    def _launch(self, run: Run) -> Worker | None:
        """Start a worker of the size of `run`, or return None while there is no room."""
        slot = self.pool.take(run)
        if slot is None:
            return None
        directory = Path(tempfile.mkdtemp(prefix=_WORKER, dir=self.config.directory))
        port = reserve_port()
        command = self.command(directory, run.devices, slot, port.number)
        worker = start_worker(directory, run.devices, slot, port, command, self.plan.devices)
        self.workers.append(worker)
        return worker

    def _hand_over(self, run: Run, worker: Worker) -> None:
        if self.config.trunk:
            siblings = [sibling.config for sibling in self.plan.sweep.runs]
            branch = start_of(run.config, run.directory, siblings)
            run = replace(run, config=replace(run.config, branch=branch))
        write_text(run.directory / "config.yaml", dump_yaml(run.config))
        number = self.attempts[run.name] = self.attempts.get(run.name, 0) + 1
        with (run.directory / "log.txt").open("ab") as log:
            launched = f"run {worker.handed + 1} of {redact(' '.join(worker.command))}"
            log.write(f"=== {time.strftime('%Y-%m-%d %H:%M:%S')} {launched}\n".encode())
            log.flush()
            start = log.tell()
        forget_beats(run.directory)
        listener = HeartbeatReader(run.directory, range(run.devices), run.config.watchdog.startup_timeout)
        self.running[worker] = _Attempt(run, number, time.monotonic(), start, worker.log.stat().st_size, listener)
        worker.enqueue(run.directory)
        details = {"attempt": number, "port": worker.port.number, "pid": worker.process.pid, "warm": worker.handed > 1}
        note_event(self.config.directory, run.name, "started", **details)
        where = "; ".join(f"{host} {','.join(map(str, numbers))}" for host, numbers in worker.slot.devices)
        self.progress.say(f"{run.name}: started on {'the CPU' if self.plan.devices.hold_whole_runs else where}")

    def _look_after(self, worker: Worker) -> Run | None:
        """Account for what a worker has come to since the last time; return a run to launch again."""
        hung = self._end_if_hung(worker)
        code = worker.process.poll()  # before the next line, lest a run's end and its worker's fall between them
        attempt = self.running.get(worker) if code is not None or worker.is_done() else None
        record = complete_record(attempt.run.directory) if attempt is not None else None
        over = code is not None or (attempt is not None and record is None)  # no worker outlives a failure
        if over or worker.is_overdue(self.config.grace_seconds):
            stop(worker.directory, min(5.0, self.config.grace_seconds), self._hurry)
            if attempt is not None:  # its log ends with what the launcher had to say
                with (attempt.run.directory / "log.txt").open("ab") as log:
                    log.write(worker.log.read_bytes()[attempt.launcher_log_start :])
            self._release(worker)
        if attempt is None:
            return None
        self.running.pop(worker, None)
        return None if self._account(attempt, record, code or 0, hung) else attempt.run

    def _end_if_hung(self, worker: Worker) -> str:
        """Kill a worker one of whose ranks is silent for too long, and say which; nobody else would end it."""
        attempt = self.running.get(worker)
        if attempt is None or not attempt.listener.overdue():
            return ""
        reason = hung_ranks(attempt.run.directory, attempt.run.devices)
        stop(worker.directory, min(5.0, self.config.grace_seconds), self._hurry)
        worker.process.wait()
        return reason

    def _account(self, attempt: _Attempt, record: RunRecord | None, code: int, hung: str) -> bool:
        """Tell how an attempt ended; return whether that was the last at this run."""
        run, seconds = attempt.run, round(time.monotonic() - attempt.started, 1)
        if record is not None:
            note_event(self.config.directory, run.name, "complete", seconds=seconds)
            self.progress.say(f"{run.name}: complete, val_loss {record.result.val_loss:.4f}")
            self.completed()
            self.unneeded = self.ask()
            return True
        lines = last_meaningful_lines(run.directory / "log.txt", attempt.log_start)
        reason = hung or _reason(code)
        reason += f": {lines[-1]}" if code > 0 and lines and not hung else ""
        note_event(self.config.directory, run.name, "failed", code=code, reason=reason, seconds=seconds)
        again = code not in NOT_RETRYABLE and attempt.number <= self.config.retries
        self.progress.say(f"{run.name}: failed, {reason}" + ("; launching it again" if again else ""))
        if not again:
            self.failures.append(Failure(run, reason, lines))
        return not again

    def _release(self, worker: Worker) -> None:
        worker.process.wait()
        self.workers.remove(worker)
        self.pool.give_back(worker.slot)
        worker.port.release()
        shutil.rmtree(worker.directory, ignore_errors=True)

    def _stop_all(self) -> None:
        name = signal.Signals(self.interrupts[0]).name
        grace = self.config.grace_seconds
        self.progress.say(f"{name}: ending {len(self.running)} run(s) within {grace:.0f} s; once more kills them now")
        # One call for all: a run that is launched through a wrapper may take a while, and they need not queue for it.
        stop(self.config.directory, grace, self._hurry)
        for worker in list(self.workers):
            self._release(worker)
        for attempt in self.running.values():
            event = "complete" if complete_record(attempt.run.directory) else "stopped"
            note_event(self.config.directory, attempt.run.name, event, seconds=time.monotonic() - attempt.started)
        self.running.clear()

    def _states(self) -> dict[str, RunState]:
        running = {attempt.run.name for attempt in self.running.values()}
        return read_states(self.plan.sweep.runs, self.unneeded, running)


def _reason(code: int) -> str:
    if code == 0:
        return "the launcher was killed or ended early: its exit status is 0 but record.json is not complete"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    if code in _RANK_KILLED:
        return f"a rank was killed by {_RANK_KILLED[code]}"
    if code in DESCRIPTIONS and code != Status.CRASHED:
        return f"exit status {code}, {DESCRIPTIONS[Status(code)]}"
    return f"exit status {code}"


def end_of_log(failure: Failure) -> str:
    """Return what a person needs to know of a failed run."""
    log: Path = failure.run.directory / "log.txt"
    return "\n".join([f"{failure.run.name}: {failure.reason} ({log})", *(f"    {line}" for line in failure.lines)])
