"""What text to train on and how to tokenise it."""

import math
import re
from collections.abc import Iterator
from dataclasses import field, fields
from typing import Literal

from configs.reader import Count, UserError, config

BYTE_VOCABULARY = 257  # 256 bytes and the end-of-text token: the smallest byte-level vocabulary


class DataError(UserError):
    """Text, a tokenizer or a prepared corpus that cannot be used; the message says why and what to do."""


@config
class LevelConfig:
    """One level of a grammar: its symbols, and how each is rewritten as symbols of the next level."""

    symbols: Count
    """Different symbols of this level; the first level's are the roots."""
    length: Count
    """Symbols of the next level, or tokens, that one symbol becomes."""
    rules: Count = 1
    """Ways to rewrite each symbol."""
    exponent: float = 0.0
    """Rule r of a symbol is chosen with probability ~ r^-exponent; 0 makes them equally likely."""


@config
class GrammarConfig:
    """A generated language with a known entropy per token (`data/corpus/grammar.py`)."""

    levels: tuple[LevelConfig, ...] = (LevelConfig(symbols=32_768, length=3),)
    """From the roots to the tokens. As given: a lexicon of 32,768 words of 3 tokens."""
    root_exponent: float = 1.2
    """Root r is chosen with probability ~ r^-root_exponent."""
    tokens: Count = 2**24
    """Training tokens that are made. A larger number has the smaller's tokens at its beginning."""
    validation_tokens: Count = 983_040
    """Tokens of other strings of the same language, to validate on. Whole blocks of 32,768 strings are most precise."""
    seed: int = 0
    """Draws the words and the text. The order of training is the run's seed, not this one."""

    @property
    def tokens_per_string(self) -> int:
        """T: tokens of every string; windows of training must be multiples of it."""
        return math.prod(level.length for level in self.levels)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (key, message) for every value that cannot work."""
        if not self.levels:
            yield "levels", "needs at least one level"
        numbers = {f"levels.{i}.exponent": level.exponent for i, level in enumerate(self.levels)}
        for key, value in (numbers | {"root_exponent": self.root_exponent, "seed": self.seed}).items():
            if value < 0:
                yield key, f"{value} must not be negative"


# The keys of `data` that a generated language reads.
_READ_BY_GRAMMAR = ("source", "grammar", "vocab_size", "shard_tokens", "directory", "mixture")


@config
class TextConfig:
    """Where text comes from and which of it is taken."""

    source: Literal["python_source", "files", "hub", "prepared", "grammar"] = "python_source"
    """Where the text comes from.

    `python_source`: the Python sources of the running interpreter (real text that every machine has). `files`: local
    files. `hub`: a data set of the Hugging Face hub. `prepared`: a corpus that is prepared already. `grammar`: a
    generated language whose entropy per token is known; of the keys below only `grammar`, `vocab_size`, `shard_tokens`
    and `directory` apply to it.
    """

    grammar: GrammarConfig | None = None
    """For `grammar`: the language; None is a lexicon of 32,768 words."""

    part: Literal["all", "stdlib", "site"] = "all"
    """For `python_source`: all modules, those of the standard library, or those of the installed packages."""

    files: tuple[str, ...] = ()
    """For `files`: paths or globs, from the working directory, of .txt, .jsonl, .csv, .tsv or .parquet files.

    They may be compressed: .gz, .bz2, .xz or .zst.
    """

    dataset: str | None = None
    """For `hub`: the data set's id, such as `roneneldan/TinyStories`, or a local data set directory."""

    subset: str | None = None
    """For `hub`: the name of the data set's configuration, where it has several."""

    revision: str | None = None
    """For `hub`: the commit, branch or tag to read. None takes the newest and records its commit."""

    split: str = "train"
    """For `hub`: the split to read."""

    text_field: str = "text"
    """The column or key that holds the text of a document (not used for .txt files)."""

    text_unit: Literal["file", "paragraph", "line"] = "file"
    """For .txt files and `python_source`: what one document is. A paragraph ends at an empty line."""

    streaming: bool = True
    """For `hub`: read while downloading, so that `max_bytes` bounds the download. False downloads all first."""

    prepared: str | None = None
    """For `prepared`: the directory of the corpus. `vocab_size` must match it; the other keys are ignored."""

    max_bytes: int | None = None
    """Take whole documents, in order, up to this many UTF-8 bytes. None takes all, and 32 MB of `python_source`."""

    transform: str | None = None
    """`module:function` that maps the text of a document to the text that is used, empty to drop it; see docs/data.md.

    It is applied once, when the corpus is prepared. Its module's source is part of the corpus's identity.
    """

    deduplicate: Literal["none", "exact", "near"] = "exact"
    """Drop documents that were seen before.

    `exact`: those with the same text, up to case and white space (100 bytes of memory a document). `near`: also those
    that share most of their 5-word sequences with an earlier one (about 3 kB a document; see
    data/corpus/duplicates.py).
    """

    duplicate_threshold: float = 0.8
    """For `near`: estimated Jaccard similarity of the 5-word sequences from which a document is a duplicate."""

    subsample: float = 1.0
    """Share of the training documents that is used, chosen by a hash of their text: the smaller is part of the larger.

    The held-out documents and the tokenizer are those of the whole text, whatever the subsample.
    """

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (key, message) for every value that cannot work."""
        for source, key in (("files", "files"), ("hub", "dataset"), ("prepared", "prepared")):
            given = getattr(self, key)
            if self.source == source and not given:
                yield key, f"is required with source: {source}"
            if given and self.source != source:
                yield key, f"is given but source is '{self.source}'; set source: {source}"
        for key, source in (("subset", "hub"), ("revision", "hub"), ("part", "python_source")):
            if getattr(self, key) not in (None, "all") and self.source != source:
                yield key, f"applies to source: {source}, and source is '{self.source}'"
        if self.grammar is not None and self.source != "grammar":
            yield "grammar", f"is given but source is '{self.source}'; set source: grammar"
        if self.max_bytes is not None and self.max_bytes < 1:
            yield "max_bytes", f"{self.max_bytes} is below 1"
        if self.transform is not None and not re.fullmatch(r"[\w.]+:\w+", self.transform):
            yield "transform", f"'{self.transform}' does not name a function; write module:function"
        for key in ("subsample", "duplicate_threshold"):
            if not 0 < getattr(self, key) <= 1:
                yield key, f"{getattr(self, key)} is not above 0 and at most 1"


@config
class ComponentConfig(TextConfig):
    """One component of a mixture: its text, and how much of training it is."""

    weight: float | None = None
    """Share of the training sequences; 0 trains on none of it and still measures the loss on it.

    All weights sum to 1. One component may leave its weight out and takes what the others leave.
    """


@config
class DataConfig(TextConfig):
    """The text, the tokenizer and the split into training and validation documents."""

    mixture: dict[str, ComponentConfig] = field(default_factory=dict, hash=False)
    """Several texts in given proportions: name -> where it comes from and its weight. See docs/data.md.

    Then the keys above are given for each component, and not beside `mixture`. All share one tokenizer, trained on
    as much text of each whatever the weights, so that losses under different weights are comparable.
    """

    subset_seed: int = 0
    """Chooses which documents `subsample` keeps."""

    validation_fraction: float = 0.02
    """Share of the documents, chosen by a hash of their text, that is held out for validation."""

    seed: int = 0
    """Chooses which documents are held out. The order of training is the run's seed, not this one."""

    vocab_size: int = 1024
    """Number of tokens in the vocabulary, the end-of-text token included (at least 257); null: those of `tokenizer`."""

    tokenizer: str | None = None
    """Path of a byte-level `tokenizer.json` to use. None trains one on the training documents."""

    tokenizer_bytes: int = 10_000_000
    """How many UTF-8 bytes of training text the tokenizer is trained on (about 2 s per 10 MB)."""

    shard_tokens: int = 2**25
    """Tokens in a shard file; 2^25 tokens are 64 MiB for vocabularies up to 65,536."""

    directory: str = "corpora"
    """Where prepared corpora are kept, one directory each."""

    @property
    def weights(self) -> dict[str, float]:
        """Share of each component, names in alphabetical order; empty without a mixture."""
        given = {name: self.mixture[name].weight for name in sorted(self.mixture)}
        left = 1 - sum(weight for weight in given.values() if weight is not None)
        return {name: left if weight is None else weight for name, weight in given.items()}

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (key, message) for every value that cannot work."""
        yield from super().problems()
        yield from self._mixture_problems()
        if self.source == "grammar":
            for key in (f.name for f in fields(DataConfig) if f.name not in _READ_BY_GRAMMAR):
                if getattr(self, key) != getattr(DataConfig(), key):
                    yield key, "does not apply to source: grammar; leave it out"
            yield from self._grammar_problems()
        if self.source != "grammar" and self.vocab_size < BYTE_VOCABULARY:
            message = f"{self.vocab_size} is below {BYTE_VOCABULARY}, the 256 bytes and the end-of-text token"
            yield "vocab_size", message
        if self.vocab_size > 2**31:
            yield "vocab_size", f"{self.vocab_size} is above 2^31"
        if not 0 < self.validation_fraction < 1:
            yield "validation_fraction", f"{self.validation_fraction} is not between 0 and 1; usual is 0.02"
        for key in ("tokenizer_bytes", "shard_tokens"):
            if getattr(self, key) < 1:
                yield key, f"{getattr(self, key)} is below 1"

    def _mixture_problems(self) -> Iterator[tuple[str, str]]:
        if not self.mixture:
            return
        for key in (f.name for f in fields(TextConfig) if f.name != "source"):
            if getattr(self, key) != getattr(TextConfig(), key):
                yield key, "is given beside a mixture; give it to the components, as in mixture.NAME." + key
        for name, component in self.mixture.items():
            if not re.fullmatch(r"[A-Za-z]\w*", name):
                yield f"mixture.{name}", "is not a name; use letters, digits and '_', starting with a letter"
            if component.source == "grammar":
                yield f"mixture.{name}.source", "grammar makes tokens, not text, and cannot be mixed; take a text"
            for key, message in component.problems():
                yield f"mixture.{name}.{key}", message
            if component.weight is not None and not 0 <= component.weight <= 1:
                yield f"mixture.{name}.weight", f"{component.weight} is not between 0 and 1"
        open_ends = [name for name, component in self.mixture.items() if component.weight is None]
        total = sum(component.weight or 0.0 for component in self.mixture.values())
        if len(open_ends) > 1:
            yield "mixture", f"{' and '.join(open_ends)} have no weight; only one may be left out"
        elif abs(total - 1) > 1e-6 and (total > 1 or not open_ends):
            yield "mixture", f"the weights sum to {total:g}, not to 1; leave one out to let it take the rest"

    @property
    def language(self) -> GrammarConfig:
        """The language of `source: grammar`."""
        return self.grammar or GrammarConfig()

    def _grammar_problems(self) -> Iterator[tuple[str, str]]:
        """Yield what is wrong with the sizes of the levels: right-hand sides must all differ."""
        if self.vocab_size < 2:
            yield "vocab_size", f"{self.vocab_size} must be at least 2"
            return
        sizes = [level.symbols for level in self.language.levels] + [self.vocab_size]
        for i, (level, size) in enumerate(zip(self.language.levels, sizes[1:], strict=True)):
            wanted, there = level.symbols * level.rules, size**level.length
            if there > 2**62:
                yield f"grammar.levels.{i}.length", f"{size}^{level.length} right-hand sides are more than 2^62"
            elif wanted > there:
                message = f"{level.symbols} x {level.rules} rules need as many different right-hand sides"
                yield f"grammar.levels.{i}.symbols", f"{message}; there are {size}^{level.length} = {there:,}"
