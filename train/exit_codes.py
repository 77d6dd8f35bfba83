"""How a training run ends: its exit statuses, in one table, and the sentences that go with them."""

import os
import sys
from collections.abc import Callable
from enum import IntEnum

from configs.reader import ConfigError


class Status(IntEnum):
    """Exit status of a training process; the `deepspeed` launcher passes on that of the first rank that failed."""

    COMPLETE = 0
    CRASHED = 1
    USER_ERROR = 2
    DIVERGED = 3
    NO_CHECKPOINT = 4
    STOPPED = 5
    HUNG = 6
    FOREIGN_RANK = 7
    OUT_OF_MEMORY = 8
    DISK_FULL = 9
    INTERRUPTED = 130


DESCRIPTIONS = {
    Status.COMPLETE: "the run is complete",
    Status.CRASHED: "an error without a status of its own; see the log, run again",
    Status.USER_ERROR: "a mistake in the input; nothing was changed",
    Status.DIVERGED: "the loss stopped being a number, or spikes came back after every rollback",
    Status.NO_CHECKPOINT: "checkpoints exist but none can be continued from",
    Status.STOPPED: "asked to end, and saved; run again to continue",
    Status.HUNG: "a rank was silent for too long; run again to continue",
    Status.FOREIGN_RANK: "a process of another run joined; nothing was trained",
    Status.OUT_OF_MEMORY: "the device or the machine has too little memory for the run",
    Status.DISK_FULL: "a file could not be written; make room, run again to continue",
    Status.INTERRUPTED: "Ctrl-C before the first step, or twice",
}

NOT_RETRYABLE = (Status.USER_ERROR, Status.DIVERGED, Status.NO_CHECKPOINT, Status.OUT_OF_MEMORY, Status.DISK_FULL)
"""Statuses after which another attempt would end the same way."""


class RunEnded(RuntimeError):
    """A run ends before its time, for a reason that has a status and a sentence."""

    status = Status.CRASHED
    told_by_all = False
    """Whether each rank says it; otherwise the first of each machine, since all know the same."""


MISTAKES = (ConfigError, ValueError, FileNotFoundError, PermissionError, BlockingIOError)
"""What is raised for a mistake in the input."""


def exit_status(action: Callable[[], int]) -> int:
    """Return what `action` returns; what is told in a sentence rather than a traceback is printed."""
    try:
        return action()
    except RunEnded as error:
        return print_error(str(error), error.status, error.told_by_all)
    except MISTAKES as error:
        return print_error(str(error), Status.USER_ERROR)
    except KeyboardInterrupt:
        message = "interrupted; the same command continues from the newest checkpoint"
        return print_error(message, Status.INTERRUPTED)


def print_error(message: str, status: Status, told_by_all: bool = False) -> int:
    """Print `message`, once on each machine although all ranks find the same mistake, and return `status`."""
    if told_by_all or os.environ.get("LOCAL_RANK", "0") == "0":
        print(message, file=sys.stderr, flush=True)
    return int(status)
