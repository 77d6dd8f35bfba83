"""Prepare a corpus: read the text, train or load the tokenizer, write token shards, each exactly once."""

import dataclasses
import importlib.metadata
import json
import math
import platform
import shutil
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from configs.renamed import first_name, first_value
from data.config import DataConfig, DataError
from data.corpus.contamination import contamination
from data.corpus.documents import Document, Tally, documents, is_left_out, is_validation, split_position
from data.corpus.duplicates import Duplicates, duplicates_of
from data.corpus.grammar import make_grammar, token_blocks
from data.corpus.progress import Progress
from data.corpus.shards import (
    MANIFEST,
    TOKEN_BYTES,
    TOKENIZER,
    Language,
    Manifest,
    SplitWriter,
    TokenizerEntry,
    read_manifest,
    token_stream,
    write_file,
    write_manifest,
)
from data.corpus.source import Source
from data.corpus.sources import open_source
from data.corpus.tokenizer import ByteTokenizer, load, tokenizer_of_numbers, train
from data.files import only_process, replace_directory, sha256, sync, tree_hash, write_json

FORMAT = 1  # part of every corpus's name: raise it when the same configuration would give other tokens
_COURSE, _SEEN = "course.json", "seen.bin"  # of an interrupted preparation
_BATCH_BYTES = 8_000_000  # text handed to the tokenizer at once: enough to keep many threads busy
# Keys that change neither which text is taken nor how it is tokenised, or that the source's identity stands for.
_NOT_IN_NAME = (
    *("source", "part", "files", "dataset", "subset", "revision", "split", "text_field", "text_unit", "transform"),
    *("streaming", "prepared", "directory", "tokenizer", "grammar", "mixture"),
)
# Of a generated language, what counts beside its own keys.
_OF_GRAMMAR = ("vocab_size", "shard_tokens")


def prepare(config: DataConfig, progress: bool = True) -> Path:
    """Return the directory of the prepared corpus, preparing it first when it is not there.

    The directory's name is the source's name and a hash of everything that determines the tokens. Concurrent
    callers wait for the first; a caller that dies leaves nothing but a hidden directory, in which the next one
    goes on after the last whole shard. Raises `DataError` when text, tokenizer or directory cannot be used.
    """
    assert not config.mixture  # data.mixture prepares each component
    for key, message in config.problems():
        raise DataError(f"data.{key}: {message}")
    if config.source == "prepared":
        assert config.prepared is not None  # DataConfig.problems
        size = read_manifest(Path(config.prepared)).tokenizer.vocab_size
        if size != config.vocab_size:
            raise DataError(
                f"data.vocab_size: {config.vocab_size} does not match '{config.prepared}', whose vocabulary has "
                f"{size} tokens; set vocab_size: {size}"
            )
        return Path(config.prepared)
    source = open_source(config)
    name = f"{source.name}-{name_hash(config, source)}"
    directory = Path(config.directory) / name
    if not (directory / MANIFEST).is_file():
        try:
            with exclusive(Path(config.directory) / f".{name}.lock", progress):
                if not directory.exists():
                    _build(config, source, directory, progress)
        except OSError as error:
            raise DataError(f"'{directory}' cannot be written: {error.strerror or error}") from error
    manifest = read_manifest(directory)
    if manifest.name != name:
        raise DataError(f"'{directory}' holds the corpus '{manifest.name}'; delete it and prepare it again")
    return directory


def name_hash(config: DataConfig, source: Source) -> str:
    """Return the hash that names a corpus; keys that have their default are left out, so that new keys change none."""
    defaults = dataclasses.asdict(DataConfig())
    parts = {k: v for k, v in dataclasses.asdict(config).items() if k not in _NOT_IN_NAME and v != defaults[k]}
    if config.source == "grammar":
        parts = {key: getattr(config, key) for key in _OF_GRAMMAR}
    # By the names that keys and sources had first, so that corpora of that time are found.
    parts = {first_name(f"data.{key}").removeprefix("data."): value for key, value in parts.items()}
    parts |= {"format": FORMAT, "source": first_value("data.source", config.source), "identity": source.identity}
    parts["max_bytes"] = source.max_bytes
    if config.tokenizer is not None:
        path = Path(config.tokenizer)
        parts["tokenizer"] = sha256(path) if path.is_file() else None
        parts.pop("tokenizer_bytes", None)
    return tree_hash(parts)[:12]


def exclusive(path: Path, progress: bool) -> AbstractContextManager[None]:
    """Hold the lock file `path`, after whoever else holds it."""

    def tell() -> None:
        if progress:
            Progress.say("another process is preparing this corpus; waiting for it")

    return only_process(path, "this corpus", patience=math.inf, waiting=tell)


def _build(config: DataConfig, source: Source, directory: Path, progress: bool) -> None:
    partial = directory.with_name(f".{directory.name}.partial")  # the lock says that nobody uses it
    if not (partial / _COURSE).is_file():
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
    try:
        with Progress(f"preparing {directory.name}", source.max_bytes, progress) as shown:
            write = _write_language if config.source == "grammar" else _write_text
            manifest = write(config, source, partial, directory.name, shown)
        for path in (partial / _COURSE, partial / _SEEN, *partial.glob(".*")):  # hidden: left by a crash
            path.unlink(missing_ok=True)
        write_manifest(partial, manifest)
        replace_directory(partial, directory)
    except BaseException:
        if not (partial / _COURSE).is_file():
            shutil.rmtree(partial, ignore_errors=True)
        raise


@dataclasses.dataclass
class _Course:
    """How far a preparation is: what another process needs to go on with it."""

    tally: Tally
    least: float
    """The lowest place in the split of a document so far, and the highest."""
    largest: float
    left_out: int = 0
    trained_bytes: int = 0
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    position: dict[str, Any] | None = None
    """Where reading goes on; None before the first shard is whole."""
    writers: dict[str, Any] = dataclasses.field(default_factory=dict)
    seen_bytes: int = 0
    """Of the file with what the search for duplicates remembers."""

    def save(self, partial: Path, fresh: bytes) -> None:
        """Keep the course, and what duplicates are found by, of which `fresh` is new."""
        with (partial / _SEEN).open("ab") as file:
            file.truncate(self.seen_bytes)
            file.write(fresh)
            sync(file)
        self.seen_bytes += len(fresh)
        write_json(partial / _COURSE, dataclasses.asdict(self))


def _stored_course(partial: Path, duplicates: Duplicates) -> _Course | None:
    """Read the course of an interrupted preparation, and remember its documents in `duplicates`; None: begin anew."""
    try:
        tree = json.loads((partial / _COURSE).read_text(encoding="utf-8"))
        course = _Course(**tree | {"tally": Tally(**tree["tally"])})
        seen = (partial / _SEEN).read_bytes()[: course.seen_bytes]
    except (OSError, ValueError, KeyError, TypeError):  # there is none, or one that another version has written
        return None
    duplicates.restore(seen)
    return course


def _write_text(config: DataConfig, source: Source, partial: Path, name: str, shown: Progress) -> Manifest:
    duplicates = duplicates_of(config)
    course = _stored_course(partial, duplicates)
    if course is not None:
        source.details.update(course.details)
        shown.say(f"going on after the first {course.tally.kept:,} documents")
        texts = source.texts(course.position)
        head: list[Document] = []
        stream = documents(texts, source.max_bytes, duplicates, course.tally)
        tokenizer = load(partial / TOKENIZER)
    else:
        texts, tally = source.texts(), Tally()
        stream = documents(texts, source.max_bytes, duplicates, tally)
        head, training_text, whole = head_documents(config, stream)
        if not tally.kept and tally.capped:
            raise DataError(f"data.max_bytes: {source.max_bytes:,} is less than the first document; raise it")
        if not tally.kept:
            raise DataError(f"source '{config.source}' holds no documents with text ({tally.empty} were empty)")
        course = _Course(tally, *_extremes(head, config.seed))
        if whole:  # say so before the tokenizer says that the text is too short for it
            _require_both_splits(config, tally, course.least, course.largest)
        if config.tokenizer is not None:
            tokenizer = load(Path(config.tokenizer), config.vocab_size)
        else:
            tokenizer = train(training_text, config.vocab_size)
        course.trained_bytes = 0 if config.tokenizer else sum(len(text.encode()) for text in training_text)
    tally = course.tally

    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")
    layout = (dtype, config.shard_tokens, tokenizer.token_bytes, tokenizer.end_of_text_id)
    writers = {s: SplitWriter(partial, s, *layout, state=course.writers.get(s)) for s in ("train", "validation")}
    written, whole_shards = tally.kept - len(head), writers["train"].complete_shards
    for batch in _batches(chain(head, stream)):
        low, high = _extremes(batch, config.seed)
        course.least, course.largest = min(course.least, low), max(course.largest, high)
        used = [document for document in batch if is_validation(document, config) or not is_left_out(document, config)]
        course.left_out += len(batch) - len(used)
        for document, tokens in zip(used, _encode(tokenizer, used, config), strict=True):
            writers["validation" if is_validation(document, config) else "train"].write(tokens)
        shown.update(tally.bytes)
        written += len(batch)
        # Not while documents that were read for the tokenizer still wait: reading is ahead of them.
        if writers["train"].complete_shards > whole_shards and written == tally.kept:
            if course.position is None:
                write_file(partial / TOKENIZER, tokenizer.to_json().encode())
            whole_shards = writers["train"].complete_shards
            course.position, course.details = texts.position(), source.details
            course.writers = {split: writer.state() for split, writer in writers.items()}
            course.save(partial, duplicates.take_fresh())
    splits = {split: writer.close() for split, writer in writers.items()}
    _require_both_splits(config, tally, course.least, course.largest)
    if not splits["train"].documents:
        raise DataError(f"data.subsample: {config.subsample} leaves none of the training documents; raise it")

    training, held_out = (token_stream(partial, split, str(dtype)) for split in splits.values())
    bytes_per_token = splits["train"].bytes / splits["train"].tokens
    repeated = contamination(training, held_out, tokenizer.end_of_text_id, bytes_per_token)
    dropped = {key: getattr(tally, key) for key in ("empty", "duplicate", "near_duplicate")}
    tokenizer_json = write_file(partial / TOKENIZER, tokenizer.to_json().encode())
    token_bytes = write_file(partial / TOKEN_BYTES, tokenizer.token_bytes.astype("<i4").tobytes())
    return Manifest(
        schema=1,
        name=name,
        dtype="uint16" if dtype.itemsize == 2 else "uint32",
        tokenizer=TokenizerEntry(
            sha256=tokenizer_json.sha256,
            vocab_size=tokenizer.vocab_size,
            end_of_text=tokenizer.end_of_text,
            end_of_text_id=tokenizer.end_of_text_id,
            trained_bytes=course.trained_bytes,
        ),
        train=splits["train"],
        validation=splits["validation"],
        files=(tokenizer_json, token_bytes),
        source={"kind": config.source, **source.identity, **source.details, "capped": tally.capped},
        documents_sha256=tally.sha256,
        dropped=dropped | {"left_out": course.left_out},
        config=json.loads(json.dumps(dataclasses.asdict(config))),
        versions=_versions(),
        contamination=repeated,
    )


def _write_language(config: DataConfig, source: Source, partial: Path, name: str, shown: Progress) -> Manifest:
    grammar = make_grammar(config.language, config.vocab_size)
    dtype = np.dtype("<u2" if config.vocab_size <= 2**16 else "<u4")
    token_bytes = np.ones(config.vocab_size, dtype=np.int32)  # so that bits per byte are bits per token
    splits = {}
    done = 0
    for split, tokens in (("train", config.language.tokens), ("validation", config.language.validation_tokens)):
        writer = SplitWriter(partial, split, dtype, config.shard_tokens, token_bytes, None)
        for block in token_blocks(grammar, split, tokens):
            writer.write(block)
            shown.update(done := done + len(block))
        splits[split] = writer.close()
    tokenizer_json = write_file(partial / TOKENIZER, tokenizer_of_numbers(config.vocab_size).encode())
    return Manifest(
        schema=1,
        name=name,
        dtype="uint16" if dtype.itemsize == 2 else "uint32",
        tokenizer=TokenizerEntry(
            sha256=tokenizer_json.sha256,
            vocab_size=config.vocab_size,
            end_of_text=None,
            end_of_text_id=None,
            trained_bytes=0,
        ),
        train=splits["train"],
        validation=splits["validation"],
        files=(tokenizer_json, write_file(partial / TOKEN_BYTES, token_bytes.astype("<i4").tobytes())),
        source={"kind": config.source, **source.identity, "capped": False},
        documents_sha256=tree_hash(source.identity),
        dropped={},
        config=json.loads(json.dumps(dataclasses.asdict(config))),
        versions=_versions(),
        language=Language(entropy_rate=grammar.entropy_rate, tokens_per_string=grammar.tokens_per_string),
    )


def head_documents(config: DataConfig, stream: Iterator[Document]) -> tuple[list[Document], list[str], bool]:
    """Take documents until their training texts suffice for the tokenizer.

    Returns the documents, those training texts, and whether that was all there is.
    """
    head: list[Document] = []
    training: list[str] = []
    wanted = 1 if config.tokenizer else config.tokenizer_bytes
    for document in stream:
        head.append(document)
        if not is_validation(document, config):
            training.append(document.text)
            wanted -= document.size
        if wanted <= 0:
            return head, training, False
    return head, training, True


def _extremes(batch: list[Document], seed: int) -> tuple[float, float]:
    """Return the lowest and highest place that a document has in the split."""
    places = [split_position(document, seed) for document in batch]
    return min(places), max(places)


def _batches(stream: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in stream:
        batch.append(document)
        size += document.size
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode(tokenizer: ByteTokenizer, batch: list[Document], config: DataConfig) -> Iterator[np.ndarray]:
    """Yield each document's token ids with the end-of-text token behind, checked byte for byte."""
    texts = [tokenizer.normalize(document.text) for document in batch]
    for text, ids in zip(texts, tokenizer.encode(texts), strict=True):
        tokens = np.array([*ids, tokenizer.end_of_text_id], dtype=np.int64)
        size = len(text.encode())
        found = int(tokenizer.token_bytes[tokens].sum(dtype=np.int64))
        if found != size:
            raise DataError(
                f"data.tokenizer: '{config.tokenizer}' turns a document of {size:,} bytes into tokens of "
                f"{found:,} bytes, so bits per byte would be wrong; use a byte-level BPE that keeps text as it is"
            )
        yield tokens


def _require_both_splits(config: DataConfig, tally: Tally, least: float, largest: float) -> None:
    """Refuse a split that leaves one side empty; places in [0, 1) below the fraction are validation."""
    if least < config.validation_fraction <= largest:
        return
    if tally.kept == 1:
        raise DataError(
            "too little text for a validation split: the corpus is one document; bring more, "
            "or cut a .txt file into documents with data.text_unit: paragraph"
        )
    few = f"too little text for a validation split: of {tally.kept} documents none is"
    if least >= config.validation_fraction:
        fraction = _between(least, largest)
        raise DataError(f"{few} held out; set data.validation_fraction: {fraction} or bring more documents")
    raise DataError(f"{few} left for training; set data.validation_fraction below {largest:.2g}")


def _between(least: float, largest: float) -> float:
    """Return the shortest decimal above `least` and not above `largest`: it holds at least one document out."""
    for digits in range(1, 17):
        fraction = round(least + 0.5 * 10**-digits, digits)
        if least < fraction <= largest:
            return fraction
    return largest


def _versions() -> dict[str, str]:
    found: dict[str, Any] = {"python": platform.python_version()}
    for package in ("tokenizers", "datasets"):
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
