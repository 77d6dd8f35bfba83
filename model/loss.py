"""Cross-entropy of the next token, computed without ever holding all logits.

The logits of one micro-batch are B x T x V numbers; at V = 50,257 they outweigh every other activation. This
function walks over chunks of positions, and in the forward pass already turns each chunk's logits into the
gradients of the states and of the output weight (the idea of Liger Kernel, Hsu et al. 2024, arXiv 2410.10989).
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100
"""Target of a position that does not count (padding of the last evaluation batch)."""

_CHUNK_LOGITS = {"cpu": 2**20, "cuda": 2**28}
"""Logits held at once. On a CPU 4 MB in fp32, which stay in the cache. On a GPU about 5,000 positions of GPT-2's
vocabulary: matrix products large enough to fill it, in some 2 GB of its memory."""


def _softmax(logits_NV: Tensor, targets_N1: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probabilities (N, 1) of the targets in fp32, and all probabilities (N, V) in the logits' dtype."""
    log_p_NV = F.log_softmax(logits_NV, dim=-1, dtype=torch.float32)
    log_p_N1 = log_p_NV.gather(1, targets_N1)
    return log_p_N1, log_p_NV.exp_().type_as(logits_NV)


@cache
def _compiled_softmax() -> Any:
    # Compiled, the logits are read and the probabilities written once; on a GPU these passes over N x V numbers would
    # otherwise take longer than the matrix products around them.
    return torch.compile(_softmax, dynamic=False)


def _chunk_length(x_ND: Tensor, weight_VD: Tensor) -> int:
    """Return positions a chunk; chunks are of equal length, so that a compiled softmax sees one shape."""
    N, V = x_ND.shape[0], weight_VD.shape[0]
    chunks = -(-N * V // _CHUNK_LOGITS[x_ND.device.type])
    return -(-N // chunks)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, compiled: bool) -> Tensor:
        N, chunk = len(x_ND), _chunk_length(x_ND, weight_VD)
        softmax = _compiled_softmax() if compiled else _softmax
        counted_N1 = (targets_N != IGNORE)[:, None]
        targets_N1 = targets_N[:, None].where(counted_N1, 0)
        positions_N1 = torch.arange(chunk, device=x_ND.device)[:, None]
        total = torch.zeros((), dtype=torch.float64, device=x_ND.device)
        needs_gradient = any(ctx.needs_input_grad)
        grad_x = torch.empty_like(x_ND) if needs_gradient else None
        grad_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if needs_gradient else None
        for start in range(0, N, chunk):
            rows = slice(start, start + chunk)
            log_p, slope = softmax(F.linear(x_ND[rows], weight_VD), targets_N1[rows])
            total -= (log_p * counted_N1[rows]).sum()
            if grad_x is not None and grad_weight is not None:
                # d nats / d logits = softmax - onehot. Kept undivided, in [-1, 1], so that fp16 does not underflow.
                # Assigned, because `scatter_` takes half as long as the softmax in bf16 on a CPU.
                slope[positions_N1[: len(slope)], targets_N1[rows]] = log_p.expm1().type_as(slope)
                grad_x[rows] = slope @ weight_VD
                grad_weight += slope.T @ (x_ND[rows] * counted_N1[rows])
        if needs_gradient:
            ctx.save_for_backward(grad_x, grad_weight, counted_N1)
            ctx.weight_dtype = weight_VD.dtype
        return (total / N).float()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_x, grad_weight, counted_N1 = ctx.saved_tensors
        scale = upstream[0].float() / len(grad_x)
        return (grad_x * (scale * counted_N1)).type_as(grad_x), (grad_weight * scale).to(ctx.weight_dtype), None, None


def next_token_loss(states: tuple[Tensor, Tensor], targets_BT: Tensor, compiled: bool = False) -> Tensor:
    """Mean cross-entropy in nats per position.

    Args:
        states: final states (B, T, D) and the output weight (V, D).
        targets_BT: next tokens; `IGNORE` marks positions that count as zero nats. The sum is divided by B x T all
            the same, so that averages over micro-batches of one shape add up exactly.
        compiled: compile the softmax with torch.compile.

    Returns:
        A scalar in fp32.
    """
    x_BTD, weight_VD = states
    arguments = (x_BTD.flatten(0, 1), weight_VD, targets_BT.flatten(), compiled)
    loss: Tensor = _ChunkedCrossEntropy.apply(*arguments)  # type: ignore[no-untyped-call]
    return loss


@torch.no_grad()
def sequence_losses(states: tuple[Tensor, Tensor], targets_BT: Tensor, compiled: bool = False) -> Tensor:
    """Mean cross-entropy of each sequence in nats per position, without gradients; arguments as `next_token_loss`.

    Returns:
        fp64 of shape (B,); its mean is `next_token_loss`.
    """
    x_BTD, weight_VD = states
    x_ND, targets_N1 = x_BTD.flatten(0, 1), targets_BT.reshape(-1, 1)
    counted_N1 = targets_N1 != IGNORE
    softmax = _compiled_softmax() if compiled else _softmax
    chunk = _chunk_length(x_ND, weight_VD)
    pieces = zip(torch.split(x_ND, chunk), torch.split(targets_N1.where(counted_N1, 0), chunk), strict=True)
    log_p_N1 = torch.cat([softmax(F.linear(x, weight_VD), targets)[0] for x, targets in pieces])
    return -(log_p_N1 * counted_N1).view_as(targets_BT).mean(1, dtype=torch.float64)
