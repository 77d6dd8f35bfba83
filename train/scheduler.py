"""Run a sweep: every run in processes of its own on a slot of its own, until all have ended."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from train.display import Progress
from train.files import only_process
from train.journal import last_failures, last_meaningful_lines, note_event
from train.launcher import deepspeed_program, launch_command, launch_environment
from train.plan import Plan
from train.ports import ReservedPort, reserve_port
from train.processes import processes_of, start_guard, stop
from train.runstate import RunState, complete_record, read_state
from train.slots import Pool, Slot
from train.status import HOPELESS
from train.stored import require_unchanged, store_config
from train.sweep import Run

Command = Callable[[Run, Slot, int], list[str]]
"""(run, slot, port) -> the command that trains the run."""

_POLL = 0.2  # seconds


@dataclass(frozen=True)
class Failure:
    """A run that did not end with a complete record."""

    run: Run
    reason: str
    lines: list[str]
    """The end of its log, without the chatter."""


@dataclass(frozen=True)
class Outcome:
    """How a sweep ended."""

    states: dict[str, RunState]
    failures: list[Failure]
    interrupted_by: int | None
    """The signal that ended it, or None."""


@dataclass(frozen=True)
class _Launched:
    run: Run
    slot: Slot
    port: ReservedPort
    process: subprocess.Popen[bytes]
    log_start: int
    started: float
    attempt: int


@dataclass
class _Interrupts:
    """Signals that asked this process to end."""

    received: list[int]

    def __bool__(self) -> bool:
        return bool(self.received)

    def repeated(self) -> bool:
        return len(self.received) > 1


def run_sweep(plan: Plan, prepare: Callable[[], None], command: Command | None = None) -> Outcome:
    """Run what is not complete, the longest first; return when every run has ended.

    A run that fails leaves the others alone. SIGINT, SIGTERM and SIGHUP end all of them, a second one at once; if this
    process is killed, a guard ends them.

    Args:
        plan: the runs, their expected durations and the devices.
        prepare: called once before the first run is launched, when there is one to launch; makes the corpora.
        command: how a run is launched; the `deepspeed` launcher by default.

    Raises:
        ConfigError: when a run was begun under another configuration; nothing has been started then.
        BlockingIOError: when another sweep uses the same directory.
        OSError: when the directory cannot be written, or the `deepspeed` launcher is not installed.
    """
    sweep, directory = plan.sweep, plan.sweep.config.directory
    command = command or _deepspeed(plan)
    directory.mkdir(parents=True, exist_ok=True)
    with only_process(directory / ".sweep.lock", f"the sweep directory {directory}"):
        require_unchanged(sweep.runs)
        strays = stop(directory, sweep.config.grace_seconds) if processes_of(directory) else 0
        if strays:
            print(f"ended {strays} process(es) that an earlier sweep left in {directory}", file=sys.stderr)
        waiting = [run for run in plan.order() if complete_record(run.directory) is None]
        if not waiting:
            return Outcome(_states(plan, set()), [], None)
        prepare()
        guard = start_guard(directory, sweep.config.grace_seconds)
        try:
            with _interrupts() as interrupts, Progress(plan) as progress:
                scheduler = _Scheduler(plan, command, progress, interrupts)
                return scheduler.run(waiting)
        finally:
            guard.communicate()  # closes its input; it finds nothing to end


def _deepspeed(plan: Plan) -> Command:
    deepspeed_program()  # raises where it is missing
    return lambda run, slot, port: launch_command(run, slot, port, plan.devices, plan.sweep.config.launcher_args)


@contextmanager
def _interrupts() -> Iterator[_Interrupts]:
    """Collect signals instead of dying of them."""
    interrupts = _Interrupts([])

    def collect(number: int, frame: FrameType | None) -> None:
        interrupts.received.append(number)

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    # What is ignored already stays ignored: that is what nohup asks for.
    heard = [number for number in signals if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, collect) for number in heard}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Scheduler:
    def __init__(self, plan: Plan, command: Command, progress: Progress, interrupts: _Interrupts) -> None:
        self.plan, self.command, self.progress, self.interrupts = plan, command, progress, interrupts
        self.config = plan.sweep.config
        self.pool = Pool(plan.devices)
        self.running: list[_Launched] = []
        self.attempts: dict[str, int] = {}
        self.failures: list[Failure] = []

    def run(self, waiting: list[Run]) -> Outcome:
        waiting = list(waiting)
        while (waiting or self.running) and not self.interrupts:
            for run in list(waiting):
                slot = self.pool.take(run)
                if slot is not None:
                    waiting.remove(run)
                    self._launch(run, slot)
            time.sleep(_POLL)
            for launched in [each for each in self.running if each.process.poll() is not None]:
                if self._finish(launched):
                    waiting.insert(0, launched.run)
            if self.progress.due():
                self.progress.update(self._states())
        if self.interrupts:
            self._stop_all()
        return Outcome(self._states(), self.failures, self.interrupts.received[0] if self.interrupts else None)

    def _launch(self, run: Run, slot: Slot) -> None:
        store_config(run)
        port = reserve_port()
        command = self.command(run, slot, port.number)
        attempt = self.attempts[run.name] = self.attempts.get(run.name, 0) + 1
        with (run.directory / "log.txt").open("ab") as log:
            log.write(f"=== {time.strftime('%Y-%m-%d %H:%M:%S')} {' '.join(command)}\n".encode())
            log.flush()
            start = log.tell()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=launch_environment(run, self.plan.devices),
                start_new_session=True,  # so that Ctrl-C reaches us alone, and we end the run's processes together
            )
        self.running.append(_Launched(run, slot, port, process, start, time.monotonic(), attempt))
        note_event(self.config.directory, run.name, "started", attempt=attempt, port=port.number, pid=process.pid)
        where = "; ".join(f"{host} {','.join(map(str, numbers))}" for host, numbers in slot.devices)
        self.progress.say(f"{run.name}: started on {'the CPU' if self.plan.devices.hold_whole_runs else where}")

    def _finish(self, launched: _Launched) -> bool:
        """Account for a run whose launcher has ended; return whether to launch it again."""
        run, code = launched.run, launched.process.returncode
        stop(run.directory, min(5.0, self.config.grace_seconds), self.interrupts.repeated)
        self._release(launched)
        seconds = round(time.monotonic() - launched.started, 1)
        record = complete_record(run.directory)
        if record is not None:
            note_event(self.config.directory, run.name, "complete", seconds=seconds)
            self.progress.say(f"{run.name}: complete, val_loss {record.get('val_loss', float('nan')):.4f}")
            return False
        lines = last_meaningful_lines(run.directory / "log.txt", launched.log_start)
        reason = _reason(code)
        reason += f": {lines[-1]}" if code > 0 and lines else ""
        note_event(self.config.directory, run.name, "failed", code=code, reason=reason, seconds=seconds)
        again = code not in HOPELESS and launched.attempt <= self.config.retries
        self.progress.say(f"{run.name}: failed, {reason}" + ("; launching it again" if again else ""))
        if not again:
            self.failures.append(Failure(run, reason, lines))
        return again

    def _release(self, launched: _Launched) -> None:
        self.running.remove(launched)
        self.pool.give_back(launched.slot)
        launched.port.release()

    def _stop_all(self) -> None:
        name = signal.Signals(self.interrupts.received[0]).name
        grace = self.config.grace_seconds
        self.progress.say(f"{name}: ending {len(self.running)} run(s) within {grace:.0f} s; once more kills them now")
        # One call for all: a run that is launched through a wrapper may take a while, and they need not queue for it.
        stop(self.config.directory, grace, self.interrupts.repeated)
        for launched in list(self.running):
            launched.process.wait()
            self._release(launched)
            event = "complete" if complete_record(launched.run.directory) else "stopped"
            note_event(self.config.directory, launched.run.name, event, seconds=time.monotonic() - launched.started)

    def _states(self) -> dict[str, RunState]:
        return _states(self.plan, {launched.run.name for launched in self.running})


def _states(plan: Plan, running: set[str]) -> dict[str, RunState]:
    failures = last_failures(plan.sweep.config.directory)
    return {run.name: read_state(run, run.name in running, failures.get(run.name)) for run in plan.sweep.runs}


def _reason(code: int) -> str:
    if code == 0:
        return "the launcher was killed or ended early: its exit status is 0 but record.json is not complete"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit status {code}"


def end_of_log(failure: Failure) -> str:
    """Return what a person needs to know of a failed run."""
    log: Path = failure.run.directory / "log.txt"
    return "\n".join([f"{failure.run.name}: {failure.reason} ({log})", *(f"    {line}" for line in failure.lines)])
