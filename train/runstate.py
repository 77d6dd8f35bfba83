"""What a run's directory says about the run, read without touching it."""

import dataclasses
import json
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from configs.reader import ConfigError, Problem, dump_yaml, parse_yaml
from train.config import load_run
from train.processes import marked_processes
from train.sweep import Run

State = Literal["complete", "running", "resumable", "failed", "pending"]
# Keys that may change between a run and its continuation.
FREE_KEYS = ("name", "wandb", "log_every", "checkpoint", "data.directory")


@dataclass(frozen=True)
class RunState:
    """How far a run is."""

    state: State
    step: int = 0
    """Step of the newest row of metrics.jsonl."""
    row: dict[str, Any] = field(default_factory=dict)
    """That row."""
    record: dict[str, Any] = field(default_factory=dict)
    """record.json of a complete run."""
    note: str = ""
    """Why it failed, or where it will continue."""


def read_state(run: Run, running: bool, failure: str | None) -> RunState:
    """Read the state of a run; `failure` is what the last launch of it failed with, if it did."""
    record = complete_record(run.directory)
    row = last_row(run.directory / "metrics.jsonl")
    step = int(row.get("step", 0))
    if record is not None:
        return RunState("complete", run.config.steps, row, record)
    if running:
        return RunState("running", step, row)
    note = f"continues from step {checkpoint_step(run.directory)}" if step else ""
    if failure is not None:
        return RunState("failed", step, row, note=failure + (f"; {note}" if note else ""))
    return RunState("resumable" if step else "pending", step, row, note=note)


def read_states(runs: tuple[Run, ...]) -> dict[str, RunState]:
    """Read the states of all runs of a sweep, by name."""
    alive = {directory for _, directory in marked_processes()}
    failures = last_failures(runs[0].directory.parent)
    return {run.name: read_state(run, run.directory.resolve() in alive, failures.get(run.name)) for run in runs}


def complete_record(directory: Path) -> dict[str, Any] | None:
    """Return record.json when it says that the run is complete."""
    try:
        record = json.loads((directory / "record.json").read_text(encoding="utf-8"))
        return record if record["complete"] is True else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def last_row(path: Path) -> dict[str, Any]:
    """Return the last whole row of a metrics file, reading only its end; an empty mapping when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 16_384))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            return row
    return {}


def checkpoint_step(directory: Path) -> int:
    """Return the step of the newest checkpoint, or 0."""
    names = (path.name for path in (directory / "checkpoints").glob("step-*"))
    return max((int(name[5:]) for name in names if name[5:].isdigit()), default=0)


# ---------------------------------------------------------------------------------- stored configurations


def store_config(run: Run) -> None:
    """Write config.yaml, by atomic rename."""
    from train.files import write_atomic

    run.directory.mkdir(parents=True, exist_ok=True)
    write_atomic(run.directory / "config.yaml", dump_yaml(run.config))


def require_unchanged(runs: tuple[Run, ...]) -> None:
    """Refuse to continue or skip runs that were begun under another configuration.

    Raises:
        ConfigError: naming every key that differs, and the way out.
    """
    problems = []
    for run in runs:
        begun = ("record.json", "metrics.jsonl", "checkpoints")
        if not any((run.directory / name).exists() for name in begun):
            continue
        for key, old, new in changed_keys(run):
            message = f"the run there has {old!r}, and the sweep now says {new!r}"
            problems.append(Problem(str(run.directory), key, message))
    if problems:
        way_out = "keep both with --runs_dir=OTHER, or change the keys back, or move these directories away"
        raise ConfigError([*problems, Problem(str(runs[0].directory.parent), "", way_out)])


def changed_keys(run: Run) -> list[tuple[str, Any, Any]]:
    """Return (key, stored value, new value) of every key that decides the result and is not as stored."""
    path = run.directory / "config.yaml"
    if not path.exists():
        return []
    try:
        stored = parse_yaml(dump_yaml(load_run(path)))  # keys that are newer than the file get their defaults
    except ConfigError:
        stored = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    old, new = _leaves(stored), _leaves(parse_yaml(dump_yaml(dataclasses.asdict(run.config))))
    return [
        (key, old.get(key), new.get(key))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not any(key == free or key.startswith(f"{free}.") for free in FREE_KEYS)
    ]


def _leaves(tree: object, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix.removesuffix("."): tree}
    return {k: v for key, value in tree.items() for k, v in _leaves(value, f"{prefix}{key}.").items()}


# ------------------------------------------------------------------------------------------ the journal


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
        except ValueError:
            continue
        if isinstance(event, dict) and "run" in event and "event" in event:
            events.append(event)
    return events


def last_failures(runs_dir: Path) -> dict[str, str]:
    """Return the reason of every run whose last event is a failure."""
    last = {event["run"]: event for event in read_events(runs_dir)}
    return {name: str(event.get("reason", "")) for name, event in last.items() if event["event"] == "failed"}


# ----------------------------------------------------------------------------------------------- logs

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
