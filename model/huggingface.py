"""The models of Hugging Face `transformers` that compute the same function as ours, and their names of the weights.

Three architectures cover the block choices of both styles. This module needs no `transformers`: it writes what that
library reads.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.config import ModelConfig
from model.parametrization import fold_multipliers


class NoCounterpart(ValueError):
    """The block choices of a model exist in no architecture of `transformers`."""


@dataclass(frozen=True)
class Architecture:
    """A model class of `transformers` and how ours maps onto it."""

    name: str
    """Class that `AutoModelForCausalLM` builds."""
    model_type: str
    """Its key in `config.json`."""
    requires: dict[str, Any]
    """Keys of `ModelConfig`, each with the one value that the class computes; it takes any value of the others."""
    blocks: str
    """Module that holds the blocks."""
    modules: dict[str, tuple[str, ...]]
    """Our module to theirs; several when ours holds their rows below each other."""
    transposed: bool = False
    """Matrices of the blocks are stored (in, out), not (out, in)."""
    biases: frozenset[str] = frozenset()
    """Our modules whose bias the class has unconditionally; where we have none, it is zero."""


_NAMES = (
    ("embedding", "transformer.wte", "model.embed_tokens"),
    ("positions", "transformer.wpe", ""),
    ("attention_norm", "ln_1", "input_layernorm"),
    ("attention.qkv", "attn.c_attn", "self_attn.q_proj self_attn.k_proj self_attn.v_proj"),
    ("attention.q_norm", "", "self_attn.q_norm"),
    ("attention.k_norm", "", "self_attn.k_norm"),
    ("attention.out", "attn.c_proj", "self_attn.o_proj"),
    ("mlp_norm", "ln_2", "post_attention_layernorm"),
    ("mlp.up", "mlp.c_fc", "mlp.gate_proj mlp.up_proj"),
    ("mlp.down", "mlp.c_proj", "mlp.down_proj"),
    ("norm", "transformer.ln_f", "model.norm"),
    ("readout", "lm_head", "lm_head"),
)
"""Our module, and those of GPT-2 and of Llama and Qwen3 (which alone has norms of queries and keys)."""
_GPT2 = Architecture(
    name="GPT2LMHeadModel",
    model_type="gpt2",
    requires={"positions": "learned", "norm": "layernorm", "mlp": "gelu", "qk_norm": False},
    blocks="transformer.h",
    modules={ours: tuple(theirs.split()) for ours, theirs, _ in _NAMES},
    transposed=True,
    biases=frozenset({"attention_norm", "attention.qkv", "attention.out", "mlp_norm", "mlp.up", "mlp.down", "norm"}),
)
_LLAMA = Architecture(
    name="LlamaForCausalLM",
    model_type="llama",
    requires={"positions": "rope", "norm": "rmsnorm", "mlp": "swiglu", "qk_norm": False},
    blocks="model.layers",
    modules={ours: tuple(theirs.split()) for ours, _, theirs in _NAMES},
)
_QWEN3 = Architecture(
    name="Qwen3ForCausalLM",
    model_type="qwen3",
    requires={"positions": "rope", "norm": "rmsnorm", "mlp": "swiglu", "qk_norm": True, "bias": False},
    blocks="model.layers",
    modules=_LLAMA.modules,
)
ARCHITECTURES = (_GPT2, _LLAMA, _QWEN3)


def architecture(config: ModelConfig) -> Architecture:
    """Return the architecture that computes what `GPT(config)` computes.

    Raises `NoCounterpart` when there is none, naming the keys in the way and the nearest choice that has one.
    """

    def differing(candidate: Architecture) -> list[str]:
        return [key for key, value in candidate.requires.items() if getattr(config, key) != value]

    nearest = min(ARCHITECTURES, key=lambda candidate: len(differing(candidate)))
    changes = differing(nearest)
    if not changes:
        return nearest
    kept = {key: getattr(config, key) for key in _QWEN3.requires if key not in changes}  # it requires all there are
    here = _keys({key: getattr(config, key) for key in changes})
    raise NoCounterpart(
        f"no architecture of transformers has {here} together with {_keys(kept)}; "
        f"nearest is {_keys({key: nearest.requires[key] for key in changes})} ({nearest.name})"
    )


def _keys(values: Mapping[str, Any]) -> str:
    """Write keys of the model section as they are typed: `model.bias=false, model.mlp=gelu`."""
    return ", ".join(f"model.{key}={str(v).lower() if isinstance(v, bool) else v}" for key, v in values.items())


def huggingface_config(config: ModelConfig, end_of_text_id: int | None) -> dict[str, Any]:
    """Return the content of `config.json`. Raises `NoCounterpart`, as `architecture`.

    `end_of_text_id` is the token between documents, which both ends a text and begins one; None if not known.
    """
    target = architecture(config)
    common = {
        "architectures": [target.name],
        "model_type": target.model_type,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": end_of_text_id,
        "eos_token_id": end_of_text_id,
        "torch_dtype": "float32",
    }
    if target is _GPT2:
        return common | {
            "n_layer": config.n_layer,
            "n_embd": config.d_model,
            "n_head": config.n_head,
            "n_inner": config.d_ff,
            "n_positions": config.context_length,
            "activation_function": "gelu_new",  # the tanh form
            "layer_norm_epsilon": config.norm_eps,
            **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
        }
    shared = common | {
        "num_hidden_layers": config.n_layer,
        "hidden_size": config.d_model,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_head,
        "head_dim": config.d_head,
        "intermediate_size": config.d_ff,
        "max_position_embeddings": config.context_length,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "attention_bias": config.bias,
    }
    return shared | ({"mlp_bias": config.bias} if target is _LLAMA else {"use_sliding_window": False})


def huggingface_weights(config: ModelConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename and reshape the weights of `GPT(config)` for `transformers`; a tied output projection is left out.

    Multipliers that those models do not have (`model/parametrization.py`) are in the weights. Raises `NoCounterpart`.
    """
    target = architecture(config)
    renamed: dict[str, Tensor] = {}
    for name, weight in fold_multipliers(config, weights).items():
        module, _, kind = name.rpartition(".")
        prefix = ""
        if module.startswith("blocks."):
            _, index, module = module.split(".", 2)
            prefix = f"{target.blocks}.{index}."
        theirs = target.modules[module]
        for their, part in zip(theirs, weight.chunk(len(theirs)), strict=True):
            turned = target.transposed and prefix and part.ndim == 2
            renamed[f"{prefix}{their}.{kind}"] = (part.T if turned else part).contiguous()
        if not config.bias and kind == "weight" and module in target.biases:
            renamed[f"{prefix}{theirs[0]}.bias"] = torch.zeros(weight.shape[0], dtype=weight.dtype)
    return renamed
