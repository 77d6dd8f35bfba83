"""Batches are a pure function of (seed, step), and an epoch reads every window exactly once."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.config import DataError
from data.corpus.shards import Corpus, TokenStream
from data.loading.batches import (
    batch,
    bits_per_byte,
    permutation,
    repetition,
    sequences,
    target_bytes,
    validation_windows,
    windows_at,
)


def stream(lengths, start=0):
    """Token i of the stream has id start + i, so a token says where it was read."""
    bounds = np.cumsum([0, *lengths])
    shards = tuple(np.arange(start + a, start + b, dtype=np.uint16) for a, b in itertools.pairwise(bounds))
    return TokenStream(shards, bounds)


def corpus(train=(1000,), validation=(300,)):
    total = sum(train) + sum(validation)
    return Corpus(
        directory=Path("nowhere"),
        manifest=None,
        vocab_size=total,
        end_of_text_id=0,
        token_bytes=np.arange(total, dtype=np.int32) % 7,
        train=stream(train),
        validation=stream(validation, start=sum(train)),
    )


@given(n=st.integers(1, 3000), seed=st.integers(-(2**70), 2**70), epoch=st.integers(0, 2**40))
@settings(max_examples=60, deadline=None)
def test_permutation_is_a_bijection(n, seed, epoch):
    places = permutation(np.arange(n), n, seed, epoch)
    assert np.array_equal(np.sort(places), np.arange(n))


def test_permutation_needs_no_memory_for_the_whole_epoch():
    n = 10**15 + 37
    places = permutation(np.array([0, 1, n - 1]), n, seed=1, epoch=0)
    assert len(set(places.tolist())) == 3
    assert ((places >= 0) & (places < n)).all()


def test_permutations_of_epochs_and_seeds_differ_and_look_random():
    n = 4099
    orders = [permutation(np.arange(n), n, seed, epoch) for seed in range(4) for epoch in range(4)]
    # A random permutation has about one fixed point, agrees with another in about one place, and neighbours
    # are uncorrelated to about 1 / sqrt(n) = .016.
    for i, order in enumerate(orders):
        assert np.count_nonzero(order == np.arange(n)) < 10
        assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.06
        assert all(np.count_nonzero(order == other) < 10 for other in orders[:i])


def test_first_places_are_uniform_over_seeds():
    n, draws = 10, 2000
    counts = np.zeros((n, n))
    for seed in range(draws):
        counts[np.arange(n), permutation(np.arange(n), n, seed, 0)] += 1
    chi2 = ((counts - draws / n) ** 2 / (draws / n)).sum(axis=1)
    assert chi2.max() < 33.7  # 9 degrees of freedom, p = 1e-4


def test_order_is_frozen():
    """Resuming an old run needs the very same order: these values must never change."""
    assert permutation(np.arange(8), 1000, seed=0, epoch=0).tolist() == [444, 777, 438, 163, 349, 958, 109, 756]
    assert windows_at(corpus(), 7, sequences(step=3, global_batch_size=4), sequence_length=16).tolist() == [
        61,
        60,
        43,
        52,
    ]


@given(
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=5),
    sequence_length=st.integers(1, 40),
    global_batch_size=st.integers(1, 9),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_an_epoch_reads_every_target_once_whatever_the_shards(lengths, sequence_length, global_batch_size, seed):
    total = sum(lengths)
    if total <= sequence_length:
        return
    data = corpus(train=lengths)
    n = (total - 1) // sequence_length
    steps = -(-2 * n // global_batch_size)
    rows = np.concatenate([batch(data, seed, s, global_batch_size, sequence_length) for s in range(steps)])
    for epoch in range(2):
        targets = rows[epoch * n : (epoch + 1) * n, 1:]
        assert np.array_equal(np.sort(targets.ravel()), np.arange(1, n * sequence_length + 1))
    assert np.array_equal(rows[:, 1:], rows[:, :-1] + 1)  # consecutive tokens, over shard borders too


@given(step=st.integers(0, 50), ranks=st.sampled_from([1, 2, 3, 4, 6, 12]), seed=st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_rows_do_not_depend_on_the_topology(step, ranks, seed):
    data = corpus()
    whole = batch(data, seed, step, 12, 16)
    share = 12 // ranks
    parts = [batch(data, seed, step, 12, 16, slice(r * share, (r + 1) * share)) for r in range(ranks)]
    assert whole.shape == (12, 17)
    assert whole.dtype == np.int64
    assert np.array_equal(whole, np.concatenate(parts))


def test_samples_do_not_depend_on_the_batch_size():
    small = np.concatenate([batch(corpus(), 3, s, 2, 16) for s in range(60)])
    large = np.concatenate([batch(corpus(), 3, s, 8, 16) for s in range(15)])
    assert np.array_equal(small, large)


def test_too_short_training_text_is_refused():
    with pytest.raises(DataError, match=r"training split has 10 tokens, too few for one window of 10.* at most 9"):
        batch(corpus(train=(10,)), 0, 0, 1, 10)


def test_validation_is_fixed_and_ordered():
    data = corpus(validation=(100, 150, 51))
    windows = validation_windows(data, 10)
    assert len(windows) == 30
    targets = windows[:][:, 1:]
    assert np.array_equal(targets.ravel(), np.arange(1001, 1301))
    assert np.array_equal(np.concatenate([windows[i : i + 7] for i in range(0, 30, 7)])[:, 1:], targets)
    assert np.array_equal(windows[np.array([4, 2])], windows[:][[4, 2]])


def test_fewer_validation_tokens_are_spread_over_the_split():
    data = corpus(validation=(301,))
    windows = validation_windows(data, 10, max_tokens=59)
    assert len(windows) == 5
    assert ((windows[:][:, 0] - 1000) / 10).tolist() == [0, 6, 12, 18, 24]
    with pytest.raises(DataError, match="fewer than one window"):
        validation_windows(data, 10, max_tokens=9)


def test_bits_per_byte_of_a_uniform_model_by_hand():
    """A uniform model over V tokens loses ln V nats a token: bits per byte is tokens log2(V) / bytes."""
    data = corpus(validation=(21,))
    windows = validation_windows(data, 10)
    targets = list(range(1001, 1021))
    text_bytes = target_bytes(data, windows)
    assert text_bytes == sum(t % 7 for t in targets)
    assert bits_per_byte(20 * math.log(256), text_bytes) == pytest.approx(20 * 8 / text_bytes, rel=1e-12)


def test_repetition_counts_epochs_and_unique_tokens():
    data = corpus(train=(1000,))  # 62 windows of 16 tokens: 992 tokens an epoch
    half, double = repetition(data, 16, 496), repetition(data, 16, 1984)
    assert (half.epochs, half.unique_tokens) == (0.5, 496)
    assert (double.epochs, double.unique_tokens) == (2.0, 992)
