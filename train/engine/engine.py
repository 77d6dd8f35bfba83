"""The DeepSpeed engine: build it, take one optimizer step, evaluate. PP = 1 and PP > 1 look the same from outside."""

import gc
from collections.abc import Iterable, Iterator
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
import torch.nn.functional as F
from deepspeed.module_inject import set_autotp_mode
from deepspeed.runtime.pipe.engine import PipelineEngine
from deepspeed.utils import groups
from torch import Tensor, nn

from model.init import initialise
from model.parameters import ParameterTable
from model.transformer import GPT
from train.config import StepPlan
from train.distributed.topology import Topology
from train.engine.optimizer import ClippingAdamW, adamw, set_learning_rate
from train.engine.pipeline_module import GPTPipeline

_LINEAR = F.linear

MicroBatch = tuple[Tensor, Tensor]
"""Tokens (B, T) and next tokens (B, T)."""


def named_parameters(engine_or_module: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters held by this process under their names in `GPT`."""
    module = getattr(engine_or_module, "module", engine_or_module)
    yield from module.parameters_of_gpt() if isinstance(module, GPTPipeline) else module.named_parameters()


def build_engine(plan: StepPlan, table: ParameterTable, seed: int, ds_config: dict[str, Any]) -> Any:
    """Build the model, initialise it by name and seed, and wrap it in the engine that its topology needs.

    Args:
        plan: the step that the engine is to take.
        table: the parameters of `plan.model`.
        seed: decides the initial weights.
        ds_config: DeepSpeed's configuration, as `ds_config.derive` makes it of `plan`.
    """
    stages, model, train = None, plan.model, plan.train
    module: nn.Module
    if plan.parallel.pipeline_stages > 1:
        module = GPTPipeline(model, plan.parallel.pipeline_stages, train)
        stages = module.stages
    else:
        module = GPT(model, train.activation_checkpointing, train.compile)
    parameters = list(named_parameters(module))
    initialise(parameters, model, seed)
    if plan.precision == "fp32" and plan.zero_stage == 0:
        optimizer: torch.optim.AdamW = ClippingAdamW(parameters, plan.optimizer, table, stages)
    else:
        optimizer = adamw(parameters, plan.optimizer, table)
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=ds_config, dist_init_required=False)
    return engine


def release(engine: Any) -> None:
    """Free an engine and all it has set up in this process, so that an engine of any other kind can follow it.

    All processes must call this. The connection between them stays; every other process group is destroyed. `engine`
    is empty afterwards, whoever still holds it.
    """
    dist.barrier()  # nobody closes a group that another process still reads from
    engine.destroy()
    # ZeRO-3 refers to itself through autograd's nodes, where the garbage collector does not look.
    for parameter in engine.module.parameters():
        parameter.data = parameter.new_empty(0)
        vars(parameter).clear()
    for owner in (engine.optimizer, engine):
        vars(owner).clear()
    # DeepSpeed keeps what it built for one engine in module globals and would use it for the next.
    groups_here = dist.distributed_c10d._world.pg_names
    for group in sorted(groups_here, key=lambda group: groups_here[group]):
        if group is not dist.group.WORLD:
            deepspeed.comm.destroy_process_group(group)
    groups._release_process_group_references()
    set_autotp_mode(training=False)
    F.linear = _LINEAR  # ZeRO-3 puts one of its own in its place
    # Compiled blocks remember the shapes they have seen: a second length would be compiled for any length.
    torch.compiler.reset()
    gc.collect()  # engine, optimizer and hooks refer to each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def train_step(engine: Any, micro_batches: Iterable[MicroBatch], learning_rate: float, topology: Topology) -> Tensor:
    """Take one optimizer step and return the loss before it: nats per token, the mean over the global batch."""
    set_learning_rate(engine.basic_optimizer, learning_rate)
    if isinstance(engine, PipelineEngine):
        return engine.train_batch(iter(micro_batches))
    engine.train()
    total = torch.zeros((), device=topology.device)
    for tokens_BT, targets_BT in micro_batches:
        loss = engine(*_on_device(tokens_BT, targets_BT, topology))
        engine.backward(loss)
        engine.step()
        total += loss.detach()
    mean = total / engine.gradient_accumulation_steps()
    if topology.world_size > 1:
        dist.all_reduce(mean)
        mean /= topology.world_size
    return mean


def gradient_norm(engine: Any) -> float:
    """Global gradient norm of the last step, before clipping."""
    return float(engine.get_global_grad_norm())


@torch.no_grad()
def evaluate(engine: Any, micro_batches: list[MicroBatch], topology: Topology) -> tuple[float, float]:
    """Return the sum, and that of the squares, of every sequence's mean loss in nats per position.

    Sequences are those of all replicas' `micro_batches`, as many on each; one without targets adds nothing.
    """
    if isinstance(engine, PipelineEngine):
        engine.eval_batch(iter(micro_batches), num_micro_batches=len(micro_batches))
        losses = engine.module.loss_fn.take()
    else:
        engine.eval()
        losses = [engine(*_on_device(tokens_BT, targets_BT, topology)) for tokens_BT, targets_BT in micro_batches]
    each = torch.cat(losses) if losses else torch.zeros(1, device=topology.device, dtype=torch.float64)
    sums = torch.stack([each.sum(), each.square().sum()])
    if topology.world_size > 1:
        dist.all_reduce(sums)
    total, squares = (sums / topology.tensor_parallel).tolist()  # the processes that share a matrix have the same
    return total, squares


def _on_device(tokens_BT: Tensor, targets_BT: Tensor, topology: Topology) -> MicroBatch:
    return tokens_BT.to(topology.device, non_blocking=True), targets_BT.to(topology.device, non_blocking=True)
