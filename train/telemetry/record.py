"""What a run says of itself when it has finished: everything that a fitter needs to know."""

import math
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from configs.run_record import (
    ComponentResults,
    RunCompute,
    RunIdentity,
    RunRecipe,
    RunRecord,
    RunResult,
    RunSize,
    RunTokens,
)
from data.loading.mixture import Mixture, repetitions
from model.counts import count_parameters
from train.config import RunConfig
from train.cost.gpus import find_gpu
from train.distributed.topology import Topology, uses_gpu
from train.engine.validation_loss import Losses, Validation


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
    mixture: Mixture,
    validation: Validation,
    losses: Losses,
    spikes: dict[str, Any],
    seconds: float,
) -> RunRecord:
    """Describe a finished run.

    Args:
        run: its configuration.
        topology: the processes that ran it.
        mixture: what it was trained on.
        validation: what it was evaluated on.
        losses: of the last evaluation.
        spikes: whether anything altered the run, and what.
        seconds: wall-clock time of the steps that count, over all resumes.
    """
    counts = count_parameters(run.model)
    repeated = repetitions(mixture, run.train.sequence_length, run.tokens)
    bytes_per_token = validation.mean(validation.bytes_per_token)
    return RunRecord(
        identity=RunIdentity(
            name=run.name,
            complete=True,
            seed=run.seed,
            corpus=mixture.name,
            corpus_fingerprint=mixture.fingerprint,
            tokenizer_sha256=mixture.components[0].corpus.manifest.tokenizer.sha256,
            **_versions(),
        ),
        size=RunSize(
            N=counts.total,
            N_non_embedding=counts.non_embedding,
            N_head=counts.readout_matrix,
            n_layer=run.model.n_layer,
            d_model=run.model.d_model,
            n_head=run.model.n_head,
            d_ff=run.model.d_ff,
            vocab_size=run.model.vocab_size,
            style=run.model.style,
            tied=run.model.tie_embeddings,
            parametrization=run.model.parametrization,
        ),
        tokens=RunTokens(
            D=run.tokens,
            training_bytes=_training_bytes(mixture, run.tokens),
            epochs=max(r.epochs for r in repeated.values()),
            unique_tokens=sum(r.unique_tokens for r in repeated.values()),
            entropy_rate=_entropy_rate(mixture, run.train.sequence_length),
            validation_tokens=validation.tokens,
            validation_bytes_per_token=bytes_per_token,
        ),
        compute=RunCompute(
            flops=run.flops,
            flops_spent=run.flops_spent,
            flops_6nd=6 * counts.total * run.tokens,
            seconds=seconds,
            device=device_name(),
            world_size=topology.world_size,
            data_parallel=topology.data_parallel,
            pipeline_stages=topology.pipeline_stages,
            tensor_parallel=topology.tensor_parallel,
            zero_stage=run.zero_stage,
            precision=run.precision,
        ),
        recipe=RunRecipe(
            steps=run.steps,
            global_batch=run.train.global_batch_size,
            micro_batch=run.train.micro_batch_size,
            sequence_length=run.train.sequence_length,
            lr=run.optimizer.lr,
            weight_decay=run.optimizer.weight_decay,
            schedule=run.schedule.kind,
            warmup_steps=run.schedule.warmup_length(run.steps),
            final_lr_fraction=run.schedule.min_lr_ratio if run.schedule.kind != "constant" else 1.0,
            branch_of=None if run.branch is None else run.branch.run,
            branch_step=None if run.branch is None else run.branch.step,
        ),
        result=RunResult(
            val_loss=losses.mean,
            val_loss_stderr=losses.stderr,
            bits_per_byte=_bits(losses.mean, bytes_per_token),
            **spikes,
        ),
        components=ComponentResults(
            val_loss_by_component=losses.by_component,
            weight_by_component=validation.weights,
            bits_per_byte_by_component={
                name: _bits(loss, validation.bytes_per_token[name]) for name, loss in losses.by_component.items()
            },
            epochs_by_component={name: r.epochs for name, r in repeated.items()},
            unique_tokens_by_component={name: r.unique_tokens for name, r in repeated.items()},
        )
        if run.data.mixture
        else None,
        others={},
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
