"""A language whose entropy is known: an unambiguous grammar with Zipf-weighted choices.

A string starts from a root, drawn with probability ~ rank^-exponent. On each level every symbol is rewritten as
`length` symbols of the next level by one of its `rules`, rule r with probability ~ r^-exponent; what the last level
becomes are the tokens. All right-hand sides of a level differ, so that a string has exactly one derivation, and

    H(string) = H(root) + sum_l n_l H(rule of level l)    nats,  n_l = number of level-l symbols in a string.

One level with one rule a root is a lexicon of Zipf-distributed words, whose loss falls as a power of what was learned
(Hutter 2021, arXiv 2102.04074; Michaud et al. 2023, arXiv 2303.13506). Exponents of 0 give the random hierarchy model
(Cagnetta et al. 2024, arXiv 2307.02129).

Strings are independent and all of T tokens. A window of k T tokens that starts with a string has as its targets the
last T - 1 tokens of its first string, k - 1 whole strings and the first token of the next one, which nothing before it
foretells: together the entropy of k strings. Windows that are multiples of T are therefore predicted at exactly
E = H(string) / T nats per token by the best possible model; of other windows this is not true, and they are refused.

Of a million tokens drawn at random, the best possible loss is .002 nats off E, as much as a tenth of what a large model
has left to learn. The roots of validation strings are therefore a systematic sample (Madow & Madow 1944): in each block
every root occurs as often as expected, to within one, and .00001 is left.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.config import GrammarConfig

STRINGS_PER_BLOCK = 2**15  # drawn at once: small enough that a block's arrays stay in the cache
_STREAMS = {"train": 0, "validation": 1}

Symbols = NDArray[np.uint32]


@dataclass(frozen=True)
class Choice:
    """A distribution over range(n) that is drawn from in constant time (Walker 1977, the alias method).

    `threshold` (n,) uint32 and `alias` (n,) uint32: a column is drawn uniformly, and stands for itself below its
    threshold and for its alias above. A probability is met to 2^-32 / n.
    """

    probability: NDArray[np.float64]
    threshold: NDArray[np.uint32]
    alias: NDArray[np.uint32]

    def draw(self, bits: NDArray[np.uint64]) -> Symbols:
        """Turn 64 random bits each into a choice, of the shape of `bits`."""
        column = ((bits >> np.uint64(32)) * np.uint64(len(self.alias)) >> np.uint64(32)).astype(np.uint32)
        own = bits.astype(np.uint32) <= self.threshold[column]
        return np.where(own, column, self.alias[column])

    def draw_evenly(self, count: int, generator: np.random.Generator) -> Symbols:
        """Draw each choice `count` times its probability, rounded up or down by chance, in random order."""
        places = (generator.permutation(count) + generator.random()) / count
        drawn = np.searchsorted(np.cumsum(self.probability), places, side="right")
        return np.minimum(drawn, len(self.probability) - 1).astype(np.uint32)

    @property
    def entropy(self) -> float:
        """Nats a draw."""
        return float(-(self.probability * np.log(self.probability)).sum())


def zipf(n: int, exponent: float) -> Choice:
    """Return the choice of rank r in 1..n with probability ~ r^-exponent (rank r is drawn as r - 1)."""
    weight = np.arange(1, n + 1, dtype=np.float64) ** -exponent
    probability = weight / weight.sum()
    share = probability * n
    threshold, alias = np.ones(n), np.arange(n)
    poor, rich = [i for i in range(n) if share[i] < 1], [i for i in range(n) if share[i] >= 1]
    while poor and rich:
        i, j = poor.pop(), rich[-1]
        threshold[i], alias[i] = share[i], j
        share[j] -= 1 - share[i]
        if share[j] < 1:
            poor.append(rich.pop())
    scaled = np.clip(np.round(threshold * 2.0**32) - 1, 0, 2**32 - 1)
    return Choice(probability, scaled.astype(np.uint32), alias.astype(np.uint32))


@dataclass(frozen=True)
class Grammar:
    """A grammar, drawn from its configuration's seed.

    `roots` chooses a root, `rules[l]` the rule of a level-l symbol. `right_sides[l]` (symbols of level l, rules,
    length) holds what they become: symbols of the next level.
    """

    config: GrammarConfig
    vocab_size: int
    roots: Choice
    rules: tuple[Choice, ...]
    right_sides: tuple[Symbols, ...]

    @property
    def tokens_per_string(self) -> int:
        """T."""
        return self.config.tokens_per_string

    @property
    def entropy_rate(self) -> float:
        """E in nats per token: what no model of windows that begin with a string can do better than."""
        nats, symbols = self.roots.entropy, 1
        for rule, right_side in zip(self.rules, self.right_sides, strict=True):
            nats += symbols * rule.entropy
            symbols *= right_side.shape[-1]
        return nats / symbols

    def strings(self, split: str, start: int, stop: int) -> Symbols:
        """Return strings [start, stop) of an endless stream, shape (stop - start, T).

        String i of a split depends on (seed, i) alone. Strings are made in whole blocks.
        """
        blocks = range(start // STRINGS_PER_BLOCK, -(-stop // STRINGS_PER_BLOCK))
        made = [self._block(split, block) for block in blocks]
        first = start - blocks.start * STRINGS_PER_BLOCK
        return np.concatenate(made or [np.empty((0, self.tokens_per_string), np.uint32)])[first : first + stop - start]

    def _block(self, split: str, block: int) -> Symbols:
        seeds = np.random.SeedSequence([self.config.seed, 1 + _STREAMS[split], block])
        bits = np.random.SFC64(seeds)
        if split == "validation":
            symbols = self.roots.draw_evenly(STRINGS_PER_BLOCK, np.random.Generator(bits))
        else:
            symbols = self.roots.draw(bits.random_raw(STRINGS_PER_BLOCK))
        symbols = symbols.reshape(STRINGS_PER_BLOCK, 1)
        for rule, right_side in zip(self.rules, self.right_sides, strict=True):
            count, options, length = right_side.shape
            if options > 1:
                symbols = symbols * np.uint32(options) + rule.draw(bits.random_raw(symbols.size).reshape(symbols.shape))
            symbols = np.take(right_side.reshape(count * options, length), symbols, axis=0)
            symbols = symbols.reshape(STRINGS_PER_BLOCK, -1)
        return symbols


def make_grammar(config: GrammarConfig, vocab_size: int) -> Grammar:
    """Draw the right-hand sides of a grammar over `vocab_size` tokens; equal arguments give equal grammars."""
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([config.seed, 0])))
    sizes = [level.symbols for level in config.levels] + [vocab_size]
    right_sides = []
    for level, size in zip(config.levels, sizes[1:], strict=True):
        codes = _distinct(generator, level.symbols * level.rules, size**level.length)
        places = size ** np.arange(level.length - 1, -1, -1, dtype=np.int64)
        digits = codes[:, None] // places % size
        right_sides.append(digits.astype(np.uint32).reshape(level.symbols, level.rules, level.length))
    return Grammar(
        config=config,
        vocab_size=vocab_size,
        roots=zipf(config.levels[0].symbols, config.root_exponent),
        rules=tuple(zipf(level.rules, level.exponent) for level in config.levels),
        right_sides=tuple(right_sides),
    )


def _distinct(generator: np.random.Generator, count: int, size: int) -> NDArray[np.int64]:
    """Return `count` different numbers below `size` in random order; `GrammarConfig` keeps size within 2^62."""
    if size <= 2**22:
        return generator.permutation(size)[:count].astype(np.int64)
    found = np.empty(0, dtype=np.int64)
    while len(found) < count:
        drawn = np.concatenate([found, generator.integers(size, size=2 * (count - len(found)) + 16)])
        _, first = np.unique(drawn, return_index=True)
        found = drawn[np.sort(first)]
    return found[:count]


def token_blocks(grammar: Grammar, split: str, tokens: int) -> Iterator[Symbols]:
    """Yield the first `tokens` tokens of a split, rounded up to whole strings, in flat pieces."""
    strings = -(-tokens // grammar.tokens_per_string)
    for start in range(0, strings, STRINGS_PER_BLOCK):
        yield grammar.strings(split, start, min(strings, start + STRINGS_PER_BLOCK)).reshape(-1)


def excess_of_speller(grammar: Grammar, known: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return L - E, in nats per token, of a learner of a lexicon who knows its `known` most frequent words alone.

    Those have their true probabilities. All others together have the probability that is left, and are spelled token by
    token, every token as likely as any: an unknown word of T tokens of V costs T ln V nats beyond the news that it is
    unknown. Where `known` grows in proportion to N, the slope of log(L - E) over log(N) is what the finite lexicon
    makes of a scaling exponent: .41 to .59 from 30 to 2,000 of 32,768 words of exponent 1.2, where an endless Zipf law
    r^-a would tend to a - 1.

    `known` are numbers of words, at most as many as there are; what lies between two whole ones is interpolated.
    Raises ValueError for a grammar that is no lexicon, which has one level with one rule.
    """
    if len(grammar.rules) != 1 or len(grammar.rules[0].probability) != 1:
        raise ValueError("only the words of a lexicon (one level, one rule) can be known one by one")
    p = grammar.roots.probability
    rest = np.append(np.cumsum(p[::-1])[::-1], 0.0)
    neg_entropy = np.append(np.cumsum((p * np.log(p))[::-1])[::-1], 0.0)
    spelling = grammar.tokens_per_string * math.log(grammar.vocab_size)
    excess = neg_entropy + rest * (spelling - np.log(np.maximum(rest, 1e-300)))
    return np.interp(known, np.arange(len(rest)), excess / grammar.tokens_per_string)


def exponent_of_speller(grammar: Grammar, excess: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the local exponent -d log(L - E) / d log(known words) of `excess_of_speller` where its L - E is `excess`.

    This is what the finite lexicon predicts of alpha, without a free constant, for a model whose L - E is as large, if
    the words it knows grow in proportion to N. Words that are told by how often they were read grow as D^(1/a) under a
    Zipf law r^-a, which predicts this over a for beta. Arguments and errors as there; NaN beyond what a speller of 1 to
    all words but one reaches.
    """
    known = np.geomspace(1, len(grammar.roots.probability) - 1, 2000)
    curve = np.log(excess_of_speller(grammar, known))
    exponent = -np.gradient(curve, np.log(known))
    return np.interp(np.log(excess), curve[::-1], exponent[::-1], left=np.nan, right=np.nan)
