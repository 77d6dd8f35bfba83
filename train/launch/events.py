"""What happened to the runs of a sweep: events.jsonl of the sweep, and the end of a run's log."""

import json
import os
import re
import time
from pathlib import Path
from typing import Any


def note_event(runs_dir: Path, run: str, event: str, **details: Any) -> None:
    """Append to events.jsonl: what happened to which run, and when (UTC)."""
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    with (runs_dir / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"time": moment, "run": run, "event": event, **details}) + "\n")


def read_events(runs_dir: Path) -> list[dict[str, Any]]:
    """Read events.jsonl; lines that a crash left torn are passed over."""
    try:
        lines = (runs_dir / "events.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    events = []
    for line in lines:
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and isinstance(event.get("run"), str) and isinstance(event.get("event"), str):
            events.append(event)
    return events


def last_failures(runs_dir: Path) -> dict[str, str]:
    """Return the reason of every run whose last event is a failure."""
    last = {event["run"]: event for event in read_events(runs_dir)}
    return {name: str(event.get("reason", "")) for name, event in last.items() if event["event"] == "failed"}


_NOISE = re.compile(r"^(\[20\d\d-|Traceback |\s|.*\[(INFO|WARNING)\] |={3} |\W*$)|exits with return code")
_ERROR = re.compile(r"\b\w*(Error|Exception|Interrupt|Diverged)\b|\b(Killed|error|fault|Out of memory)\b")


def last_meaningful_lines(log: Path, start: int = 0, count: int = 3) -> list[str]:
    """Return the lines at the end of a log that say what went wrong.

    Read from byte `start`; without tracebacks' frames and the launcher's own chatter, each line once although every
    process says it.
    """
    try:
        with log.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(start, size - 65_536))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    stripped = (re.sub(r"^\[rank\d+\]:\s?", "", line.rsplit("\r", 1)[-1]).rstrip() for line in text.split("\n"))
    lines = list(dict.fromkeys(line[:400] for line in stripped if not _NOISE.search(line)))
    errors = [line for line in lines if _ERROR.search(line)]
    return (errors or lines)[-count:]
