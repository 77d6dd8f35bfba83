"""Initialisation as a function of the parameter's name and the seed alone; `model/parametrization.py` says how large.

Each parameter draws from its own generator, so the weights do not depend on how many processes hold the model, on
which of them holds which layer, or on the order of construction.
"""

import hashlib
from collections.abc import Iterable

import torch
from torch import nn

from model.config import ModelConfig
from model.parametrization import rule


@torch.no_grad()
def initialise(parameters: Iterable[tuple[str, nn.Parameter]], config: ModelConfig, seed: int) -> None:
    """Fill parameters in place, given with their names in the plain `GPT` module (`blocks.3.mlp.up.weight`)."""
    for name, parameter in parameters:
        if parameter.ndim == 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        key = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)
        values = torch.empty(parameter.shape, dtype=torch.float32)
        parameter.copy_(values.normal_(0.0, rule(name, config).std, generator=generator))
