"""Write `metrics.jsonl`: one JSON object per logged step, append-only, the truth about a run's curve."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.metrics_rows import METRICS, MetricsRow, read_rows
from data.files import write_text
from train.config import BranchConfig


class MetricsLog:
    """Appends rows to `metrics.jsonl`, or to another file of rows by attempt and step.

    A resumed run repeats the steps after its checkpoint identically; rows already in the file are not written again.
    """

    def __init__(self, path: Path) -> None:
        """Open the log, cutting off a last line that a crash left torn."""
        self.rows: list[MetricsRow] = []
        """The curve as it stood when the log was opened."""
        if path.exists():
            content = path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            if len(whole) < len(content):
                with path.open("r+b") as file:
                    file.truncate(len(whole))
            self.rows = read_rows(path)
        self._last = _place(self.rows[-1]) if self.rows else (1, 0)
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: Mapping[str, Any]) -> bool:
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


def _place(row: Mapping[str, Any]) -> tuple[int, int]:
    return row.get("attempt", 1), row["step"]


def inherit_curve(branch: BranchConfig | None, run_dir: Path) -> list[MetricsRow]:
    """Begin the `metrics.jsonl` of a branch with the rows up to its first step, and return them; [] where they are.

    Only the main process may call this.
    """
    if branch is None:
        return []
    rows = [row for row in read_rows(run_dir.parent / branch.run / METRICS) if row["step"] <= branch.step]
    own = read_rows(run_dir / METRICS)
    if not rows or (own and own[-1]["step"] >= rows[-1]["step"]):
        return []
    write_text(run_dir / METRICS, "".join(json.dumps(row) + "\n" for row in rows))
    return rows
