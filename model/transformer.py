"""The decoder-only transformer, from tokens to the loss.

Shapes are written as suffixes: B sequences, T tokens, D = d_model, H heads, K = d_head, V = vocab_size.

The classes `Embedding`, `Positions`, `Block`, `FinalNorm` and `Readout` are the layers of the model, in order.
`GPT` strings them together as a plain `nn.Module`; `train/engine/pipeline_module.py` hands the same classes to a
pipeline.
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.config import ModelConfig
from model.loss import next_token_loss, sequence_losses
from model.parametrization import depth_ratio, query_multiplier, width_ratio


class Norm(nn.Module):
    """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang & Sennrich 2019) over the last dimension."""

    def __init__(self, config: ModelConfig, width: int | None = None, rms: bool | None = None) -> None:
        super().__init__()
        width = config.d_model if width is None else width
        self.rms = config.norm == "rmsnorm" if rms is None else rms
        self.eps = config.norm_eps
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width)) if config.bias and not self.rms else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` (..., width); same shape and dtype."""
        if self.rms:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class Linear(nn.Linear):
    """`nn.Linear` that leaves initialisation to `model/init.py`, which knows the parameter's name."""

    def reset_parameters(self) -> None:
        """Leave the memory as it is."""


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def rotary_table(length: int, width: int, theta: float, device: torch.device) -> Tensor:
    """Cosines and sines of the rotary angles, (2, length, width/2) in fp32 whatever the model's precision.

    A compiled block holds the table as a constant; it would otherwise compute it anew, in fp64, in every pass.
    """
    return _rotary_table(length, width, theta, device)


@lru_cache(maxsize=8)
def _rotary_table(length: int, width: int, theta: float, device: torch.device) -> Tensor:
    frequency = theta ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency
    return torch.stack((angle.cos(), angle.sin())).float().to(device)


def rotate(x_BHTK: Tensor, theta: float) -> Tensor:
    """Rotate each pair of coordinates (i, i + K/2) by its position times its frequency (RoFormer, eq. 15)."""
    cos, sin = rotary_table(x_BHTK.shape[-2], x_BHTK.shape[-1], theta, x_BHTK.device)
    left, right = x_BHTK.float().chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1).type_as(x_BHTK)


def causal_attention(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, scale: float) -> Tensor:
    """Average the values of the positions up to each one, weighted by softmax(q k scale); (B, H, T, K)."""
    dtype = q_BHTK.dtype
    if dtype == torch.bfloat16 and q_BHTK.device.type == "cpu":
        # PyTorch's attention on a CPU takes more than twice as long in bf16 as in fp32.
        q_BHTK, k_BHTK, v_BHTK = q_BHTK.float(), k_BHTK.float(), v_BHTK.float()
    return F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True, scale=scale).to(dtype)


class Attention(nn.Module):
    """Causal multi-head self-attention (Vaswani et al. 2017)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.d_head = config.d_head
        self.scale = query_multiplier(config) / math.sqrt(config.d_head)
        self.theta = config.rope_theta if config.positions == "rope" else None
        self.qkv = Linear(config.d_model, 3 * config.d_model, bias=config.bias)
        self.out = Linear(config.d_model, config.d_model, bias=config.bias)
        self.q_norm = Norm(config, config.d_head, rms=True) if config.qk_norm else None
        self.k_norm = Norm(config, config.d_head, rms=True) if config.qk_norm else None

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Mix each position with those before it; (B, T, D) to (B, T, D)."""
        B, T, _ = x_BTD.shape
        # H is what is here: under tensor parallelism a share of the heads.
        q, k, v = self.qkv(x_BTD).view(B, T, 3, -1, self.d_head).permute(2, 0, 3, 1, 4)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.theta is not None:
            q, k = rotate(q, self.theta), rotate(k, self.theta)
        mixed_BHTK = causal_attention(q, k, v, self.scale)
        out_BTD: Tensor = self.out(mixed_BHTK.transpose(1, 2).reshape(B, T, -1))
        return out_BTD


class MLP(nn.Module):
    """Position-wise feed-forward layer: GELU as in GPT-2, or SwiGLU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gated = config.mlp == "swiglu"
        self.up = Linear(config.d_model, config.d_ff * (2 if self.gated else 1), bias=config.bias)
        self.down = Linear(config.d_ff, config.d_model, bias=config.bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Transform each position alone; (B, T, D) to (B, T, D)."""
        hidden = self.up(x_BTD)
        if self.gated:
            gate, value = hidden.chunk(2, dim=-1)
            active = F.silu(gate) * value
        else:
            active = F.gelu(hidden, approximate="tanh")
        out_BTD: Tensor = self.down(active)
        return out_BTD


class Embedding(nn.Module):
    """Token embedding, the first layer; (B, T) token ids to (B, T, D)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.d_model))

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Look the tokens up."""
        return F.embedding(tokens_BT, self.weight)


class Positions(nn.Module):
    """Learned absolute positions, added to the stream; (B, T, D) to (B, T, D)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.context_length, config.d_model))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Add the first T rows."""
        return x_BTD + self.weight[: x_BTD.shape[1]]


class Block(nn.Module):
    """One pre-norm transformer block (Radford et al. 2019, section 2.3)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = Norm(config)
        self.attention = Attention(config)
        self.mlp_norm = Norm(config)
        self.mlp = MLP(config)
        self.multiplier = 1 / depth_ratio(config)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Add attention, then the feed-forward layer, to the residual stream."""
        x_BTD = torch.add(x_BTD, self.attention(self.attention_norm(x_BTD)), alpha=self.multiplier)
        return torch.add(x_BTD, self.mlp(self.mlp_norm(x_BTD)), alpha=self.multiplier)


def compile_blocks(module: nn.Module) -> None:
    """Have torch.compile compile every `Block` of `module`, each by itself: compiled once, whatever the depth."""
    for layer in module.modules():
        if isinstance(layer, Block):
            layer.compile(dynamic=False)


class FinalNorm(Norm):
    """The normalisation before the output projection, and what multiplies the logits."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.multiplier = 1 / width_ratio(config)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Normalise and scale; same shape and dtype."""
        x_BTD = super().forward(x_BTD)
        return x_BTD if self.multiplier == 1 else x_BTD * self.multiplier


class Readout(nn.Module):
    """The output projection of an untied model.

    It returns the final states with its weight instead of their product: `next_token_loss` multiplies the two
    chunk by chunk, so that the (B, T, V) logits never exist at once.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.d_model))

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Return (x_BTD, weight_VD)."""
        # A view, because DeepSpeed clears bf16 gradients in a hook on the module's outputs. A bare parameter carries
        # no such hook, and its gradient could arrive before the hook of `x_BTD` fires, and be lost.
        return x_BTD, self.weight.view_as(self.weight)


class GPT(nn.Module):
    """The whole model as a plain module.

    Parameters are uninitialised; `model.init.initialise` fills them.
    """

    def __init__(self, config: ModelConfig, checkpoint_blocks: bool = False, compiled: bool = False) -> None:
        """Build the model; it may recompute blocks in the backward pass, and be compiled by torch.compile."""
        super().__init__()
        self.config = config
        self.checkpoint_blocks = checkpoint_blocks
        self.compiled = compiled
        self.embedding = Embedding(config)
        self.positions = Positions(config) if config.positions == "learned" else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = FinalNorm(config)
        self.readout = None if config.tie_embeddings else Readout(config)
        if compiled:
            compile_blocks(self)

    def states(self, tokens_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Return the final states (B, T, D) and the output weight (V, D)."""
        x_BTD = self.embedding(tokens_BT)
        if self.positions is not None:
            x_BTD = self.positions(x_BTD)
        for block in self.blocks:
            x_BTD = checkpoint(block, x_BTD, use_reentrant=False) if self.checkpoint_blocks else block(x_BTD)
        x_BTD = self.norm(x_BTD)
        return (x_BTD, self.embedding.weight) if self.readout is None else self.readout(x_BTD)

    def logits(self, tokens_BT: Tensor) -> Tensor:
        """Return next-token logits (B, T, V)."""
        x_BTD, weight_VD = self.states(tokens_BT)
        return F.linear(x_BTD, weight_VD)

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Return the mean loss in nats per position; in evaluation, each sequence's (B,) (see `model.loss`)."""
        loss = next_token_loss if self.training else sequence_losses
        return loss(self.states(tokens_BT), targets_BT, self.compiled)
