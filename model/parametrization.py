"""How initial weights, updates and the forward pass follow the shape of a model, so that one learning rate fits all.

`mup` is the maximal update parametrization: the learning rate that is best at one width is best at every width (Yang
et al. 2022, arXiv 2203.03466, table 8, Adam; definition 4.1 for the attention). `completep` extends it to depth (Dey et
al. 2025, arXiv 2505.01618, table 1 at alpha = 1; eps by its equation 40). With m = d_model / base_d_model and
l = n_layer / base_n_layer:

    parameters              initial std                            learning rate   eps       weight decay
    embedding, positions    that of the base width                 1               1/m       0
    readout                 that of the base width                 1               1/m       1
    matrices of blocks      sqrt(.4 / fan_in)                      1/m             1/(m l)   m
      and of them out, down   the same / sqrt(2 base_n_layer)      1/m             1/(m l)   m
    vectors of blocks       (gains 1, biases 0)                    1               1/(m l)   0
    final norm              (gains 1, biases 0)                    1               1/m       0

    forward pass            logits x 1/m, queries x keys x sqrt(base_d_head) / d_head, each branch x 1/l

The last three columns multiply `optimizer.lr`, `optimizer.eps` and `optimizer.weight_decay`; AdamW multiplies decay by
the learning rate, so that m keeps the matrices' decay per step. `mup` has l = 1 and divides by sqrt(2 n_layer);
`standard` has m = l = 1 and queries x keys / sqrt(d_head). At the base shape all three are the same model.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from model.config import ModelConfig


@dataclass(frozen=True)
class Rule:
    """How one parameter begins, and how it is updated."""

    std: float
    """Initial standard deviation of a matrix. Of vectors, gains begin at 1 and biases at 0."""
    lr: float
    """Multiplies the learning rate."""
    eps: float
    """Multiplies AdamW's eps."""
    decay: float
    """Multiplies the weight decay."""


def width_ratio(config: ModelConfig) -> float:
    """Return m, the width in units of the base width."""
    return 1.0 if config.parametrization == "standard" else config.d_model / config.base_d_model


def depth_ratio(config: ModelConfig) -> float:
    """Return l, the depth in units of the base depth."""
    return config.n_layer / config.base_n_layer if config.parametrization == "completep" else 1.0


def rule(name: str, config: ModelConfig) -> Rule:
    """Return the row of the table for the parameter `name` of `GPT(config)`.

    Initial weights at the base shape: matrices of blocks have the "small init" of Nguyen & Salazar 2019 (arXiv
    1910.05895), at GPT-2's d_model = 768 it is .0228, where GPT-2 has .02, and it keeps its meaning at d_model = 8.
    Those that write to the residual stream are divided by sqrt(2 n_layer) (GPT-2, section 2.3). Embeddings and readout
    have .02, or less where the logits would otherwise start with a variance above .1, so that the first loss is ln V.

    Embeddings do not decay: a row gets a gradient only when its token occurs, but would decay at every step (OLMo 2,
    arXiv 2501.00656, section 3.2).
    """
    m, l = width_ratio(config), depth_ratio(config)
    outer = min(0.02, 0.32 / math.sqrt(config.d_model / m))
    into = math.sqrt(0.4 / (config.d_ff if name.endswith("mlp.down.weight") else config.d_model))
    into_stream = into / math.sqrt(2 * config.n_layer / l)
    table = {
        "embedding": Rule(std=outer, lr=1, eps=1 / m, decay=0),
        "positions": Rule(std=outer, lr=1, eps=1 / m, decay=0),
        "readout": Rule(std=outer, lr=1, eps=1 / m, decay=1),
        "qkv": Rule(std=into, lr=1 / m, eps=1 / (m * l), decay=m),
        "up": Rule(std=into, lr=1 / m, eps=1 / (m * l), decay=m),
        "out": Rule(std=into_stream, lr=1 / m, eps=1 / (m * l), decay=m),
        "down": Rule(std=into_stream, lr=1 / m, eps=1 / (m * l), decay=m),
        "vector": Rule(std=0, lr=1, eps=1 / (m * l), decay=0),
        "norm": Rule(std=0, lr=1, eps=1 / m, decay=0),
    }
    *_, module, kind = name.split(".")
    is_vector_of_block = name.startswith("blocks.") and (kind == "bias" or module.endswith("norm"))
    return table["vector" if is_vector_of_block else module]


def query_multiplier(config: ModelConfig) -> float:
    """Return what multiplies queries beside the usual 1 / sqrt(d_head)."""
    return 1.0 if config.parametrization == "standard" else math.sqrt(config.base_d_head / config.d_head)


def fold_multipliers(config: ModelConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights of `GPT(config)` with which the `standard` forward pass gives the same logits."""
    return {name: _folded(name, weight, config) for name, weight in weights.items()}


def _folded(name: str, weight: Tensor, config: ModelConfig) -> Tensor:
    if name.startswith("norm."):
        return weight * (1 / width_ratio(config))
    if ".attention.out." in name or ".mlp.down." in name:
        return weight * (1 / depth_ratio(config))
    # Normalised queries forget a factor on their projection.
    if name.endswith("q_norm.weight"):
        return weight * query_multiplier(config)
    if ".attention.qkv." in name and not config.qk_norm:
        weight = weight.clone()
        weight[: config.d_model] *= query_multiplier(config)
    return weight
