"""How a training run ends: what ends it before its time, and the status and sentence that it ends with."""

import os
import sys
from collections.abc import Callable

from configs.cli import Status
from configs.reader import UserError

NOT_RETRYABLE = (Status.USER_ERROR, Status.DIVERGED, Status.NO_CHECKPOINT, Status.OUT_OF_MEMORY, Status.DISK_FULL)
"""Statuses after which another attempt would end the same way."""


class RunEnded(RuntimeError):
    """A run ends before its time, for a reason that has a status and a sentence."""

    status = Status.CRASHED
    told_by_all = False
    """Whether each rank says it; otherwise the first of each machine, since all know the same."""


MISTAKES = (UserError, ValueError, FileNotFoundError, PermissionError, BlockingIOError)
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
