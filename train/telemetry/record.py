"""`record.json`: everything a fitter needs to know about a run, in one flat object."""

import math
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from data.loading.mixture import Mixture, repetitions
from model.counts import count_parameters
from train.config import RunConfig
from train.cost.gpus import find_gpu
from train.distributed.topology import Topology, uses_gpu
from train.engine.validation_loss import Losses, Validation

SCHEMA = 1


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


def make_record(
    run: RunConfig,
    topology: Topology,
    val_loss: float,
    seconds: float,
    data: dict[str, Any],
) -> dict[str, Any]:
    """Describe a finished run.

    Args:
        run: its configuration.
        topology: the processes that ran it.
        val_loss: nats per token on the fixed validation tokens.
        seconds: wall-clock time of the steps that count, over all resumes.
        data: what is recorded of the corpus, with `validation_bytes_per_token` for the bits per byte, and of spikes.
    """
    counts = count_parameters(run.model)
    return {
        "schema": SCHEMA,
        "name": run.name,
        "complete": True,
        "N": counts.total,
        "N_non_embedding": counts.non_embedding,
        "N_head": counts.readout_matrix,
        "N_with_head": counts.with_head,
        "D": run.tokens,
        "flops": run.flops,
        "flops_spent": run.flops_spent,
        "flops_6nd": 6 * counts.total * run.tokens,
        "val_loss": val_loss,
        "bits_per_byte": val_loss / (math.log(2) * data["validation_bytes_per_token"]),
        "seed": run.seed,
        "steps": run.steps,
        "global_batch": run.train.global_batch_size,
        "micro_batch": run.train.micro_batch_size,
        "sequence_length": run.train.sequence_length,
        "tokens_per_step": run.tokens_per_step,
        "lr": run.optimizer.lr,
        "weight_decay": run.optimizer.weight_decay,
        "schedule": run.schedule.kind,
        "warmup_steps": run.schedule.warmup_length(run.steps),
        "branch_of": None if run.branch is None else run.branch.run,
        "branch_step": None if run.branch is None else run.branch.step,
        "final_lr_fraction": run.schedule.min_lr_ratio if run.schedule.kind != "constant" else 1.0,
        "n_layer": run.model.n_layer,
        "d_model": run.model.d_model,
        "n_head": run.model.n_head,
        "d_ff": run.model.d_ff,
        "vocab_size": run.model.vocab_size,
        "style": run.model.style,
        "tied": run.model.tie_embeddings,
        "parametrization": run.model.parametrization,
        "precision": run.precision,
        "world_size": topology.world_size,
        "data_parallel": topology.data_parallel,
        "pipeline_stages": topology.pipeline_stages,
        "tensor_parallel": topology.tensor_parallel,
        "zero_stage": run.zero_stage,
        "seconds": seconds,
        "device": device_name(),
        **data,
        **_versions(),
    }


def describe_data(run: RunConfig, mixture: Mixture, validation: Validation, losses: Losses) -> dict[str, Any]:
    """Return what `make_record` is told of the data: how much of it was read, and how it was measured."""
    repeated = repetitions(mixture, run.train.sequence_length, run.tokens)
    tokenizer = mixture.components[0].corpus.manifest.tokenizer.sha256
    texts = [(component.weight, component.corpus.manifest.train) for component in mixture.components]
    training_bytes = round(run.tokens * sum(weight * text.bytes / text.tokens for weight, text in texts))
    described = {
        "validation_tokens": validation.tokens,
        "validation_bytes_per_token": validation.mean(validation.bytes_per_token),
        # Of a mixture: passes over the component that is repeated most, and distinct tokens of all components.
        "epochs": max(r.epochs for r in repeated.values()),
        "unique_tokens": sum(r.unique_tokens for r in repeated.values()),
        "entropy_rate": _entropy_rate(mixture, run.train.sequence_length),
        # Text in UTF-8 bytes, which compares across tokenizers as tokens do not.
        "training_bytes": training_bytes,
        "corpus": mixture.name,
        "corpus_fingerprint": mixture.fingerprint,
        "tokenizer_sha256": tokenizer,
    }
    if not run.data.mixture:
        return described
    bits = {k: v / (math.log(2) * validation.bytes_per_token[k]) for k, v in losses.by_component.items()}
    return described | {
        "val_loss_by_component": losses.by_component,
        "bits_per_byte_by_component": bits,
        "weight_by_component": validation.weights,
        "epochs_by_component": {name: r.epochs for name, r in repeated.items()},
        "unique_tokens_by_component": {name: r.unique_tokens for name, r in repeated.items()},
    }


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
    here = Path(__file__).parent
    try:
        git = ["git", "-C", str(here)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        status = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, timeout=10
        )
        versions["code"] = head.stdout.strip() + ("+changes" if status.stdout.strip() else "")
    except (OSError, subprocess.SubprocessError):
        versions["code"] = None
    return versions
