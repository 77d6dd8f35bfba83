"""The model computes what its formulas say, and its counts are exact."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from configs.reader import ConfigError, build
from model import loss
from model.config import ModelConfig, expand_model
from model.counts import count_parameters, training_flops_per_token
from model.init import initialise
from model.loss import IGNORE, next_token_loss, sequence_losses
from model.sizes import SIZES
from model.transformer import GPT, rotate


def make_config(**keys: Any) -> ModelConfig:
    tree = {"n_layer": 2, "d_model": 32, "n_head": 4, "vocab_size": 300, "context_length": 24} | keys
    return build(ModelConfig, expand_model(tree), "test")


def make_model(config: ModelConfig, seed: int = 0) -> GPT:
    model = GPT(config)
    initialise(model.named_parameters(), config, seed)
    return model


STYLES = [
    pytest.param({"style": style, "tie_embeddings": tied}, id=f"{style}-{'tied' if tied else 'untied'}")
    for style in ("gpt2", "modern")
    for tied in (True, False)
]


@pytest.mark.parametrize("keys", STYLES)
@pytest.mark.parametrize("size", ["tiny-1k", "tiny-25k", "tiny-3m", "gpt2"])
def test_loss_at_initialisation_is_ln_vocab(keys: dict[str, Any], size: str) -> None:
    shape = {} if size == "gpt2" else {"vocab_size": 1024, "context_length": 128}
    config = build(ModelConfig, expand_model({"size": size, **shape, **keys}), "test")
    model = make_model(config)
    tokens = torch.randint(config.vocab_size, (2, 65), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        loss = model(tokens[:, :-1], tokens[:, 1:]).item()
    assert loss == pytest.approx(math.log(config.vocab_size), rel=0.02)


@pytest.mark.parametrize("keys", STYLES)
@pytest.mark.parametrize("size", list(SIZES))
def test_counts_match_the_module(keys: dict[str, Any], size: str) -> None:
    tree = {"size": size, **keys}
    if SIZES[size].vocab_size is None:
        tree |= {"vocab_size": 512, "context_length": 64}
    config = build(ModelConfig, expand_model(tree), "test")
    with torch.device("meta"):
        model = GPT(config)
    groups: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        outside_blocks = name.split(".")[0]
        group = next((g for g in ("attention.qkv", "attention.out", "mlp.up", "mlp.down") if g in name), "norms")
        group = outside_blocks if outside_blocks in ("embedding", "positions", "readout") else group.split(".")[0]
        groups[group] = groups.get(group, 0) + parameter.numel()
    counts = count_parameters(config)
    assert groups.get("embedding") == counts.embedding
    assert groups.get("positions", 0) == counts.positions
    assert groups.get("readout", 0) == counts.readout
    assert groups["attention"] == counts.attention
    assert groups["mlp"] == counts.mlp
    assert groups["norms"] == counts.norms
    assert sum(groups.values()) == counts.total


@pytest.mark.parametrize(
    ("size", "published"),
    [
        # GPT-2's released checkpoints, as every port of them counts.
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
        ("gpt1", 116_534_784 + 2 * 768),  # the 2018 checkpoint has no final LayerNorm
        ("gpt3-175b", 174_604_259_328),  # "175.0B"
    ],
)
def test_published_sizes(size: str, published: int) -> None:
    assert count_parameters(build(ModelConfig, expand_model({"size": size}), "test")).total == published


def test_flops_equal_a_hand_count() -> None:
    config = make_config(style="gpt2", n_layer=2, d_model=4, n_head=2, vocab_size=10, context_length=8)
    # Per token and block: qkv 4x12, out 4x4, up 4x16, down 16x4 multiply-adds; scores and mix 8x4 each.
    block = 4 * 12 + 4 * 4 + 4 * 16 + 16 * 4 + 2 * 8 * 4
    head = 4 * 10
    assert training_flops_per_token(config, sequence_length=8) == 3 * 2 * (2 * block + head)


def test_flops_of_gpt2_equal_the_profilers() -> None:
    """Torch counts the same matrix products, forward and backward."""
    from torch.utils.flop_counter import FlopCounterMode

    config = make_config(style="gpt2", n_layer=2, d_model=64, n_head=4, vocab_size=128, context_length=32)
    model = make_model(config)
    tokens = torch.zeros(1, 32, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        F.cross_entropy(model.logits(tokens).flatten(0, 1), tokens.flatten()).backward()
    assert counter.get_total_flops() == 32 * training_flops_per_token(config, 32)


@pytest.mark.parametrize("keys", STYLES)
def test_no_position_sees_the_future(keys: dict[str, Any]) -> None:
    model = make_model(make_config(**keys))
    tokens = torch.randint(300, (1, 20), generator=torch.Generator().manual_seed(1))
    changed = tokens.clone()
    changed[0, 12:] = (changed[0, 12:] + 1) % 300
    with torch.no_grad():
        before, after = model.logits(tokens), model.logits(changed)
    assert torch.equal(before[:, :12], after[:, :12])
    assert not torch.allclose(before[:, 12:], after[:, 12:])


@pytest.mark.parametrize("keys", STYLES)
@pytest.mark.parametrize("rows", [1, 7, 4096], ids=["chunks-of-1", "chunks-of-7", "one-chunk"])
def test_chunked_loss_equals_cross_entropy(keys: dict[str, Any], rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(**keys)
    monkeypatch.setattr("model.loss._CHUNK_LOGITS", {"cpu": rows * config.vocab_size})
    chunked, naive = make_model(config).double(), make_model(config).double()
    tokens = torch.randint(300, (3, 21), generator=torch.Generator().manual_seed(2))
    loss = chunked(tokens[:, :-1], tokens[:, 1:])
    expected = F.cross_entropy(naive.logits(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for (name, ours), theirs in zip(chunked.named_parameters(), naive.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-4, atol=1e-8), name


def test_ignored_targets_count_as_zero_nats() -> None:
    states = torch.randn(1, 4, 8), torch.randn(5, 8)
    targets = torch.tensor([[1, 2, 3, 4]])
    whole = [next_token_loss((states[0][:, i : i + 1], states[1]), targets[:, i : i + 1]).item() for i in range(4)]
    targets[0, 1] = IGNORE
    assert next_token_loss(states, targets).item() == pytest.approx((whole[0] + whole[2] + whole[3]) / 4, rel=1e-5)


def test_losses_of_sequences_are_those_of_the_sequences_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loss._CHUNK_LOGITS, "cpu", 50)  # 10 of the 12 positions a chunk
    states, targets = (torch.randn(3, 4, 8), torch.randn(5, 8)), torch.randint(5, (3, 4))
    targets[1, 2] = targets[2] = IGNORE
    alone = [next_token_loss((states[0][i : i + 1], states[1]), targets[i : i + 1]).item() for i in range(3)]
    losses = sequence_losses(states, targets)
    assert losses.tolist() == pytest.approx(alone, rel=1e-6)
    assert losses[2] == 0
    assert losses.mean().item() == pytest.approx(next_token_loss(states, targets).item(), rel=1e-6)


def test_ignored_targets_have_no_gradient() -> None:
    x, weight = torch.randn(1, 4, 8), torch.randn(5, 8)
    targets = torch.tensor([[1, IGNORE, 3, 4]])
    counted = targets[0] != IGNORE

    def gradients(x: torch.Tensor, targets: torch.Tensor) -> list[torch.Tensor]:
        states = x.clone().requires_grad_(), weight.clone().requires_grad_()
        next_token_loss(states, targets).backward()
        return [state.grad * targets.numel() for state in states if state.grad is not None]

    grad_x, grad_weight = gradients(x, targets)
    expected_x, expected_weight = gradients(x[:, counted], targets[:, counted])
    assert not grad_x[0, 1].any()
    assert torch.allclose(grad_x[:, counted], expected_x)
    assert torch.allclose(grad_weight, expected_weight)


def test_loss_gradient_survives_fp16_scale() -> None:
    """A loss scale of 2^15 on 4,096 positions: the mean's 1/4096 must not underflow in half precision."""
    x = torch.randn(1, 4096, 8, dtype=torch.float16).requires_grad_()
    weight = (torch.randn(32, 8) * 0.1).half()
    targets = torch.randint(32, (1, 4096))
    (next_token_loss((x, weight), targets) * 2**15).backward()
    assert x.grad is not None
    reference = x.detach().float().requires_grad_()
    next_token_loss((reference, weight.float()), targets).backward()
    assert reference.grad is not None
    assert torch.allclose(x.grad.float() / 2**15, reference.grad, rtol=2e-2, atol=1e-7)


def test_rotation_depends_on_distance_only() -> None:
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)
    at = lambda x, t: rotate(x.expand(1, 1, 16, 8), 10_000.0)[0, 0, t]  # noqa: E731
    assert torch.dot(at(q, 3), at(k, 1)).item() == pytest.approx(torch.dot(at(q, 12), at(k, 10)).item(), abs=1e-5)
    assert torch.dot(at(q, 3), at(k, 1)).item() != pytest.approx(torch.dot(at(q, 12), at(k, 3)).item(), abs=1e-3)


def test_initialisation_knows_only_name_and_seed() -> None:
    config = make_config()
    model = make_model(config)
    other = GPT(config)
    torch.randn(1000)  # other draws in between change nothing
    initialise(reversed(list(other.named_parameters())), config, 0)
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(make_model(config, seed=1).embedding.weight, model.embedding.weight)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ConfigError, match=r"n_head: 5 does not divide d_model=32; nearest is 4"):
        make_config(n_head=5)


def test_unknown_size_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'gpt2-mediun' is not a known size; nearest is 'gpt2-medium'"):
        make_config(size="gpt2-mediun")
