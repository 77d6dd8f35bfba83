"""End a rank whose launcher is gone.

The `deepspeed` program starts `deepspeed.launcher.launch`, which starts the ranks. Neither ends the ranks when it is
killed: they would train on, unseen, and a second launch would meet them in the same directory.
"""

import os
import sys
import threading
import time

import psutil

_SECONDS = 1.0


def watch_launcher() -> None:
    """Start a thread that ends this process within seconds of any launcher above it ending."""
    launchers = [p for p in psutil.Process().parents() if _is_launcher(p)]
    if launchers:
        threading.Thread(target=_watch, args=(launchers,), name="watchdog", daemon=True).start()


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
    # No clean-up: other ranks may be gone already, and a collective would wait for them.
    os._exit(1)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
