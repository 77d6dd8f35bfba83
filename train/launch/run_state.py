"""What a run's directory says about the run, read without touching it."""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from configs.metrics_rows import METRICS, MetricsRow, parse_row
from configs.run_record import RunRecord, complete_record
from train.checkpoint.manifest import newest_first, step_of
from train.launch.events import last_failures
from train.launch.job_queue import current_job
from train.supervision.processes import marked_processes
from train.sweep.run import Run

State = Literal["complete", "running", "resumable", "failed", "pending", "not needed"]


@dataclass(frozen=True)
class RunState:
    """How far a run is."""

    state: State
    step: int = 0
    """Step of the newest row of metrics.jsonl."""
    row: MetricsRow = field(default_factory=lambda: MetricsRow())
    """That row."""
    record: RunRecord | None = None
    """Of a complete run."""
    note: str = ""
    """Why it failed, or where it will continue."""


def read_state(run: Run, running: bool, failure: str | None, unneeded: str | None = None) -> RunState:
    """Read the state of a run.

    Args:
        run: the run.
        running: whether a worker trains it.
        failure: what its last launch failed with, if it did.
        unneeded: why it need not be started, if so.
    """
    record = complete_record(run.directory)
    row = last_row(run.directory / METRICS)
    step = row.get("step", 0)
    if record is not None:
        return RunState("complete", run.config.steps, row, record)
    if running:
        return RunState("running", step, row)
    if unneeded is not None:
        return RunState("not needed", step, row, note=unneeded)
    note = f"continues from step {checkpoint_step(run.directory) or run.config.first_step}" if step else ""
    if failure is not None:
        return RunState("failed", step, row, note=failure + (f"; {note}" if note else ""))
    return RunState("resumable" if step else "pending", step, row, note=note)


def read_states(
    runs: tuple[Run, ...], unneeded: Mapping[str, str], running: Collection[str] | None = None
) -> dict[str, RunState]:
    """Read the states of all runs of a sweep, by name.

    Args:
        runs: the runs.
        unneeded: those that need not be started, with the reason.
        running: those that workers train; by the processes of this machine if it is None.
    """
    if running is None:
        jobs = [current_job(worker) for worker in {worker for _, worker in marked_processes()}]
        alive = {job.run_dir for job in jobs if job is not None}
        running = [run.name for run in runs if run.directory.resolve() in alive]
    failures = last_failures(runs[0].directory.parent)
    return {
        run.name: read_state(run, run.name in running, failures.get(run.name), unneeded.get(run.name)) for run in runs
    }


def last_row(path: Path) -> MetricsRow:
    """Return the last whole row of a metrics file, reading only its end; an empty mapping when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 16_384))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return {}
    for line in reversed(lines):
        if (row := parse_row(line)) is not None:
            return row
    return {}


def checkpoint_step(directory: Path) -> int:
    """Return the step of the newest checkpoint, or 0."""
    return max(map(step_of, newest_first(directory / "checkpoints")), default=0)
