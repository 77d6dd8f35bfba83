"""Names that configurations had before version 0.2. What gives them is still read, with a line that says today's.

The reader passes every file and command line through `current`, whether it describes a run or a sweep. All of it but
`first_name` and `first_value` can go with the version `UNTIL`: runs of a sweep keep their directories, which are named
after the first names.
"""

import functools
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

UNTIL = "0.3"

KEYS = {
    "model.tied": "model.tie_embeddings",
    "data.fraction": "data.subsample",
    "train.global_batch": "train.global_batch_size",
    "train.micro_batch": "train.micro_batch_size",
    "schedule.warmup": "schedule.warmup_fraction",
    "schedule.cooldown": "schedule.cooldown_fraction",
    "schedule.final": "schedule.min_lr_ratio",
    "evaluate.every": "eval.interval",
    "evaluate.tokens": "eval.tokens",
    "checkpoint.every": "checkpoint.interval",
    "spikes.grace": "spikes.patience",
    "spikes.margin": "spikes.rollback_margin",
    "watch.step_seconds": "watchdog.step_timeout",
    "watch.slow_seconds": "watchdog.startup_timeout",
}
"""Dotted key of a run -> its name today, of as many parts; those of `data` hold for each component of a mixture too."""

VALUES = {("data.source", "pysource"): "python_source"}
"""(Dotted key, value) -> the value's name today."""

_SCORE = "the score of the detector (docs/reliability.md) holds for this value only"
CONSTANTS: dict[str, tuple[float, str]] = {
    "spikes.window": (128, _SCORE),
    "spikes.history": (64, _SCORE),
    "spikes.span": (5, _SCORE),
    "spikes.loss_rise": (0.05, _SCORE),
    "spikes.loss_count": (3, _SCORE),
    "spikes.norm_count": (2, _SCORE),
    "spikes.drift_span": (20, _SCORE),
    "spikes.drift_z": (2.0, _SCORE),
    "spikes.calm_z": (3.0, _SCORE),
    "spikes.severe_rise": (0.5, _SCORE),
    "spikes.non_finite": (3, _SCORE),
    "spikes.rollback_window": (1000, _SCORE),
    "stop.at_least": (10, "twice the parameters of the law that is fitted"),
    "stop.level": (0.9, "an interval of another level is asked for by another stop.width"),
    "stop.negligible": (0.05, "less cannot be told from nothing by the bootstrap's draws"),
}
"""Keys that are none any more -> the constant's value, and why it is one."""

_SECTIONS = {old.partition(".")[0]: new.partition(".")[0] for old, new in KEYS.items()}
_HOLD_A_RUN, _HOLD_RUNS = ("run", "axes"), ("grids", "points")  # keys of a sweep: a mapping, a list of mappings
_HOLD_LISTS = ("axes.", "grids.")  # there a key has a list of values


@dataclass
class Found:
    """What a tree says in old names."""

    tree: dict[str, Any] = field(default_factory=dict)
    """The same in names of today."""
    remarks: list[str] = field(default_factory=list)
    """A sentence each."""
    problems: list[tuple[str, str]] = field(default_factory=list)
    """(Key, message) of what has no such meaning today."""
    settled: list[str] = field(default_factory=list)
    """Keys that are constants today, of the value that was given."""


def current(tree: Mapping[str, Any]) -> Found:
    """Say a run, a sweep, or what the command line gives of either, in the names of today."""
    found = Found()
    found.tree = _renamed({key: _of_runs(key, value, found) for key, value in tree.items()}, "", (), found, {})
    if found.settled:
        keys = ", ".join(dict.fromkeys(found.settled))
        found.remarks.append(f"{keys}: constants today, with the values given here; leave them out")
    return found


def tell(source: str, remarks: Sequence[str]) -> None:
    """Print what was found in a file or on the command line, each sentence once, from the main process alone."""
    if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
        for remark in remarks:
            _print_once(f"{source}: {remark}")


def first_name(key: str) -> str:
    """Return the dotted key of a run under the name that it had first."""
    component, plain = _apart(key.split("."))
    return ".".join(_together(component, {new: old for old, new in KEYS.items()}.get(plain, plain)))


def first_value(key: str, value: Any) -> Any:
    """Return the value of a dotted key of a run under the name that it had first."""
    plain = _apart(key.split("."))[1]
    return next((old for (of, old), new in VALUES.items() if (of, new) == (plain, value)), value)


@functools.cache
def _print_once(line: str) -> None:
    print(line, file=sys.stderr)


def _of_runs(key: str, value: Any, found: Found) -> Any:
    """Rename what a key of a sweep holds, if that is keys of its runs."""
    if key in _HOLD_A_RUN and isinstance(value, dict):
        return _renamed(value, f"{key}.", (), found, {})
    if key in _HOLD_RUNS and isinstance(value, list):
        runs = enumerate(value)
        return [_renamed(run, f"{key}.{i}.", (), found, {}) if isinstance(run, dict) else run for i, run in runs]
    return value


def _renamed(
    tree: Mapping[str, Any], where: str, path: tuple[str, ...], found: Found, given: dict[str, str]
) -> dict[str, Any]:
    """Rename the keys of a mapping and of those in it.

    Args:
        tree: the mapping; its keys may be dotted.
        where: the key of the sweep that holds these keys, and a dot.
        path: the parts of the mapping's own key.
        found: takes what is said of it.
        given: takes the keys given so far, today's name -> as it was given.
    """
    renamed: dict[str, Any] = {}
    for key, value in tree.items():
        old = (*path, *key.split("."))
        component, plain = _apart(old)
        section, _, rest = plain.partition(".")
        now = KEYS.get(plain, ".".join([_SECTIONS.get(section, section), *([rest] if rest else [])]))
        new = _together(component, now)
        if isinstance(value, dict) and value:
            value = _renamed(value, where, old, found, given)
            if not value:
                continue  # it held nothing but constants
        elif plain in CONSTANTS:
            _give_up(plain, value, where, found)
            continue
        else:
            spelled, today = ".".join(old), ".".join(new)
            first = given.setdefault(today, spelled)
            if first != spelled:
                message = f"is given beside {today}, its name today; leave the old one out"
                found.problems.append((where + (first if spelled == today else spelled), message))
            if now != plain:
                found.remarks.append(f"{plain} is now {now}; the old name is read until version {UNTIL}")
            value = _renamed_value(now, value, where, old, found)
        name = ".".join(new[len(path) :])
        both = isinstance(value, dict) and isinstance(renamed.get(name), dict)  # a section in its old and its new name
        renamed[name] = {**renamed[name], **value} if both else value
    return renamed


def _renamed_value(key: str, value: Any, where: str, path: tuple[str, ...], found: Found) -> Any:
    """Rename the value of a key, or each of a list of values."""
    if isinstance(value, list) and where.startswith(_HOLD_LISTS):
        return [_renamed_value(key, one, "", path, found) for one in value]
    if isinstance(value, dict):
        return _renamed(value, where, path, found, {})
    if not isinstance(value, str) or (key, value) not in VALUES:
        return value
    now = VALUES[key, value]
    found.remarks.append(f"{key}: {value} is now {now}; the old name is read until version {UNTIL}")
    return now


def _give_up(key: str, value: Any, where: str, found: Found) -> None:
    """Say of a key that is a constant today what becomes of its value."""
    constant, reason = CONSTANTS[key]
    if value == constant or value == [constant]:
        found.settled.append(key)
    elif where.startswith(_HOLD_LISTS):
        message = f"is no key any more but the constant {constant:g}: {reason}; leave it out"
        found.problems.append((where + key, message))
    else:
        found.remarks.append(f"{key}: {value} is not read any more, it is the constant {constant:g}: {reason}")


def _apart(path: Sequence[str]) -> tuple[Sequence[str], str]:
    """Split the parts of a key into the component of a mixture that it belongs to, if any, and the key of a run."""
    inner = len(path) > 3 and tuple(path[:2]) == ("data", "mixture")
    return (path[:3], ".".join(["data", *path[3:]])) if inner else ((), ".".join(path))


def _together(component: Sequence[str], key: str) -> list[str]:
    """Undo `_apart`."""
    return [*component, *key.split(".")[1 if component else 0 :]]
