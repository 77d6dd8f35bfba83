"""End a rank that nobody could end otherwise: its launcher is gone, or a rank of its run hangs.

The `deepspeed` program starts `deepspeed.launcher.launch`, which starts the ranks. Neither ends the ranks when it is
killed: they would train on, unseen, and a second launch would meet them in the same directory. And neither notices a
rank that hangs: all others wait for it inside a collective.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from configs.cli import Status
from train.supervision.heartbeat import HeartbeatReader, hung_ranks

_SECONDS = 1.0
_TIME_TO_SAVE = 30.0
"""Seconds that a rank without a launcher is given to save; as many as the launcher itself would give it."""
_AFTER_THE_SWEEP = 10.0
"""Seconds that a sweep, which ends the processes of a hung run together, is given to notice first."""


def watch_launcher() -> None:
    """Start a thread that ends this process soon after any launcher above it ended, with a checkpoint if it can."""
    launchers = [p for p in psutil.Process().parents() if _is_launcher(p)]
    if launchers:
        threading.Thread(target=_watch, args=(launchers,), name="launcher watchdog", daemon=True).start()


def _is_launcher(process: psutil.Process) -> bool:
    try:
        words = process.cmdline()
    except psutil.Error:
        return False
    return "deepspeed.launcher.launch" in words or any(os.path.basename(word) == "deepspeed" for word in words[:2])


def _watch(launchers: list[psutil.Process]) -> None:
    while all(_is_alive(process) for process in launchers):
        time.sleep(_SECONDS)
    print("the launcher has ended; this rank ends too (run again to continue)", file=sys.stderr, flush=True)
    # The training loop hears this and saves; before and after it, the signal ends the process.
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_TIME_TO_SAVE)
    # No clean-up: other ranks may be gone already, and a collective would wait for them.
    os._exit(Status.CRASHED)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def watch_ranks(run_dir: Path, rank: int, ranks: int) -> Iterator[None]:
    """End this process, `rank` of `ranks`, with `Status.HUNG` when it or the next rank is overdue.

    The next one suffices, and many ranks that read all files would be a burden: whichever rank hangs has a neighbour
    that notices, and the launcher ends the others.
    """
    ended = threading.Event()

    def watch() -> None:
        listener = HeartbeatReader(run_dir, {rank, (rank + 1) % ranks})
        while not ended.wait(_SECONDS):
            if listener.overdue(_AFTER_THE_SWEEP):
                print(hung_ranks(run_dir, ranks), file=sys.stderr, flush=True)
                os._exit(Status.HUNG)

    threading.Thread(target=watch, name="rank watchdog", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
