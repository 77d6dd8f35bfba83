"""AdamW in groups of parameters that are updated alike, and gradient clipping where DeepSpeed's own is not exact."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.parameters import ParameterInfo, ParameterTable
from model.parametrization import Rule
from train.config import OptimizerConfig

NamedParameters = Iterable[tuple[str, nn.Parameter]]


def parameter_groups(
    parameters: NamedParameters, config: OptimizerConfig, table: ParameterTable
) -> list[dict[str, Any]]:
    """Group parameters that are updated alike, as `model/parametrization.py` has it.

    `lr_multiplier` of a group is for `set_learning_rate`; everything else is AdamW's own.
    """
    alike: dict[Rule, list[nn.Parameter]] = {}
    for name, parameter in parameters:
        alike.setdefault(_update(table[name]), []).append(parameter)
    groups: list[dict[str, Any]] = [
        {
            "params": members,
            "lr": config.lr * rule.lr,
            "lr_multiplier": rule.lr,
            "eps": config.eps * rule.eps,
            "weight_decay": config.weight_decay * rule.decay,
        }
        for rule, members in sorted(alike.items(), key=lambda item: -item[0].decay)  # what decays first
    ]
    # DeepSpeed adds the gradient norms of a pipeline's stages group by group: it would wait for ever for a group that
    # one stage lacks. So that all have as many, a stage without some kind of parameter splits the group of another.
    kinds = len(set(map(_update, table.values())))
    while len(groups) < kinds:
        largest = max(groups, key=lambda group: len(group["params"]))
        groups.append(largest | {"params": [largest["params"].pop()]})
    return groups


def _update(info: ParameterInfo) -> Rule:
    """Return a parameter's rule without its initial weights."""
    return replace(info.rule, std=0.0)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give every group its multiple of the learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_multiplier"]


def adamw(parameters: NamedParameters, config: OptimizerConfig, table: ParameterTable) -> torch.optim.AdamW:
    """Build the AdamW that DeepSpeed wraps (bf16, fp16, ZeRO); the wrapper clips."""
    # Fused does the whole update in one pass over memory, on CPU and GPU alike.
    groups = parameter_groups(parameters, config, table)
    return torch.optim.AdamW(groups, betas=(config.beta1, config.beta2), fused=True)


class ClippingAdamW(torch.optim.AdamW):
    """AdamW for plain fp32, where it is the whole optimizer of the engine.

    DeepSpeed's fp32 path neither reports the gradient norm nor sums it over pipeline stages (at two stages the
    update comes out up to 2.1 times too large), and it applies non-finite gradients. This class clips by the global
    norm, skips a step whose norm is not finite, and exposes both under the attributes the engine looks for.
    """

    def __init__(
        self,
        parameters: NamedParameters,
        config: OptimizerConfig,
        table: ParameterTable,
        stages: dist.ProcessGroup | None,
    ) -> None:
        """Take named parameters and, under a pipeline, the group of its stages.

        A parameter whose `is_tied_copy` attribute is true is owned by another stage and left out of the norm.
        """
        named = list(parameters)
        super().__init__(parameter_groups(named, config, table), betas=(config.beta1, config.beta2), fused=True)
        self._all = [p for _, p in named]
        self._owned = [p for p in self._all if not getattr(p, "is_tied_copy", False)]
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
