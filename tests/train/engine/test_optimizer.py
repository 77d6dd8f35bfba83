"""AdamW: what decays, and clipping."""

import math

import pytest
import torch

from model.parameters import parameter_table
from tests.conftest import ROOT
from train.config import OptimizerConfig, load_run
from train.engine.optimizer import ClippingAdamW, parameter_groups

TINY = ROOT / "configs/runs/tiny.yaml"


def test_only_matrices_decay() -> None:
    named = {
        "embedding.weight": torch.nn.Parameter(torch.zeros(4, 2)),
        "blocks.0.mlp.up.weight": torch.nn.Parameter(torch.zeros(2, 2)),
        "blocks.0.mlp.up.bias": torch.nn.Parameter(torch.zeros(2)),
        "readout.weight": torch.nn.Parameter(torch.zeros(4, 2)),
    }
    table = parameter_table(load_run(TINY, ["--model.tie_embeddings=false", "--model.bias=true"]).model)
    decay, keep = parameter_groups(named.items(), OptimizerConfig(lr=0.1, weight_decay=0.1), table)
    assert decay["weight_decay"] == 0.1
    assert [id(p) for p in decay["params"]] == [id(named["blocks.0.mlp.up.weight"]), id(named["readout.weight"])]
    assert keep["weight_decay"] == 0.0
    assert len(keep["params"]) == 2


def make_optimizer(max_norm: float) -> tuple[torch.nn.Parameter, ClippingAdamW]:
    parameter, other = torch.nn.Parameter(torch.zeros(2, 2)), torch.nn.Parameter(torch.zeros(2))
    config = OptimizerConfig(lr=0.1, gradient_clipping=max_norm)
    named = [("blocks.0.mlp.up.weight", parameter), ("norm.weight", other)]
    return parameter, ClippingAdamW(named, config, parameter_table(load_run(TINY).model), None)


def test_clipping_scales_to_the_norm_and_reports_it() -> None:
    parameter, optimizer = make_optimizer(1.0)
    parameter.grad = torch.full((2, 2), 3.0)
    optimizer.step()
    assert optimizer._global_grad_norm == pytest.approx(6.0)
    assert parameter.grad.norm().item() == pytest.approx(1.0)


def test_small_gradients_are_not_touched() -> None:
    parameter, optimizer = make_optimizer(10.0)
    parameter.grad = torch.full((2, 2), 3.0)
    optimizer.step()
    assert torch.equal(parameter.grad, torch.full((2, 2), 3.0))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_gradients_change_nothing(bad: float) -> None:
    parameter, optimizer = make_optimizer(1.0)
    parameter.grad = torch.tensor([[bad, 1.0], [1.0, 1.0]])
    optimizer.step()
    assert optimizer.overflow
    assert torch.equal(parameter, torch.zeros(2, 2))
    assert not optimizer.state
