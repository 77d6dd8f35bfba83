"""A trunk with branches is the runs of a ladder by themselves, at less cost."""

import json
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from configs.reader import ConfigError, dump_yaml
from data.files import write_text
from tests.conftest import ROOT, read_record, read_rows
from tests.train.launch.test_scheduler import FAKE, launches
from tests.train.launch.test_worker import Worker, result
from train.checkpoint.manifest import newest_first, prune, step_of, write_manifest
from train.config import BranchConfig, load_run
from train.engine.lr_schedule import lr_multiplier
from train.launch.devices import Devices, Slot
from train.launch.plan import make_plan, plan_summary
from train.launch.scheduler import SweepOutcome, run_sweep
from train.run import require_same_prefix
from train.sweep.expand import load_sweep
from train.sweep.run import Sweep
from train.sweep.trunk import start_of

WSD = ["--schedule.kind=wsd", "--schedule.warmup_steps=3", "--schedule.cooldown_fraction=0.25"]
BASE = """\
model: {size: tiny-1k}
data: {vocab_size: 257}
train: {sequence_length: 16, global_batch_size: 4, micro_batch_size: 4}
optimizer: {lr: 0.01}
schedule: {kind: wsd, warmup_steps: 3, cooldown_fraction: 0.25}
"""


def ladder(folder: Path, *overrides: str, lengths: str = "[16, 32, 64]") -> Sweep:
    """One size at several lengths in steps, as a trunk with branches."""
    (folder / "run.yaml").write_text(BASE)
    axes = f"{{model.size: [tiny-1k], train.steps: {lengths}}}"
    (folder / "sweep.yaml").write_text(f"name: ladder\nbase: run.yaml\ntrunk: true\naxes: {axes}\n")
    return load_sweep(folder / "sweep.yaml", [f"--runs_dir={folder / 'runs'}", "--grace_seconds=1", *overrides])


def go(
    sweep: Sweep,
    behaviours: dict[str, str] | None = None,
    unneeded: Callable[[], dict[str, str]] = dict,
) -> SweepOutcome:
    """Run a sweep with the stand-in for the trainer on two places; behaviours go by the name of a run."""

    def command(directory: Path, processes: int, slot: Slot, port: int) -> list[str]:
        by_run = json.dumps(behaviours or {})
        return ["env", f"FAKE_PORT={port}", sys.executable, str(FAKE), str(directory), by_run]

    plan = make_plan(sweep, Devices("cpu", {"localhost": (0, 1)}))
    return run_sweep(plan, lambda: None, command, unneeded=unneeded)


def save(run_dir: Path, *steps: int) -> None:
    """Leave checkpoints without content."""
    for step in steps:
        (folder := run_dir / f"checkpoints/step-{step:08d}").mkdir(parents=True)
        write_manifest(folder, step, "a test", {})


def test_longest_run_of_a_course_is_the_trunk(tmp_path: Path) -> None:
    sweep = ladder(tmp_path, "--axes.seed=[0,1]")
    runs = {(run.config.seed, run.config.steps): run.config for run in sweep.runs}
    assert [run.checkpoint.branch_points for run in runs.values() if run.branch is None] == [[12, 24, 48]] * 2
    assert runs[1, 32].branch == BranchConfig(run=runs[1, 64].name, step=24)
    assert runs[0, 16].branch == BranchConfig(run=runs[0, 64].name, step=12)
    for seed in (0, 1):
        for step in range(24):
            rates = {lr_multiplier(runs[seed, s].schedule, step, s) for s in (32, 64)}
            assert len(rates) == 1
    spent = sum(run.flops_spent for run in runs.values()) / sum(run.flops for run in runs.values())
    assert spent == pytest.approx((64 + 8 + 4) / (64 + 32 + 16))
    plan = make_plan(sweep, Devices("cpu", {"localhost": (0,)}))
    assert any(line.startswith(f"trunk      {spent:.1%} of the ") for line in plan_summary(plan, defaultdict(str)))
    own = {steps: plan.seconds[runs[0, steps].name] - plan.seconds[runs[0, 16].name] for steps in (32, 64)}
    assert own[64] / own[32] == pytest.approx((64 - 4) / (8 - 4))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("--schedule.kind=cosine", "schedule.kind: cosine depends on the length"),
        ("--schedule.warmup_steps=null", "schedule.warmup_fraction: 0.05 is a fraction of the length"),
        ("--schedule.warmup_steps=13", "schedule.warmup_steps: 13 is more than the 12 steps before"),
    ],
)
def test_what_cannot_share_a_course_is_refused(tmp_path: Path, override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ladder(tmp_path, override)


def test_shipped_trunks_cost_what_the_docs_say() -> None:
    runs = load_sweep(ROOT / "configs/sweeps/trunk.yaml").runs
    assert len(runs) == 6 * 5
    assert sum(run.config.branch is not None for run in runs) == 6 * 4
    assert sum(run.config.flops_spent for run in runs) / sum(run.config.flops for run in runs) < 0.52


def test_trunk_runs_first_and_failing_names_its_branches(tmp_path: Path) -> None:
    sweep = ladder(tmp_path)
    short, middle, trunk = (run.name for run in sweep.runs)
    outcome = go(sweep, {trunk: "crash"})
    assert [name for name, *_ in launches(sweep)] == [trunk]
    assert {failure.run.name: failure.reason for failure in outcome.failures[1:]} == {
        short: f"not started: its trunk {trunk} failed before step 12",
        middle: f"not started: its trunk {trunk} failed before step 24",
    }
    assert {state.state for state in outcome.states.values()} == {"failed"}
    save(sweep.config.directory / trunk, 12)
    assert [failure.run.name for failure in go(sweep, {trunk: "crash"}).failures] == [trunk, middle]
    assert launches(sweep)[-1][0] == short or launches(sweep)[-2][0] == short
    assert {state.state for state in go(sweep).states.values()} == {"complete"}
    assert [name for name, *_ in launches(sweep)][-2:] == [trunk, middle]


def test_run_that_joins_later_starts_where_the_others_leave_it(tmp_path: Path) -> None:
    go(sweep := ladder(tmp_path))
    save(sweep.config.directory / sweep.runs[-1].name, 12, 24, 48, 64)
    later = ladder(tmp_path, lengths="[16, 24, 32, 64, 80, 128]")
    configs = {run.config.steps: run for run in later.runs}
    others = [run.config for run in later.runs]
    assert {s: start_of(run.config, run.directory, others) for s, run in configs.items() if s not in (16, 32, 64)} == {
        24: BranchConfig(run=sweep.runs[-1].name, step=12),  # before its own 18
        80: BranchConfig(run=sweep.runs[-1].name, step=48),
        128: BranchConfig(run=sweep.runs[-1].name, step=48),
    }
    assert {state.state for state in go(later).states.values()} == {"complete"}
    assert load_run(configs[128].directory / "config.yaml").branch.step == 48
    save(configs[128].directory, 100)
    assert start_of(replace(configs[128].config, branch=None), configs[128].directory, others).step == 48


def test_branch_points_stay_when_older_checkpoints_go(tmp_path: Path) -> None:
    save(tmp_path, *range(10, 80, 10))
    prune(tmp_path / "checkpoints", keep=2, points=[20, 60])
    assert [step_of(path) for path in newest_first(tmp_path / "checkpoints")] == [70, 60, 50, 20]


def test_another_run_is_no_trunk(tmp_path: Path) -> None:
    sweep = ladder(tmp_path)
    short, _, trunk = sweep.runs
    with pytest.raises(ConfigError, match="there is no run to branch off from"):
        require_same_prefix(short.config, short.directory)
    write_text(trunk.directory / "config.yaml", dump_yaml(trunk.config))
    require_same_prefix(short.config, short.directory)
    for other, said in [
        (replace(short.config, seed=1), "seed: is 1 here, and 0 in the run that branch.run names"),
        (replace(short.config, branch=BranchConfig(run=trunk.name, step=13)), "branch.step: 13 is in the cooldown"),
    ]:
        with pytest.raises(ConfigError, match=said):
            require_same_prefix(other, short.directory)


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--precision=bf16"]], ids=["fp32", "bf16"])
def test_branch_is_the_run_by_itself_bit_for_bit(small_run: Path, tmp_path: Path, more: list[str]) -> None:
    """Branches begin while the trunk is complete or not; one goes on from a checkpoint of its own."""
    worker = Worker(1, small_run, tmp_path)
    common = [*WSD, *more, "--eval.interval=7", "--log_every=2"]
    worker.enqueue(tmp_path / "trunk", *common, "--train.steps=24", "--checkpoint.branch_points=[9,12,18]")
    for steps, point in ((12, 9), (16, 12)):
        branch = ["--branch.run=trunk", f"--branch.step={point}", "--checkpoint.interval=11", f"--train.steps={steps}"]
        worker.enqueue(tmp_path / f"branch-{steps}", *common, *branch)
        worker.enqueue(tmp_path / f"alone-{steps}", *common, f"--train.steps={steps}")
    shutil.copytree(tmp_path / "branch-12", tmp_path / "killed")  # after step 11
    (tmp_path / "killed/record.json").unlink()
    shutil.rmtree(tmp_path / "killed/checkpoints/step-00000012")
    worker.enqueue(tmp_path / "killed", *common, *branch[:-1], "--train.steps=12", "--branch.step=9")
    worker.enqueue(None)
    status, output = worker.ranks.finish()
    assert status == 0, output
    assert [path.name for path in sorted((tmp_path / "trunk/checkpoints").iterdir())] == [
        f"step-{point:08d}" for point in (9, 12, 18)
    ]
    for steps, point in ((12, 9), (16, 12)):
        alone, branch_dir = tmp_path / f"alone-{steps}", tmp_path / f"branch-{steps}"
        assert result(branch_dir) == result(alone)
        whole, record = read_record(alone), read_record(branch_dir)
        assert (record["branch_of"], record["branch_step"]) == ("trunk", point)
        assert (record["flops"], record["flops_spent"]) == (whole["flops"], whole["flops"] * (steps - point) // steps)
        assert (whole["branch_of"], whole["flops_spent"]) == (None, whole["flops"])
    assert result(tmp_path / "killed") == result(tmp_path / "alone-12")
    assert [row["step"] for row in read_rows(tmp_path / "killed")] == [1, 2, 4, 6, 7, 8, 10, 12]
