"""How much of the validation text is found in the training text, against a search by hand."""

import numpy as np
import pytest

import data.corpus.contamination
from data.corpus.contamination import contamination, warning
from data.corpus.shards import TokenStream

END = 0


def stream(*documents):
    tokens = np.array([t for document in documents for t in (*document, END)], dtype="<u2")
    half = len(tokens) // 2
    return TokenStream((tokens[:half], tokens[half:]), np.array([0, half, len(tokens)]))


def by_hand(train, validation, length):
    def windows(document):
        return [tuple(document[i : i + length]) for i in range(len(document) - length + 1)]

    known = {window for document in train for window in windows(document)}
    found = [[window in known for window in windows(document)] for document in validation]
    long_enough = [hits for hits in found if hits]
    shares = [np.mean(hits) >= 0.5 for hits in long_enough]
    return float(np.mean(np.concatenate(long_enough))), float(np.mean(shares))


@pytest.mark.parametrize("chunk", [7, 2**21])
def test_finds_what_a_search_by_hand_finds(monkeypatch, chunk):
    monkeypatch.setattr(data.corpus.contamination, "_CHUNK", chunk)
    draw = np.random.default_rng(0)
    train = [draw.integers(1, 50, size=size).tolist() for size in draw.integers(3, 60, size=40)]
    validation = [draw.integers(1, 50, size=size).tolist() for size in draw.integers(3, 60, size=20)]
    validation += [train[3], train[5][:20] + validation[0], validation[1][:5] + train[7][-12:]]
    found = contamination(stream(*train), stream(*validation), END, bytes_per_token=7.5)
    assert found.window_tokens == 10
    assert (found.windows, found.documents) == pytest.approx(by_hand(train, validation, 10))
    assert 0.01 < found.windows < 0.5
    assert warning(found)


def test_fresh_text_is_clean_and_short_text_is_no_error():
    draw = np.random.default_rng(1)
    train, validation = (stream(draw.integers(1, 500, size=5000).tolist()) for _ in range(2))
    clean = contamination(train, validation, END, bytes_per_token=7.5)
    assert (clean.windows, clean.documents, warning(clean)) == (0, 0, None)
    short = contamination(stream([1, 2]), stream([1, 2]), END, bytes_per_token=1)
    assert (short.windows, short.documents) == (0, 0)
