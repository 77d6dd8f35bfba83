"""`metrics.jsonl`: one JSON object per logged step, append-only, the truth about a run's curve."""

import json
import math
from pathlib import Path
from typing import Any


class MetricsLog:
    """Appends rows to `metrics.jsonl`.

    A resumed run repeats the steps after its checkpoint identically; rows already in the file are not written again.
    """

    def __init__(self, path: Path) -> None:
        """Open the log, cutting off a last line that a crash left torn."""
        self.earlier_rows: list[dict[str, Any]] = []
        if path.exists():
            content = path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            if len(whole) < len(content):
                with path.open("r+b") as file:
                    file.truncate(len(whole))
            self.earlier_rows = read_metrics(path)
        self.last_step = self.earlier_rows[-1]["step"] if self.earlier_rows else 0
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: dict[str, Any]) -> bool:
        """Append a row with a key `step`; return False, writing nothing, when the step is already there."""
        if row["step"] <= self.last_step:
            return False
        finite = {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in row.items()}
        self._file.write(json.dumps(finite) + "\n")
        self._file.flush()
        self.last_step = row["step"]
        return True

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read all whole rows; a missing file has none."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
