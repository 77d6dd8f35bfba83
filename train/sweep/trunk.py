"""Trunks and branches: runs that differ in their length alone are one run until the first of them cools down.

Under warmup-stable-decay (Hu et al. 2024, arXiv 2404.06395) with a warmup of so many steps, the learning rate does not
depend on the length of a run before its cooldown, and neither does the order of the data. So one run of each size, the
trunk, saves its state where the shorter ones would begin to cool down, and each of these, a branch, goes on from there
(Hägele et al. 2024, arXiv 2405.18392). A branch has the losses that it would have had by itself, bit for bit: it is
the same computation. `metrics.jsonl` of a branch begins with the trunk's rows, so that its curve is whole.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from train.checkpoint.manifest import damage, newest_first, step_of
from train.config import BranchConfig, CheckpointConfig, RunConfig, load_stored


def assign_branches(runs: Sequence[RunConfig]) -> list[RunConfig]:
    """Let the runs of each course share it: the longest becomes the trunk, and the others its branches.

    A trunk also saves where it begins to cool down itself, so that a longer run can join the sweep later.
    """
    courses: dict[str, list[RunConfig]] = {}
    for run in runs:
        courses.setdefault(_shared_prefix(run), []).append(run)
    return [_with_branch(run, courses[_shared_prefix(run)]) for run in runs]


def _with_branch(run: RunConfig, course: list[RunConfig]) -> RunConfig:
    trunk = max(course, key=lambda other: other.steps)
    if run is trunk:
        points = sorted({other.stable_steps for other in course} - {0})
        return replace(run, checkpoint=replace(run.checkpoint, branch_points=points))
    step = min(run.stable_steps, trunk.stable_steps)
    return replace(run, branch=BranchConfig(run=trunk.name, step=step) if step else None)


def _shared_prefix(run: RunConfig) -> str:
    """Return what runs that differ in their length alone have in common."""
    train = replace(run.train, steps=1, tokens=None)
    return repr(replace(run, name="run", train=train, checkpoint=CheckpointConfig(), branch=None))


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
        return load_stored(run_dir / "config.yaml").branch
    siblings = [other for other in others if other.name != run.name and _shared_prefix(other) == _shared_prefix(run)]
    shared = [
        BranchConfig(run=other.name, step=step)
        for other in siblings
        for step in _kept_points(run_dir.parent / other.name)
        if step <= min(run.stable_steps, other.stable_steps)
    ]
    return max(shared, key=lambda branch: branch.step, default=None)


def _kept_points(run_dir: Path) -> Iterator[int]:
    """Yield the branch points of a run that are there and whole by their sizes."""
    checkpoints = {step_of(path): path for path in newest_first(run_dir / "checkpoints")}
    wanted = load_stored(run_dir / "config.yaml").checkpoint.branch_points if checkpoints else []
    yield from (step for step in wanted if step in checkpoints and damage(checkpoints[step], contents=False) is None)
