"""The generated language: its entropy by enumeration, its strings, and the windows that it is read in."""

import itertools
import math
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from configs.reader import ConfigError, build
from data.config import DataConfig, GrammarConfig, LevelConfig
from data.corpus.grammar import (
    STRINGS_PER_BLOCK,
    Grammar,
    excess_of_speller,
    exponent_of_speller,
    make_grammar,
    token_blocks,
    zipf,
)
from data.corpus.prepare import prepare
from data.corpus.shards import open_corpus
from data.loading.batches import batch, validation_windows
from train.config import RunConfig, expand_run

LEXICON = GrammarConfig(levels=(LevelConfig(symbols=11, length=2),), root_exponent=1.2, tokens=9_000)
CHOICES = GrammarConfig(levels=(LevelConfig(symbols=4, length=2, rules=3, exponent=0.7),), root_exponent=0.0)
HIERARCHY = GrammarConfig(
    levels=(
        LevelConfig(symbols=3, length=2, rules=2, exponent=1.0),
        LevelConfig(symbols=5, length=3, rules=2, exponent=0.5),
    ),
    root_exponent=0.8,
    tokens=9_000,
)


def distribution(grammar: Grammar) -> dict[tuple[int, ...], float]:
    """Enumerate all derivations; fails where two of them give one string."""
    found = {(i,): p for i, p in enumerate(grammar.roots.probability)}
    for rule, right_side in zip(grammar.rules, grammar.right_sides, strict=True):
        longer: dict[tuple[int, ...], float] = {}
        for symbols, p in found.items():
            for chosen in itertools.product(range(right_side.shape[1]), repeat=len(symbols)):
                string = tuple(int(t) for s, r in zip(symbols, chosen, strict=True) for t in right_side[s, r])
                assert string not in longer
                longer[string] = p * math.prod(rule.probability[r] for r in chosen)
        found = longer
    return found


def conditional(strings: dict[tuple[int, ...], float]) -> dict[tuple[int, ...], float]:
    """Return the probability of every prefix."""
    prefixes: dict[tuple[int, ...], float] = defaultdict(float)
    for string, p in strings.items():
        for end in range(len(string) + 1):
            prefixes[string[:end]] += p
    return prefixes


@pytest.mark.parametrize("config", [LEXICON, CHOICES, HIERARCHY], ids=["lexicon", "choices", "hierarchy"])
def test_entropy_is_that_of_all_strings(config):
    grammar = make_grammar(config, vocab_size=7)
    strings = distribution(grammar)
    assert all(len(string) == grammar.tokens_per_string for string in strings)
    p = np.array(list(strings.values()))
    assert p.sum() == pytest.approx(1, abs=1e-12)
    assert grammar.entropy_rate == pytest.approx(-(p * np.log(p)).sum() / grammar.tokens_per_string, abs=1e-12)


@pytest.mark.parametrize("config", [LEXICON, CHOICES, HIERARCHY], ids=["lexicon", "choices", "hierarchy"])
def test_targets_of_a_window_carry_the_entropy_of_its_strings(config):
    grammar = make_grammar(config, vocab_size=7)
    strings = distribution(grammar)
    prefixes = conditional(strings)
    firsts = {prefix: p for prefix, p in prefixes.items() if len(prefix) == 1}
    # A window of one string and its target beyond: every pair of a string and a first token of the next.
    loss = sum(
        p * q * -(math.log(p / firsts[string[:1]]) + math.log(q))
        for string, p in strings.items()
        for q in firsts.values()
    )
    assert loss / grammar.tokens_per_string == pytest.approx(grammar.entropy_rate, abs=1e-12)


def test_validation_roots_occur_as_often_as_expected():
    grammar = make_grammar(GrammarConfig(), vocab_size=64)
    expected = STRINGS_PER_BLOCK * grammar.roots.probability
    drawn = grammar.roots.draw_evenly(STRINGS_PER_BLOCK, np.random.default_rng(0))
    assert np.abs(np.bincount(drawn, minlength=len(expected)) - expected).max() <= 1
    nats = dict(zip(map(tuple, grammar.right_sides[0][:, 0].tolist()), -np.log(grammar.roots.probability), strict=True))
    strings = grammar.strings("validation", 0, 2 * STRINGS_PER_BLOCK)
    assert np.mean([nats[string] for string in map(tuple, strings.tolist())]) / 3 == pytest.approx(
        grammar.entropy_rate, abs=1e-4
    )


def test_published_lexicon():
    assert make_grammar(GrammarConfig(), vocab_size=64).entropy_rate == pytest.approx(1.7670, abs=5e-5)


@pytest.mark.parametrize("config", [LEXICON, HIERARCHY], ids=["lexicon", "hierarchy"])
def test_best_predictor_of_windows_has_the_entropy_as_its_loss(config, tmp_path):
    data = DataConfig(source="grammar", grammar=config, vocab_size=7, directory=str(tmp_path))
    corpus = open_corpus(prepare(data, progress=False))
    grammar = make_grammar(config, vocab_size=7)
    prefixes = conditional(distribution(grammar))
    length, per_string = 3 * grammar.tokens_per_string, grammar.tokens_per_string

    losses = []
    for window in validation_windows(corpus, length, 30_000)[:]:
        strings = [tuple(window[i : i + per_string]) for i in range(0, length, per_string)]
        strings.append(tuple(window[length:]))
        total = -sum(math.log(prefixes[string] / prefixes[()]) for string in strings)
        losses.append((total + math.log(prefixes[strings[0][:1]])) / length)  # the first token is no target
    error = np.std(losses) / math.sqrt(len(losses))
    assert abs(np.mean(losses) - grammar.entropy_rate) < 4 * error < 0.05
    assert corpus.manifest.language is not None
    assert corpus.manifest.language.entropy_rate == grammar.entropy_rate


def test_strings_depend_on_seed_and_place_alone():
    grammar = make_grammar(HIERARCHY, vocab_size=7)
    whole = grammar.strings("train", 0, STRINGS_PER_BLOCK + 100)
    assert np.array_equal(grammar.strings("train", STRINGS_PER_BLOCK - 5, STRINGS_PER_BLOCK + 5), whole[-105:-95])
    pieces = np.concatenate(list(token_blocks(grammar, "train", 6 * STRINGS_PER_BLOCK + 7)))
    assert len(pieces) == 6 * STRINGS_PER_BLOCK + 12  # whole strings
    assert np.array_equal(pieces, whole.reshape(-1)[: len(pieces)])
    assert not np.array_equal(grammar.strings("validation", 0, 50), whole[:50])
    other = make_grammar(replace(HIERARCHY, seed=1), vocab_size=7)
    assert not np.array_equal(other.strings("train", 0, 50), whole[:50])


def test_draws_have_the_probabilities():
    for choice in (zipf(1, 1.0), zipf(5, 0.0), zipf(1000, 1.2)):
        n = len(choice.probability)
        share = (choice.threshold.astype(float) + 1) / 2**32
        met = share + np.bincount(choice.alias, weights=1 - share, minlength=n)
        assert np.allclose(met / n, choice.probability, atol=1e-9)
    grammar = make_grammar(HIERARCHY, vocab_size=7)
    strings = distribution(grammar)
    drawn = grammar.strings("train", 0, 50_000)
    expected = {string: 50_000 * p for string, p in strings.items()}
    found: dict[tuple[int, ...], int] = defaultdict(int)
    for string in map(tuple, drawn.tolist()):
        found[string] += 1
    assert set(found) <= set(expected)
    chi = sum((found[s] - e) ** 2 / e for s, e in expected.items())
    assert abs(chi - len(expected)) < 5 * math.sqrt(2 * len(expected))


def test_a_longer_corpus_begins_with_the_shorter(tmp_path):
    data = DataConfig(source="grammar", grammar=LEXICON, vocab_size=7, directory=str(tmp_path), shard_tokens=4_000)
    short = open_corpus(prepare(data, progress=False))
    longer = replace(data, grammar=replace(LEXICON, tokens=12_000))
    long = open_corpus(prepare(longer, progress=False))
    assert len(short.manifest.train.shards) == 3
    assert short.directory != long.directory
    assert np.array_equal(short.train.read(0, 9_000), long.train.read(0, 9_000))
    windows = batch(short, seed=3, step=2, global_batch_size=8, sequence_length=6)
    assert windows.shape == (8, 7)
    assert windows.max() < 7


def test_speller_learns_with_the_published_exponents():
    grammar = make_grammar(GrammarConfig(), vocab_size=64)
    known = np.array([0.0, 30.0, 1_000.0, 32_768.0])
    excess = excess_of_speller(grammar, known)
    assert excess[0] == pytest.approx(math.log(64) - grammar.entropy_rate)  # knows nothing: every token as likely
    assert excess[-1] == pytest.approx(0, abs=1e-9)
    ks = np.array([30.0, 100.0, 300.0, 1_000.0])
    slopes = -np.diff(np.log(excess_of_speller(grammar, ks))) / np.diff(np.log(ks))
    assert np.all((slopes > 0.4) & (slopes < 0.6))
    assert np.all(np.diff(slopes) > 0)  # a finite lexicon is used up
    halfway = np.sqrt(np.prod(excess_of_speller(grammar, np.array([100.0, 101.0]))))
    slope = -np.diff(np.log(excess_of_speller(grammar, np.array([100.0, 101.0])))) / math.log(1.01)
    assert exponent_of_speller(grammar, np.array([halfway])) == pytest.approx(slope, rel=0.01)
    assert np.isnan(exponent_of_speller(grammar, np.array([3.0]))).all()  # more than a speller of one word misses
    with pytest.raises(ValueError, match="lexicon"):
        excess_of_speller(make_grammar(HIERARCHY, vocab_size=7), known)


@pytest.mark.parametrize(
    ("levels", "vocab_size", "message"),
    [
        ([{"symbols": 100, "length": 2}], 7, r"levels.0.symbols: 100 x 1 rules .* 7\^2 = 49"),
        ([{"symbols": 3, "length": 1, "rules": 2}, {"symbols": 5, "length": 2}], 7, r"levels.0.symbols: 3 x 2 rules"),
        ([{"symbols": 3, "length": 40}], 64, r"levels.0.length: 64\^40 .* 2\^62"),
        ([], 64, r"levels: needs at least one"),
        ([{"symbols": 3, "length": 2, "exponent": -1}], 64, r"levels.0.exponent: -1.0 must not be negative"),
    ],
)
def test_impossible_grammars_are_refused(levels, vocab_size, message):
    with pytest.raises(ConfigError, match=message):
        build(DataConfig, {"source": "grammar", "vocab_size": vocab_size, "grammar": {"levels": levels}}, "x.yaml")


def test_windows_of_parts_of_strings_are_refused():
    tree = {
        "model": {"n_layer": 1, "d_model": 8, "n_head": 1},
        "data": {"source": "grammar", "vocab_size": 64},
        "train": {"sequence_length": 64, "global_batch_size": 1, "micro_batch_size": 1, "steps": 1},
        "optimizer": {"lr": 0.01},
    }
    with pytest.raises(ConfigError, match=r"train.sequence_length: 64 is no multiple of the 3 tokens .* nearest is 63"):
        build(RunConfig, expand_run(tree), "x.yaml")


def test_keys_of_text_are_refused_beside_a_grammar():
    tree = {"source": "grammar", "vocab_size": 64, "subsample": 0.5, "tokenizer": "x.json"}
    with pytest.raises(ConfigError) as caught:
        build(DataConfig, tree, "x.yaml")
    assert [problem.key for problem in caught.value.problems] == ["subsample", "tokenizer"]
    mixture = {"words": {"source": "grammar", "weight": 0.5}, "code": {}}
    with pytest.raises(ConfigError, match=r"mixture.words.source: grammar makes tokens"):
        build(DataConfig, {"mixture": mixture}, "x.yaml")
