"""The Python sources of the running interpreter: real text that every machine has."""

import hashlib
import os
import platform
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from data.config import DataConfig
from data.corpus.source import Source, skipping

PYSOURCE_BYTES = 32_000_000  # default cap: tokenised in about 10 s, and enough text for models of a few million
PYSOURCE_FILE_BYTES = 100_000  # larger modules are mostly generated tables, and one could dominate validation


def open_source(config: DataConfig) -> Source:
    """Take the modules of `config.part`, each cut into units of `config.text_unit`."""
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
