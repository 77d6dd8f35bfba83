"""Memory of each device of a run: weights, gradients, optimizer and activations, for each pipeline stage.

The states are those of "ZeRO" (Rajbhandari et al. 2020, arXiv 1910.02054), section 3.1: P parameters cost 2 P bytes of
16-bit weights, 12 P of fp32 weights and Adam's moments, and their gradients; stage 1 divides the 12 P by the number of
data-parallel ranks, stage 2 the gradients too, stage 3 everything. What DeepSpeed keeps besides was read in its source,
release 0.19, and measured: `tests/train/cost/test_memory.py` holds this file to the bytes of real engines.
"""

from dataclasses import dataclass, replace

from model.config import ModelConfig
from model.counts import count_parameters
from model.memory import block_activations, block_workspace, head_activations, loss_workspace, recompute_activations
from train.config import Precision, StepPlan

ELEMENT: dict[Precision, int] = {"fp32": 4, "bf16": 2, "fp16": 2}
"""Bytes of a number in the forward and backward pass."""

REDUCE_BUCKET = 500_000_000
"""Elements reduced at once, DeepSpeed's `zero_optimization.reduce_bucket_size`."""

# Activations that a pipeline's engine holds between steps, measured on the first stage and on the last of two.
_PIPELINE_BUFFERS = (1, 7)

# Elements that stage 3 keeps gathered (max_live_parameters), and that it updates at once (sub_group_size).
_GATHERED = 1_000_000_000

_MOMENTS = ("forward", "backward", "reduce", "update")


@dataclass(frozen=True)
class Memory:
    """Bytes on one device. The first three are there always; the rest at their moment of a step, and not together."""

    parameters: int
    """Weights that the forward pass uses."""
    gradients: int
    """Gradients that outlive a backward pass."""
    optimizer: int
    """fp32 weights where others are used for the forward pass, and Adam's two moments."""
    buffers: int
    """Buffers that are never freed: stage 3's bucket, the pipeline's sends and receipts, and one for offloading."""
    activations: int = 0
    """Kept for the backward pass, over all micro-batches in flight."""
    forward: int = 0
    """When the last micro-batch's loss is computed: activations, gradients so far, and the loss's own buffers."""
    backward: int = 0
    """When its backward pass begins: activations, gradients so far, communication buffers, the first layer's own."""
    reduce: int = 0
    """When gradients are averaged over the replicas: all of them, and the copies that are sent."""
    update: int = 0
    """When the optimizer steps: its copy of the gradients."""
    host: int = 0
    """In the host's memory, for this device: the optimizer, where it is offloaded, and what it reads and writes."""

    @property
    def resting(self) -> int:
        """Bytes between two steps."""
        return self.parameters + self.gradients + self.optimizer + self.buffers

    @property
    def peak(self) -> int:
        """Most bytes at any moment of a step."""
        return self.resting + max(getattr(self, moment) for moment in _MOMENTS)

    @property
    def worst_moment(self) -> str:
        """The moment of the peak: `forward`, `backward`, `reduce` or `update`."""
        return max(_MOMENTS, key=lambda moment: int(getattr(self, moment)))


def gradient_element(plan: StepPlan) -> int:
    """Bytes of a number in which gradients add up, over micro-batches and over replicas."""
    return 4 if plan.precision == "bf16" and plan.train.gradient_dtype == "fp32" else ELEMENT[plan.precision]


def _states(plan: StepPlan, parameters: int, replicas: int, bucket: int, largest: int) -> tuple[Memory, int]:
    """Return the states of the engine that `train/engine/engine.py` gets for this precision and ZeRO stage.

    They come without activations: `forward` and `backward` are the engine's own buffers then. The second value is the
    bytes of gradients that one micro-batch leaves to the next, beside those that outlive a step.
    """
    e, p, part = ELEMENT[plan.precision], parameters, -(-parameters // replicas)
    several = plan.train.global_batch_size > plan.train.micro_batch_size * replicas
    offloads = plan.parallel.offload_optimizer
    sent = min(p, bucket)
    if plan.zero_stage == 0:  # plain AdamW; gradients are flattened into a bucket to be reduced
        return Memory(4 * p, 0, 8 * p, 0, reduce=4 * p + 4 * sent, update=4 * p), 4 * p
    sums = gradient_element(plan)
    if plan.zero_stage == 1 and plan.precision == "bf16" and sums == 4 and not offloads:
        # BF16_Optimizer: fp32 gradients of all parameters stay, bf16 ones live until the step; the bucket is flattened
        # and sent in fp32.
        return Memory(2 * p, 4 * p, 12 * part, 0, reduce=2 * p + 4 * sent, update=2 * p), 2 * p
    flattened = sums * part + (4 * part if sums < 4 else 0)
    if plan.zero_stage == 3:
        gathered = e * min(p, _GATHERED) if replicas > 1 else 0
        # Offloaded, the host has the fp32 gradients of the partition, and a copy of them for the optimizer.
        stage_3 = Memory(
            e * part,
            0 if offloads else sums * part,
            0 if offloads else 12 * part,
            sums * bucket,
            forward=gathered,
            backward=gathered,
            reduce=gathered + sums * sent,
            update=0 if offloads else min(part, _GATHERED) * (flattened // part),
            host=(12 + 4 + sums) * part if offloads else 0,
        )
        return stage_3, 0
    # Stages 1 and 2 share one optimizer; only stage 2 drops the gradients of others' parameters after each micro-batch,
    # and offloaded parks the rest on the host.
    kept = sums * p if plan.zero_stage == 1 else 0 if offloads else sums * part
    copies = sums * sent if replicas > 1 else sums * part
    states = Memory(
        e * p,
        0,
        0 if offloads else 12 * part,
        e * largest if offloads else 0,  # through which gradients go to the host, which has one too
        forward=sums * bucket if several and plan.zero_stage == 1 else 0,
        backward=sums * bucket,
        reduce=sums * bucket + copies + (kept if several and plan.zero_stage == 2 else 0),
        update=0 if offloads else sums * part + flattened,
        # Offloaded, the host also has the partition's gradients in fp32 and its updated weights.
        host=(12 + 4 + e) * part + e * largest if offloads else 0,
    )
    return states, kept


def blocks_of_stage(n_layer: int, stages: int, stage: int) -> int:
    """Number of blocks on a pipeline stage; as DeepSpeed shares them out, the first stages take what is left over."""
    return n_layer // stages + (stage < n_layer % stages)


def stage_parameters(
    config: ModelConfig, stages: int, stage: int, tensor_parallel: int = 1, vocabulary_parallel: int = 1
) -> int:
    """Number of parameters on one device of a pipeline stage; a tied embedding is on the first stage and the last.

    Under tensor parallelism the matrices of the blocks are split; norms and the biases of the two output projections
    are not. Embedding and readout are split over `vocabulary_parallel` devices: 1 here, all of them in Megatron-LM.
    """
    one = count_parameters(replace(config, n_layer=1, tie_embeddings=False))
    final_norm = config.d_model * (2 if config.norm == "layernorm" and config.bias else 1)
    whole = one.norms - final_norm + (2 * config.d_model if config.bias else 0)
    block = (one.attention + one.mlp + one.norms - final_norm - whole) // tensor_parallel + whole
    total = blocks_of_stage(config.n_layer, stages, stage) * block
    if stage == 0:
        total += one.embedding // vocabulary_parallel + one.positions
    if stage == stages - 1:
        total += final_norm
        total += 0 if config.tie_embeddings and stages == 1 else one.readout // vocabulary_parallel
    return total


def stage_memory(
    plan: StepPlan, replicas: int, stage: int = 0, vocabulary_parallel: int = 1, bucket: int = REDUCE_BUCKET
) -> Memory:
    """Plan the memory of one device.

    Args:
        plan: the step; everything but the optimizer's settings counts.
        replicas: data-parallel ranks.
        stage: pipeline stage of the device, from 0.
        vocabulary_parallel: devices that share embedding and readout; above 1 for comparisons with Megatron-LM.
        bucket: `zero_optimization.reduce_bucket_size`, elements.

    Under the pipeline, stage s of p holds p - s micro-batches at once (1F1B, Narayanan et al. 2021, arXiv 2104.04473,
    section 2.2).
    """
    model, train = plan.model, plan.train
    e, tokens = ELEMENT[plan.precision], train.micro_batch_size * train.sequence_length
    stages, tensor_parallel = plan.parallel.pipeline_stages, plan.parallel.tensor_parallel
    micro_batches = max(1, train.micro_batches(replicas))
    in_flight = min(stages - stage, micro_batches)
    block = block_activations(model, tokens, e, train.compile, tensor_parallel)
    kept = recompute_activations(model, tokens, e) if train.activation_checkpointing else block
    activations = blocks_of_stage(model.n_layer, stages, stage) * kept
    in_forward, in_backward = 0, block_workspace(model, tokens, e, tensor_parallel)
    if train.activation_checkpointing:
        in_backward += block
    if stage == stages - 1:
        activations += head_activations(model, tokens, e)
        in_forward, of_loss = loss_workspace(model, tokens, e, train.compile, vocabulary_parallel)
        in_backward = max(in_backward, of_loss)
    else:
        activations += e * tokens * model.d_model  # the output, until its gradient comes back
    activations *= in_flight

    parameters = stage_parameters(model, stages, stage, tensor_parallel, vocabulary_parallel)
    embedding = model.vocab_size * model.d_model // vocabulary_parallel
    largest = max(embedding, model.d_model * model.d_ff * (2 if model.mlp == "swiglu" else 1) // tensor_parallel)
    states, left = _states(plan, parameters, replicas, bucket, largest)
    live = left if micro_batches > 1 else 0
    return replace(
        states,
        buffers=states.buffers + (e * tokens * model.d_model * _PIPELINE_BUFFERS[stage > 0] if stages > 1 else 0),
        activations=activations,
        forward=live + states.forward + activations + in_forward,
        backward=live + states.backward + activations + in_backward,
    )


def peak_memory(plan: StepPlan, replicas: int) -> int:
    """Return the bytes of the fullest device."""
    stages = plan.parallel.pipeline_stages
    return max(stage_memory(plan, replicas, stage).peak for stage in range(stages))
