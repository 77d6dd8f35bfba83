"""What DeepSpeed is given, and a user's own ds.json."""

from pathlib import Path

import pytest

from configs.reader import ConfigError
from tests.conftest import ROOT
from train.config import load_run
from train.engine.ds_config import derive, merge_user_config, read_user_config

TINY = ROOT / "configs/runs/tiny.yaml"


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
