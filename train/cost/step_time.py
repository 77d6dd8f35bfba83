"""Time of a training step on a cluster: arithmetic, memory traffic, the pipeline's bubble and communication.

Ranks are numbered as DeepSpeed's grid does: pipeline stages are the outermost dimension, so that the replicas of a
stage are neighbours; tensor-parallel ranks are innermost.
"""

import itertools
from dataclasses import dataclass, replace
from typing import Literal

from configs.reader import check
from model.memory import block_activations
from train.config import ParallelConfig, StepPlan, batch_problem
from train.cost.gpus import GPU, USABLE
from train.cost.memory import ELEMENT, Memory, blocks_of_stage, gradient_element, stage_memory, stage_parameters

MATMUL_EFFICIENCY = 0.70
"""Share of the dense bf16 peak that matrix products reach; see docs/cluster-planning.md for how it was found."""
LINK_EFFICIENCY = 0.8
"""Share of a nominal bandwidth that NCCL's collectives reach."""
MEMORY_EFFICIENCY = 0.8
"""Share of the nominal memory bandwidth that element-wise kernels reach."""
HOST_MEMORY = 50e9
"""Bytes per second between the host's processors and memory, for each GPU: two sockets with eight channels of DDR4-3200
have 410 GB/s for eight GPUs."""


@dataclass(frozen=True)
class Cluster:
    """Machines of equal GPUs."""

    gpu: GPU
    per_node: int
    nodes: int
    efficiency: float = MATMUL_EFFICIENCY

    @property
    def devices(self) -> int:
        """Number of GPUs."""
        return self.per_node * self.nodes

    def bandwidth(self, ranks: int, stride: int) -> float:
        """Bytes per second and direction of each rank in a ring over `ranks` GPUs that are `stride` numbers apart.

        Inside a machine it is the link's. A ring over several machines leaves each of them once, through the network
        ports of all its GPUs that belong to the ring.
        """
        if ranks * stride <= self.per_node:
            return LINK_EFFICIENCY * self.gpu.link
        here = max(1, self.per_node // stride)
        return LINK_EFFICIENCY * min(self.gpu.link, here * self.gpu.network)


@dataclass(frozen=True)
class Volume:
    """Bytes that one GPU sends in one optimizer step; it receives as many."""

    data_parallel: float
    pipeline: float
    tensor_parallel: float
    host: float
    """To the host's memory and back, where the optimizer is there; not counted in a collective."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step, each part on the slowest pipeline stage."""

    compute: float
    """Arithmetic and memory traffic of all micro-batches."""
    bubble: float
    """Waiting for the pipeline to fill and to drain."""
    pipeline: float
    """Sending activations and their gradients between stages."""
    tensor_parallel: float
    """Summing activations over tensor-parallel ranks."""
    data_parallel: float
    """Averaging gradients and gathering weights, where it does not hide behind arithmetic."""
    optimizer: float
    """Updating the weights."""
    host: float
    """Moving gradients to an optimizer in the host's memory, and weights back."""

    @property
    def seconds(self) -> float:
        """The whole step."""
        communication = self.pipeline + self.tensor_parallel + self.data_parallel
        return self.compute + self.bubble + communication + self.optimizer + self.host


@dataclass(frozen=True)
class Prediction:
    """What a run needs and takes on a cluster."""

    memory: tuple[Memory, ...]
    """One device of each pipeline stage."""
    volume: Volume
    step: StepTime
    bubble: float
    """(p - 1) / (m + p - 1) for p stages and m micro-batches: the share of a pipeline's time that it waits."""
    mfu: float
    """Model FLOPs (no recomputation) per second and GPU, as a share of the dense bf16 peak."""

    @property
    def peak(self) -> int:
        """Bytes of the fullest device."""
        return max(memory.peak for memory in self.memory)


def bubble_share(stages: int, micro_batches: int) -> float:
    """Share of a 1F1B pipeline's time that a stage waits (Narayanan et al. 2021, arXiv 2104.04473, section 2.2.1).

    DeepSpeed's schedule runs m + p - 1 forward and as many backward slots, of which a stage uses m.
    """
    return (stages - 1) / (micro_batches + stages - 1)


def data_parallel_volume(plan: StepPlan, parameters: int, replicas: int, micro_batches: int) -> float:
    """Bytes that one GPU sends to average gradients and gather weights in one step.

    In a ring over n ranks each sends (n - 1) / n of a buffer to reduce-scatter or to all-gather it, and twice that to
    all-reduce it. Stage 0 all-reduces the gradients once a step. "ZeRO" (section 7) needs no more at stages 1 and 2,
    but DeepSpeed's bucketed reduction is an all-reduce, after which the weights are gathered too; stage 2 reduces after
    every micro-batch. Stage 3 gathers the weights for every forward and again for every backward pass.
    """
    m = micro_batches
    reductions, gathers = {0: (2, 0), 1: (2, 1), 2: (2 * m, 1), 3: (m, 2 * m)}[plan.zero_stage]
    bytes_sent = reductions * gradient_element(plan) + gathers * ELEMENT[plan.precision]
    return bytes_sent * parameters * (replicas - 1) / replicas


def host_volume(plan: StepPlan, parameters: int, replicas: int, micro_batches: int) -> float:
    """Bytes that one GPU sends to the host in one step when the optimizer is there; it receives as many at most.

    Each rank moves the gradients of its partition in fp32 once a step, and the updated weights back. When gradients
    accumulate, DeepSpeed also parks them there after every micro-batch and fetches them for the next.
    """
    if not plan.parallel.offload_optimizer:
        return 0.0
    parked = ELEMENT[plan.precision] * micro_batches if micro_batches > 1 else 0
    return (4 + parked) * parameters / replicas


def predict(plan: StepPlan, cluster: Cluster, vocabulary_parallel: int = 1) -> Prediction:
    """Predict memory and time of a run that takes the whole cluster; `obstacle` must be None.

    Above 1, `vocabulary_parallel` is Megatron-LM's way to share embedding and readout, for comparison with what was
    published; under this trainer's tensor parallelism every device computes all logits.
    """
    model, train, e = plan.model, plan.train, ELEMENT[plan.precision]
    stages, tensor_parallel, gpu = plan.parallel.pipeline_stages, plan.parallel.tensor_parallel, cluster.gpu
    replicas = replicas_of(plan.parallel, cluster.devices)
    micro_batches = train.micro_batches(replicas)
    tokens = train.micro_batch_size * train.sequence_length
    parameters = max(
        stage_parameters(model, stages, stage, tensor_parallel, vocabulary_parallel) for stage in range(stages)
    )
    peak = gpu.flops if e == 2 else gpu.flops / 2  # TF32 has half the rate of bf16

    # One micro-batch on the slowest stage: forward once, backward twice, and forward again to recompute.
    passes = 4 if train.activation_checkpointing else 3
    head = 2 * model.vocab_size * model.d_model  # runs once, with its gradients, and is never recomputed
    block = (plan.flops_per_token // 3 - head) // model.n_layer

    def stage_seconds(stage: int) -> float:
        blocks = blocks_of_stage(model.n_layer, stages, stage)
        flops = tokens * blocks * passes * block / tensor_parallel
        flops += tokens * 3 * head / vocabulary_parallel if stage == stages - 1 else 0
        # Element-wise kernels write what the backward pass reads, and read what they work on.
        traffic = 2 * passes * blocks * block_activations(model, tokens, e, train.compile, tensor_parallel)
        arithmetic = flops / (cluster.efficiency * peak)
        return arithmetic + traffic / (MEMORY_EFFICIENCY * gpu.memory_bandwidth)

    compute = max(map(stage_seconds, range(stages)))

    # Blocking sends: forward an activation, backward its gradient. Tensor-parallel ranks send a share each (Narayanan
    # et al. 2021, section 4.1).
    activation = e * tokens * model.d_model
    sent_on = 2 * activation / tensor_parallel if stages > 1 else 0.0
    between_stages = sent_on / cluster.bandwidth(stages, tensor_parallel * replicas)
    # Two all-reduces in a block's forward pass and two in its backward pass (Shoeybi et al. 2019, section 3).
    summed = 0.0
    if tensor_parallel > 1:
        all_reduces = blocks_of_stage(model.n_layer, stages, 0) * (2 * (passes - 1))
        summed = all_reduces * 2 * (tensor_parallel - 1) / tensor_parallel * activation
    over_tensor = summed / cluster.bandwidth(tensor_parallel, 1)

    volume = Volume(
        data_parallel=data_parallel_volume(plan, parameters, replicas, micro_batches),
        pipeline=micro_batches * sent_on,
        tensor_parallel=micro_batches * summed,
        host=host_volume(plan, parameters, replicas, micro_batches),
    )
    averaging = volume.data_parallel / cluster.bandwidth(replicas, tensor_parallel)
    if plan.zero_stage == 3:  # DeepSpeed overlaps communication at stage 3 alone
        averaging = max(0.0, averaging - micro_batches * compute)
    memory = tuple(stage_memory(plan, replicas, stage, vocabulary_parallel) for stage in range(stages))
    updated = 2 * max(m.optimizer for m in memory) / (MEMORY_EFFICIENCY * gpu.memory_bandwidth)
    if plan.parallel.offload_optimizer:
        updated = 2 * max(m.host for m in memory) / (MEMORY_EFFICIENCY * HOST_MEMORY)
    step = StepTime(
        compute=micro_batches * compute,
        bubble=(stages - 1) * (compute + between_stages + over_tensor),
        pipeline=micro_batches * between_stages,
        tensor_parallel=micro_batches * over_tensor,
        data_parallel=averaging,
        optimizer=updated,
        host=volume.host / (LINK_EFFICIENCY * gpu.host),
    )
    useful = plan.tokens_per_step * plan.flops_per_token / cluster.devices / step.seconds
    return Prediction(memory, volume, step, bubble_share(stages, micro_batches), useful / gpu.flops)


def replicas_of(parallel: ParallelConfig, devices: int) -> int:
    """Number of data-parallel ranks, rounded down; 0 when the devices are too few for one."""
    return devices // parallel.devices_per_replica


def obstacle(plan: StepPlan, devices: int) -> str | None:
    """Return why a run cannot be spread over so many devices, or None."""
    each = plan.parallel.devices_per_replica
    if devices % each:
        return f"{devices} GPUs cannot be cut into replicas of {each}"
    return batch_problem(plan.train, devices // each)


def alternatives(plan: StepPlan, cluster: Cluster) -> list[tuple[StepPlan, Prediction]]:
    """Return the ways this trainer can spread a run over the cluster so that it fits, the fastest first.

    The run's science stays as it is: model, precision, batch and sequence length. Of each number of pipeline stages,
    tensor-parallel devices in one machine and ZeRO stage, the fastest micro-batch is listed, with or without
    recomputation.
    """
    limit = USABLE * cluster.gpu.memory
    best: dict[tuple[int, int, int], tuple[StepPlan, Prediction]] = {}
    divisors = [p for p in range(1, plan.model.n_layer + 1) if cluster.devices % p == 0]
    replicas = [(stages, 1) for stages in divisors]
    replicas += [(1, parts) for parts in range(2, cluster.per_node + 1) if cluster.per_node % parts == 0]
    zero_stages: tuple[Literal[0, 1, 2, 3], ...] = (0, 1, 2, 3)
    micro_batches = [2**i for i in range(7)]
    for (stages, parts), zero, micro, recompute in itertools.product(
        replicas, zero_stages, micro_batches, (False, True)
    ):
        parallel = replace(plan.parallel, pipeline_stages=stages, tensor_parallel=parts, zero_stage=zero)
        candidate = replace(
            plan,
            parallel=parallel,
            train=replace(plan.train, micro_batch_size=micro, activation_checkpointing=recompute),
        )
        if any(check(candidate)) or obstacle(candidate, cluster.devices) is not None:
            continue
        prediction = predict(candidate, cluster)
        known = best.get((stages, parts, zero))
        if prediction.peak <= limit and (known is None or prediction.step.seconds < known[1].step.seconds):
            best[stages, parts, zero] = candidate, prediction
    return sorted(best.values(), key=lambda found: found[1].step.seconds)
