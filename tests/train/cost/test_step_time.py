"""The plan of a cluster against published figures, and its command."""

import dataclasses
import json
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from configs.reader import build
from model.config import ModelConfig, expand_model
from model.counts import count_parameters
from scripts.plan_cluster import main
from train.config import ParallelConfig, RunConfig, StepPlan, expand_run
from train.cost.gpus import GIB, GPUS, USABLE, find_gpu
from train.cost.memory import stage_memory, stage_parameters
from train.cost.step_time import MEMORY_EFFICIENCY, Cluster, alternatives, bubble_share, predict, replicas_of
from train.launch.devices import Devices
from train.launch.plan import make_plan, plan_summary
from train.sweep.expand import load_sweep

# Narayanan et al. 2021 (arXiv 2104.04473), table 1; micro-batches and the number of model chunks on a device from the
# configurations that NVIDIA published with it (Megatron-LM, examples/sc21/run_table_1.sh).
# billions, heads, d_model, n_layer, tensor, pipeline, GPUs, batch, micro_batch_size, chunks, TFLOP/s per GPU
NARAYANAN = [
    (1.7, 24, 2304, 24, 1, 1, 32, 512, 16, 1, 137),
    (3.6, 32, 3072, 30, 2, 1, 64, 512, 16, 1, 138),
    (7.5, 32, 4096, 36, 4, 1, 128, 512, 16, 1, 142),
    (18.4, 48, 6144, 40, 8, 1, 256, 1024, 8, 1, 135),
    (39.1, 64, 8192, 48, 8, 2, 512, 1536, 4, 1, 138),
    (76.1, 80, 10240, 60, 8, 4, 1024, 1792, 2, 3, 140),
    (145.6, 96, 12288, 80, 8, 8, 1536, 2304, 2, 2, 148),
    (310.1, 128, 16384, 96, 8, 16, 1920, 2160, 1, 2, 155),
    (529.6, 128, 20480, 105, 8, 35, 2520, 2520, 1, 3, 163),
    (1008.0, 160, 25600, 128, 8, 64, 3072, 3072, 1, 1, 163),
]
# Korthikanti et al. 2022 (arXiv 2205.05198), tables 3 and 5, full recomputation: seconds per iteration.
# heads, d_model, n_layer, tensor, pipeline, GPUs, batch, micro_batch_size, chunks, seconds
KORTHIKANTI = [
    (64, 6144, 48, 8, 1, 8, 4, 4, 1, 1.42),
    (96, 12288, 96, 8, 8, 64, 64, 1, 3, 18.13),
    (128, 20480, 105, 8, 35, 280, 280, 1, 3, 49.05),
    (160, 25600, 128, 8, 64, 512, 512, 1, 1, 94.42),
]


def megatron(
    heads: int, d_model: int, n_layer: int, pipeline: int, batch: int, micro_batch_size: int, tensor: int = 1
) -> StepPlan:
    tree: dict[str, Any] = {
        "precision": "bf16",
        "model": {"n_layer": n_layer, "d_model": d_model, "n_head": heads, "context_length": 2048},
        "data": {"vocab_size": 51200},
        "train": {
            "sequence_length": 2048,
            "global_batch_size": batch,
            "micro_batch_size": micro_batch_size,
            "steps": 1,
        },
        "optimizer": {"lr": 1e-4},
        "parallel": {"pipeline_stages": pipeline},
    }
    tree["train"] |= {"activation_checkpointing": True, "gradient_dtype": "bf16"}  # it averaged 16-bit gradients
    plan = build(RunConfig, tree, "published", expand=expand_run).step_plan
    # Behind the configuration's back, which refuses it beside a pipeline.
    return dataclasses.replace(plan, parallel=dataclasses.replace(plan.parallel, tensor_parallel=tensor))


TENSOR_8, OFFLOADED = ParallelConfig(tensor_parallel=8), ParallelConfig(offload_optimizer=True)


def megatron_seconds(plan: StepPlan, devices: int, chunks: int) -> float:
    """Our prediction for Megatron-LM, which differs in three ways from this trainer.

    Its tensor parallelism also shared out the vocabulary. Its attention stored the T x T weights, 5 H T^2 bytes for
    each sequence and block (Korthikanti et al. 2022, section 4.1), and several model chunks on a device divide the
    bubble (Narayanan et al. 2021, section 2.2.2).
    """
    cluster = Cluster(GPUS["A100"], 8, devices // 8)
    tensor = plan.parallel.tensor_parallel
    step = predict(plan, cluster, vocabulary_parallel=tensor).step
    stages, model, train = plan.parallel.pipeline_stages, plan.model, plan.train
    micro_batches = train.micro_batches(replicas_of(plan.parallel, devices))
    weights = train.micro_batch_size * 5 * model.n_head * train.sequence_length**2 * model.n_layer / stages / tensor
    attention = 2 * 4 * weights / (MEMORY_EFFICIENCY * cluster.gpu.memory_bandwidth)
    slots = micro_batches + (stages - 1) / chunks
    return step.seconds - step.bubble * (1 - 1 / chunks) + attention * slots


def test_step_times_of_megatron() -> None:
    """Ten published step times from 1.7B on 32 to 1T on 3,072 GPUs; the matrix efficiency was chosen on them."""
    errors = []
    for billions, heads, d, layers, tensor, pipeline, devices, batch, micro, chunks, teraflops in NARAYANAN:
        plan = megatron(heads, d, layers, pipeline, batch, micro, tensor)
        assert count_parameters(plan.model).total / 1e9 == pytest.approx(billions, rel=0.03)
        # Equation 3, from which the paper's TFLOP/s come; it counts recomputation.
        flops = 96 * batch * 2048 * layers * d**2 * (1 + 2048 / (6 * d) + 51200 / (16 * layers * d))
        published = flops / devices / (teraflops * 1e12)
        errors.append(megatron_seconds(plan, devices, chunks) / published - 1)
    print([f"{error:+.1%}" for error in errors])
    assert abs(median(errors)) < 0.02
    assert max(map(abs, errors)) < 0.07


def test_step_times_that_nothing_was_chosen_on() -> None:
    errors = []
    for heads, d, layers, tensor, pipeline, devices, batch, micro, chunks, published in KORTHIKANTI:
        plan = megatron(heads, d, layers, pipeline, batch, micro, tensor)
        errors.append(megatron_seconds(plan, devices, chunks) / published - 1)
    print([f"{error:+.1%}" for error in errors])
    assert max(map(abs, errors)) < 0.10


def test_training_time_of_gpt3() -> None:
    """Narayanan et al. 2021, section 5.1: 300 B tokens on 1,024 A100 at 140 TFLOP/s take 34 days (equation 4)."""
    model = build(ModelConfig, {"size": "gpt3-175b"}, "gpt3", expand=expand_model)
    parameters = count_parameters(model).total
    assert parameters == pytest.approx(174.6e9, rel=1e-3)
    assert 8 * 300e9 * parameters / (1024 * 140e12) / 86_400 == pytest.approx(34, rel=0.01)
    # The same machine through the whole prediction: tensor 8, pipeline 8, replicas 16 (section 5.4's best shape).
    plan = megatron(96, 12288, 96, 8, 1536, 1, tensor=8)
    seconds = megatron_seconds(plan, 1024, 1)
    assert 300e9 / plan.tokens_per_step * seconds / 86_400 == pytest.approx(34, rel=0.08)


@pytest.mark.parametrize(("zero", "gigabytes"), [(1, 31.4), (2, 16.6), (3, 1.9)])
def test_states_by_zero_stage(zero: int, gigabytes: float) -> None:
    """Rajbhandari et al. 2020, figure 1: 7.5B parameters over 64 ranks, in GB, without buffers.

    Gradients there are 16-bit. Stage 1 with fp32 gradients beside them, as here, is 4 bytes a parameter more.
    """
    plan = megatron(32, 4096, 36, 1, 64, 1)
    plan = dataclasses.replace(plan, parallel=dataclasses.replace(plan.parallel, zero_stage=zero))
    memory = stage_memory(plan, 64, bucket=0)
    parameters = stage_parameters(plan.model, 1, 0)
    gradients = {1: 2 * parameters - memory.gradients, 2: 2 * parameters // 64, 3: 0}[zero]
    assert (memory.resting + gradients) / parameters * 7.5 == pytest.approx(gigabytes, rel=0.02)


def test_bubble_is_deepspeeds() -> None:
    from deepspeed.runtime.pipe.schedule import TrainSchedule

    stages, micro_batches = 4, 6
    commands = list(TrainSchedule(micro_batches, stages, stage_id=1).steps())
    busy = sum(any("Pass" in type(command).__name__ for command in step) for step in commands)
    assert 1 - busy / len(commands) == pytest.approx(bubble_share(stages, micro_batches))


def test_known_names_of_gpus() -> None:
    names = {
        "NVIDIA H100 80GB HBM3": "H100",
        "NVIDIA H100 PCIe": "H100 PCIe",
        "NVIDIA GH200 480GB": "GH200",
        "NVIDIA H200": "H200",
        "NVIDIA A100-SXM4-40GB": "A100-SXM4-40GB",
        "NVIDIA A100-SXM4-80GB": "A100",
    }
    assert all(find_gpu(name) is GPUS[key] for name, key in names.items())
    assert find_gpu("AMD EPYC 7763") is None


GPT3 = [
    "--model.size=gpt3-175b",
    "--train.sequence_length=2048",
    "--train.global_batch_size=1536",
    "--train.micro_batch_size=1",
    "--parallel.pipeline_stages=32",
]
CONFIG = ["--config", str(Path(__file__).parents[3] / "configs/runs/gpt2.yaml")]


def test_command_finds_topologies_that_fit(capsys: pytest.CaptureFixture[str]) -> None:
    machine = ["--gpu", "a100", "--nodes", "128"]
    assert main([*CONFIG, *machine, *GPT3, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["devices"] == 1024
    assert not told["plan"]["fits"]
    assert len(told["plan"]["memory"]) == 32
    assert told["alternatives"]
    for other in told["alternatives"]:
        assert other["peak_bytes"] <= USABLE * told["gpu"]["memory"]
        keys = [f"--parallel.{key}={other[key]}" for key in ("pipeline_stages", "tensor_parallel", "zero_stage")]
        keys += [f"--train.micro_batch_size={other['micro_batch_size']}"]
        keys += [f"--train.activation_checkpointing={str(other['activation_checkpointing']).lower()}"]
        assert main([*CONFIG, *machine, *GPT3, *keys, "--alternatives", "0"]) == 0
        assert "verdict    fits" in capsys.readouterr().out


def test_command_says_what_cannot_be(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*CONFIG, "--gpu", "H10", "--nodes", "0"]) == 2
    error = capsys.readouterr().err
    assert "nearest is 'H100'" in error
    assert "--nodes: 0 must be above 0" in error
    assert main([*CONFIG, "--parallel.tensor_parallel=5"]) == 2
    assert "5 does not divide model.n_head" in capsys.readouterr().err
    assert main([*CONFIG, "--gpus-per-node", "7", "--parallel.pipeline_stages=2"]) == 1
    assert "cannot be spread so" in capsys.readouterr().out


def test_recomputation_saves_memory_and_a_slow_network_costs_time() -> None:
    plan, cluster = megatron(16, 1024, 24, 1, 64, 4), Cluster(GPUS["H100"], 8, 2)
    base = predict(plan, cluster)
    kept = predict(
        dataclasses.replace(plan, train=dataclasses.replace(plan.train, activation_checkpointing=False)), cluster
    )
    assert kept.peak > base.peak
    assert kept.step.compute < base.step.compute
    slow = dataclasses.replace(cluster, gpu=dataclasses.replace(cluster.gpu, network=1e9, link=1e9))
    assert predict(plan, slow).step.data_parallel > 10 * base.step.data_parallel
    assert all(found.peak <= USABLE * cluster.gpu.memory for _, found in alternatives(plan, cluster))


def test_tensor_parallelism_and_offloading_by_hand() -> None:
    """One A100 machine, 24 blocks of width 1,024 on 4 sequences of 2,048 tokens, recomputed."""
    plan, cluster = megatron(16, 1024, 24, 1, 64, 4), Cluster(GPUS["A100"], 8, 1)
    whole, cut = (predict(dataclasses.replace(plan, parallel=p), cluster) for p in (plan.parallel, TENSOR_8))
    # Two all-reduces forward, two more to recompute, two backward, of 4 x 2048 x 1024 bf16 numbers, over 8 in a ring.
    assert cut.volume.tensor_parallel == 16 * 24 * 6 * (2 * 7 / 8) * 4 * 2048 * 1024 * 2
    assert cut.volume.data_parallel == whole.volume.tensor_parallel == 0
    assert cut.step.tensor_parallel == pytest.approx(cut.volume.tensor_parallel / (0.8 * 300e9))
    embeddings = (51200 + 2048) * 1024
    matrices = 24 * (12 * 1024**2 + 7 * 1024)  # with the biases that are cut
    norms = 24 * (4 + 2) * 1024 + 2 * 1024  # with those that are not
    assert cut.memory[0].parameters == 2 * (embeddings + matrices // 8 + norms)

    offloaded = predict(dataclasses.replace(plan, parallel=OFFLOADED), cluster)
    assert offloaded.memory[0].optimizer == 0
    assert offloaded.memory[0].host > whole.memory[0].optimizer
    assert offloaded.peak < whole.peak
    # Two micro-batches: the partition's gradients in bf16 after each, and in fp32 in the end.
    assert offloaded.volume.host == (2 * 2 + 4) * (embeddings + matrices + norms) / 8
    assert offloaded.step.seconds > whole.step.seconds


def test_a_sweep_says_which_runs_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = load_sweep(Path(__file__).parents[3] / "configs/sweeps/gpt2.yaml", [])
    plan = make_plan(sweep, Devices("gpu", {"localhost": tuple(range(8))}))
    pending = dict.fromkeys((run.name for run in sweep.runs), "pending")
    for gib, warned in ((24, True), (80, False)):
        monkeypatch.setattr("train.launch.plan.local_gpu_memory", lambda gib=gib: gib * GIB)
        text = "\n".join(plan_summary(plan, pending))
        assert "GiB on a GPU (gpt2-large" in text
        assert ("gpt2-large-20tpp" in text.partition("warning")[2]) == warned
        assert "gpt2-xl" not in text.partition("warning")[2].partition("\n")[0]
