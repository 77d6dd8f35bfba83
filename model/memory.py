"""Bytes that a forward pass keeps for the backward pass, from the configuration alone.

Korthikanti et al. 2022 (arXiv 2205.05198), section 4.1, count T B D (34 + 5 H T / D) bytes for one block of GPT-3 in
16 bits. This model has neither dropout (two masks of one byte) nor stored attention weights (flash attention keeps
one number for each row instead of T), and leaves 32 T B D bytes: 16 numbers for each position and coordinate.
"""

from model.config import ModelConfig

CHUNK_LOGITS = 2**28
"""Logits held at once on a GPU, as `model/loss.py` has it."""


def block_activations(
    config: ModelConfig, tokens: int, element: int, compiled: bool = False, tensor_parallel: int = 1
) -> int:
    """Bytes that one block keeps of a micro-batch until its backward pass.

    Kept are the inputs of both norms and both norms' outputs (4 D numbers for each position), queries, keys and values
    (3 D), the attention output (D), and of the MLP its two products (2 F), or under SwiGLU gate and value, the
    activated gate, and their product (4 F). RoPE and QK-norm make new queries and keys (2 D) while the old ones stay
    beside the values, in a memory order that makes the attention output be kept twice (D). `torch.compile` computes
    SwiGLU's activated gate again. In fp32 whatever the precision: a norm's statistics and the attention's log-sum-exp.

    Args:
        config: the model.
        tokens: positions of the micro-batch, B x T.
        element: bytes of a number in the model's precision.
        compiled: the block is compiled with torch.compile.
        tensor_parallel: devices over which heads and the MLP's width are split, as in Megatron-LM (Shoeybi et al. 2019,
            arXiv 1909.08053); the norms are on each (Korthikanti et al. 2022, equation 2).
    """
    d, heads = config.d_model, config.n_head
    remade = config.qk_norm or config.positions == "rope"
    attention = 4 * d + (3 * d if remade else 0)
    mlp = config.d_ff * ((3 if compiled else 4) if config.mlp == "swiglu" else 2)
    numbers = tokens * (4 * d + (attention + mlp) // tensor_parallel)
    row_statistics = heads * (3 if config.qk_norm else 1) // tensor_parallel
    norm_statistics = 2 * (1 if config.norm == "rmsnorm" else 2)
    return element * numbers + 4 * tokens * (norm_statistics + row_statistics)


def recompute_activations(config: ModelConfig, tokens: int, element: int) -> int:
    """Bytes that one block keeps under activation checkpointing: its input (Chen et al. 2016, arXiv 1604.06174)."""
    return element * tokens * config.d_model


def block_workspace(config: ModelConfig, tokens: int, element: int, tensor_parallel: int = 1) -> int:
    """Bytes that a block's backward pass adds while most of what the block kept is still there.

    The gradients of the stream and of the MLP's hidden layer, and the gradient of a weight of the MLP.
    """
    d, hidden = config.d_model, config.d_ff * (2 if config.mlp == "swiglu" else 1) // tensor_parallel
    return element * (tokens * (d + hidden) + d * config.d_ff // tensor_parallel)


def head_activations(config: ModelConfig, tokens: int, element: int) -> int:
    """Bytes that the final norm keeps: its input and statistics."""
    return tokens * (element * config.d_model + 4 * (1 if config.norm == "rmsnorm" else 2))


def loss_workspace(
    config: ModelConfig, tokens: int, element: int, compiled: bool = False, vocabulary_parallel: int = 1
) -> tuple[int, int]:
    """Bytes that the chunked cross-entropy of `model/loss.py` has at once, at most: forward, and backward.

    Forward: for each position the final state and its gradient, the output weight's gradient in fp32, and the larger of
    a chunk's softmax and its share of the gradients. The softmax has the logits, their log-probabilities in fp32, and
    of 16-bit logits an fp32 copy; compiled it has the logits and the probabilities alone. Backward: both gradients, and
    either of them scaled in fp32 and then in the model's precision. `vocabulary_parallel` devices share the
    vocabulary, 1 in this trainer.
    """
    d, states = config.d_model, tokens * config.d_model
    weight = config.vocab_size * d // vocabulary_parallel
    logits = tokens * config.vocab_size
    rows = -(-tokens // -(-logits // CHUNK_LOGITS))
    chunk = rows * config.vocab_size // vocabulary_parallel
    softmax = 2 * element if compiled else (8 if element == 4 else 10)
    products = element * (chunk + weight + rows * d)
    forward = 2 * element * states + 4 * weight + max(softmax * chunk, products)
    rounded = element if element < 4 else 0
    backward = max((element + 4 + rounded) * states + 4 * weight, 2 * element * states + (8 + rounded) * weight)
    return forward, backward
