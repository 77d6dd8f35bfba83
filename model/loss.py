"""Cross-entropy of the next token, computed without ever holding all logits.

The logits of one micro-batch are B x T x V numbers; at V = 50,257 they outweigh every other activation. This
function walks over chunks of positions, and in the forward pass already turns each chunk's logits into the
gradients of the states and of the output weight (the idea of Liger Kernel, Hsu et al. 2024, arXiv 2410.10989).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100
"""Target of a position that does not count (padding of the last evaluation batch)."""

_CHUNK_LOGITS = 2**22
"""Logits held at once: 16 MB in fp32, small enough to stay near the processor on a CPU."""


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
        chunk = max(1, _CHUNK_LOGITS // weight_VD.shape[0])
        needs_gradient = any(ctx.needs_input_grad)
        total = torch.zeros((), dtype=torch.float64, device=x_ND.device)
        grad_x = torch.empty_like(x_ND) if needs_gradient else None
        grad_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if needs_gradient else None
        for start in range(0, x_ND.shape[0], chunk):
            rows = slice(start, start + chunk)
            logits = F.linear(x_ND[rows], weight_VD).float()
            log_z = logits.logsumexp(dim=-1)
            counted = targets_N[rows] != IGNORE
            target = targets_N[rows].where(counted, 0)[:, None]
            nats = (log_z - logits.gather(1, target)[:, 0]) * counted
            total += nats.sum()
            if grad_x is not None and grad_weight is not None:
                # d nats / d logits = softmax - onehot. Kept undivided, in [-1, 1], so that fp16 does not underflow.
                slope = logits.sub_(log_z[:, None]).exp_()
                slope.scatter_add_(1, target, slope.new_full(target.shape, -1.0))
                slope = (slope * counted[:, None]).type_as(x_ND)
                grad_x[rows] = slope @ weight_VD
                grad_weight += (slope.T @ x_ND[rows]).float()
        if grad_x is not None and grad_weight is not None:
            ctx.save_for_backward(grad_x, grad_weight)
            ctx.weight_dtype = weight_VD.dtype
        ctx.positions = targets_N.numel()
        return (total / ctx.positions).float()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_x, grad_weight = ctx.saved_tensors
        scale = upstream[0].float() / ctx.positions
        return (grad_x.float() * scale).type_as(grad_x), (grad_weight * scale).to(ctx.weight_dtype), None


def next_token_loss(states: tuple[Tensor, Tensor], targets_BT: Tensor) -> Tensor:
    """Mean cross-entropy in nats per position.

    Args:
        states: final states (B, T, D) and the output weight (V, D).
        targets_BT: next tokens; `IGNORE` marks positions that count as zero nats. The sum is divided by B x T all
            the same, so that averages over micro-batches of one shape add up exactly.

    Returns:
        A scalar in fp32.
    """
    x_BTD, weight_VD = states
    return _ChunkedCrossEntropy.apply(x_BTD.flatten(0, 1), weight_VD, targets_BT.flatten())
