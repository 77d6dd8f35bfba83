"""What a model is: the numbers that fix its shape, and the choices that fix its blocks."""

from collections.abc import Iterator
from typing import Any, Literal

from configs.reader import Count, Positive, config
from model.sizes import expand_size


@config
class ModelConfig:
    """A decoder-only transformer.

    `size` and `style` are shorthands: a size from `model/sizes.py` gives `n_layer`, `d_model`, `n_head`,
    `vocab_size` and `context_length`; a style gives the block choices. Every key stated beside them wins.
    """

    size: str | None = None
    """Name of a size in `model/sizes.py`, such as `gpt2` or `tiny-25k`; null when the shape is spelled out."""
    style: Literal["gpt2", "modern"] = "gpt2"
    """`gpt2`: learned positions, LayerNorm, GELU, biases. `modern`: RoPE, RMSNorm, SwiGLU, QK-norm, no biases."""
    n_layer: Count
    """Number of transformer blocks."""
    d_model: Count
    """Width of the residual stream."""
    n_head: Count
    """Number of attention heads; must divide `d_model`."""
    d_ff: Count
    """Hidden width of the feed-forward layer; by default 4 d_model, or 8/3 d_model rounded up to 8 for SwiGLU."""
    vocab_size: Count
    """Tokens in the vocabulary; must equal the tokenizer's."""
    context_length: Count
    """Longest sequence the model accepts, in tokens; learned positions have one row for each."""
    positions: Literal["learned", "rope"]
    """Position information: a learned embedding, or rotary embeddings (Su et al. 2021, arXiv 2104.09864)."""
    norm: Literal["layernorm", "rmsnorm"]
    """Normalisation before each sub-layer and before the output projection."""
    mlp: Literal["gelu", "swiglu"]
    """Feed-forward layer: GELU (tanh form, as GPT-2) or SwiGLU (Shazeer 2020, arXiv 2002.05202)."""
    qk_norm: bool
    """Normalise queries and keys per head (RMS) before the attention product; keeps logits from growing."""
    bias: bool
    """Biases in linear layers and LayerNorm."""
    tie_embeddings: bool = True
    """Use the token embedding as the output projection too."""
    rope_theta: Positive = 10_000.0
    """Base of the rotary frequencies."""
    norm_eps: Positive = 1e-5
    """Added to the variance in every normalisation."""
    parametrization: Literal["standard", "mup", "completep"] = "standard"
    """What keeps the best learning rate where it is: nothing; over widths, `mup`; over widths and depths, `completep`.
    See model/parametrization.py."""
    base_d_model: Count = 64
    """Width at which `mup` and `completep` are `standard`: where the learning rate was tuned. The defaults of this and
    the next two are the shape of `tiny-98k`."""
    base_d_head: Count = 16
    """Head width there."""
    base_n_layer: Count = 2
    """Number of blocks there; of `completep` alone."""

    @property
    def d_head(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.n_head

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (key, message) for every combination that cannot be built."""
        if self.base_d_head > self.base_d_model:
            yield "base_d_head", f"{self.base_d_head} is wider than base_d_model={self.base_d_model}"
        if self.d_model % self.n_head:
            near = nearest_divisor(self.d_model, self.n_head)
            yield "n_head", f"{self.n_head} does not divide d_model={self.d_model}; nearest is {near}"
        elif self.positions == "rope" and self.d_head % 2:
            yield "n_head", f"RoPE needs an even head width, but d_model/n_head = {self.d_head}"


def nearest_divisor(number: int, wanted: int) -> int:
    """Return the divisor of `number` that is nearest to `wanted`, of two the smaller."""
    return min((n for n in range(1, number + 1) if number % n == 0), key=lambda n: abs(n - wanted))


_STYLES: dict[str, dict[str, Any]] = {
    "gpt2": {"positions": "learned", "norm": "layernorm", "mlp": "gelu", "qk_norm": False, "bias": True},
    "modern": {"positions": "rope", "norm": "rmsnorm", "mlp": "swiglu", "qk_norm": True, "bias": False},
}


def expand_model(tree: dict[str, Any]) -> dict[str, Any]:
    """Fill in what `size` and `style` imply; keys in `tree` (the YAML's `model:`) win. Raises `ConfigError`."""
    tree = expand_size(tree)
    # A wrong style or width is refused by itself; what is derived from it must not add to the list of problems.
    style, d_model = tree.get("style"), tree.get("d_model")
    tree = _STYLES[style if isinstance(style, str) and style in _STYLES else "gpt2"] | tree
    if "d_ff" not in tree:
        width = max(1, d_model) if isinstance(d_model, int) else 1
        # 8/3 keeps the parameter count of SwiGLU's three matrices at that of GELU's two.
        tree["d_ff"] = 4 * width if tree["mlp"] == "gelu" else -(-8 * width // 24) * 8
    return tree
