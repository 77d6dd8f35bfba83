"""Where text comes from: every source is a name, what identifies its content, and a way to iterate its texts."""

import difflib
import glob
import hashlib
import os
import platform
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from data.config import DataConfig, DataError
from data.corpus.transforms import applied, load_transform

PYSOURCE_BYTES = 32_000_000  # default cap: tokenised in about 10 s, and enough text for models of a few million
PYSOURCE_FILE_BYTES = 100_000  # larger modules are mostly generated tables, and one could dominate validation
_FORMATS = {
    "txt": "text",
    "text": "text",
    "md": "text",
    "jsonl": "json",
    "ndjson": "json",
    "json": "json",
    "csv": "csv",
    "tsv": "csv",
    "parquet": "parquet",
}
_COMPRESSIONS = ("gz", "bz2", "xz", "zst")


class Texts:
    """The raw texts of a source, one after another, and the position reached, from where reading can go on."""

    def __init__(self, texts: Iterable[str], rows: int = 0, state: Callable[[], Any] = lambda: None) -> None:
        """Begin after `rows` texts; `state` returns what the source itself needs to find the place again."""
        self._texts, self.rows, self._state = texts, rows, state

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            self.rows += 1
            yield text

    def position(self) -> dict[str, Any]:
        """Return the place after the last text that was taken, in JSON's types."""
        return {"rows": self.rows, "state": self._state()}

    def map(self, function: Callable[[str], str]) -> "Texts":
        """Return the texts with a function applied to each."""
        return Texts((function(text) for text in self._texts), self.rows, self._state)


Position = dict[str, Any]


def skipping(texts: Callable[[], Iterable[str]]) -> Callable[[Position | None], Texts]:
    """Go on from a position by reading, and leaving out, what comes before it."""

    def begin(position: Position | None = None) -> Texts:
        rows = position["rows"] if position else 0
        return Texts(islice(texts(), rows, None), rows)

    return begin


@dataclass(frozen=True)
class Source:
    """Raw texts and where they come from.

    `identity` holds what determines the texts; a corpus's directory is named by a hash of it. `details` is
    provenance that is only known on reading (versions, commits) and goes into the manifest. `texts(position)` reads on
    from where an earlier reading was; without a position, from the beginning.
    """

    name: str
    identity: dict[str, Any]
    details: dict[str, Any]
    texts: Callable[..., Texts]
    max_bytes: int | None


def open_source(config: DataConfig) -> Source:
    """Find the configured source without reading its texts.

    Raises:
        DataError: when a file or data set is missing, empty or of an unknown format.
    """
    source = {"python_source": _python_source, "files": _files, "hub": _hub, "grammar": _grammar}[config.source](config)
    if config.transform is None:
        return source
    name = config.transform
    function, identity = load_transform(name)
    return replace(
        source,
        identity=source.identity | {"transform": identity},
        texts=lambda position=None: source.texts(position).map(lambda text: applied(function, name, text)),
    )


# ------------------------------------------------------------------------------------------ python_source


def _python_source(config: DataConfig) -> Source:
    # The name holds the Python version and not the installed packages: installing one between two runs of a
    # sweep must not change their text. The first preparation is the snapshot; its hash is in the manifest.
    return Source(
        name="pysource" if config.part == "all" else f"pysource-{config.part}",
        identity={
            "python": platform.python_version(),
            "largest_file": PYSOURCE_FILE_BYTES,
            "part": config.part,
            "text_unit": config.text_unit,
        },
        details={"implementation": platform.python_implementation()},
        texts=skipping(lambda: (u for text in _python_sources(config.part) for u in _units(text, config.text_unit))),
        max_bytes=PYSOURCE_BYTES if config.max_bytes is None else config.max_bytes,
    )


def _python_sources(part: str) -> Iterator[str]:
    """Yield the modules of the standard library, the installed packages or both, in the order of their names' hashes.

    The order depends on neither the file system nor the place of installation, and any prefix of it is a fair
    sample of all packages. Modules that are not UTF-8, or larger than `PYSOURCE_FILE_BYTES`, are left out.
    """
    paths = sysconfig.get_paths()
    roots = [("stdlib", paths["stdlib"]), ("site", paths["platlib"]), ("site", paths["purelib"])]
    files = {
        f"{label}/{path.relative_to(root).as_posix()}": path
        for label, root in roots
        if part in ("all", label)
        for path in _modules(Path(root))
    }
    for name in sorted(files, key=lambda name: hashlib.blake2b(name.encode("utf-8", "replace")).digest()):
        try:
            if files[name].stat().st_size <= PYSOURCE_FILE_BYTES:
                yield files[name].read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError):
            continue


def _units(text: str, unit: str) -> list[str]:
    return {"file": [text], "paragraph": re.split(r"\n\s*\n", text), "line": text.splitlines()}[unit]


def _modules(root: Path) -> Iterator[Path]:
    for directory, folders, files in os.walk(root):
        # The standard library's directory may hold the base interpreter's packages too.
        folders[:] = [f for f in folders if f not in ("site-packages", "dist-packages", "__pycache__")]
        yield from (Path(directory, f) for f in files if f.endswith(".py"))


# ------------------------------------------------------------------------------------------- grammar


def _grammar(config: DataConfig) -> Source:
    # Its strings are made as tokens (data/corpus/grammar.py) and never are text.
    identity = {"grammar": asdict(config.language), "validation": "systematic sample"}
    return Source("grammar", identity, {}, skipping(lambda: ()), None)


# --------------------------------------------------------------------------------------------- files


def _files(config: DataConfig) -> Source:
    paths = list(dict.fromkeys(path for pattern in config.files for path in _expand(pattern)))
    kinds = {path: _format(path) for path in paths}
    if len(set(kinds.values())) > 1:
        listed = ", ".join(sorted(set(kinds.values())))
        raise DataError(f"data.files: the files are of several formats ({listed}); use one format at a time")
    for path in paths:
        if path.stat().st_size == 0:
            raise DataError(f"data.files: '{path}' is empty")
    kind = kinds[paths[0]]
    identity: dict[str, Any] = {"files": [[path.name, fingerprint(path)] for path in paths]}
    options: dict[str, Any] = {}
    if kind == "text":
        identity["text_unit"] = config.text_unit
        options["sample_by"] = {"file": "document"}.get(config.text_unit, config.text_unit)
    else:
        identity["text_field"] = config.text_field
    if kind == "csv":
        options["keep_default_na"] = False  # a document that says "NA" or "null" is text
    if any(".tsv" in path.suffixes for path in paths):
        options["sep"] = "\t"

    def texts() -> Iterator[str]:
        for path in paths:  # one at a time: a message can then name the file
            rows = _load(f"'{path}'", kind, data_files=[str(path)], split="train", streaming=True, **options)
            yield from _column(rows, "text" if kind == "text" else config.text_field, f"'{path}'")

    return Source(
        name=f"files-{_slug(paths[0].name.split('.')[0])}",
        identity=identity,
        details={"paths": [str(path) for path in paths]},
        texts=skipping(texts),
        max_bytes=config.max_bytes,
    )


def _expand(pattern: str) -> list[Path]:
    """Return the files that a path or glob names, sorted."""
    pattern = os.path.expanduser(pattern)
    found = [Path(pattern)] if os.path.isfile(pattern) else sorted(map(Path, glob.glob(pattern, recursive=True)))
    found = [path for path in found if path.is_file()]
    if found:
        return found
    parent = Path(pattern).parent
    if not parent.is_dir():
        raise DataError(f"data.files: there is no directory '{parent}' (looked for '{pattern}')")
    near = difflib.get_close_matches(Path(pattern).name, os.listdir(parent), n=1, cutoff=0.4)
    hint = f"; nearest is '{parent / near[0]}'" if near else ""
    raise DataError(f"data.files: no file matches '{pattern}'{hint}")


def _format(path: Path) -> str:
    suffixes = [suffix.lstrip(".").lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSIONS:
        suffixes.pop()
    kind = _FORMATS.get(suffixes[-1] if suffixes else "")
    if kind is None:
        raise DataError(
            f"data.files: '{path}' is of an unknown format; known are "
            f"{', '.join('.' + f for f in _FORMATS)}, each also with {', '.join('.' + c for c in _COMPRESSIONS)}"
        )
    return kind


def fingerprint(path: Path) -> str:
    """Hash a file's size and content; above 256 MiB, of 256 evenly spaced blocks of 1 MiB."""
    block, blocks = 2**20, 256
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"data.files: '{path}' cannot be read: {error.strerror}") from None
    with file:
        for i in range(blocks):
            start = i * block if size <= block * blocks else i * (size - block) // (blocks - 1)
            file.seek(start)
            digest.update(file.read(block))
    return digest.hexdigest()


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")[:40] or "text"


# ----------------------------------------------------------------------------------------------- hub


def _hub(config: DataConfig) -> Source:
    assert config.dataset is not None  # DataConfig.problems
    dataset = config.dataset
    keys = ("dataset", "subset", "revision", "split", "text_field")
    identity = {key: getattr(config, key) for key in keys}
    details: dict[str, Any] = {}

    def texts(position: Position | None = None) -> Texts:
        revision = config.revision
        if not os.path.isdir(dataset):
            # A preparation that goes on reads the commit that it began with.
            revision = details["commit"] = details.get("commit") or _commit(dataset, revision)
        where = f"data set '{dataset}'"
        rows = _load(
            where,
            dataset,
            name=config.subset,
            split=config.split,
            revision=revision,
            streaming=config.streaming,
        )
        before = position["rows"] if position else 0
        if position and position["state"] is not None:
            rows.load_state_dict(position["state"])  # skips files that have been read without downloading them
            return Texts(_column(rows, config.text_field, where), before, rows.state_dict)
        texts = islice(_column(rows, config.text_field, where), before, None)
        return Texts(texts, before, rows.state_dict if config.streaming else lambda: None)

    return Source(f"hub-{_slug(dataset)}", identity, details, texts, config.max_bytes)


def _commit(dataset: str, revision: str | None) -> str | None:
    """Return the commit that a branch, a tag or nothing stands for now."""
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:  # then the library reads its cache
        return revision
    try:
        return str(HfApi().dataset_info(dataset, revision=revision, timeout=30).sha)
    except Exception as error:
        at = f" at revision '{revision}'" if revision else ""
        raise DataError(f"data.dataset: '{dataset}'{at} cannot be read from the hub: {_reason(error)}") from error


# -------------------------------------------------------------------------------- the datasets library


def _load(where: str, *args: Any, **options: Any) -> Any:
    try:
        import datasets
    except ImportError:
        raise DataError("reading files needs the 'datasets' library; install it with: pip install datasets") from None
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it logs as errors, it raises as well
    try:
        return datasets.load_dataset(*args, **options)
    except Exception as error:  # the library's loaders raise whatever their parsers raise
        raise DataError(f"{where} cannot be read: {_reason(error)}") from error


def _column(rows: Iterable[dict[str, Any]], field: str, where: str) -> Iterator[str]:
    """Yield the text of every row; a row without a value yields an empty text."""
    row_number = 0
    iterator = iter(rows)
    while True:
        try:
            row = next(iterator)
        except StopIteration:
            return
        except Exception as error:
            raise DataError(f"{where} cannot be read after row {row_number}: {_reason(error)}") from error
        row_number += 1
        if field not in row:
            near = difflib.get_close_matches(field, row, n=1, cutoff=0.3)
            hint = f"; nearest is '{near[0]}'" if near else ""
            raise DataError(
                f"data.text_field: {where} has no field '{field}' in row {row_number}, "
                f"only {', '.join(map(repr, row))}{hint}"
            )
        text = row[field]
        if text is None:
            text = ""
        if not isinstance(text, str):
            kind = type(text).__name__
            raise DataError(f"data.text_field: '{field}' in row {row_number} of {where} is {kind}, not text")
        yield text


def _reason(error: BaseException) -> str:
    """Return the innermost cause's message as one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = " ".join(str(error).split())
    return (lines or type(error).__name__)[:300]
