"""Which documents of a stream repeat an earlier one: exactly, or nearly.

Exact: equal up to Unicode form, case and white space. Near: the sets of 5-word sequences have an estimated Jaccard
similarity (shared sequences over all sequences of the two) of at least the threshold. The estimate is MinHash's with
128 hashes (Broder 1997), whose standard error is at most .044; candidates come from locality-sensitive hashing, which
misses few pairs above the threshold. Lee et al. 2022 (arXiv 2107.06499) deduplicate C4 so, at a similarity of .8.
"""

import hashlib
import unicodedata
from typing import Any, Literal

import numpy as np

from data.config import TextConfig

_HASHES = 128
_WORDS = 5
_DIGEST = 16


class Duplicates:
    """The documents seen so far."""

    def __init__(self, method: Literal["none", "exact", "near"], threshold: float) -> None:
        """Begin with none seen; `threshold` is the similarity from which documents are near duplicates."""
        self._method, self._threshold = method, threshold
        self._seen: set[bytes] = set()
        self._signatures: list[Any] = []
        self._fresh: list[bytes] = []
        if method == "near":
            from datasketch import MinHashLSH

            self._index = MinHashLSH(threshold=threshold, num_perm=_HASHES)

    def kind(self, text: str) -> Literal["exact", "near"] | None:
        """Say how `text` repeats an earlier document; one that does not is remembered."""
        if self._method == "none":
            return None
        words = unicodedata.normalize("NFC", text).casefold().split()
        digest = hashlib.blake2b(" ".join(words).encode(), digest_size=_DIGEST).digest()
        if digest in self._seen:
            return "exact"
        if self._method == "near":
            signature = _signature(words)
            candidates = self._index.query(signature)
            if any(signature.jaccard(self._signatures[i]) >= self._threshold for i in candidates):
                return "near"
            self._remember(signature)
            self._fresh.append(digest + signature.hashvalues.astype("<u8").tobytes())
        else:
            self._fresh.append(digest)
        self._seen.add(digest)
        return None

    def take_fresh(self) -> bytes:
        """Return what `restore` needs of the documents that were remembered since the last call."""
        fresh, self._fresh = b"".join(self._fresh), []
        return fresh

    def restore(self, stored: bytes) -> None:
        """Remember documents again, from what `take_fresh` has returned."""
        size = _DIGEST + (8 * _HASHES if self._method == "near" else 0)
        for start in range(0, len(stored), size):
            self._seen.add(stored[start : start + _DIGEST])
            if self._method == "near":
                self._remember(_empty(np.frombuffer(stored[start + _DIGEST : start + size], dtype="<u8")))

    def _remember(self, signature: Any) -> None:
        self._index.insert(len(self._signatures), signature, check_duplication=False)
        self._signatures.append(signature)


def _empty(values: np.ndarray | None = None) -> Any:
    from datasketch import MinHash

    return MinHash(num_perm=_HASHES, scheme="affine64", hashfunc=_hash, hashvalues=values)


def _signature(words: list[str]) -> Any:
    signature = _empty()
    last = max(1, len(words) - _WORDS + 1)
    signature.update_batch({" ".join(words[i : i + _WORDS]).encode() for i in range(last)})
    return signature


def _hash(sequence: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(sequence, digest_size=8).digest(), "little")


def duplicates_of(config: TextConfig) -> Duplicates:
    """Return the search for duplicates that a configuration asks for, with no documents seen."""
    return Duplicates(config.deduplicate, config.duplicate_threshold)
