"""`metrics.jsonl`: one JSON object per logged step, append-only, the truth about a run's curve.

After a rollback the rows say which `attempt` they belong to, and steps occur again.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

from data.files import write_text
from train.config import BranchConfig


class MetricsLog:
    """Appends rows to `metrics.jsonl`, or to another file of rows by attempt and step.

    A resumed run repeats the steps after its checkpoint identically; rows already in the file are not written again.
    """

    def __init__(self, path: Path) -> None:
        """Open the log, cutting off a last line that a crash left torn."""
        self.rows: list[dict[str, Any]] = []
        """The curve as it stood when the log was opened."""
        if path.exists():
            content = path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            if len(whole) < len(content):
                with path.open("r+b") as file:
                    file.truncate(len(whole))
            self.rows = read_metrics(path)
        self._last = _place(self.rows[-1]) if self.rows else (1, 0)
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: dict[str, Any]) -> bool:
        """Append a row with a key `step`; return False, writing nothing, when its attempt has come as far already."""
        if _place(row) <= self._last:
            return False
        finite = {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in row.items()}
        self._file.write(json.dumps(finite) + "\n")
        self._file.flush()
        self._last = _place(row)
        return True

    def make_durable(self) -> None:
        """Return when a crash of the machine can no longer lose a row."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the rows of each step's newest attempt, steps rising; a missing file has none, damaged lines no rows."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return newest_attempts([row for row in map(parse_row, lines) if row is not None])


_COUNTS = ("step", "attempt")
_NUMBERS = ("tokens", "loss", "loss_mean", "val_loss", "seconds", "tokens_per_second")


def parse_row(line: str | bytes) -> dict[str, Any] | None:
    """Return the row that a line holds, or None where it is torn or damaged."""
    try:
        row = json.loads(line)
        whole = "step" in row and all(type(row.get(k, 1)) is int and 0 <= row.get(k, 1) < 2**63 for k in _COUNTS)
        values = [row[k] for k in _NUMBERS if row.get(k) is not None]
        return row if whole and all(math.isfinite(value) for value in values) else None
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def newest_attempts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out the rows that a rollback has undone: all those before a row that are not of an earlier step."""
    curve: list[dict[str, Any]] = []
    for row in rows:
        while curve and curve[-1]["step"] >= row["step"]:
            curve.pop()
        curve.append(row)
    return curve


def _place(row: dict[str, Any]) -> tuple[int, int]:
    return row.get("attempt", 1), row["step"]


def inherit_curve(branch: BranchConfig | None, run_dir: Path) -> list[dict[str, Any]]:
    """Begin the `metrics.jsonl` of a branch with the rows up to its first step, and return them; [] where they are.

    Only the main process may call this.
    """
    if branch is None:
        return []
    rows = [row for row in read_metrics(run_dir.parent / branch.run / "metrics.jsonl") if row["step"] <= branch.step]
    own = read_metrics(run_dir / "metrics.jsonl")
    if not rows or (own and own[-1]["step"] >= rows[-1]["step"]):
        return []
    write_text(run_dir / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return rows
