"""The configuration that a run was begun with, kept beside its results; it may not change under them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.keys import flatten
from configs.reader import ConfigError, Problem, dump_yaml, parse_yaml
from data.files import write_text
from train.checkpoint.branching import stable_steps, trunk_problem
from train.checkpoint.manifest import newest_first
from train.config import RunConfig, load_run

# Keys that may change between a run and its continuation: they do not decide the curve.
_TOPOLOGY = ("parallel", "train.micro_batch_size", "train.activation_checkpointing", "train.compile")
FREE_KEYS = ("name", "wandb", "log_every", "checkpoint", "branch", "watchdog", "data.directory", *_TOPOLOGY)


def store_config(run: RunConfig, run_dir: Path) -> None:
    """Write config.yaml, by atomic rename."""
    run_dir.mkdir(parents=True, exist_ok=True)
    write_text(run_dir / "config.yaml", dump_yaml(run))


def require_unchanged(runs: Sequence[tuple[RunConfig, Path]]) -> None:
    """Refuse to continue or skip runs that were begun under another configuration.

    Args:
        runs: of a sweep, each with its directory.

    Raises:
        ConfigError: naming every key that differs, and the way out.
    """
    problems = []
    for run, run_dir in runs:
        begun = ("record.json", "metrics.jsonl", "checkpoints")
        if not any((run_dir / name).exists() for name in begun):
            continue
        for key, old, new in changed_keys(run, run_dir / "config.yaml"):
            message = f"the run there has {old!r}, and the sweep now says {new!r}"
            problems.append(Problem(str(run_dir), key, message))
    if problems:
        way_out = "keep both with --runs_dir=OTHER, or change the keys back, or move these directories away"
        raise ConfigError([*problems, Problem(str(runs[0][1].parent), "", way_out)])


def require_same_prefix(run: RunConfig, run_dir: Path) -> None:
    """Refuse to branch off from a run that was another one until then, unless it has been done already.

    Raises:
        ConfigError: naming every key that differs, or the last step that both share.
    """
    if run.branch is None or newest_first(run_dir / "checkpoints"):
        return
    path = run_dir.parent / run.branch.run / "config.yaml"
    if not path.exists():
        raise ConfigError([Problem(str(path), "", "is missing: there is no run to branch off from")])
    trunk = load_run(path)
    problems = [
        Problem(str(run_dir), key, f"is {new} here, and {old} in the run that branch.run names; let them be the same")
        for key, old, new in changed_keys(run, path)
        if key not in ("train.tokens", "train.steps")
    ]
    unfit, shared = trunk_problem(run), min(stable_steps(run), stable_steps(trunk))
    if not problems and run.steps != trunk.steps and unfit is not None:
        problems = [Problem(str(run_dir), *unfit)]
    if not problems and run.branch.step > shared:
        message = f"{run.branch.step} is in the cooldown of one of the two runs; nearest is {shared}"
        problems = [Problem(str(run_dir), "branch.step", message)]
    if problems:
        raise ConfigError(problems)


def changed_keys(run: RunConfig, path: Path) -> list[tuple[str, Any, Any]]:
    """Return (key, stored value, new value) of every key that decides the result and is not as stored in `path`."""
    if not path.exists():
        return []
    try:
        stored = parse_yaml(dump_yaml(load_run(path)))  # keys that are newer than the file get their defaults
    except ConfigError:
        stored = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    old, new = flatten(stored), flatten(parse_yaml(dump_yaml(run)))
    return [
        (key, old.get(key), new.get(key))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not any(key == free or key.startswith(f"{free}.") for free in FREE_KEYS)
    ]
