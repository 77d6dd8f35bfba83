"""The configuration that a run was begun with, kept beside its results; it may not change under them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.keys import Tree, flatten
from configs.reader import ConfigError, Problem, as_tree, read_tree
from train.config import load_stored

# Keys that may change between a run and its continuation: they do not decide the curve.
_TOPOLOGY = ("parallel", "train.micro_batch_size", "train.activation_checkpointing", "train.compile")
FREE_KEYS = ("name", "wandb", "log_every", "checkpoint", "branch", "watchdog", "data.directory", *_TOPOLOGY)


def require_unchanged(runs: Sequence[tuple[Tree, Path]]) -> None:
    """Refuse to continue or skip runs that were begun under another configuration.

    Args:
        runs: of a sweep, the configuration of each as a tree, with its directory.

    Raises:
        ConfigError: naming every key that differs, and the way out.
    """
    problems = []
    for config, run_dir in runs:
        begun = ("record.json", "metrics.jsonl", "checkpoints")
        if not any((run_dir / name).exists() for name in begun):
            continue
        for key, old, new in changed_keys(config, run_dir / "config.yaml"):
            message = f"the run there has {old!r}, and the sweep now says {new!r}"
            problems.append(Problem(str(run_dir), key, message))
    if problems:
        way_out = "keep both with --runs_dir=OTHER, or change the keys back, or move these directories away"
        raise ConfigError([*problems, Problem(str(runs[0][1].parent), "", way_out)])


def changed_keys(config: Tree, path: Path) -> list[tuple[str, Any, Any]]:
    """Return (key, stored value, new value) of every key that decides the result and is not as stored in `path`."""
    if not path.exists():
        return []
    try:
        stored = as_tree(load_stored(path))  # keys that are newer than the file get their defaults
    except ConfigError:
        stored, _ = read_tree(path, tell=False)
    old, new = flatten(stored), flatten(config)
    return [
        (key, old.get(key), new.get(key))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not any(key == free or key.startswith(f"{free}.") for free in FREE_KEYS)
    ]
