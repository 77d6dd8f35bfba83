"""How much of the validation text occurs word for word in the training text.

Brown et al. 2020 (arXiv 2005.14165, appendix C) call a text contaminated where 13 consecutive words of it occur in the
training data. Here a window is as many tokens as 13 words of English have bytes, so that it means the same for any
vocabulary and language; windows do not reach over the end of a document.
"""

import numpy as np
from numpy.typing import NDArray

from data.corpus.shards import Contamination, TokenStream
from data.hashing import UInt64s, mix

WINDOW_BYTES = 75  # 13 words of 4.8 letters and a space
MOST_TOKENS = 2**22  # of the validation split that are looked for, to bound memory (some 150 bytes each)
WARN_WINDOWS = 0.1  # shares from which a validation loss is doubtful
WARN_DOCUMENTS = 0.02
_CHUNK = 2**21
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64


def contamination(
    train: TokenStream, validation: TokenStream, end_of_text_id: int, bytes_per_token: float
) -> Contamination:
    """Compare the two splits of a corpus; one pass over the training tokens, at some ten million a second and core."""
    length = max(1, round(WINDOW_BYTES / bytes_per_token))
    tokens = validation.read(0, min(len(validation), MOST_TOKENS))
    hashes, whole = _windows(tokens, length, end_of_text_id)
    document = np.cumsum(tokens == end_of_text_id)[: len(hashes)][whole]
    known, which = np.unique(hashes[whole], return_inverse=True)
    if not len(known):
        return Contamination(window_tokens=length, windows=0.0, documents=0.0)
    seen = np.zeros(len(known), dtype=bool)
    shift = np.uint64(64 - 24)
    maybe = np.zeros(2**24, dtype=bool)  # most training windows are told apart by one look into this table
    maybe[known >> shift] = True
    for start in range(0, max(1, len(train) - length + 1), _CHUNK):
        # Parts overlap so that every window lies in one.
        chunk = train.read(start, min(len(train), start + _CHUNK + length - 1))
        found, inside = _windows(chunk, length, end_of_text_id)
        found = found[inside & maybe[found >> shift]]
        place = np.searchsorted(known, found)
        place[place == len(known)] = 0
        seen[place[known[place] == found]] = True
    occurs = seen[which]
    windows = np.bincount(document)
    repeated = np.bincount(document, weights=occurs)[windows > 0] >= windows[windows > 0] / 2
    return Contamination(window_tokens=length, windows=float(occurs.mean()), documents=float(repeated.mean()))


def _windows(tokens: np.ndarray, length: int, end_of_text_id: int) -> tuple[UInt64s, NDArray[np.bool_]]:
    """Hash every window of `length` tokens; return hashes (n - length + 1,) and whether each is in one document.

    A window's hash is the sum of its tokens' hashes times powers of a base, modulo 2^64 (Karp and Rabin 1987), taken
    from prefix sums: the cost does not depend on the length.
    """
    if len(tokens) < length:
        return np.empty(0, dtype=np.uint64), np.empty(0, dtype=bool)
    base, inverse = np.uint64(_BASE), np.uint64(pow(_BASE, -1, 2**64))
    count = len(tokens)
    powers = np.cumprod(np.concatenate([[np.uint64(1)], np.full(count - 1, base)]))
    undo = np.cumprod(np.concatenate([[np.uint64(1)], np.full(count - length, inverse)]))
    prefix = np.concatenate([[np.uint64(0)], np.cumsum(mix(tokens.astype(np.uint64) + np.uint64(1)) * powers)])
    ends = np.concatenate([[0], np.cumsum(tokens == end_of_text_id)])
    hashes = mix((prefix[length:] - prefix[:-length]) * undo)
    return hashes, ends[length:] == ends[:-length]


def warning(found: Contamination) -> str | None:
    """Say why a validation loss is doubtful, or None."""
    if found.windows < WARN_WINDOWS and found.documents < WARN_DOCUMENTS:
        return None
    return "the validation loss rewards memory; data.deduplicate: near removes repeated documents"
