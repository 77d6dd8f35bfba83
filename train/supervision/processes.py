"""Find and end every process of a sweep's worker, whoever its parent is by now.

The `deepspeed` launcher leaves its ranks behind when it is signalled or killed, and helpers of theirs may have
started sessions of their own. What no descendant loses is its environment, so that carries the worker's directory,
which lies in the sweep's and says what the worker trains at the moment (`train.launch.job_queue`).
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path

import psutil

MARK = "SCALING_TESTBED_WORKER"
"""Environment variable that holds the directory of the worker that a process belongs to."""


def processes_of(directory: Path) -> list[psutil.Process]:
    """Return the live processes of the worker in `directory`, or of all workers directly inside it."""
    return [process for process, worker in marked_processes() if directory.resolve() in (worker, worker.parent)]


def marked_processes() -> list[tuple[psutil.Process, Path]]:
    """Return all live processes of this user that belong to a worker, each with the worker's directory."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.uids().real == os.getuid() and (worker := process.environ().get(MARK)):
                found.append((process, Path(worker)))
        except (psutil.Error, OSError):  # gone, or a zombie
            continue
    return found


def stop(directory: Path, grace: float, hurry: Callable[[], bool] = lambda: False) -> int:
    """End all processes of the worker in `directory`, or of all workers inside it; return how many there were.

    All training processes are asked at the same moment (SIGTERM), because they can only save together; the launcher
    would ask them one after another, and ends by itself when they have. Where a worker's are all on other
    machines, the launcher here is asked, and asks them over ssh or through Slurm. What is left on this machine after
    `grace` seconds, or as soon as `hurry()` is true, is killed.
    """
    workers: dict[Path, list[psutil.Process]] = {}
    for process, worker in marked_processes():
        if directory.resolve() in (worker, worker.parent):
            workers.setdefault(worker, []).append(process)
    for found in workers.values():
        for process in [process for process in found if _is_rank(process)] or found:
            _ask(process)
    deadline = time.monotonic() + grace
    # Only these workers': by now another sweep may be starting its own in the same directory.
    while (left := _members(workers)) and time.monotonic() < deadline and not hurry():
        time.sleep(0.05)
    deadline = time.monotonic() + 30  # a process stuck in the kernel cannot be killed; do not wait for it for ever
    while left and time.monotonic() < deadline:
        for process in left:
            with contextlib.suppress(psutil.Error, OSError):
                process.kill()
        time.sleep(0.05)
        left = _members(workers)
    return sum(map(len, workers.values()))


def _members(workers: Collection[Path]) -> list[psutil.Process]:
    return [process for process, worker in marked_processes() if worker in workers]


def _ask(process: psutil.Process) -> None:
    """Ask a process to end. srun would kill its tasks on SIGTERM; SIGUSR1 it passes on to them."""
    with contextlib.suppress(psutil.Error, OSError):
        process.send_signal(signal.SIGUSR1 if process.name() == "srun" else signal.SIGTERM)


def _is_rank(process: psutil.Process) -> bool:
    try:
        return "RANK" in process.environ()
    except (psutil.Error, OSError):
        return False


def start_guard(directory: Path, grace: float) -> subprocess.Popen[bytes]:
    """Start a process that ends all workers inside `directory` when this process is gone, however it went.

    The guard waits for the end of its standard input, which the kernel closes with us.
    """
    command = [sys.executable, "-m", "train.supervision.processes", str(directory.resolve()), str(grace)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


if __name__ == "__main__":
    sys.stdin.buffer.read()
    stop(Path(sys.argv[1]), float(sys.argv[2]))
