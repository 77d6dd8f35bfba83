"""Every combination of precision and parallelism is refused with a sentence, or trains as one process does."""

import itertools
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from configs.reader import ConfigError
from tests.conftest import ROOT, run_cases
from tests.helpers.parity_ranks import Case
from tests.train.engine.test_parity import COMMON, TOLERANCES, gradient_errors
from train.config import load_run
from train.distributed.topology import precision_problem
from train.engine.ds_config import derive, merge_user_config
from train.supervision.failures import memory_advice

TINY = ROOT / "configs/runs/tiny.yaml"
AXES = {
    "precision": ["fp32", "bf16"],
    "parallel.zero_stage": [0, 1, 2, 3],
    "parallel.pipeline_stages": [1, 2],
    "parallel.tensor_parallel": [1, 2],
    "parallel.offload_optimizer": ["false", "true"],
    "train.gradient_dtype": ["fp32", "bf16"],
}
COMBINATIONS = [
    [f"--{key}={value}" for key, value in zip(AXES, values, strict=True)]
    for values in itertools.product(*AXES.values())
]


def refusal(config: Path, keys: list[str]) -> str | None:
    try:
        load_run(config, keys)
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.slow
def test_what_is_not_refused_runs(small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    one_step = [*COMMON, "--train.steps=1"]
    allowed = [keys for keys in COMBINATIONS if refusal(small_run, keys) is None]
    assert len(allowed) > len(COMBINATIONS) // 4
    cases = [Case("one", [*one_step, "--train.micro_batch_size=8"])]
    expected = run_cases(1, small_run, [asdict(case) for case in cases], tmp_path / "one")["one"]
    cases = [Case(" ".join(keys), [*one_step, *keys]) for keys in allowed]
    for name, got in run_cases(2, small_run, [asdict(case) for case in cases], tmp_path / "two").items():
        tolerance = TOLERANCES["bf16" if "--precision=bf16" in name else "fp32"]
        total, each = gradient_errors(expected, got)
        assert total < tolerance.gradients, name
        assert max(each.values()) < tolerance.one_gradient, name
        assert got["losses"][0] == pytest.approx(expected["losses"][0], abs=tolerance.loss), name


def test_what_is_refused_names_a_working_choice(small_run: Path) -> None:
    for keys in COMBINATIONS:
        message = refusal(small_run, keys)
        for line in (message or "").splitlines():
            assert "nearest is" in line or "leave it out" in line


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["--parallel.pipeline_stages=2", "--parallel.zero_stage=2"], "whole gradients on each stage; nearest is 1"),
        (["--parallel.pipeline_stages=2", "--parallel.zero_stage=3"], "whole gradients on each stage; nearest is 1"),
        (["--precision=bf16", "--parallel.zero_stage=0"], "fp32 master weights under ZeRO only; nearest is 1"),
        (["--precision=fp16", "--parallel.zero_stage=0"], "fp32 master weights under ZeRO only; nearest is 1"),
        (["--parallel.offload_optimizer=true", "--parallel.zero_stage=0"], "nearest is zero_stage=1"),
        (["--parallel.tensor_parallel=2", "--parallel.pipeline_stages=2"], "it hangs; nearest is 1"),
        (["--parallel.tensor_parallel=2", "--parallel.zero_stage=0"], "sums the gradient norm"),
        (["--parallel.tensor_parallel=3"], "3 does not divide model.n_head=2; nearest is 1"),
        (["--train.gradient_dtype=bf16"], "bf16 is for precision=bf16, not fp32"),
        (
            ["--precision=bf16", "--parallel.pipeline_stages=2", "--parallel.offload_optimizer=true"],
            "nearest is train.gradient_dtype=bf16",
        ),
    ],
)
def test_refusals(keys: list[str], message: str) -> None:
    assert message in (refusal(TINY, keys) or "")


def test_fp16_is_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert "nearest is bf16" in (precision_problem("fp16") or "")
    assert precision_problem("bf16") is None


@pytest.mark.parametrize(
    ("user", "message"),
    [
        ({"tensor_parallel": {"autotp_size": 2}}, "set parallel.tensor_parallel"),
        ({"sequence_parallel_size": 2}, "nearest is parallel.tensor_parallel"),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, "set train.gradient_dtype"),
        ({"activation_checkpointing": {"cpu_checkpointing": True}}, "set train.activation_checkpointing"),
        ({"torch_autocast": {"enabled": True}}, "set precision"),
        ({"compile": {"deepcompile": True}}, "set train.compile"),
        ({"bf16": {"bf16_master_weights_and_grads": True}}, "master weights"),
        ({"communication_data_type": "fp16"}, "the run's precision and train.gradient_dtype"),
        ({"gradient_allreduce_op": "sum"}, "means over the global batch"),
        ({"zero_optimization": {"offload_param": {"device": "cpu"}}}, "nearest is parallel.offload_optimizer"),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, "'cpu' conflicts with 'none'"),
        ({"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}, "parallel.offload_optimizer"),
    ],
)
def test_a_ds_json_decides_nothing_behind_the_runs_back(user: dict[str, Any], message: str) -> None:
    plan = load_run(TINY).step_plan
    with pytest.raises(ConfigError) as caught:
        merge_user_config(plan, derive(plan, 1), user, "ds.json")
    assert message in str(caught.value)


def test_a_ds_json_may_tune_what_the_run_has_chosen() -> None:
    plan = load_run(
        TINY, ["--precision=fp16", "--parallel.offload_optimizer=true", "--parallel.zero_stage=2"]
    ).step_plan
    user = {
        "fp16": {"enabled": True, "loss_scale_window": 100, "initial_scale_power": 10},
        "zero_optimization": {"offload_optimizer": {"device": "cpu", "ratio": 0.5}, "reduce_bucket_size": 1000},
    }
    tree = merge_user_config(plan, derive(plan, 1), user, "ds.json")
    assert tree["fp16"] == user["fp16"]
    assert tree["zero_optimization"]["offload_optimizer"]["ratio"] == 0.5
    assert tree["zero_optimization"]["reduce_bucket_size"] == 1000


@pytest.mark.parametrize(
    "keys",
    [[], ["--parallel.tensor_parallel=2"], ["--parallel.pipeline_stages=2"], ["--parallel.zero_stage=3"]],
)
def test_ways_to_need_less_memory_are_not_refused(keys: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.supervision.failures.uses_gpu", lambda: True)
    advice = memory_advice(load_run(TINY, keys).step_plan, 2)
    ways = [word.strip(",") for word in advice.split() if word.startswith("--")]
    assert len(ways) >= 3
    for way in ways:
        load_run(TINY, [*keys, way])
