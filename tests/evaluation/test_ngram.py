"""Kneser-Ney by hand, by a slow implementation in the paper's words, and what every language model must satisfy."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data.config import DataConfig
from data.corpus.prepare import prepare
from data.corpus.shards import open_corpus
from data.loading.batches import validation_windows
from evaluation.ngram import baselines, losses, train
from tests.scripts.test_prepare import script


def test_bigrams_by_hand():
    # a b a b a c: n1 = 1 and n2 = 2 bigrams, so D1 = 1 - 2 (1/5) 2 = .2; D2 cannot be estimated and is .5.
    # Each of a, b, c follows one different token: they are equally likely without context.
    model = train(np.array([0, 1, 0, 1, 0, 2]), vocab_size=3, order=2)
    _, bigram = model.probabilities(np.array([[0, 0], [0, 1], [0, 2]]))
    left = (0.5 + 0.2) / 3
    assert bigram[:, 1] == pytest.approx([left / 3, (2 - 0.5) / 3 + left / 3, (1 - 0.2) / 3 + left / 3])
    _, unseen = model.probabilities(np.array([[2, 0], [2, 1]]))  # nothing follows c
    assert unseen[:, 1] == pytest.approx([1 / 3, 1 / 3])


def slow(tokens, vocab_size, order, context, word):
    """p(word | context) as Chen & Goodman write it: dictionaries, one order at a time."""

    def grams(n):
        return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]

    def discounts(counts):
        n = [sum(c == k for c in counts.values()) for k in range(5)]
        y = n[1] / (n[1] + 2 * n[2]) if n[1] else 0
        raw = [k - (k + 1) * y * n[k + 1] / n[k] if n[k] else 0 for k in (1, 2, 3)]
        return [0.0, *(d if 0 < d < k else 0.5 for k, d in enumerate(raw, 1))]

    probability = 1 / vocab_size
    for n in range(1, order + 1):
        counts = Counter(grams(n)) if n == order else Counter(gram[1:] for gram in set(grams(n + 1)))
        d = discounts(counts)
        history = tuple(context[len(context) - n + 1 :])
        after = {gram: c for gram, c in counts.items() if gram[:-1] == history}
        total = sum(after.values())
        if total:
            left = sum(d[min(c, 3)] for c in after.values()) / total
            c = after.get((*history, word), 0)
            probability = (c - d[min(c, 3)]) / total + left * probability
    return probability


def zipf_text(count, seed):
    """Tokens of which each depends on the two before it."""
    draw = np.random.default_rng(seed)
    tables = np.random.default_rng(0).permuted(np.tile(np.arange(6), (36, 1)), axis=1)
    tokens = [0, 1]
    for pick in draw.choice(6, size=count, p=[0.5, 0.25, 0.12, 0.07, 0.04, 0.02]):
        tokens.append(int(tables[tokens[-2] * 6 + tokens[-1], pick]))
    return np.array(tokens)


def test_agrees_with_the_slow_form_and_sums_to_one():
    tokens = zipf_text(200, seed=1)
    model = train(tokens, vocab_size=7, order=4)  # token 6 never occurs
    contexts = [tokens[10:13], tokens[50:53], np.array([6, 0, 1]), np.array([3, 6, 2]), np.array([5, 5, 6])]
    for context in contexts:
        windows = np.array([[*context, word] for word in range(7)])
        for n, found in enumerate(model.probabilities(windows), 1):
            assert found[:, -1].sum() == pytest.approx(1, abs=1e-12)
            expected = [slow(tokens.tolist(), 7, n, context.tolist(), word) for word in range(7)]
            assert found[:, -1] == pytest.approx(expected, abs=1e-12)
            assert (found[:, -1] > 0).all()


def test_a_short_context_is_scored_by_a_lower_order():
    model = train(zipf_text(300, seed=2), vocab_size=6, order=3)
    unigram, bigram, trigram = model.probabilities(np.array([[1, 2, 3]]))
    assert trigram[0, :2].tolist() == [unigram[0, 0], bigram[0, 1]]
    assert trigram[0, 2] != bigram[0, 2]


def test_held_out_loss_improves_with_the_order_that_the_text_has():
    class Text:
        sequence_length = 500

        def __len__(self):
            return 8

        def __getitem__(self, index):
            return zipf_text(8 * 501, seed=4)[: 8 * 501].reshape(8, 501)[index]

    found = losses(train(zipf_text(20_000, seed=3), vocab_size=6, order=4), Text())
    assert found[0] > found[1] > found[2]
    entropy = -sum(p * np.log(p) for p in (0.5, 0.25, 0.12, 0.07, 0.04, 0.02))
    assert found[2] == pytest.approx(entropy, abs=0.05)
    assert found[3] < found[2] + 0.05  # a context that is longer than it need be costs little


def test_the_command_scores_the_tokens_of_a_corpus_once(small_text, tmp_path, capsys):
    config = DataConfig(
        source="files", files=(str(small_text),), vocab_size=300, validation_fraction=0.1, directory=str(tmp_path)
    )
    directory = prepare(config, progress=False)
    assert script("studies/ngram").main([str(directory), "--sequence-length=32", "--tokens=2000"]) == 0
    assert "5-gram" in capsys.readouterr().out
    (stored,) = directory.glob("ngram-*.json")
    kept = json.loads(stored.read_text())["losses"]
    corpus = open_corpus(directory)
    windows = validation_windows(corpus, 32, 2000)
    found = baselines(corpus, windows)
    assert [baseline.loss for baseline in found] == kept
    assert found[4].loss < found[1].loss < found[0].loss
    bytes_per_token = found[0].loss / found[0].bits_per_byte / np.log(2)
    assert 1 < bytes_per_token < 10
    assert script("studies/ngram").main([str(Path(tmp_path) / "nothing")]) == 2
    assert "neither a corpus nor a directory of runs" in capsys.readouterr().err
