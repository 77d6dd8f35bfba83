"""Which tokens a step trains on: a pure function of (seed, step), whatever the topology.

Training windows do not overlap: window i holds tokens [iS, iS + S], so inputs are the first S and targets the last
S of its S + 1 tokens, and every target is read once an epoch. (The last (T - 1) mod S tokens of T fill no window and
are not used.) Each epoch visits the windows in an order of its own, a pseudo-random permutation that is computed
and not stored, so step s is reached without reading steps 0..s-1, and a resumed run needs no data state.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from data.config import DataError
from data.corpus.shards import Corpus, TokenStream
from data.hashing import UInt64s, mix

_ROUNDS = 8


def permutation(index: np.ndarray, n: int, seed: int, epoch: int) -> np.ndarray:
    """Return the places of `index` in the permutation of range(n) that belongs to (seed, epoch).

    A Feistel network over pairs (left, right) in Z_a x Z_b with a b >= n, each round adding a keyed hash of one
    half to the other; values outside range(n) are sent through again until they fall inside (cycle walking;
    Black and Rogaway 2002, https://doi.org/10.1007/3-540-45760-7_9). Time and memory are O(len(index)).
    """
    a = max(1, math.isqrt(n - 1) + 1)
    b = -(-n // a)
    digest = hashlib.blake2b(f"{seed}/{epoch}".encode(), digest_size=8 * _ROUNDS).digest()
    keys = np.frombuffer(digest, dtype="<u8").astype(np.uint64)
    value = _feistel(np.asarray(index, dtype=np.uint64), np.uint64(a), np.uint64(b), keys)
    while (outside := value >= n).any():
        value[outside] = _feistel(value[outside], np.uint64(a), np.uint64(b), keys)
    return value.astype(np.int64)


def _feistel(value: UInt64s, a: np.uint64, b: np.uint64, keys: UInt64s) -> UInt64s:
    left, right = value // b, value % b
    for i, key in enumerate(keys):
        if i % 2 == 0:
            left = (left + mix(right ^ key) % a) % a
        else:
            right = (right + mix(left ^ key) % b) % b
    return left * b + right


@dataclass(frozen=True)
class Windows:
    """Non-overlapping windows of a token stream, read when asked for.

    `windows[i]`, with a slice or an array of indices, has int64 shape (len(i), sequence_length + 1). `indices`
    (count,) names the stream's windows that belong to the set, in order; None means all.
    """

    stream: TokenStream
    sequence_length: int
    count: int
    indices: np.ndarray | None = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        chosen = np.arange(*index.indices(self.count)) if isinstance(index, slice) else np.asarray(index)
        if self.indices is not None:
            chosen = self.indices[chosen]
        length = self.sequence_length
        out = np.empty((len(chosen), length + 1), dtype=np.int64)
        for row, window in zip(out, chosen.tolist(), strict=True):
            row[:] = self.stream.read(window * length, window * length + length + 1)
        return out


def windows_per_epoch(corpus: Corpus, sequence_length: int) -> int:
    """Return how many training windows an epoch has. Raises `DataError` when the split does not fill one."""
    return _count(corpus.train, sequence_length, "training")


def _count(stream: TokenStream, sequence_length: int, split: str) -> int:
    if sequence_length < 1:
        raise DataError(f"the sequence length {sequence_length} is below 1")
    if len(stream) <= sequence_length:
        raise DataError(
            f"the {split} split has {len(stream):,} tokens, too few for one window of {sequence_length:,} and its "
            f"target; bring more text or set the sequence length to at most {max(1, len(stream) - 1):,}"
        )
    return (len(stream) - 1) // sequence_length


def sequences(step: int, global_batch_size: int, rows: slice | None = None) -> np.ndarray:
    """Return the numbers of a step's sequences, counted from the start of the run: int64, shape (rows,).

    Args:
        step: optimizer step, from 0.
        global_batch_size: sequences a step over all ranks and micro-batches.
        rows: this rank's (or micro-batch's) rows of the global batch; None for all.
    """
    if step < 0 or global_batch_size < 1:
        raise ValueError(f"step {step} and global_batch_size {global_batch_size} must be at least 0 and 1")
    return step * global_batch_size + np.arange(*(rows or slice(None)).indices(global_batch_size), dtype=np.int64)


def windows_at(corpus: Corpus, seed: int, places: np.ndarray, sequence_length: int) -> np.ndarray:
    """Return the windows at `places` (n,) of the endless order: one epoch after another, each in its own order."""
    n = windows_per_epoch(corpus, sequence_length)
    epoch, place = places // n, places % n
    window = np.empty_like(place)
    for e in np.unique(epoch).tolist():
        window[epoch == e] = permutation(place[epoch == e], n, seed, e)
    return window


def read_windows(corpus: Corpus, seed: int, places: np.ndarray, sequence_length: int) -> np.ndarray:
    """Return the tokens of `windows_at`: int64, shape (n, S + 1), inputs [:, :-1], targets [:, 1:]."""
    windows = Windows(corpus.train, sequence_length, windows_per_epoch(corpus, sequence_length))
    return windows[windows_at(corpus, seed, places, sequence_length)]


def batch(
    corpus: Corpus, seed: int, step: int, global_batch_size: int, sequence_length: int, rows: slice | None = None
) -> np.ndarray:
    """Return the tokens of one step, which may straddle epochs; shapes as `read_windows`, arguments as `sequences`."""
    return read_windows(corpus, seed, sequences(step, global_batch_size, rows), sequence_length)


def validation_windows(corpus: Corpus, sequence_length: int, max_tokens: int | None = None) -> Windows:
    """Return the fixed validation set: windows of S targets each, at most `max_tokens` targets in all.

    When the split is longer, the windows are evenly spaced over it, so that few tokens still sample all documents.
    Raises `DataError` when the validation split, or `max_tokens`, does not fill one window.
    """
    available = _count(corpus.validation, sequence_length, "validation")
    count = available if max_tokens is None else min(available, max_tokens // sequence_length)
    if count < 1:
        raise DataError(f"{max_tokens} validation tokens are fewer than one window of {sequence_length}; raise them")
    indices = np.arange(count) * available // count
    return Windows(corpus.validation, sequence_length, count, indices)


def target_bytes(corpus: Corpus, windows: Windows) -> int:
    """Return the UTF-8 bytes of the targets of `windows`; an end-of-text token has none."""
    chunk = max(1, 2**20 // (windows.sequence_length + 1))
    return sum(
        int(corpus.token_bytes[windows[i : i + chunk][:, 1:]].sum(dtype=np.int64))
        for i in range(0, len(windows), chunk)
    )


def bits_per_byte(nats: float, text_bytes: int) -> float:
    """Return the loss in bits per UTF-8 byte, which compares across vocabularies.

    `nats` is the summed (not mean) cross-entropy of the targets, end-of-text tokens included; `text_bytes` the
    `target_bytes` of the same windows.
    """
    return nats / (math.log(2) * text_bytes)


@dataclass(frozen=True)
class Repetition:
    """How often training repeats its data.

    `epochs` is D / U, `unique_tokens` is U_D = min(D, U) of Muennighoff et al. 2023 (arXiv:2305.16264), where U is
    the number of training tokens that windows cover.
    """

    epochs: float
    unique_tokens: int


def repetition(corpus: Corpus, sequence_length: int, tokens: int) -> Repetition:
    """Return how often `tokens` training tokens (D = steps * global_batch_size * S) repeat the corpus."""
    unique = windows_per_epoch(corpus, sequence_length) * sequence_length
    return Repetition(epochs=tokens / unique, unique_tokens=min(tokens, unique))
