"""The parts of the trainer that need no run: schedule, optimizer, configuration of DeepSpeed, metrics, W&B."""

import itertools
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.metrics_rows import read_rows
from configs.reader import ConfigError
from model.parameters import parameter_table
from tests.conftest import ROOT
from train.config import OptimizerConfig, ScheduleConfig, WandbConfig, load_run
from train.engine.ds_config import derive, merge_user_config, read_user_config
from train.engine.lr_schedule import lr_multiplier
from train.engine.optimizer import ClippingAdamW, parameter_groups
from train.telemetry.metrics import MetricsLog
from train.telemetry.wandb_tracker import Tracker, stable_id

TINY = ROOT / "configs/runs/tiny.yaml"


# ---------------------------------------------------------------------------------------- schedule


def test_cosine_warms_up_peaks_and_ends() -> None:
    schedule = ScheduleConfig(kind="cosine", warmup_fraction=0.1, min_lr_ratio=0.1)
    curve = [lr_multiplier(schedule, step, 100) for step in range(100)]
    assert curve[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert curve[54] == pytest.approx(0.1 + 0.9 * 0.5)  # half-way between warmup and end
    assert curve[99] == pytest.approx(0.1)
    assert all(a > b for a, b in itertools.pairwise(curve[9:]))


def test_wsd_holds_then_falls_in_a_line() -> None:
    schedule = ScheduleConfig(kind="wsd", warmup_fraction=0.1, cooldown_fraction=0.2, min_lr_ratio=0.0)
    curve = [lr_multiplier(schedule, step, 100) for step in range(100)]
    assert curve[10:80] == [1.0] * 70
    assert curve[80:] == pytest.approx([1 - (i + 1) / 20 for i in range(20)])


def test_constant_and_no_warmup() -> None:
    assert {lr_multiplier(ScheduleConfig(kind="constant", warmup_fraction=0.0), s, 7) for s in range(7)} == {1.0}


# --------------------------------------------------------------------------------------- optimizer


def test_only_matrices_decay() -> None:
    named = {
        "embedding.weight": torch.nn.Parameter(torch.zeros(4, 2)),
        "blocks.0.mlp.up.weight": torch.nn.Parameter(torch.zeros(2, 2)),
        "blocks.0.mlp.up.bias": torch.nn.Parameter(torch.zeros(2)),
        "readout.weight": torch.nn.Parameter(torch.zeros(4, 2)),
    }
    table = parameter_table(load_run(TINY, ["--model.tie_embeddings=false", "--model.bias=true"]).model)
    decay, keep = parameter_groups(named.items(), OptimizerConfig(lr=0.1, weight_decay=0.1), table)
    assert decay["weight_decay"] == 0.1
    assert [id(p) for p in decay["params"]] == [id(named["blocks.0.mlp.up.weight"]), id(named["readout.weight"])]
    assert keep["weight_decay"] == 0.0
    assert len(keep["params"]) == 2


def make_optimizer(max_norm: float) -> tuple[torch.nn.Parameter, ClippingAdamW]:
    parameter, other = torch.nn.Parameter(torch.zeros(2, 2)), torch.nn.Parameter(torch.zeros(2))
    config = OptimizerConfig(lr=0.1, gradient_clipping=max_norm)
    named = [("blocks.0.mlp.up.weight", parameter), ("norm.weight", other)]
    return parameter, ClippingAdamW(named, config, parameter_table(load_run(TINY).model), None)


def test_clipping_scales_to_the_norm_and_reports_it() -> None:
    parameter, optimizer = make_optimizer(1.0)
    parameter.grad = torch.full((2, 2), 3.0)
    optimizer.step()
    assert optimizer._global_grad_norm == pytest.approx(6.0)
    assert parameter.grad.norm().item() == pytest.approx(1.0)


def test_small_gradients_are_not_touched() -> None:
    parameter, optimizer = make_optimizer(10.0)
    parameter.grad = torch.full((2, 2), 3.0)
    optimizer.step()
    assert torch.equal(parameter.grad, torch.full((2, 2), 3.0))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_gradients_change_nothing(bad: float) -> None:
    parameter, optimizer = make_optimizer(1.0)
    parameter.grad = torch.tensor([[bad, 1.0], [1.0, 1.0]])
    optimizer.step()
    assert optimizer.overflow
    assert torch.equal(parameter, torch.zeros(2, 2))
    assert not optimizer.state


# -------------------------------------------------------------------------------- DeepSpeed's configuration


def test_derived_configuration_of_two_replicas() -> None:
    plan = load_run(TINY, ["--precision=bf16"]).step_plan
    tree = derive(plan, data_parallel=2)
    assert tree["train_batch_size"] == 16
    assert tree["train_micro_batch_size_per_gpu"] * tree["gradient_accumulation_steps"] * 2 == 16
    assert tree["zero_optimization"]["stage"] == 1
    assert tree["data_types"] == {"grad_accum_dtype": "fp32"}
    assert tree["gradient_clipping"] == 1.0


def test_users_ds_json_is_merged_and_its_wandb_block_dropped() -> None:
    plan = load_run(TINY).step_plan
    user = {
        "train_batch_size": 16,
        "gradient_accumulation_steps": "auto",
        "zero_optimization": {"stage": 0, "overlap_comm": True},
        "flops_profiler": {"enabled": True},
        "wandb": {"enabled": True, "project": "other"},
    }
    tree = merge_user_config(plan, derive(plan, 1), user, "ds.json")
    assert tree["zero_optimization"] == {"stage": 0, "overlap_comm": True}
    assert tree["flops_profiler"] == {"enabled": True}
    assert tree["wandb"] == {"enabled": False}
    assert tree["gradient_accumulation_steps"] == 4


def test_slips_in_the_keys_of_a_ds_json_are_named() -> None:
    plan = load_run(TINY).step_plan
    user = {"fp61": {}, "gradient_cliping": 3, "zero_optimization": {"stag": 1}, "dump_state": True, "amp": {}}
    with pytest.raises(ConfigError) as caught:
        merge_user_config(plan, derive(plan, 1), user, "ds.json")
    assert {problem.key: problem.message for problem in caught.value.problems} == {
        "fp61": "unknown key; did you mean 'fp16'?",
        "gradient_cliping": "unknown key; did you mean 'gradient_clipping'?",
        "zero_optimization.stag": "unknown key; did you mean 'zero_optimization.stage'?",
    }


def test_every_conflict_is_reported_with_both_values() -> None:
    plan = load_run(TINY).step_plan
    user = {
        "train_batch_size": 32,
        "zero_optimization": {"stage": 3},
        "bf16": {"enabled": True},
        "gradient_clipping": 0.5,
        "optimizer": {"type": "Adam"},
    }
    with pytest.raises(ConfigError) as caught:
        merge_user_config(plan, derive(plan, 1), user, "ds.json")
    text = str(caught.value)
    assert "ds.json: train_batch_size: 32 conflicts with 16 from the run's train.global_batch_size" in text
    assert "ds.json: zero_optimization.stage: 3 conflicts with 0" in text
    assert "ds.json: bf16.enabled: True conflicts with False" in text
    assert "ds.json: gradient_clipping: 0.5 conflicts with 1.0" in text
    assert "ds.json: optimizer: is not taken; set optimizer.* in the run's YAML instead" in text


def test_matching_gradient_clipping_is_no_conflict_where_ours_clips() -> None:
    plan = load_run(TINY).step_plan
    tree = merge_user_config(plan, derive(plan, 1), {"gradient_clipping": 1.0}, "ds.json")
    assert tree["gradient_clipping"] == 0.0


@pytest.mark.parametrize("content", ["", "[1]", "{"])
def test_unreadable_ds_json(content: str, tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text(content)
    with pytest.raises(ConfigError, match=r"ds\.json"):
        read_user_config(tmp_path / "ds.json")


# -------------------------------------------------------------------------------------------- files


def test_torn_last_line_is_cut_and_steps_are_written_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 5.0}\n{"step": 2, "lo')
    log = MetricsLog(path)
    assert not log.write({"step": 1, "loss": 9.0})
    assert log.write({"step": 2, "loss": math.nan})
    log.close()
    assert read_rows(path) == [{"step": 1, "loss": 5.0}, {"step": 2, "loss": None}]


# ---------------------------------------------------------------------------------------------- W&B


def make_tracker(mode: Any, run_dir: Path) -> Tracker:
    return Tracker(WandbConfig(mode=mode), "name", run_dir, {"lr": 0.1})


def test_offline_run_is_written_where_wandb_sync_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    tracker = make_tracker("offline", tmp_path)
    for step in range(1, 4):
        tracker.log({"step": step, "tokens": step * 100, "loss": 5.0 - step})
    tracker.finish({"val_loss": 2.0})
    [binary] = tmp_path.glob("wandb/offline-run-*/*.wandb")
    deadline = time.monotonic() + 30  # W&B's own process writes the file
    while b"val_loss" not in binary.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.1)
    content = binary.read_bytes()
    assert all(word in content for word in (stable_id(tmp_path).encode(), b"tokens", b"loss", b"val_loss"))


def test_a_resumed_run_keeps_its_id_and_another_run_has_its_own(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert stable_id(tmp_path / "a") == stable_id(tmp_path / "a")
    assert stable_id(tmp_path / "a") != stable_id(tmp_path / "b")


_DEAD_SERVER = """
import sys, time
from pathlib import Path
from train.config import WandbConfig
from train.telemetry.wandb_tracker import Tracker
begin = time.perf_counter()
tracker = Tracker(WandbConfig(mode="online"), "name", Path(sys.argv[1]), {})
for step in range(1000):
    tracker.log({"step": step, "tokens": step, "loss": 1.0})
print("queued in", time.perf_counter() - begin)
"""


def test_dead_server_does_not_hold_training(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    environment |= {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _DEAD_SERVER, str(tmp_path)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 5  # an init that blocked would take 100 s
    assert time.perf_counter() - begin < 60


def test_missing_wandb_is_said_and_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    tracker = make_tracker("offline", tmp_path)
    tracker.log({"step": 1})
    tracker.finish({})
    assert "W&B is off for this run" in capsys.readouterr().err


# --------------------------------------------------------------------------------- mistakes at the command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "configs/runs/tinny.yaml"], "nearest is 'configs/runs/tiny.yaml'"),
        (["--config", "configs/runs/tiny.yaml", "--train.stepz=3"], "did you mean 'steps'?"),
        (["--config", "configs/runs/tiny.yaml", "--data.source=files"], "data.files"),
        (["--config", "configs/runs/tiny.yaml", "--data.source=files", "--data.files=[no/such.txt]"], "no/such.txt"),
        (["--config", "configs/runs/tiny.yaml", "--parallel.pipeline_stages=2"], "--num_accelerators 2"),
        (["--config", "configs/runs/tiny.yaml", "--deepspeed_config", "none.json"], "none.json"),
        (["--config", "configs/runs/tiny.yaml", "steps=3"], "overrides look like --train.steps=100"),
    ],
)
def test_mistakes_end_in_a_sentence(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "scripts/pretrain.py", *arguments, "--run-dir", str(tmp_path / "run")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_print_config_is_a_config(tmp_path: Path) -> None:
    command = [sys.executable, "scripts/pretrain.py", "--config", str(TINY), "--print-config", "--seed=5"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    (tmp_path / "printed.yaml").write_text(printed)
    assert load_run(tmp_path / "printed.yaml") == load_run(TINY, ["--seed=5"])
