"""Local files: text, JSON lines, CSV or Parquet, compressed or not."""

import glob
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.config import DataConfig, DataError
from data.corpus.rows import load_rows, slug, text_column
from data.corpus.source import Source, skipping
from data.files import nearest_file

_FORMATS = {
    **dict.fromkeys(("txt", "text", "md"), "text"),
    **dict.fromkeys(("jsonl", "ndjson", "json"), "json"),
    **dict.fromkeys(("csv", "tsv"), "csv"),
    "parquet": "parquet",
}
_COMPRESSIONS = ("gz", "bz2", "xz", "zst")


def open_source(config: DataConfig) -> Source:
    """Find the files that `config.files` names and what determines their texts."""
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
            rows = load_rows(f"'{path}'", kind, data_files=[str(path)], split="train", streaming=True, **options)
            yield from text_column(rows, "text" if kind == "text" else config.text_field, f"'{path}'")

    return Source(
        name=f"files-{slug(paths[0].name.split('.')[0])}",
        identity=identity,
        details={"paths": [str(path) for path in paths]},
        texts=skipping(texts),
        max_bytes=config.max_bytes,
    )


def _expand(pattern: str) -> list[Path]:
    """Return the files that a path or glob names, sorted."""
    pattern = os.path.expanduser(pattern)
    found = [Path(pattern)] if os.path.isfile(pattern) else sorted(map(Path, glob.glob(pattern, recursive=True)))
    if found := [path for path in found if path.is_file()]:
        return found
    parent = Path(pattern).parent
    if not parent.is_dir():
        raise DataError(f"data.files: there is no directory '{parent}' (looked for '{pattern}')")
    raise DataError(f"data.files: no file matches '{pattern}'{nearest_file(Path(pattern), cutoff=0.4)}")


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
        with path.open("rb") as file:
            for i in range(blocks):
                file.seek(i * block if size <= block * blocks else i * (size - block) // (blocks - 1))
                digest.update(file.read(block))
    except OSError as error:
        raise DataError(f"data.files: '{path}' cannot be read: {error.strerror}") from None
    return digest.hexdigest()
