"""Files that are either whole or absent."""

import fcntl
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def sync(file: Any) -> None:
    """Flush a file to disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, text: str) -> None:
    """Write `text` so that readers, and a crash at any moment, see the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_directory(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; NaN is refused."""
    write_atomic(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def sha256(path: Path) -> str:
    """Return the checksum of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_writable(directory: Path) -> None:
    """Make sure that files can be made in `directory`, which need not exist yet; leaves no trace.

    Raises:
        PermissionError: with a sentence, when they cannot.
    """
    existing = next(path for path in (directory, *directory.resolve().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise PermissionError(f"{directory} cannot be written ({error.strerror}); name another directory") from None


@contextmanager
def only_process(path: Path, what: str, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path`, which the kernel releases when the process dies.

    Args:
        path: the lock file; it stays.
        what: what it protects, in words.
        patience: seconds to wait for a process that is about to end.

    Raises:
        BlockingIOError: when another process holds it; the message names `what`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise BlockingIOError(f"{what} is in use by another process (lock {path})") from None
                time.sleep(0.2)
        yield
