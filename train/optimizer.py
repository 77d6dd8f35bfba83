"""AdamW with decay on matrices only, and global gradient clipping where DeepSpeed's own is not exact."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from train.config import OptimizerConfig

NamedParameters = Iterable[tuple[str, nn.Parameter]]


def parameter_groups(parameters: NamedParameters, weight_decay: float) -> list[dict[str, Any]]:
    """Split parameters into matrices that decay and the rest: vectors and embeddings, which do not.

    An embedding row gets a gradient only when its token occurs, but would decay at every step (OLMo 2,
    arXiv 2501.00656, section 3.2).
    """
    decay: list[nn.Parameter] = []
    keep: list[nn.Parameter] = []
    for name, parameter in parameters:
        is_embedding = name in ("embedding.weight", "positions.weight")
        (keep if parameter.ndim == 1 or is_embedding else decay).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decay, "weight_decay": weight_decay},
        {"params": keep, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def adamw(parameters: NamedParameters, config: OptimizerConfig) -> torch.optim.AdamW:
    """Build the AdamW that DeepSpeed wraps (bf16, fp16, ZeRO); the wrapper clips."""
    return torch.optim.AdamW(parameter_groups(parameters, config.weight_decay), **_settings(config))


def _settings(config: OptimizerConfig) -> dict[str, Any]:
    # Fused does the whole update in one pass over memory, on CPU and GPU alike.
    return {"lr": config.lr, "betas": (config.beta1, config.beta2), "eps": config.eps, "fused": True}


class ClippingAdamW(torch.optim.AdamW):
    """AdamW for plain fp32, where it is the whole optimizer of the engine.

    DeepSpeed's fp32 path neither reports the gradient norm nor sums it over pipeline stages (at two stages the
    update comes out up to 2.1 times too large), and it applies non-finite gradients. This class clips by the global
    norm, skips a step whose norm is not finite, and exposes both under the attributes the engine looks for.
    """

    def __init__(self, parameters: NamedParameters, config: OptimizerConfig, stages: dist.ProcessGroup | None) -> None:
        """Take named parameters and, under a pipeline, the group of its stages.

        A parameter whose `is_tied_copy` attribute is true is owned by another stage and left out of the norm.
        """
        named = list(parameters)
        super().__init__(parameter_groups(named, config.weight_decay), **_settings(config))
        self._owned = [p for _, p in named if not getattr(p, "is_tied_copy", False)]
        self._all = [p for _, p in named]
        self._stages = stages
        self._max_norm = config.gradient_clipping
        self._global_grad_norm = 0.0
        self.overflow = False

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Clip, then update, unless the norm is not finite."""
        norm = self._global_norm()
        self._global_grad_norm = norm.item()
        self.overflow = not torch.isfinite(norm).item()
        if self.overflow:
            return None
        if self._global_grad_norm > self._max_norm:
            gradients = [p.grad for p in self._all if p.grad is not None]
            torch._foreach_mul_(gradients, self._max_norm / self._global_grad_norm)
        return super().step(closure)

    def _global_norm(self) -> Tensor:
        gradients = [p.grad for p in self._owned if p.grad is not None]
        square = torch.stack(torch._foreach_norm(gradients)).square().sum()
        if self._stages is not None:
            dist.all_reduce(square, group=self._stages)
        return square.sqrt()
