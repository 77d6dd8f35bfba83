"""Exit statuses of a training run, and the sentences that go with them."""

import os
import sys
from collections.abc import Callable

from configs.reader import ConfigError

USER_ERROR = 2
"""A mistake in the input; nothing was started and nothing was changed."""
DIVERGED = 3
"""The loss stopped being a number."""
NO_CHECKPOINT = 4
"""Checkpoints exist but none can be continued from."""
INTERRUPTED = 130
"""Ctrl-C."""

HOPELESS = (USER_ERROR, DIVERGED)
"""Statuses after which another attempt would end the same way."""

_MISTAKES = (ConfigError, ValueError, FileNotFoundError, PermissionError, BlockingIOError)


def exit_status(action: Callable[[], int]) -> int:
    """Return what `action` returns; a mistake in the input that it raises is told in a sentence instead."""
    try:
        return action()
    except _MISTAKES as error:
        return complain(str(error), USER_ERROR)
    except KeyboardInterrupt:
        return complain("interrupted; the same command continues from the newest checkpoint", INTERRUPTED)


def complain(message: str, status: int) -> int:
    """Print `message`, once although all ranks find the same mistake, and return `status`."""
    if os.environ.get("RANK", "0") == "0":
        print(message, file=sys.stderr, flush=True)
    return status
