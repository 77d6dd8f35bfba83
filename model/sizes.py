"""Named sizes: GPT-1, GPT-2, GPT-3 and a ladder of tiny models that a laptop can train.

Sources: GPT-1, Radford et al. 2018, section 4.1; GPT-2, Radford et al. 2019, table 2; GPT-3, Brown et al. 2020
(arXiv 2005.14165), table 2.1. Two rows of that table cannot be built as printed: 1.3B has 24 heads of 128 on
d_model 2048 (here 16 heads), and 13B has d_model 5140 (here 5120 = 40 x 128).
"""

import difflib
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from configs.reader import ConfigError, Problem


@dataclass(frozen=True)
class Size:
    """The shape of a named model."""

    n_layer: int
    d_model: int
    n_head: int
    vocab_size: int | None = None
    context_length: int | None = None


_gpt2 = partial(Size, vocab_size=50257, context_length=1024)
_gpt3 = partial(Size, vocab_size=50257, context_length=2048)

SIZES: dict[str, Size] = {
    "gpt1": Size(12, 768, 12, vocab_size=40478, context_length=512),
    "gpt2": _gpt2(12, 768, 12),
    "gpt2-medium": _gpt2(24, 1024, 16),
    "gpt2-large": _gpt2(36, 1280, 20),
    "gpt2-xl": _gpt2(48, 1600, 25),
    "gpt3-125m": _gpt3(12, 768, 12),
    "gpt3-350m": _gpt3(24, 1024, 16),
    "gpt3-760m": _gpt3(24, 1536, 16),
    "gpt3-1.3b": _gpt3(24, 2048, 16),
    "gpt3-2.7b": _gpt3(32, 2560, 32),
    "gpt3-6.7b": _gpt3(32, 4096, 32),
    "gpt3-13b": _gpt3(40, 5120, 40),
    "gpt3-175b": _gpt3(96, 12288, 96),
    # Named after their non-embedding parameters, 12 n_layer d_model^2. Vocabulary and context come from the run.
    "tiny-1k": Size(1, 8, 1),
    "tiny-3k": Size(1, 16, 2),
    "tiny-6k": Size(2, 16, 2),
    "tiny-14k": Size(2, 24, 2),
    "tiny-25k": Size(2, 32, 2),
    "tiny-55k": Size(2, 48, 3),
    "tiny-98k": Size(2, 64, 4),
    "tiny-150k": Size(3, 64, 4),
    "tiny-330k": Size(3, 96, 6),
    "tiny-590k": Size(3, 128, 4),
    "tiny-790k": Size(4, 128, 4),
    "tiny-1.8m": Size(4, 192, 6),
    "tiny-3m": Size(4, 256, 8),
}


def expand_size(tree: dict[str, Any]) -> dict[str, Any]:
    """Fill the keys that `tree["size"]` implies; keys already there win. Raises `ConfigError`."""
    name = tree.get("size")
    if name is None:
        return dict(tree)
    if not isinstance(name, str) or name not in SIZES:
        near = difflib.get_close_matches(str(name), SIZES, n=1, cutoff=0.0)[0]
        message = f"'{name}' is not a known size; nearest is '{near}' (of {', '.join(SIZES)})"
        raise ConfigError([Problem("", "model.size", message)])
    implied = {key: value for key, value in asdict(SIZES[name]).items() if value is not None}
    return implied | tree
