"""Heartbeats: each rank says in a file what it is doing and for how long it may be silent; others notice when it is.

The training loop itself writes them, not a thread: a rank that hangs in a collective has threads that live on. A file,
because that is what a parent, a peer and a person can all read, whatever state the rank is in.
"""

import contextlib
import json
import math
import os
import shutil
import socket
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import psutil

from train.config import WatchdogConfig

_FOLDER = ".heartbeat"
_SLOWER = 10
"""A step may take this many times as long as the slowest one so far."""
_SELDOM = 0.5
"""Seconds between writes at least, for the sake of file systems on a network."""


@dataclass(frozen=True)
class Heartbeat:
    """What a rank last said."""

    rank: int
    host: str
    pid: int
    phase: str
    """starting, training, evaluating, saving or finishing."""
    step: int
    """Optimizer steps done."""
    limit: float
    """Seconds within which it meant to speak again."""
    time: float
    """When it spoke: seconds since 1970 by its own clock, for people to read."""

    def __str__(self) -> str:
        """Name the rank, where it is and what it was doing."""
        state = ""
        if self.host == socket.gethostname():
            with contextlib.suppress(psutil.Error):
                state = f", {psutil.Process(self.pid).status()}"
        where = f"{self.host}, process {self.pid}{state}"
        return f"rank {self.rank} ({where}) has been {self.phase} after step {self.step} for over {self.limit:.0f} s"


class HeartbeatWriter:
    """Writes the beats of one rank; a context manager, after which nobody waits for it."""

    def __init__(self, run_dir: Path, rank: int, config: WatchdogConfig) -> None:
        """Begin with the phase `starting`."""
        self._rank, self._config = rank, config
        self._path = _beat_file(run_dir, rank)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("wb")
        self._host = socket.gethostname()
        self._written, self._in_step = -math.inf, False
        self._step_began = 0.0
        self._steps = 0
        self._longest = 0.0  # seconds a step may take by what was measured
        self.begin("starting", 0)

    def begin_step(self, done: int) -> None:
        """Say that the step after `done` ones begins."""
        self._end_step()
        self._step_began = time.monotonic()
        self._steps += 1
        if self._steps == 1:  # compiles, and fills caches
            self._write("training", done, self._config.startup_timeout)
        elif self._steps == 2 or not self._in_step or self._step_began - self._written > _SELDOM:
            self._write("training", done, max(self._config.step_timeout, self._longest))
        self._in_step = True

    def begin(self, phase: str, done: int) -> None:
        """Say that something other than a step begins."""
        self._end_step()
        self._in_step = False
        self._write(phase, done, self._config.startup_timeout)

    def _end_step(self) -> None:
        if self._in_step:
            factor = _SLOWER if self._steps > 1 else 1
            self._longest = max(self._longest, factor * (time.monotonic() - self._step_began))

    def _write(self, phase: str, done: int, limit: float) -> None:
        self._written = time.monotonic()
        beat = Heartbeat(self._rank, self._host, os.getpid(), phase, done, limit, time.time())
        os.pwrite(self._file.fileno(), json.dumps(asdict(beat)).encode().ljust(300) + b"\n", 0)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the file."""
        self._path.unlink(missing_ok=True)
        self._file.close()


class HeartbeatReader:
    """Notices ranks that are silent for longer than they meant to be.

    It goes by its own clock, and counts only the time in which it listened itself: where everything was suspended
    together, nobody hung.
    """

    def __init__(self, run_dir: Path, ranks: Iterable[int], start_seconds: float = math.inf) -> None:
        """Listen to some ranks of the run in `run_dir`, each of which is to speak for the first time within a limit."""
        self._paths = [_beat_file(run_dir, rank) for rank in ranks]
        self._start_seconds = start_seconds
        self._heard: dict[Path, bytes] = {}
        self._silent: dict[Path, float] = {}
        self._last = -math.inf

    def overdue(self, patience: float = 0.0) -> bool:
        """Return whether a rank is overdue by more than `patience` seconds.

        Call it often; it looks at most once a second, and says nothing in between.
        """
        now = time.monotonic()
        if now - self._last < 1.0:
            return False
        passed, self._last = min(now - self._last, 5.0), now
        silences = [self._silence(path, passed) for path in self._paths]
        return max(silences) > patience

    def _silence(self, path: Path, passed: float) -> float:
        """Return by how many seconds a rank is overdue, `passed` seconds after the last look."""
        try:
            content = path.read_bytes()
        except OSError:  # it has not begun, or has ended
            content = b""
        self._silent[path] = self._silent.get(path, 0.0) + passed if content == self._heard.get(path, b"") else 0.0
        self._heard[path] = content
        try:
            limit = float(json.loads(content)["limit"]) if content else self._start_seconds
        except (ValueError, KeyError, TypeError):  # it is just being written
            return 0.0
        return self._silent[path] - limit


def _beat_file(run_dir: Path, rank: int) -> Path:
    return run_dir / _FOLDER / f"rank-{rank}.json"


def forget_beats(run_dir: Path) -> None:
    """Remove what the ranks of an earlier launch have said; none may be alive."""
    shutil.rmtree(run_dir / _FOLDER, ignore_errors=True)


def hung_ranks(run_dir: Path, ranks: int) -> str:
    """Say which of the `ranks` of a run that hangs are furthest behind: the others may only wait for them."""
    beats, mute = [], []
    for rank in range(ranks):
        try:
            beats.append(Heartbeat(**json.loads(_beat_file(run_dir, rank).read_bytes())))
        except (OSError, ValueError, TypeError):
            mute.append(f"rank {rank} has not begun")
    behind = mute or [str(beat) for beat in beats if beat.step == min(each.step for each in beats)]
    more = f"; and {len(behind) - 4} more" if len(behind) > 4 else ""
    return "hung: " + "; ".join(behind[:4]) + more
