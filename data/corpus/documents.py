"""Turn raw text into the corpus's documents: clean, unique, capped, and each on one side of the split."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from data.config import DataConfig
from data.corpus.duplicates import Duplicates


@dataclass(frozen=True)
class Document:
    """One document: its text, its size in UTF-8 bytes and a 16-byte hash of those."""

    text: str
    size: int
    digest: bytes


@dataclass
class Tally:
    """What became of the raw texts of a source: counts of documents, and `bytes` of UTF-8 that were kept."""

    kept: int = 0
    bytes: int = 0
    empty: int = 0
    duplicate: int = 0
    near_duplicate: int = 0
    capped: bool = False
    sha256: str = ""
    """Hash of the kept documents in their order, each with that of those before it: the identity of the text."""


def documents(texts: Iterable[str], max_bytes: int | None, duplicates: Duplicates, tally: Tally) -> Iterator[Document]:
    """Yield the documents of `texts`, whole and in order, until the next one would exceed `max_bytes`."""
    for text in texts:
        if not text.strip():
            tally.empty += 1
            continue
        try:
            raw = text.encode()
        except UnicodeEncodeError:  # a lone surrogate, as JSON allows: no UTF-8 stands for it
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            raw = text.encode()
        match duplicates.kind(text):
            case "exact":
                tally.duplicate += 1
                continue
            case "near":
                tally.near_duplicate += 1
                continue
        if max_bytes is not None and tally.bytes + len(raw) > max_bytes:
            tally.capped = True
            return
        digest = hashlib.blake2b(raw, digest_size=16).digest()
        tally.kept += 1
        tally.bytes += len(raw)
        tally.sha256 = hashlib.sha256(bytes.fromhex(tally.sha256) + digest).hexdigest()
        yield Document(text, len(raw), digest)


def split_position(document: Document, seed: int) -> float:
    """Place a document in [0, 1) by a hash of its text; equal texts get equal places.

    Documents below `validation_fraction` are held out, so a larger fraction only ever adds to the held-out set.
    """
    return _position(document, str(seed))


def is_validation(document: Document, config: DataConfig) -> bool:
    """Whether the document is held out for validation."""
    return split_position(document, config.seed) < config.validation_fraction


def is_left_out(document: Document, config: DataConfig) -> bool:
    """Whether the document is one of the training documents that `subsample` leaves out."""
    return config.subsample < 1 and _position(document, f"subset/{config.subset_seed}") >= config.subsample


def _position(document: Document, name: str) -> float:
    key = hashlib.blake2b(name.encode(), digest_size=16).digest()
    place = hashlib.blake2b(document.digest, key=key, digest_size=8).digest()
    return int.from_bytes(place, "big") / 2**64
