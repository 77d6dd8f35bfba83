"""Trunks and branches: runs that differ in their length alone are one run until the first of them cools down.

Under warmup-stable-decay (Hu et al. 2024, arXiv 2404.06395) with a warmup of so many steps, the learning rate does not
depend on the length of a run before its cooldown, and neither does the order of the data. So one run of each size, the
trunk, saves its state where the shorter ones would begin to cool down, and each of these, a branch, goes on from there
(Hägele et al. 2024, arXiv 2405.18392). A branch has the losses that it would have had by itself, bit for bit: it is
the same computation. `metrics.jsonl` of a branch begins with the trunk's rows, so that its curve is whole.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from train.config import BranchConfig, CheckpointConfig, RunConfig, load_run
from train.files import write_atomic
from train.manifest import STEP, damage, newest_first, step_of
from train.metrics import read_metrics

# ------------------------------------------------------------------------------------------ planning


def trunk_problem(run: RunConfig) -> tuple[str, str] | None:
    """Return (key, message) of what keeps a run from sharing its course with longer ones, or None."""
    if run.schedule.kind != "wsd":
        return "schedule.kind", f"{run.schedule.kind} depends on the length from the start; trunks need wsd"
    if run.schedule.warmup_steps is None and run.schedule.warmup:
        message = "a fraction of the length, so that runs of several lengths differ from the start; trunks need"
        return "schedule.warmup", f"{run.schedule.warmup} is {message} schedule.warmup_steps, or 0 here"
    return None


def plant(runs: Sequence[RunConfig]) -> list[RunConfig]:
    """Let the runs of each course share it: the longest becomes the trunk, and the others its branches.

    A trunk also saves where it begins to cool down itself, so that a longer run can join the sweep later.
    """
    courses: dict[str, list[RunConfig]] = {}
    for run in runs:
        courses.setdefault(_course(run), []).append(run)
    return [_planted(run, courses[_course(run)]) for run in runs]


def _planted(run: RunConfig, course: list[RunConfig]) -> RunConfig:
    trunk = max(course, key=lambda other: other.steps)
    if run is trunk:
        points = sorted({stable_steps(other) for other in course} - {0})
        return replace(run, checkpoint=replace(run.checkpoint, branch_points=points))
    step = min(stable_steps(run), stable_steps(trunk))
    return replace(run, branch=BranchConfig(run=trunk.name, step=step) if step else None)


def _course(run: RunConfig) -> str:
    """Return what runs that differ in their length alone have in common."""
    train = replace(run.train, steps=1, tokens=None)
    return repr(replace(run, name="run", train=train, checkpoint=CheckpointConfig(), branch=None))


def stable_steps(run: RunConfig) -> int:
    """Return for how many steps a run of a trunk does not depend on its length."""
    return run.schedule.cooldown_start(run.steps)


# ------------------------------------------------------------------------------------------ starting


def branch_point(branch: BranchConfig, run_dir: Path) -> Path:
    """Return the checkpoint that the run in `run_dir` begins at."""
    return run_dir.parent / branch.run / "checkpoints" / f"{STEP}{branch.step:08d}"


def start_of(run: RunConfig, run_dir: Path, others: Sequence[RunConfig]) -> BranchConfig | None:
    """Return where a run of a sweep is best begun: at the latest branch point on its course; None: at its first step.

    That is the one it was planned for unless the sweep has changed: a budget may be new to a trunk that is complete, or
    the run may be the new and longer trunk. A run that has begun keeps its start.

    Args:
        run: the run.
        run_dir: its directory; those of the others lie beside it.
        others: the runs of the sweep.
    """
    if newest_first(run_dir / "checkpoints"):
        return load_run(run_dir / "config.yaml").branch
    siblings = [other for other in others if other.name != run.name and _course(other) == _course(run)]
    shared = [
        BranchConfig(run=other.name, step=step)
        for other in siblings
        for step in _kept_points(run_dir.parent / other.name)
        if step <= min(stable_steps(run), stable_steps(other))
    ]
    return max(shared, key=lambda branch: branch.step, default=None)


def _kept_points(run_dir: Path) -> Iterator[int]:
    """Yield the branch points of a run that are there and whole by their sizes."""
    checkpoints = {step_of(path): path for path in newest_first(run_dir / "checkpoints")}
    wanted = load_run(run_dir / "config.yaml").checkpoint.branch_points if checkpoints else []
    yield from (step for step in wanted if step in checkpoints and damage(checkpoints[step], contents=False) is None)


def inherit_curve(run: RunConfig, run_dir: Path) -> list[dict[str, Any]]:
    """Begin the `metrics.jsonl` of a branch with the rows up to its first step, and return them; [] where they are.

    Only the main process may call this.
    """
    if run.branch is None:
        return []
    rows = [
        row for row in read_metrics(run_dir.parent / run.branch.run / "metrics.jsonl") if row["step"] <= run.first_step
    ]
    own = read_metrics(run_dir / "metrics.jsonl")
    if not rows or (own and own[-1]["step"] >= rows[-1]["step"]):
        return []
    write_atomic(run_dir / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return rows
