"""The configuration that a run was begun with, kept beside its results; it may not change under them."""

from pathlib import Path
from typing import Any

from configs.reader import ConfigError, Problem, dump_yaml, parse_yaml
from train.config import RunConfig, load_run
from train.files import write_atomic
from train.sweep import Run

# Keys that may change between a run and its continuation: they do not decide the curve.
_TOPOLOGY = ("parallel", "train.micro_batch", "train.activation_checkpointing", "train.compile")
FREE_KEYS = ("name", "wandb", "log_every", "checkpoint", "watch", "data.directory", *_TOPOLOGY)


def store_config(run: Run) -> None:
    """Write config.yaml, by atomic rename."""
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
        for key, old, new in changed_keys(run.config, run.directory / "config.yaml"):
            message = f"the run there has {old!r}, and the sweep now says {new!r}"
            problems.append(Problem(str(run.directory), key, message))
    if problems:
        way_out = "keep both with --runs_dir=OTHER, or change the keys back, or move these directories away"
        raise ConfigError([*problems, Problem(str(runs[0].directory.parent), "", way_out)])


def changed_keys(run: RunConfig, path: Path) -> list[tuple[str, Any, Any]]:
    """Return (key, stored value, new value) of every key that decides the result and is not as stored in `path`."""
    if not path.exists():
        return []
    try:
        stored = parse_yaml(dump_yaml(load_run(path)))  # keys that are newer than the file get their defaults
    except ConfigError:
        stored = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    old, new = leaves(stored), leaves(parse_yaml(dump_yaml(run)))
    return [
        (key, old.get(key), new.get(key))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not any(key == free or key.startswith(f"{free}.") for free in FREE_KEYS)
    ]


def leaves(tree: object, prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted keys."""
    if not isinstance(tree, dict):
        return {prefix.removesuffix("."): tree}
    return {k: v for key, value in tree.items() for k, v in leaves(value, f"{prefix}{key}.").items()}
