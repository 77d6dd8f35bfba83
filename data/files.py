"""Files and directories that are whole or absent, whenever a process dies or a machine stops.

What is written is complete and on disk before it gets its name, by a rename that is made durable too.
"""

import difflib
import fcntl
import hashlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def sync(file: Any) -> None:
    """Flush an open file to disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_path(path: Path) -> None:
    """Make the content of a file, or the names in a directory, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Give a file or a directory another name, durably; a file that has the name already is replaced."""
    source.replace(target)
    sync_path(target.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, and its directory if need be; readers and crashes see the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Threads and processes that write the same file at once each have their own.
    partial = path.with_name(f".{path.name}.{threading.get_native_id()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            sync(file)
        rename(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """As `write_bytes`, in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """As `write_bytes`; raises ValueError for a NaN or an infinity, which JSON does not have."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def replace_directory(partial: Path, final: Path) -> None:
    """Make all of the directory `partial` durable, then give it the name `final`, which an empty directory may have."""
    for path in (*partial.rglob("*"), partial):
        sync_path(path)
    rename(partial, final)


def nearest_file(path: Path, cutoff: float = 0.6) -> str:
    """Return "; nearest is 'PATH'", of the file beside `path` whose name is most alike; "" where none is alike."""
    try:
        names = os.listdir(path.parent)
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=cutoff)
    return f"; nearest is '{path.parent / near[0]}'" if near else ""


def sha256(path: Path) -> str:
    """Return the checksum of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_hash(tree: Any) -> str:
    """Return a checksum of JSON values that does not depend on the order of keys."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def require_writable(directory: Path) -> None:
    """Make sure that files can be made in `directory`, which need not exist yet; leaves no trace.

    Raises PermissionError, with a sentence, when they cannot.
    """
    existing = next(path for path in (directory, *directory.resolve().parents) if path.exists())
    try:
        # Asking for permission is not enough: a system directory may let root write and still refuse.
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise PermissionError(f"{directory} cannot be written ({error.strerror}); name another directory") from None


@contextmanager
def only_process(
    path: Path, what: str, patience: float = 0.0, waiting: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Hold the lock file `path`, which the kernel releases when the process dies.

    Args:
        path: the lock file; it stays.
        what: what it protects, in words.
        patience: seconds to wait for a process that is about to end.
        waiting: called once when there is somebody to wait for.

    Raises BlockingIOError when another process holds it; the message names `what`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    begin, told = time.monotonic(), False
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= begin + patience:
                    raise BlockingIOError(f"{what} is in use by another process (lock {path})") from None
                if not told:
                    waiting()
                told = True
                time.sleep(0.2)
        yield
