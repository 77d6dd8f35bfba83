"""Files are whole or absent: a process that dies at any line of the writing leaves the old content or the new."""

import json
import math
import os
import resource
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from data.files import (
    only_process,
    replace_directory,
    require_writable,
    sha256,
    tree_hash,
    write_bytes,
    write_json,
    write_text,
)

OLD, NEW = b"old content", b"new and longer content"
Writer = Callable[[Path, bytes], None]


def dies_at(line: int, work: Callable[[], None]) -> bool:
    """Do `work` in a process that ends, without any clearing up, before the line of this number that it executes.

    Returns whether it died, rather than came to the end of its work first.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    lines = count()

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line" and next(lines) == line:
            os._exit(9)
        return trace

    sys.settrace(trace)
    work()
    os._exit(0)


def left_by_crashes(write: Writer, path: Path) -> set[bytes]:
    """All contents that the file has after `write` died somewhere, or did not."""
    found = set()
    for line in count():
        path.write_bytes(OLD)
        died = dies_at(line, lambda: write(path, NEW))
        found.add(path.read_bytes())
        if not died:
            return found
    raise AssertionError


def in_place(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()


def test_a_crash_at_any_moment_leaves_the_old_file_or_the_new(tmp_path: Path) -> None:
    assert left_by_crashes(write_bytes, tmp_path / "file") == {OLD, NEW}


def test_a_writer_that_is_not_atomic_is_found(tmp_path: Path) -> None:
    assert left_by_crashes(in_place, tmp_path / "file") == {OLD, b"", NEW}


def test_a_crash_at_any_moment_leaves_no_half_directory(tmp_path: Path) -> None:
    partial, final = tmp_path / ".partial", tmp_path / "final"
    (partial / "deep").mkdir(parents=True)
    for name in ("a", "deep/b"):
        (partial / name).write_bytes(NEW)
    for line in count():
        died = dies_at(line, lambda: replace_directory(partial, final))
        assert partial.exists() != final.exists()
        if final.exists():
            break
        assert died
    assert {path.name for path in final.rglob("*")} == {"a", "deep", "b"}
    assert (final / "deep/b").read_bytes() == NEW


def test_an_empty_directory_gives_way_and_another_does_not(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    (tmp_path / "final").mkdir()
    replace_directory(tmp_path / "one", tmp_path / "final")
    with pytest.raises(OSError, match="not empty"):
        replace_directory(tmp_path / "two", tmp_path / "final")


def test_a_full_disk_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write_bytes(path, bytes(2000))
        except OSError:
            os._exit(5)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"file": OLD}


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_text(path, "é\n")
    assert path.read_bytes() == "é\n".encode()
    assert path.stat().st_mode & 0o444 == 0o444 & ~_umask()
    write_json(path, {"b": 1, "a": [None, 0.1]})
    assert json.loads(path.read_text()) == {"b": 1, "a": [None, 0.1]}
    assert len(sha256(path)) == 64
    assert tree_hash({"a": 1, "b": 2}) == tree_hash({"b": 2, "a": 1}) != tree_hash({"a": 2, "b": 1})


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": math.nan})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_directory_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    require_writable(tmp_path / "new" / "run")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    for directory in (tmp_path / "file" / "run", Path("/proc/run")):
        with pytest.raises(PermissionError, match=r"cannot be written .*; name another directory"):
            require_writable(directory)


def test_lock_is_exclusive_and_named(tmp_path: Path) -> None:
    told: list[str] = []
    with only_process(tmp_path / ".lock", "the run"):
        with pytest.raises(BlockingIOError, match="the run is in use"):
            with only_process(tmp_path / ".lock", "the run", patience=0.3, waiting=lambda: told.append("waits")):
                pass
    assert told == ["waits"]
    with only_process(tmp_path / ".lock", "the run"):
        pass
