"""Where a run that branches off begins: at a checkpoint of a run that has been the same until then."""

from pathlib import Path

from train.checkpoint.manifest import STEP
from train.config import BranchConfig, ScheduleConfig


def trunk_problem(schedule: ScheduleConfig) -> tuple[str, str] | None:
    """Return (key, message) of what in its schedule keeps a run from sharing its course with longer ones, or None."""
    if schedule.kind != "wsd":
        return "schedule.kind", f"{schedule.kind} depends on the length from the start; trunks need wsd"
    if schedule.warmup_steps is None and schedule.warmup_fraction:
        message = "a fraction of the length, so that runs of several lengths differ from the start; trunks need"
        message = f"{schedule.warmup_fraction} is {message} schedule.warmup_steps, or 0 here"
        return "schedule.warmup_fraction", message
    return None


def branch_point(branch: BranchConfig, run_dir: Path) -> Path:
    """Return the checkpoint that the run in `run_dir` begins at."""
    return run_dir.parent / branch.run / "checkpoints" / f"{STEP}{branch.step:08d}"
