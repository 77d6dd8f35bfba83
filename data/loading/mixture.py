"""What a run reads: one corpus, or several mixed in fixed proportions.

Which component a sequence comes from depends on its number in the run alone (step * global_batch_size + row), whatever
the seed and the topology. Proportions are exact at every moment: the components are the leaves of a binary tree, and
each node sends every sequence to the side that is behind its share, by rounding. After n sequences a component of
weight w has had n w of them up to half a sequence for each level of the tree: 1/2 for two components, 1 for three or
four.

Within a component, sequences follow its own epochs, as if it were trained on alone (data/loading/batches.py).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from pathlib import Path

import numpy as np

from data.config import DataConfig, DataError, TextConfig
from data.corpus.documents import Tally, documents
from data.corpus.duplicates import duplicates_of
from data.corpus.prepare import exclusive, head_documents, name_hash, prepare
from data.corpus.shards import Corpus, open_corpus
from data.corpus.sources import open_source
from data.corpus.tokenizer import train
from data.files import write_text
from data.loading.batches import Repetition, read_windows, repetition, sequences

SHARES = 2**30  # weights are whole multiples of 1 / SHARES, so that proportions are exact integer arithmetic


@dataclass(frozen=True)
class Component:
    """A corpus and its share of the training sequences, in units of 1 / SHARES."""

    name: str
    corpus: Corpus
    share: int

    @property
    def weight(self) -> float:
        """Share of the training sequences, between 0 and 1."""
        return self.share / SHARES


@dataclass(frozen=True)
class Mixture:
    """The corpora of a run, in alphabetical order of their names; `components` is one where nothing is mixed."""

    components: tuple[Component, ...]

    @property
    def vocab_size(self) -> int:
        """Tokens in the vocabulary that all components share."""
        return self.components[0].corpus.vocab_size

    @property
    def name(self) -> str:
        """The names of the corpora's directories."""
        return "+".join(component.corpus.directory.name for component in self.components)

    @property
    def fingerprint(self) -> str:
        """Hash of all tokens in order and, in a mixture, of the weights; equal fingerprints train alike."""
        if len(self.components) == 1:
            return self.components[0].corpus.fingerprint
        parts = [f"{c.name}:{c.share}:{c.corpus.fingerprint}" for c in self.components]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def open_mixture(config: DataConfig, progress: bool = True, verify: bool = True) -> Mixture:
    """Open the corpora of a run, preparing those that are not there; arguments as for `prepare` and `open_corpus`.

    Raises `DataError` when text, a tokenizer or a corpus cannot be used, or prepared components differ in tokenizer.
    """
    corpora = {name: open_corpus(prepare(c, progress), verify) for name, c in components(config, progress).items()}
    tokenizers = {corpus.manifest.tokenizer.sha256: name for name, corpus in corpora.items()}
    if len(tokenizers) > 1:
        names = " and ".join(f"'{name}'" for name in list(tokenizers.values())[:2])
        raise DataError(
            f"data.mixture: {names} are tokenised differently; set data.tokenizer to the tokenizer.json of the "
            "prepared one, or prepare both anew from their text"
        )
    shares = _shares(list(config.weights.values())) if config.mixture else [SHARES]
    return Mixture(tuple(Component(*part) for part in zip(corpora, corpora.values(), shares, strict=True)))


def components(config: DataConfig, progress: bool = True) -> dict[str, DataConfig]:
    """Return what each component's corpus is prepared from, by name; the shared tokenizer is trained if need be."""
    if not config.mixture:
        return {"corpus": config}
    keys = [field.name for field in fields(TextConfig)]
    parts = {
        name: replace(config, mixture={}, **{key: getattr(config.mixture[name], key) for key in keys})
        for name in sorted(config.mixture)
    }
    if config.tokenizer is None and any(_has_text(part) for part in parts.values()):
        tokenizer = str(_shared_tokenizer(parts, progress))
        parts = {name: replace(part, tokenizer=tokenizer) for name, part in parts.items()}
    return parts


def _shared_tokenizer(parts: dict[str, DataConfig], progress: bool) -> Path:
    """Train a tokenizer on an equal share of training text of each part; it knows neither weights nor fractions."""
    wholes = [
        replace(part, subsample=1.0, tokenizer_bytes=max(1, part.tokenizer_bytes // len(parts)))
        for part in parts.values()
        if _has_text(part)
    ]
    sources = [open_source(part) for part in wholes]
    names = [name_hash(part, source) for part, source in zip(wholes, sources, strict=True)]
    directory = Path(wholes[0].directory)
    path = directory / f"tokenizer-{hashlib.sha256(' '.join(names).encode()).hexdigest()[:12]}.json"
    if path.is_file():
        return path
    with exclusive(directory / f".{path.stem}.lock", progress):
        if not path.is_file():
            texts = (
                head_documents(part, documents(source.texts(), source.max_bytes, duplicates_of(part), Tally()))[1]
                for part, source in zip(wholes, sources, strict=True)
            )
            tokenizer = train(chain.from_iterable(texts), wholes[0].vocab_size)
            write_text(path, tokenizer.to_json())
    return path


def _has_text(config: DataConfig) -> bool:
    return config.source not in ("prepared", "grammar")


def _shares(weights: Sequence[float]) -> list[int]:
    """Round weights that sum to 1 to whole shares that sum to SHARES."""
    ends = [round(SHARES * total) for total in np.cumsum(weights)]
    return [int(share) for share in np.diff([0, *ends[:-1], SHARES])]


def allocate(sequence: np.ndarray, shares: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return which component each of `sequence` (n,) comes from, and its number within that component: int64 (n,)."""
    which = np.zeros(len(sequence), dtype=np.int64)
    if len(shares) == 1:
        return which, sequence
    middle, total = len(shares) // 2, max(1, sum(shares))
    left = sum(shares[:middle])
    before, after = ((n * left + total // 2) // total for n in (sequence, sequence + 1))
    number = np.empty_like(sequence)
    sides = (after > before, before, shares[:middle], 0), (after == before, sequence - before, shares[middle:], middle)
    for here, numbers, inner, first in sides:
        inside, number[here] = allocate(numbers[here], inner)
        which[here] = first + inside
    return which, number


def allocated(count: int, shares: Sequence[int]) -> list[int]:
    """Return how many of the first `count` sequences each component has."""
    if len(shares) == 1:
        return [count]
    middle, total = len(shares) // 2, max(1, sum(shares))
    left = (count * sum(shares[:middle]) + total // 2) // total
    return allocated(left, shares[:middle]) + allocated(count - left, shares[middle:])


def training_windows(
    mixture: Mixture, seed: int, step: int, global_batch_size: int, sequence_length: int, rows: slice | None = None
) -> np.ndarray:
    """Return rows of the global batch of a step: int64, shape (rows, S + 1), inputs [:, :-1], targets [:, 1:].

    Raises `DataError` when the training split of a component does not fill one window.
    """
    which, number = allocate(sequences(step, global_batch_size, rows), [c.share for c in mixture.components])
    out = np.empty((len(which), sequence_length + 1), dtype=np.int64)
    for i, component in enumerate(mixture.components):
        here = which == i
        if here.any():
            out[here] = read_windows(component.corpus, seed, number[here], sequence_length)
    return out


def repetitions(mixture: Mixture, sequence_length: int, tokens: int) -> dict[str, Repetition]:
    """Return how often a run of `tokens` training tokens repeats each component, by name."""
    counts = allocated(tokens // sequence_length, [c.share for c in mixture.components])
    return {
        component.name: repetition(component.corpus, sequence_length, count * sequence_length)
        for component, count in zip(mixture.components, counts, strict=True)
    }
