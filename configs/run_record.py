"""`record.json` of a run: what training writes and what everything else reads."""

import json
from pathlib import Path
from typing import Any


def complete_record(directory: Path) -> dict[str, Any] | None:
    """Return record.json when it says that the run is complete."""
    try:
        record = json.loads((directory / "record.json").read_text(encoding="utf-8"))
        return record if record["complete"] is True else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
