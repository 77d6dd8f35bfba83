"""How a scheduler hands one run after another to a warm worker: two small files in the worker's directory.

`job.json` says what to train next; the scheduler replaces it when the run before is done. `done.json` says how many
runs are done; the worker's main process replaces it. Both are there before the other side looks, because a host may
not see a new name on a shared file system for half a minute, and both are replaced by atomic rename.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from data.files import write_json


@dataclass(frozen=True)
class Job:
    """One run for a worker."""

    number: int
    """Counts from 1 in each worker."""
    run_dir: Path | None
    """The run's directory, which holds its config.yaml; None when no run follows and the worker is to end."""


def enqueue(worker: Path, job: Job) -> None:
    """Give the worker in directory `worker` its next job."""
    run_dir = None if job.run_dir is None else str(job.run_dir.resolve())
    write_json(worker / "job.json", {"number": job.number, "run_dir": run_dir})


def current_job(worker: Path) -> Job | None:
    """Return the newest job of a worker, or None where there is none to be read."""
    try:
        job = json.loads((worker / "job.json").read_text(encoding="utf-8"))
        return Job(job["number"], None if job["run_dir"] is None else Path(job["run_dir"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def mark_done(worker: Path, number: int) -> None:
    """Say that the runs up to the one of this number are done."""
    write_json(worker / "done.json", {"number": number})


def jobs_done(worker: Path) -> int:
    """Return the number of the last run that is done."""
    try:
        return int(json.loads((worker / "done.json").read_text(encoding="utf-8"))["number"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
