"""Byte-level BPE with an end-of-text token, by the Hugging Face `tokenizers` library.

Byte-level means that every text has tokens, whatever its language, and that a token stands for a known number of
bytes. Losses in nats per token of different vocabularies then compare as bits per byte.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from configs.reader import ConfigError, Problem
from data.config import DataError
from data.files import nearest_file

END_OF_TEXT = "<|endoftext|>"
_END_OF_TEXT_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[EOS]")


@dataclass(frozen=True)
class ByteTokenizer:
    """A byte-level tokenizer.

    `token_bytes` is an int32 array of shape (vocab_size,): UTF-8 bytes per token, 0 for the end-of-text token.
    """

    backend: Any  # tokenizers.Tokenizer
    vocab_size: int
    end_of_text: str
    end_of_text_id: int
    token_bytes: np.ndarray

    def normalize(self, text: str) -> str:
        """Apply the tokenizer's own Unicode normalisation, if it has one."""
        normalizer = self.backend.normalizer
        return text if normalizer is None else normalizer.normalize_str(text)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of every text, without an end-of-text token."""
        return [e.ids for e in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token ids; special tokens are left out."""
        return str(self.backend.decode([int(i) for i in ids]))

    def to_json(self) -> str:
        """Return the content of `tokenizer.json`."""
        return str(self.backend.to_str(pretty=True))


def train(texts: Iterable[str], vocab_size: int) -> ByteTokenizer:
    """Train a vocabulary of exactly `vocab_size` tokens on `texts`; equal texts give equal tokenizers.

    Raises `DataError` when the texts are too short to yield that many tokens.
    """
    _threads()
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    if backend.get_vocab_size() < vocab_size:
        raise DataError(
            f"data.vocab_size: the text is too short for {vocab_size} tokens; it yields "
            f"{backend.get_vocab_size()}, so set vocab_size: {backend.get_vocab_size()} or bring more text"
        )
    return wrap(backend, "the trained tokenizer")


def load(path: Path, vocab_size: int | None = None) -> ByteTokenizer:
    """Read a `tokenizer.json`. Raises `DataError` when it is unreadable, not byte-level, or not of `vocab_size`."""
    _threads()
    from tokenizers import Tokenizer

    if not path.is_file():
        raise DataError(f"data.tokenizer: there is no file '{path}'{nearest_file(path)}")
    try:
        backend = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise DataError(f"data.tokenizer: '{path}' is not a tokenizer.json: {error}") from None
    tokenizer = wrap(backend, f"'{path}'")
    if vocab_size is not None and tokenizer.vocab_size != vocab_size:
        raise DataError(
            f"data.vocab_size: {vocab_size} does not match '{path}', which has {tokenizer.vocab_size} tokens; "
            f"set vocab_size: {tokenizer.vocab_size}"
        )
    return tokenizer


def wrap(backend: Any, where: str) -> ByteTokenizer:
    """Check that a `tokenizers.Tokenizer` is byte-level and measure its tokens."""
    from tokenizers import pre_tokenizers

    vocabulary: dict[str, int] = backend.get_vocab(with_added_tokens=True)
    missing = [byte for byte in pre_tokenizers.ByteLevel.alphabet() if byte not in vocabulary]
    if missing or '"ByteLevel"' not in json.dumps(json.loads(backend.to_str())["pre_tokenizer"]):
        raise DataError(
            f"data.tokenizer: {where} is not byte-level, so some text would have no tokens; "
            "use a byte-level BPE or leave data.tokenizer out to train one"
        )
    end_of_text = next((name for name in _END_OF_TEXT_NAMES if name in vocabulary), None)
    if end_of_text is None:
        names = ", ".join(_END_OF_TEXT_NAMES)
        raise DataError(f"data.tokenizer: {where} has no end-of-text token (one of {names})")
    size = max(vocabulary.values()) + 1
    token_bytes = np.zeros(size, dtype=np.int32)
    for token, index in vocabulary.items():
        token_bytes[index] = len(token)  # a byte-level token is written with one character a byte
    for index, added in backend.get_added_tokens_decoder().items():
        token_bytes[index] = 0 if added.special else len(added.content.encode())
    token_bytes[vocabulary[end_of_text]] = 0
    # Text that spells a special token out is text, not an instruction. This flag is not stored in the file.
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    return ByteTokenizer(backend, size, end_of_text, vocabulary[end_of_text], token_bytes)


def expand_data(tree: Any) -> Any:
    """Fill in a `vocab_size` of null in the keys of a `data:` section: the size of `tokenizer`.

    Raises `ConfigError` where there is no such file, or it is not a tokenizer.json.
    """
    if not isinstance(tree, dict) or tree.get("vocab_size", 0) is not None:
        return tree
    path = tree.get("tokenizer")
    if not isinstance(path, str):
        raise ConfigError([Problem("", "data.vocab_size", "null takes the size of data.tokenizer, which is not given")])
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        ids = [*content["model"]["vocab"].values(), *(token["id"] for token in content.get("added_tokens", []))]
        return tree | {"vocab_size": max(ids) + 1}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"'{path}' is not a tokenizer.json that can be read: {type(error).__name__}: {error}"
        raise ConfigError([Problem("", "data.tokenizer", message)]) from None


def tokenizer_of_numbers(vocab_size: int) -> str:
    """Return the content of a `tokenizer.json` that writes token i as the number i, with spaces between."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({str(i): i for i in range(vocab_size)}))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return str(backend.to_str(pretty=True))


def _threads() -> None:
    # Unset, the library prints a warning whenever a process forks after it has encoded something.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
