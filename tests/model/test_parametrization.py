"""Under muP and CompleteP every model learns alike, whatever its width and depth; at the base shape nothing changes."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from configs.reader import build
from model.config import ModelConfig, expand_model
from model.counts import count_parameters
from model.init import initialise
from model.parameters import parameter_table
from model.parametrization import fold_multipliers
from model.transformer import GPT
from train.config import OptimizerConfig
from train.engine.optimizer import adamw, parameter_groups, set_learning_rate

BASE = {"n_layer": 2, "d_model": 64, "n_head": 4}
"""The default base shape."""
KINDS = [
    pytest.param({"style": style, "tie_embeddings": tied}, id=f"{style}-{'tied' if tied else 'untied'}")
    for style in ("gpt2", "modern")
    for tied in (True, False)
]


def model_config(**keys: Any) -> ModelConfig:
    return build(ModelConfig, {"vocab_size": 64, "context_length": 16, **BASE, **keys}, "test", expand=expand_model)


def make_model(config: ModelConfig, seed: int = 0) -> GPT:
    model = GPT(config)
    initialise(model.named_parameters(), config, seed)
    return model


def tokens(seed: int = 0) -> Tensor:
    return torch.randint(64, (4, 17), generator=torch.Generator().manual_seed(seed))


def train(model: GPT, tokens_BT: Tensor, steps: int) -> list[float]:
    """Losses of some steps of AdamW at a learning rate of .01."""
    optimizer = adamw(model.named_parameters(), OptimizerConfig(lr=0.01), parameter_table(model.config))
    losses = []
    for _ in range(steps):
        loss = model(tokens_BT[:, :-1], tokens_BT[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def changes(config: ModelConfig, seed: int) -> dict[str, float]:
    """Root mean square of what three steps change: of the first attention layer, the final stream and the logits."""
    model, tokens_BT = make_model(config, seed), tokens(seed)
    seen: dict[str, Tensor] = {}
    for name, module in (("attention", model.blocks[0].attention), ("stream", model.blocks[-1])):
        module.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out.detach()}))

    def look() -> dict[str, Tensor]:
        with torch.no_grad():
            logits = model.logits(tokens_BT[:, :-1])
        return {"logits": logits, **seen}

    before = look()
    train(model, tokens_BT, steps=3)
    return {name: (after - before[name]).square().mean().sqrt().item() for name, after in look().items()}


def slopes(key: str, values: Sequence[int], **keys: Any) -> dict[str, float]:
    """Powers with which the changes grow in `d_model`, at heads of 16, or in `n_layer`."""
    logs = []
    for value in values:
        shape = {key: value} | ({"n_head": value // 16} if key == "d_model" else {})
        runs = [changes(model_config(**keys, **shape), seed) for seed in range(2)]
        logs.append([np.mean([math.log(run[name]) for run in runs]) for name in runs[0]])
    powers = np.polyfit(np.log(values), np.array(logs), 1)[0]
    return dict(zip(runs[0], powers.tolist(), strict=True))


# ------------------------------------------------------------------------------------- coordinate checks


@pytest.mark.parametrize("kind", KINDS)
def test_changes_do_not_grow_with_the_width(kind: dict[str, Any]) -> None:
    """Appendix D.1 of Yang et al. 2022. Below a width of 64 changes are larger: the initial readout still matters."""
    found = slopes("d_model", (64, 128, 256, 512, 1024), parametrization="mup", **kind)
    assert all(abs(slope) < 0.15 for slope in found.values()), found
    control = slopes("d_model", (64, 128, 256, 512), **kind)
    assert control["logits"] > 0.5, control
    assert control["stream"] > 0.5, control


@pytest.mark.parametrize("kind", KINDS)
def test_changes_do_not_grow_with_the_depth(kind: dict[str, Any]) -> None:
    """Figure 7 of Dey et al. 2025."""
    found = slopes("n_layer", (2, 4, 8, 16, 32), parametrization="completep", **kind)
    assert all(abs(slope) < 0.15 for slope in found.values()), found
    control = slopes("n_layer", (2, 4, 8, 16, 32), parametrization="mup", **kind)
    assert control["stream"] > 0.5, control


# ------------------------------------------------------------------------------------------ identities


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parametrization", ["mup", "completep"])
def test_nothing_changes_at_the_base_shape(kind: dict[str, Any], parametrization: str) -> None:
    expected = train(make_model(model_config(**kind)), tokens(), steps=5)
    assert train(make_model(model_config(parametrization=parametrization, **kind)), tokens(), steps=5) == expected
    wider = model_config(parametrization=parametrization, base_d_model=32, **kind)
    assert train(make_model(wider), tokens(), steps=5) != expected


@pytest.mark.parametrize("kind", KINDS)
def test_weights_can_hold_the_multipliers(kind: dict[str, Any]) -> None:
    keys = {"base_d_model": 16, "base_d_head": 4, "base_n_layer": 1}
    model = make_model(model_config(parametrization="completep", **keys, **kind)).double()
    train(model, tokens(), steps=3)
    plain = GPT(model_config(**kind)).double()
    plain.load_state_dict(fold_multipliers(model.config, model.state_dict()))
    assert torch.allclose(plain.logits(tokens()[:, :-1]), model.logits(tokens()[:, :-1]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_of_parameters_is_that_of_the_model(kind: dict[str, Any]) -> None:
    config = model_config(**kind)
    shapes = {name: info.shape for name, info in parameter_table(config).items()}
    assert list(shapes.items()) == [(name, parameter.shape) for name, parameter in GPT(config).named_parameters()]
    assert sum(map(math.prod, shapes.values())) == count_parameters(config).total


def test_updates_follow_the_table() -> None:
    """Width four times and depth eight times the base."""
    config = model_config(parametrization="completep", base_d_model=16, n_layer=8, base_n_layer=1, tie_embeddings=False)
    optimizer = OptimizerConfig(lr=1.0, eps=1.0, weight_decay=1.0)
    model = make_model(config)
    groups = parameter_groups(model.named_parameters(), optimizer, parameter_table(config))
    of = {id(p): (group["lr"], group["eps"], group["weight_decay"]) for group in groups for p in group["params"]}
    found = {name: of[id(parameter)] for name, parameter in model.named_parameters()}
    assert len(groups) == 4
    outer, vector, matrix = (1, 1 / 4, 0), (1, 1 / 32, 0), (1 / 4, 1 / 32, 4)
    for name in ("embedding.weight", "positions.weight", "norm.weight", "norm.bias"):
        assert found[name] == outer, name
    assert found["readout.weight"] == (1, 1 / 4, 1)
    for name in ("attention.qkv", "attention.out", "mlp.up", "mlp.down"):
        assert found[f"blocks.3.{name}.weight"] == matrix, name
        assert found[f"blocks.3.{name}.bias"] == vector, name
    assert found["blocks.3.mlp_norm.weight"] == vector


def test_the_schedule_scales_every_group() -> None:
    config = model_config(parametrization="mup", base_d_model=16)
    optimizer = adamw(make_model(config).named_parameters(), OptimizerConfig(lr=1.0), parameter_table(config))
    set_learning_rate(optimizer, 0.5)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == [0.125, 0.5]
