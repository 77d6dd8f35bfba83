"""Say how far a preparation is: a bar on a terminal, a line now and then in a log."""

import sys
import time
from typing import Any

_SECONDS_PER_LINE = 10.0


class Progress:
    """Context manager; `update(bytes_done)` draws a bar or, every ten seconds, prints a line on stderr."""

    def __init__(self, title: str, total_bytes: int | None, enabled: bool) -> None:
        self._title, self._total, self._enabled = title, total_bytes, enabled
        self._bar: Any = None
        self._start = self._last = time.monotonic()

    @staticmethod
    def say(message: str) -> None:
        """Print one line on stderr."""
        print(message, file=sys.stderr, flush=True)

    def __enter__(self) -> "Progress":
        if self._enabled and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
            self._bar = Bar(*columns, TransferSpeedColumn(), TimeRemainingColumn(), console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=self._total)
        elif self._enabled:
            self.say(self._title)
        return self

    def update(self, done: int) -> None:
        """Report that `done` UTF-8 bytes of text are tokenised."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done)
            return
        now = time.monotonic()
        if self._enabled and now - self._last >= _SECONDS_PER_LINE:
            self._last = now
            of = f" of at most {self._total / 1e6:.1f}" if self._total else ""
            rate = done / 1e6 / (now - self._start)
            self.say(f"{self._title}: {done / 1e6:.1f}{of} MB of text, {rate:.1f} MB/s")

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()
