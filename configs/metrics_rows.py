"""`metrics.jsonl` of a run: the rows that training logs, as everything that reads a curve sees them.

The file is append-only. After a rollback rows say which `attempt` they belong to, and steps occur again; `read_rows`
leaves out what a rollback has undone. `events.jsonl` has rows by attempt and step too.
"""

import json
import math
from pathlib import Path
from typing import Literal, TypedDict

METRICS = "metrics.jsonl"


class MetricsRow(TypedDict, total=False):
    """What readers use of a row; losses in nats per token, times in seconds. A row may have more keys."""

    step: int
    """Optimizer steps done; in every row that has been read."""
    attempt: int
    """Rollbacks before it, plus one; 1 where it is not there."""
    tokens: float | None
    flops: float | None
    loss: float | None
    """Of this step."""
    loss_mean: float | None
    """Of the steps since the row before."""
    val_loss: float | None
    val_loss_stderr: float | None
    grad_norm: float | None
    lr: float | None
    seconds: float | None
    tokens_per_second: float | None


_COUNTS = ("step", "attempt")
_NUMBERS = MetricsRow.__annotations__.keys() - {*_COUNTS}


def parse_row(line: str | bytes) -> MetricsRow | None:
    """Return the row that a line holds, or None where it is torn or damaged."""
    try:
        row = json.loads(line)
        whole = "step" in row and all(type(row.get(k, 1)) is int and 0 <= row.get(k, 1) < 2**63 for k in _COUNTS)
        numbers = [value for key, value in row.items() if key in _NUMBERS and value is not None]
        return row if whole and all(map(math.isfinite, numbers)) else None
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def read_rows(path: Path, by: Literal["step", "tokens"] = "step") -> list[MetricsRow]:
    """Read the rows of a run as it stands, rising in `by`, which each of them has; a missing file has none.

    Damaged lines are passed over. A row undoes those before it that are no earlier: training has been rolled back.
    """
    if not path.exists():
        return []
    rows: list[MetricsRow] = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        row = parse_row(line)
        if row is None or (place := row.get(by)) is None:
            continue
        while rows and (rows[-1][by] or 0) >= place:
            rows.pop()
        rows.append(row)
    return rows
