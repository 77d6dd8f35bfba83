"""What a finished run says of itself: the sections of its record, each of what it is about."""

import math
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from configs.run_record import ComponentResults, RunCompute, RunIdentity, RunRecipe, RunResult, RunSize, RunTokens
from data.loading.mixture import Mixture, repetitions
from model.config import ModelConfig
from model.counts import count_parameters
from train.config import BranchConfig, ScheduleConfig, StepPlan
from train.cost.gpus import find_gpu
from train.distributed.topology import Topology, uses_gpu
from train.engine.validation_loss import Losses, Validation
from train.stability.spike_guard import Alterations


def device_name() -> str:
    """Return the accelerator's name, or the processor's."""
    if uses_gpu():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def peak_flops() -> float | None:
    """Dense bf16 peak of this device in FLOP/s; None for one that is not in the table, a CPU for instance."""
    gpu = find_gpu(device_name())
    return gpu.flops if gpu is not None else None


def describe_identity(name: str, seed: int, mixture: Mixture) -> RunIdentity:
    """Return which run has finished, on what, and by which versions of code and libraries."""
    return RunIdentity(
        name=name,
        complete=True,
        seed=seed,
        corpus=mixture.name,
        corpus_fingerprint=mixture.fingerprint,
        tokenizer_sha256=mixture.components[0].corpus.manifest.tokenizer.sha256,
        **_versions(),
    )


def describe_model(model: ModelConfig) -> RunSize:
    """Return the model's counts and shape."""
    counts = count_parameters(model)
    return RunSize(
        N=counts.total,
        N_non_embedding=counts.non_embedding,
        N_head=counts.readout_matrix,
        n_layer=model.n_layer,
        d_model=model.d_model,
        n_head=model.n_head,
        d_ff=model.d_ff,
        vocab_size=model.vocab_size,
        style=model.style,
        tied=model.tie_embeddings,
        parametrization=model.parametrization,
    )


def describe_tokens(mixture: Mixture, validation: Validation, sequence_length: int, tokens: int) -> RunTokens:
    """Return what a run of `tokens` training tokens reads, and what it is evaluated on."""
    repeated = repetitions(mixture, sequence_length, tokens).values()
    return RunTokens(
        D=tokens,
        training_bytes=_training_bytes(mixture, tokens),
        epochs=max(r.epochs for r in repeated),
        unique_tokens=sum(r.unique_tokens for r in repeated),
        entropy_rate=_entropy_rate(mixture, sequence_length),
        validation_tokens=validation.tokens,
        validation_bytes_per_token=validation.mean(validation.bytes_per_token),
    )


def describe_compute(plan: StepPlan, tokens: int, tokens_spent: int, topology: Topology, seconds: float) -> RunCompute:
    """Return the cost of `tokens` training tokens, of which the run has trained on `tokens_spent` in `seconds`."""
    return RunCompute(
        flops=tokens * plan.flops_per_token,
        flops_spent=tokens_spent * plan.flops_per_token,
        flops_6nd=6 * count_parameters(plan.model).total * tokens,
        seconds=seconds,
        device=device_name(),
        world_size=topology.world_size,
        data_parallel=topology.data_parallel,
        pipeline_stages=topology.pipeline_stages,
        tensor_parallel=topology.tensor_parallel,
        zero_stage=plan.zero_stage,
        precision=plan.precision,
    )


def describe_recipe(plan: StepPlan, schedule: ScheduleConfig, branch: BranchConfig | None, steps: int) -> RunRecipe:
    """Return how a run of `steps` optimizer steps is trained."""
    return RunRecipe(
        steps=steps,
        global_batch=plan.train.global_batch_size,
        micro_batch=plan.train.micro_batch_size,
        sequence_length=plan.train.sequence_length,
        lr=plan.optimizer.lr,
        weight_decay=plan.optimizer.weight_decay,
        schedule=schedule.kind,
        warmup_steps=schedule.warmup_length(steps),
        final_lr_fraction=schedule.min_lr_ratio if schedule.kind != "constant" else 1.0,
        branch_of=None if branch is None else branch.run,
        branch_step=None if branch is None else branch.step,
    )


def describe_result(losses: Losses, validation: Validation, altered: Alterations) -> RunResult:
    """Return the losses of the last evaluation, with what the spike guard says of the run."""
    bits = _bits(losses.mean, validation.mean(validation.bytes_per_token))
    return RunResult(val_loss=losses.mean, val_loss_stderr=losses.stderr, bits_per_byte=bits, **altered)


def describe_components(
    mixture: Mixture, validation: Validation, losses: Losses, sequence_length: int, tokens: int
) -> ComponentResults:
    """Return the same of each component of a mixture."""
    repeated = repetitions(mixture, sequence_length, tokens)
    bits = {name: _bits(loss, validation.bytes_per_token[name]) for name, loss in losses.by_component.items()}
    return ComponentResults(
        val_loss_by_component=losses.by_component,
        weight_by_component=validation.weights,
        bits_per_byte_by_component=bits,
        epochs_by_component={name: r.epochs for name, r in repeated.items()},
        unique_tokens_by_component={name: r.unique_tokens for name, r in repeated.items()},
    )


def _bits(nats_per_token: float, bytes_per_token: float) -> float:
    """Return bits per UTF-8 byte of text, which compare across tokenizers as nats per token do not."""
    return nats_per_token / (math.log(2) * bytes_per_token)


def _training_bytes(mixture: Mixture, tokens: int) -> int:
    texts = [(component.weight, component.corpus.manifest.train) for component in mixture.components]
    return round(tokens * sum(weight * text.bytes / text.tokens for weight, text in texts))


def _entropy_rate(mixture: Mixture, sequence_length: int) -> float | None:
    """Return the nats per token that no model can do better than; None where they are not known."""
    total = 0.0
    for component in mixture.components:
        language = component.corpus.manifest.language
        if language is None or sequence_length % language.tokens_per_string:
            return None
        total += component.weight * language.entropy_rate
    return total


def _versions() -> dict[str, Any]:
    versions: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("deepspeed", "scaling-testbed"):
        try:
            versions[package.replace("-", "_")] = version(package)
        except PackageNotFoundError:
            versions[package.replace("-", "_")] = None
    # No tag may stand for the commit.
    describe = ["describe", "--always", "--exclude=*", "--abbrev=40", "--dirty=+changes"]
    command = ["git", "-C", str(Path(__file__).parent), *describe]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        versions["code"] = told.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        versions["code"] = None
    return versions
