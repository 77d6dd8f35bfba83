"""A warm worker: connected processes that train one run after another, as a sweep hands them over.

Importing, launching and connecting take seconds, which a small model would otherwise pay again at each data point.
What a run leaves in its processes is what `train.engine.release` clears. A run that fails takes its worker with it,
so that the launcher ends all processes and reports the run's exit status.
"""

import gc
import os
import sys
import time
from pathlib import Path

import torch.distributed as dist

from train.config import load_stored
from train.distributed.topology import connect, launched_topology
from train.launch.job_queue import Job, current_job, mark_done
from train.run import run_job

_POLL = 0.05  # seconds
_PATIENCE = 600.0  # seconds without a run after which the sweep must be gone: it ends idle workers at once


def serve(directory: Path) -> int:
    """Train the runs that are handed over in `directory` until one fails or no more follow; return the exit status.

    All launched processes must call this.

    Raises:
        ConfigError, ValueError, BlockingIOError, DataError: as `run_job`.
    """
    topology = launched_topology(pipeline_stages=1)  # each run makes its own cut of the same processes
    first = _wait_for_job(directory, done=0)
    if first.run_dir is None:
        return 0
    connect(topology, load_stored(first.run_dir / "config.yaml").watchdog.startup_timeout)
    done = 0
    while (job := _next_job(directory, done)).run_dir is not None:
        _print_to(job.run_dir / "log.txt")
        config = job.run_dir / "config.yaml"
        status = run_job(load_stored(config), job.run_dir, str(config))
        if status:
            return status
        dist.barrier()  # done is what every process has finished
        if done == 0:
            gc.freeze()  # what is imported by now stays: later collections look at their own run only
        done = job.number
        if topology.is_main:
            mark_done(directory, done)
    return 0


def _next_job(directory: Path, done: int) -> Job:
    """Wait for the job after the first `done`, and return what the main process reads."""
    # Every process waits by itself: in a collective a GPU's would burn a core each, and give up after minutes.
    agreed = [_wait_for_job(directory, done)]
    dist.broadcast_object_list(agreed, src=0)
    return agreed[0]


def _wait_for_job(directory: Path, done: int) -> Job:
    deadline = time.monotonic() + _PATIENCE
    while (job := current_job(directory)) is None or job.number <= done:
        if time.monotonic() > deadline:
            return Job(done + 1, None)
        time.sleep(_POLL)
    return job


def _print_to(log: Path) -> None:
    """Append all that this process prints from now on to `log`: what Python, C libraries and children print."""
    sys.stdout.flush()
    sys.stderr.flush()
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
