"""What is known of every parameter without building the model: its shape, and how it begins and is updated.

A pipeline stage, a ZeRO partition or a piece of a checkpoint holds some of the parameters, or parts of them, under the
names that they have in `GPT`. Whoever handles such a part looks the whole up here.
"""

from dataclasses import dataclass

import torch

from model.config import ModelConfig
from model.parametrization import Rule, rule
from model.transformer import GPT


@dataclass(frozen=True)
class ParameterInfo:
    """One parameter of the model."""

    shape: tuple[int, ...]
    rule: Rule
    """Its row of the table in `model/parametrization.py`."""


ParameterTable = dict[str, ParameterInfo]
"""Every parameter under its name in `GPT`, in its order."""


def parameter_table(config: ModelConfig) -> ParameterTable:
    """Return the parameters of `GPT(config)`."""
    with torch.device("meta"):
        named = list(GPT(config).named_parameters())
    return {name: ParameterInfo(tuple(parameter.shape), rule(name, config)) for name, parameter in named}
