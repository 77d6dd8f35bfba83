"""Losses of other models on the tokens that the runs were evaluated on: reference lines for a report."""

import json
from pathlib import Path
from typing import Any

from scaling.errors import TableError
from scaling.tables.table import BITS

FILE = "baselines.json"


def read_baselines(runs_dir: Path, unit: str) -> dict[str, float]:
    """The losses in RUNS_DIR/baselines.json by name, in a unit; none where there is no such file. Raises TableError."""
    path = runs_dir / FILE
    if not path.exists():
        return {}
    try:
        rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["baselines"]
        return {str(row["name"]): float(row["bits_per_byte" if unit == BITS else "loss"]) for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise TableError(f"{path}: not a file of baselines, as scripts/study.py ngram writes it: {error!r}") from None
