"""The directory of checkpoints: which there are, which are whole, which may go.

A checkpoint is whole when its manifest, written last, is there and says so of every file. Nothing here needs torch.
"""

import json
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from configs.cli import Status
from data.files import rename, sha256, tree_hash, write_json
from train.exit_codes import RunEnded

MANIFEST = "manifest.json"
STEP, QUARANTINE = "step-", "quarantine-"
"""Beginnings of the names of checkpoints, and of those that a rollback has set aside."""
REPLACED = ".replaced"
"""End of the name of a checkpoint while another of its step takes its place."""
Checksums = dict[str, dict[str, Any]]
"""Of each file its size and its checksum: {name: {"bytes": size, "sha256": checksum}}."""
THREADS = 4
"""Threads of each process that checksum files side by side."""
_FORMAT = 2


class CheckpointError(RunEnded):
    """No checkpoint can be loaded although some exist."""

    status = Status.NO_CHECKPOINT


class NotSaved(CheckpointError):
    """A checkpoint cannot be written; those before it are as they were."""

    status = Status.DISK_FULL


def newest_first(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder`, whole or damaged; one that replaces another of its step comes before it."""
    name = STEP + "[0-9]" * 8
    there = [*folder.glob(name), *folder.glob(name + REPLACED)]
    return sorted(there, key=lambda path: (step_of(path), path.suffix != REPLACED), reverse=True)


def step_of(path: Path) -> int:
    """Return the optimizer steps done at a checkpoint, by its name."""
    return int(path.stem.rpartition("-")[2])


def damage(path: Path, contents: bool = True, part: tuple[int, int] = (0, 1)) -> str | None:
    """Say what is wrong with a checkpoint, or None.

    Args:
        path: the checkpoint.
        contents: whether to compare checksums, which reads every file, beside sizes.
        part: (k, n) looks at every n-th file from the k-th on.
    """
    try:
        files = read_manifest(path)["files"]
    except (OSError, ValueError) as error:
        return f"{MANIFEST} is missing or unreadable: {error}"
    names = sorted(files)[part[0] :: part[1]]

    def fault(name: str) -> str | None:
        file = path / name
        try:
            size = file.stat().st_size
            if size != files[name]["bytes"]:
                return f"{name} has {size:,} bytes, not {files[name]['bytes']:,}"
            return f"{name} does not match its checksum" if contents and sha256(file) != files[name]["sha256"] else None
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"

    with ThreadPoolExecutor(THREADS) as pool:
        return next((found for found in pool.map(fault, names) if found), None)


def write_manifest(partial: Path, step: int, written_by: str, files: Checksums) -> None:
    """Declare the checkpoint in `partial` whole."""
    manifest = {"format": _FORMAT, "step": step, "written_by": written_by, "files": files}
    write_json(partial / MANIFEST, manifest | {"sha256": tree_hash(manifest)})


def read_manifest(path: Path) -> dict[str, Any]:
    """Return step, topology and files of a checkpoint. Raises `OSError` or `ValueError`."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(manifest, dict):
        raise ValueError("it is not a mapping")
    checksum = manifest.pop("sha256", None)
    if manifest.get("format") != _FORMAT:
        raise ValueError("it was written by another version of this program")
    if checksum != tree_hash(manifest) or manifest.get("step") != step_of(path):
        raise ValueError("it does not match its own checksum")
    if not _is_sound(manifest):
        raise ValueError("its entries are not what this program writes")
    return manifest


def _is_sound(manifest: dict[str, Any]) -> bool:
    """Return whether everything is of its type, and every file lies inside the checkpoint."""
    files = manifest.get("files")
    return (
        type(manifest.get("step")) is int
        and isinstance(manifest.get("written_by"), str)
        and isinstance(files, dict)
        and all(name == Path(name).name and "\0" not in name for name in files)
        and all(isinstance(entry, dict) and type(entry.get("bytes")) is int for entry in files.values())
        and all(isinstance(entry.get("sha256"), str) for entry in files.values())
    )


def put_in_place(aside: Path, final: Path) -> None:
    """Give a whole checkpoint its name. One that has the name already is there under one or another at any moment."""
    replaced = final.with_suffix(REPLACED)
    if final.exists():
        if replaced.exists():
            discard(final if damage(final) else replaced)
        if final.exists():
            final.rename(replaced)
    rename(aside, final)


def prune(folder: Path, keep: int, points: Sequence[int] = (), reach: int = 0) -> None:
    """Delete old checkpoints, quarantined ones that were passed, and what crashes left.

    Whole checkpoints of the steps `points` stay, and the `keep` newest others with those before them back to one at
    least `reach` steps older than the newest, so that a rollback always finds it.
    """
    kept: set[int] = set()
    for path in newest_first(folder):
        step = step_of(path)
        enough = len(kept.difference(points)) >= keep and max(kept) - min(kept) >= reach
        if step in kept or (step not in points and enough):
            discard(path)
        elif damage(path, contents=False) is None:  # a damaged one is no reason to delete one before it
            kept.add(step)
    for path in (*folder.glob(f"{QUARANTINE}*"), *folder.glob("tombstone-*")):  # the second is their name before 0.2
        if kept and step_of(path) <= max(kept):
            discard(path)
    for path in folder.glob(".*"):  # what crashes left
        shutil.rmtree(path)


def discard(path: Path) -> None:
    """Delete a checkpoint so that a crash does not leave half of it under its name."""
    doomed = path.with_name(f".{path.name}.discarded")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed)
