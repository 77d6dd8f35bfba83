"""n-gram baselines: interpolated Kneser-Ney with modified discounts, over token ids.

Chen & Goodman 1999, An empirical study of smoothing techniques for language modeling, section 3 and appendix: the
highest order counts n-grams, every lower order counts the different tokens that precede one, and each count loses a
discount that depends on whether it is 1, 2 or more; what is taken off goes to the next lower order, at last to all
tokens alike:

    p(w | h) = max(c(h w) - D(c(h w)), 0) / c(h .) + gamma(h) p(w | h')        h' = h without its first token

All n-grams of an order are numbered; one of order n is the number of its first n - 1 tokens times the vocabulary plus
its last token, so that a stream of tokens is counted by sorting integers.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.corpus.shards import Corpus
from data.files import write_json
from data.loading.batches import Windows, bits_per_byte, target_bytes

ORDER = 5
_CHUNK = 2**18  # targets that are scored at once

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Counts:
    """Discounted counts of one order: by n-gram `discounted`, by context its `total` and the share `backoff` that its
    discounts leave to the lower order (1 where the context was never seen)."""

    discounted: Floats
    total: Floats
    backoff: Floats

    def interpolate(self, grams: Ints, contexts: Ints, lower: Floats) -> Floats:
        """Return p(w | h) by n-gram and context, numbers below 0 for unseen ones; all of one shape."""
        seen = np.where(grams >= 0, self.discounted[grams], 0.0)
        return np.where(contexts >= 0, seen / self.total[contexts] + self.backoff[contexts] * lower, lower)


@dataclass(frozen=True)
class Order:
    """The n-grams of one order: sorted `keys`, counts of occurrences, and of preceding tokens (not of the highest)."""

    keys: Ints
    occurrences: Counts
    continuations: Counts | None


@dataclass(frozen=True)
class NGrams:
    """A model of every order up to the highest; `orders[n - 1]` has the n-grams of order n."""

    vocab_size: int
    orders: tuple[Order, ...]

    def probabilities(self, windows: Ints) -> list[Floats]:
        """Return the probability of every token of `windows` (B, T) given those before it in its window.

        One array (B, T) for each highest order. A token with fewer tokens before it than an order wants has the
        probability of the highest order that there are tokens for.
        """
        grams = np.zeros_like(windows)  # the empty n-gram, ending before each token
        lower = np.full(windows.shape, 1 / self.vocab_size)
        found: list[Floats] = []
        for n, order in enumerate(self.orders, 1):
            contexts = grams if n == 1 else np.pad(grams[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
            grams = _find(order.keys, np.where(contexts >= 0, contexts * self.vocab_size + windows, -1))
            highest = order.occurrences.interpolate(grams, contexts, lower)
            if n > 1:
                highest[:, : n - 1] = found[-1][:, : n - 1]
            found.append(highest)
            if order.continuations is not None:
                lower = order.continuations.interpolate(grams, contexts, lower)
        return found


def train(tokens: Ints, vocab_size: int, order: int = ORDER) -> NGrams:
    """Count all n-grams of a stream (T,) up to `order`; takes some 100 bytes a token and order of memory."""
    grams = np.zeros(len(tokens) + 1, dtype=np.int64)
    keys: list[Ints] = []
    occurrences: list[Ints] = []
    continuations: list[Ints | None] = []
    for n in range(1, order + 1):
        stream = grams[:-1] * vocab_size + tokens[n - 1 :]  # n-grams by their last token
        unique, first, number, count = np.unique(stream, return_index=True, return_inverse=True, return_counts=True)
        if n > 1:  # every different n-gram is a different token before the (n - 1)-gram that it ends in
            continuations.append(np.bincount(grams[1:][first], minlength=len(keys[-1])))
        grams = number
        keys.append(unique)
        occurrences.append(count)
    continuations.append(None)
    orders = []
    sizes = [1, *(len(k) for k in keys)]
    for k, counted, preceding, size in zip(keys, occurrences, continuations, sizes[:-1], strict=True):
        contexts = k // vocab_size
        after = None if preceding is None else _discount(preceding, contexts, size)
        orders.append(Order(k, _discount(counted, contexts, size), after))
    return NGrams(vocab_size, tuple(orders))


def losses(model: NGrams, windows: Windows) -> list[float]:
    """Return the loss of every order in nats per token, on the targets that a run is evaluated on."""
    totals = np.zeros(len(model.orders))
    rows = max(1, _CHUNK // windows.sequence_length)
    for start in range(0, len(windows), rows):
        probabilities = model.probabilities(windows[start : start + rows])
        totals -= [float(np.log(p[:, 1:]).sum()) for p in probabilities]
    return [float(total) for total in totals / (len(windows) * windows.sequence_length)]


@dataclass(frozen=True)
class Baseline:
    """The loss of one order: nats per token, and bits per byte."""

    name: str
    loss: float
    bits_per_byte: float


def baselines(corpus: Corpus, windows: Windows, order: int = ORDER) -> list[Baseline]:
    """Return the losses of every order, trained on the corpus's training tokens and kept beside the corpus."""
    count = len(windows) * windows.sequence_length
    path = corpus.directory / f"ngram-{order}-{windows.sequence_length}-{count}.json"
    stored = _stored(path, corpus.fingerprint)
    if stored is None:
        stored = losses(train(corpus.train.read(0, len(corpus.train)), corpus.vocab_size, order), windows)
        write_json(path, {"fingerprint": corpus.fingerprint, "losses": stored})
    text_bytes = target_bytes(corpus, windows)
    return [Baseline(f"{n}-gram", loss, bits_per_byte(loss * count, text_bytes)) for n, loss in enumerate(stored, 1)]


def _stored(path: Path, fingerprint: str) -> list[float] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content["losses"] if content.get("fingerprint") == fingerprint else None


def _discount(counts: Ints, contexts: Ints, size: int) -> Counts:
    """Discount the counts of one order by Chen & Goodman's equation 17; each n-gram has one of `size` contexts."""
    discounts = np.array([0.0, *_discounts(counts)])
    taken = discounts[np.minimum(counts, 3)]
    total = np.bincount(contexts, weights=counts, minlength=size)
    left = np.bincount(contexts, weights=taken, minlength=size)
    never = total == 0  # contexts that only the end of the stream has, or its beginning
    return Counts(counts - taken, np.where(never, 1.0, total), np.where(never, 1.0, left / np.maximum(total, 1)))


def _discounts(counts: Ints) -> Iterator[float]:
    """Yield the discounts of counts 1, 2 and above, from how many n-grams have counts 1, 2, 3 and 4."""
    n1, n2, n3, n4 = (int(np.count_nonzero(counts == c)) for c in (1, 2, 3, 4))
    common = n1 / (n1 + 2 * n2) if n1 else 0.0
    for count, (here, above) in enumerate(((n1, n2), (n2, n3), (n3, n4)), 1):
        # Too little text to estimate it: half a count, as good as any (Kneser & Ney found .5 to .9).
        estimate = count - (count + 1) * common * above / here if here else math.nan
        yield estimate if 0 < estimate < count else 0.5


def _find(keys: Ints, wanted: Ints) -> Ints:
    """Return the place of each of `wanted` in sorted `keys`, -1 where it is not there."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, place, -1)
