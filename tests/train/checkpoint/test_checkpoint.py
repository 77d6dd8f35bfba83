"""Whatever interrupts the writing of a checkpoint, a whole one stays. One process, whose engine is a stand-in.

Each action takes place in a fork of its own, which may be killed and which alone has a process group.
"""

import json
import os
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

from configs.cli import Status
from data.files import tree_hash
from model.init import initialise
from model.parameters import parameter_table
from model.transformer import GPT
from train.checkpoint import checkpoint, manifest
from train.checkpoint import state_files as statefiles
from train.checkpoint.manifest import CheckpointError, NotSaved, damage, newest_first, prune
from train.checkpoint.state_files import StateReader, read_weights
from train.config import RunConfig, load_run
from train.distributed.topology import Topology
from train.engine.optimizer import adamw
from train.loop import checkpoints_of
from train.supervision.failures import LossScaleFloor, known_failures

ALONE = Topology(rank=0, world_size=1, local_rank=0, pipeline_stages=1)


def in_fork(work: Callable[[], Any]) -> int:
    """Do `work` in a fork of this process; return its exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def run(small_run: Path) -> RunConfig:
    return load_run(small_run, ["--checkpoint.keep=1", "--spikes.enabled=false"])


def stand_in(run: RunConfig, steps: int) -> Any:
    """What a checkpoint takes from DeepSpeed's engine, after some updates with the same gradients every time."""
    model = GPT(run.model)
    initialise(list(model.named_parameters()), run.model, run.seed)
    optimizer = adamw(model.named_parameters(), run.optimizer, parameter_table(run.model))
    draw = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=draw)
        optimizer.step()
    return SimpleNamespace(
        module=model,
        optimizer=optimizer,
        basic_optimizer=optimizer,
        global_steps=steps,
        global_samples=8 * steps,
        skipped_steps=0,
        fp16_enabled=lambda: False,
        zero_optimization_partition_weights=lambda: False,
    )


def checkpoints(run: RunConfig, run_dir: Path) -> checkpoint.Checkpoints:
    return checkpoints_of(run, run_dir, parameter_table(run.model), ALONE)


def save(run: RunConfig, run_dir: Path, step: int) -> None:
    checkpoints(run, run_dir).save(stand_in(run, step), step, {"attempt": step})


def whole_steps(run_dir: Path) -> list[int]:
    return [manifest.step_of(path) for path in newest_first(run_dir / "checkpoints") if damage(path) is None]


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def require_resumed(run: RunConfig, run_dir: Path, step: int) -> None:
    """Resume, and compare weights and moments with those of a run that was never stopped."""
    engine, expected = stand_in(run, 0), stand_in(run, step)
    assert checkpoints(run, run_dir).resume(engine) == checkpoint.Resumed(step, {"attempt": step})
    assert engine.global_samples == 8 * step
    for ours, theirs in zip(engine.module.parameters(), expected.module.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        for key, value in expected.optimizer.state[theirs].items():
            assert torch.equal(engine.optimizer.state[ours][key], value)


KILLS: dict[str, tuple[Any, str, str]] = {
    "in a file of states": (os, "fsync", ""),
    "before the manifest": (checkpoint, "write_manifest", ""),
    "in the manifest": (Path, "replace", ""),
    "before the rename": (manifest, "rename", ""),
    "before pruning": (checkpoint, "prune", ""),
    "in pruning": (shutil, "rmtree", ".discarded"),
}
"""When: (owner, function, end of the name of its first argument) of the call that never returns."""


def killed(call: tuple[Any, str, str], work: Callable[[], Any]) -> None:
    """Do `work` up to a call."""
    owner, function, ending = call
    real = getattr(owner, function)

    def deadly(*arguments: Any, **options: Any) -> Any:
        if str(arguments[0]).endswith(ending):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)

    setattr(owner, function, deadly)
    work()


@pytest.mark.parametrize("when", KILLS)
def test_a_kill_leaves_a_whole_checkpoint(when: str, run: RunConfig, tmp_path: Path) -> None:
    assert in_fork(lambda: save(run, tmp_path, 1)) == 0
    assert in_fork(lambda: killed(KILLS[when], lambda: save(run, tmp_path, 2))) == -signal.SIGKILL
    (newest, *_) = whole_steps(tmp_path)
    assert newest == (2 if "prun" in when else 1)
    assert in_fork(lambda: require_resumed(run, tmp_path, newest)) == 0
    assert in_fork(lambda: save(run, tmp_path, 3)) == 0
    assert names(tmp_path) == ["step-00000003"]  # and nothing is left of what was killed


@pytest.mark.parametrize("when", ["before the rename", "before pruning", "in pruning"])
def test_a_kill_while_a_step_is_saved_again_leaves_it(when: str, run: RunConfig, tmp_path: Path) -> None:
    """As after a rollback, which saves the state that it went back to with its own extra."""
    assert in_fork(lambda: save(run, tmp_path, 1)) == 0
    assert in_fork(lambda: killed(KILLS[when], lambda: save(run, tmp_path, 1))) == -signal.SIGKILL
    assert in_fork(lambda: require_resumed(run, tmp_path, 1)) == 0
    assert in_fork(lambda: save(run, tmp_path, 1)) == 0
    assert names(tmp_path) == ["step-00000001"]


def test_a_full_disk_keeps_what_there_was(run: RunConfig, tmp_path: Path) -> None:
    assert in_fork(lambda: save(run, tmp_path, 1)) == 0

    def without_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))
        with pytest.raises(
            NotSaved, match=r"step-00000002: cannot be written: .*File too large.*make some, and run again"
        ):
            save(run, tmp_path, 2)
        assert names(tmp_path) == ["step-00000001"]
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        save(run, tmp_path, 2)

    assert in_fork(without_room) == 0
    assert whole_steps(tmp_path) == [2]
    assert in_fork(lambda: require_resumed(run, tmp_path, 2)) == 0


def test_pruning_counts_whole_checkpoints_only(run: RunConfig, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    keeps_all = replace(run, checkpoint=replace(run.checkpoint, keep=9))

    def four() -> None:
        for step in (1, 2, 3, 4):
            save(keeps_all, tmp_path, step)

    assert in_fork(four) == 0
    (folder / "step-00000004/manifest.json").unlink()
    victim = next((folder / "step-00000003").glob("state-*"))
    victim.write_bytes(victim.read_bytes()[:-1])
    prune(folder, keep=1)
    assert whole_steps(tmp_path) == [2]
    assert in_fork(lambda: require_resumed(run, tmp_path, 2)) == 0
    assert in_fork(lambda: save(run, tmp_path, 3)) == 0  # in the place of the damaged one
    assert whole_steps(tmp_path) == [3]


def test_pruning_leaves_one_that_a_rollback_can_go_back_to(run: RunConfig, tmp_path: Path) -> None:
    """Whole checkpoints every 20 steps, of which the two newest are to stay, and a reach of 50 steps."""
    assert in_fork(lambda: save(run, tmp_path, 20)) == 0
    folder = tmp_path / "checkpoints"
    shutil.move(folder / "step-00000020", tmp_path / "pattern")
    for step in range(20, 400, 20):
        path = folder / f"step-{step:08d}"
        shutil.copytree(tmp_path / "pattern", path)
        content = json.loads((path / "manifest.json").read_text()) | {"step": step}
        content["sha256"] = tree_hash({key: value for key, value in content.items() if key != "sha256"})
        (path / "manifest.json").write_text(json.dumps(content))
        if step == 240:
            (path / "loop.json").unlink()  # one that is damaged is not the one
        prune(folder, keep=2, reach=50)
        steps = whole_steps(tmp_path)
        assert steps[0] - steps[-1] >= min(50, steps[0] - 20)
        assert len(steps) <= 4
    prune(folder, keep=2)
    assert whole_steps(tmp_path) == [380, 360]


def test_states_are_cut_into_files_and_read_in_any_stretch(
    run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statefiles, "_FILE_ENTRIES", 1000)
    assert in_fork(lambda: save(run, tmp_path, 2)) == 0
    assert in_fork(lambda: require_resumed(run, tmp_path, 2)) == 0
    path = tmp_path / "checkpoints/step-00000002"
    assert len(list(path.glob("state-*"))) > 5
    expected = dict(stand_in(run, 2).module.named_parameters())
    weights = read_weights(path, parameter_table(run.model))
    assert list(weights) == list(expected)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)

    reader = StateReader(path, parameter_table(run.model))
    flat = expected["embedding.weight"].detach().flatten()
    assert torch.equal(reader.read("weight", "embedding.weight", 990, 2020), flat[990:3010])
    with pytest.raises(ValueError, match=r"entry 4,800 of weight of 'embedding.weight' is not there"):
        reader.read("weight", "embedding.weight", 4000, 801)


def test_loss_scale_of_fp16_goes_on(run: RunConfig, tmp_path: Path) -> None:
    def scaled() -> Any:
        engine = stand_in(run, 1)
        engine.fp16_enabled = lambda: True
        engine.optimizer.loss_scaler = DynamicLossScaler(2.0**16, 1000, 1.0, 2, consecutive_hysteresis=False)
        return engine

    def goes_on() -> None:
        engine, new = scaled(), scaled()
        history = {"cur_scale": 2.0**12, "cur_iter": 40, "last_overflow_iter": 7, "cur_hysteresis": 1}
        vars(engine.optimizer.loss_scaler).update(history)
        checkpoints(run, tmp_path).save(engine, 1, {})
        checkpoints(run, tmp_path).resume(new)
        assert vars(new.optimizer.loss_scaler) == vars(engine.optimizer.loss_scaler)

    assert in_fork(goes_on) == 0


def test_gradients_that_overflow_at_any_loss_scale_are_a_divergence(run: RunConfig) -> None:
    scaler = DynamicLossScaler(1.0, 1000, min_scale=1.0, delayed_shift=1, consecutive_hysteresis=False)
    with (
        pytest.raises(LossScaleFloor, match="smallest loss scale; try precision=bf16"),
        known_failures(run.step_plan, 1),
    ):
        scaler.update_scale(overflow=True)
    assert LossScaleFloor.status == Status.DIVERGED


def test_other_model_and_other_format_are_named(run: RunConfig, tmp_path: Path) -> None:
    assert in_fork(lambda: save(run, tmp_path, 1)) == 0
    path = tmp_path / "checkpoints/step-00000001"
    deeper = replace(run, model=replace(run.model, n_layer=3))

    def other_model() -> None:
        with pytest.raises(CheckpointError, match=r"there is no 'blocks\.2\."):
            checkpoints(deeper, tmp_path).resume(stand_in(deeper, 0))

    assert in_fork(other_model) == 0
    old = json.loads((path / "manifest.json").read_text()) | {"format": 1}
    (path / "manifest.json").write_text(json.dumps(old))
    assert "written by another version" in str(damage(path))
