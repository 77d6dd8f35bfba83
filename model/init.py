"""Initialisation as a function of the parameter's name and the seed alone.

Each parameter draws from its own generator, so the weights do not depend on how many processes hold the model, on
which of them holds which layer, or on the order of construction.
"""

import hashlib
import math
from collections.abc import Iterable

import torch
from torch import nn

from model.config import ModelConfig


def standard_deviation(name: str, config: ModelConfig) -> float:
    """Standard deviation of the normal that fills the matrix `name`.

    - Matrices in blocks: sqrt(2 / (5 fan_in)), the "small init" of Nguyen & Salazar 2019 (arXiv 1910.05895); at
      GPT-2's d_model = 768 it is .0228, where GPT-2 has .02, and it keeps its meaning at d_model = 8.
    - Those that write to the residual stream: divided by sqrt(2 n_layer) (GPT-2, section 2.3).
    - Embeddings and the output projection: .02, or less where the logits would otherwise start with a variance
      above .1, so that the loss at initialisation is ln V.
    """
    if name.endswith(("qkv.weight", "up.weight")):
        return math.sqrt(2 / (5 * config.d_model))
    if name.endswith("attention.out.weight"):
        return math.sqrt(2 / (5 * config.d_model)) / math.sqrt(2 * config.n_layer)
    if name.endswith("mlp.down.weight"):
        return math.sqrt(2 / (5 * config.d_ff)) / math.sqrt(2 * config.n_layer)
    return min(0.02, 0.32 / math.sqrt(config.d_model))


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
        parameter.copy_(values.normal_(0.0, standard_deviation(name, config), generator=generator))
