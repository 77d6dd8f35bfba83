"""A prepared corpus on disk: token shards, the tokenizer, and the manifest that describes and checks them.

    NAME/train-00000.bin        token ids, little-endian, no header; uint16 where the vocabulary fits, else uint32
    NAME/validation-00000.bin
    NAME/tokenizer.json         for decoding; not needed to train
    NAME/token_bytes.bin        int32, UTF-8 bytes of every token
    NAME/manifest.json          written last

Every document is followed by one end-of-text token. Reading needs numpy alone.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from configs.reader import ConfigError, build, config
from data.config import DataError
from data.files import sha256, sync, tree_hash, write_bytes, write_json

SCHEMA = 1
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
TOKEN_BYTES = "token_bytes.bin"
_COUNTED = ("tokens", "documents", "bytes")  # of a shard and of a split


@config
class FileEntry:
    """A file of the corpus: its name, size in bytes and SHA-256."""

    file: str
    size: int
    sha256: str


@config
class Shard(FileEntry):
    """A token shard; `documents` counts the end-of-text tokens, `bytes` the UTF-8 bytes of the text."""

    tokens: int
    documents: int
    bytes: int


@config
class Split:
    """The shards of one split, in order, and their totals."""

    tokens: int
    documents: int
    bytes: int
    shards: tuple[Shard, ...]


@config
class TokenizerEntry:
    """The vocabulary; `trained_bytes` is the text it was trained on, 0 when it was given.

    A generated language has no end-of-text token, for its strings need none.
    """

    sha256: str
    vocab_size: int
    end_of_text: str | None
    end_of_text_id: int | None
    trained_bytes: int


@config
class Language:
    """Of a generated language: its entropy in nats per token, exact for windows of whole strings, and their tokens."""

    entropy_rate: float
    tokens_per_string: int


@config
class Contamination:
    """What of the validation split occurs word for word in the training split (data/corpus/contamination.py).

    `windows` is the share of its windows of `window_tokens` tokens that do; `documents` that of its documents of which
    at least half the windows do, among those that are as long as a window.
    """

    window_tokens: int
    windows: float
    documents: float


@config
class Manifest:
    """What a corpus directory holds and where that came from."""

    schema: Literal[1]
    name: str
    dtype: Literal["uint16", "uint32"]
    tokenizer: TokenizerEntry
    train: Split
    validation: Split
    files: tuple[FileEntry, ...]
    source: dict[str, Any]
    documents_sha256: str
    dropped: dict[str, int]
    config: dict[str, Any]
    versions: dict[str, str]
    language: Language | None = None
    contamination: Contamination | None = None

    @property
    def fingerprint(self) -> str:
        """Hash of the vocabulary and all tokens in order; two corpora with equal fingerprints train alike."""
        parts = [self.tokenizer.sha256, self.dtype]
        parts += [f"{s.tokens}:{s.sha256}" for split in (self.train, self.validation) for s in split.shards]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (key, message) where the manifest contradicts itself."""
        end_of_text_id = self.tokenizer.end_of_text_id
        if end_of_text_id is not None and not 0 <= end_of_text_id < self.tokenizer.vocab_size:
            yield "tokenizer.end_of_text_id", "is not in the vocabulary"
        if self.tokenizer.vocab_size > np.iinfo(self.dtype).max + 1:
            yield "dtype", f"'{self.dtype}' cannot hold {self.tokenizer.vocab_size} tokens"
        for name, split in (("train", self.train), ("validation", self.validation)):
            for key in _COUNTED:
                if getattr(split, key) != sum(getattr(shard, key) for shard in split.shards):
                    yield f"{name}.{key}", "is not the sum over the shards"
            for shard in split.shards:
                if shard.size != shard.tokens * np.dtype(self.dtype).itemsize:
                    yield f"{name}.shards", f"'{shard.file}' has a size that does not match its tokens"
        if {entry.file for entry in self.files} != {TOKENIZER, TOKEN_BYTES}:
            yield "files", f"must list {TOKENIZER} and {TOKEN_BYTES}"
        for entry in (*self.train.shards, *self.validation.shards, *self.files):
            if entry.file in ("", ".", "..") or set(entry.file) & set("/\\\0"):
                yield "files", f"{entry.file!r} is not the name of a file of the corpus"


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write `manifest.json` with a hash of itself, and sync it to disk."""
    tree = asdict(manifest)
    write_json(directory / MANIFEST, tree | {"sha256": tree_hash(tree)})


def read_manifest(directory: Path) -> Manifest:
    """Read and check `manifest.json`. Raises `DataError` when it is missing, damaged or of another schema."""
    path = directory / MANIFEST
    if not directory.is_dir():
        raise DataError(f"there is no prepared corpus at '{directory}'; make it with scripts/prepare.py")
    if not path.is_file():
        raise DataError(f"'{directory}' has no {MANIFEST}, so it is not a whole corpus; delete it and prepare it again")
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"'{path}' is damaged ({_line(error)}); delete '{directory}' and prepare it again") from None
    if not isinstance(tree, dict) or tree.get("schema") != SCHEMA:
        found = tree.get("schema") if isinstance(tree, dict) else None
        raise DataError(f"'{path}' has schema {found!r} and this version reads {SCHEMA}; prepare the corpus again")
    stored = tree.pop("sha256", None)
    if stored != tree_hash(tree):
        raise DataError(f"'{path}' was changed after it was written; delete '{directory}' and prepare it again")
    try:
        return build(Manifest, tree, str(path))
    except ConfigError as error:
        raise DataError(_line(error)) from None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def write_file(path: Path, content: bytes) -> FileEntry:
    """Write a small file of the corpus and return its manifest entry."""
    write_bytes(path, content)
    return FileEntry(file=path.name, size=len(content), sha256=hashlib.sha256(content).hexdigest())


class SplitWriter:
    """Appends tokens to the shards of one split, behind what `state` says; `close` returns their manifest entry."""

    def __init__(
        self,
        directory: Path,
        split: str,
        dtype: np.dtype[Any],
        shard_tokens: int,
        token_bytes: np.ndarray,
        end_of_text_id: int | None,
        state: dict[str, Any] | None = None,
    ) -> None:
        self._directory, self._split, self._dtype = directory, split, dtype
        self._shard_tokens, self._token_bytes, self._end_of_text_id = shard_tokens, token_bytes, end_of_text_id
        begin = state or {"shards": []}
        self._shards = [Shard(**shard) for shard in begin["shards"]]
        self._open(**{key: begin[key] for key in _COUNTED if key in begin})

    @property
    def complete_shards(self) -> int:
        """Shards that are full."""
        return len(self._shards)

    def _open(self, tokens: int = 0, documents: int = 0, bytes: int = 0) -> None:
        """Begin the next shard, or go on with one that has so much; what was written later is cut off."""
        self._tokens, self._documents, self._bytes = tokens, documents, bytes
        self._name = f"{self._split}-{len(self._shards):05d}.bin"
        self._file = (self._directory / self._name).open("r+b" if tokens else "w+b")
        self._file.truncate(tokens * self._dtype.itemsize)
        self._hash = hashlib.sha256(self._file.read())

    def write(self, tokens: np.ndarray) -> None:
        """Append a 1-D array of token ids."""
        while len(tokens):
            if self._tokens == self._shard_tokens:
                self._finish()
                self._open()
            part, tokens = np.split(tokens, [self._shard_tokens - self._tokens])
            raw = part.astype(self._dtype).tobytes()
            self._file.write(raw)
            self._hash.update(raw)
            self._tokens += len(part)
            if self._end_of_text_id is not None:
                self._documents += int(np.count_nonzero(part == self._end_of_text_id))
            self._bytes += int(self._token_bytes[part].sum(dtype=np.int64))

    def _finish(self) -> None:
        with self._file as file:
            sync(file)
        size = self._tokens * self._dtype.itemsize
        self._shards.append(Shard(file=self._name, size=size, sha256=self._hash.hexdigest(), **self._counts()))

    def _counts(self) -> dict[str, int]:
        return {"tokens": self._tokens, "documents": self._documents, "bytes": self._bytes}

    def state(self) -> dict[str, Any]:
        """Sync what has been written, and return what another writer needs to go on behind it."""
        sync(self._file)
        return {"shards": [asdict(shard) for shard in self._shards], **self._counts()}

    def close(self) -> Split:
        """Finish the last shard and return the split's shards and totals."""
        self._finish()
        totals = {key: sum(getattr(s, key) for s in self._shards) for key in _COUNTED}
        return Split(shards=tuple(self._shards), **totals)


@dataclass(frozen=True)
class TokenStream:
    """The tokens of one split as one sequence over memory-mapped shards.

    `starts` (shards + 1,) holds the position of every shard's first token, then the total.
    """

    shards: tuple[np.ndarray, ...]
    starts: np.ndarray

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the tokens [start, stop) as int64, shape (stop - start,)."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"tokens [{start}, {stop}) of {len(self)}")
        out = np.empty(stop - start, dtype=np.int64)
        shard = int(np.searchsorted(self.starts, start, side="right")) - 1
        done = 0
        while done < len(out):
            offset = start + done - int(self.starts[shard])
            part = self.shards[shard][offset : offset + len(out) - done]
            out[done : done + len(part)] = part
            done += len(part)
            shard += 1
        return out


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus, opened for reading.

    `token_bytes` (vocab_size,) int32 holds the UTF-8 bytes of every token; the end-of-text token has none.
    """

    directory: Path
    manifest: Manifest
    vocab_size: int
    end_of_text_id: int | None
    token_bytes: np.ndarray
    train: TokenStream
    validation: TokenStream

    @property
    def fingerprint(self) -> str:
        """That of the manifest; store it with a run and compare it on resume."""
        return self.manifest.fingerprint


def open_corpus(directory: Path | str, verify: bool = True) -> Corpus:
    """Open a prepared corpus.

    Args:
        directory: what `prepare` returned.
        verify: check every file's SHA-256 (once per process and file; about 1 s per GB and core). Sizes are
            checked in any case.

    Raises `DataError` naming the file that is missing or damaged.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    entries = (*manifest.files, *manifest.train.shards, *manifest.validation.shards)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for problem in pool.map(lambda entry: _damage(directory, entry, verify), entries):
            if problem:
                raise DataError(f"{problem}; delete '{directory}' and prepare it again")
    token_bytes = np.fromfile(directory / TOKEN_BYTES, dtype="<i4")
    if len(token_bytes) != manifest.tokenizer.vocab_size:
        raise DataError(f"'{directory / TOKEN_BYTES}' does not match the vocabulary; prepare the corpus again")
    return Corpus(
        directory=directory,
        manifest=manifest,
        vocab_size=manifest.tokenizer.vocab_size,
        end_of_text_id=manifest.tokenizer.end_of_text_id,
        token_bytes=token_bytes,
        train=token_stream(directory, manifest.train, manifest.dtype),
        validation=token_stream(directory, manifest.validation, manifest.dtype),
    )


def token_stream(directory: Path, split: Split, dtype: str) -> TokenStream:
    """Map the shards of a split."""
    stored = np.dtype(dtype).newbyteorder("<")
    # Plain arrays over the maps: slicing np.memmap itself costs several microseconds each.
    maps = tuple(np.asarray(np.memmap(directory / shard.file, dtype=stored, mode="r")) for shard in split.shards)
    return TokenStream(maps, np.cumsum([0, *(shard.tokens for shard in split.shards)]))


def _damage(directory: Path, entry: FileEntry, verify: bool) -> str | None:
    """Say what is wrong with a file, or None."""
    path = directory / entry.file
    try:
        status = path.stat()
        if status.st_size != entry.size:
            return f"'{path}' is damaged: it has {status.st_size:,} bytes and should have {entry.size:,}"
        if verify and _sha256(path, status.st_size, status.st_mtime_ns) != entry.sha256:
            return f"'{path}' is damaged: its checksum differs from the manifest's"
    except FileNotFoundError:
        return f"'{path}' is missing"
    except OSError as error:
        return f"'{path}' cannot be read: {error.strerror}"
    return None


@cache
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    return sha256(path)
