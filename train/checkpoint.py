"""Checkpoints: written aside, checksummed, renamed when whole; the newest one that verifies is loaded."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist

from data.shards import sync_directory
from train.files import sha256, write_json
from train.topology import Topology

TAG = "state"
"""Directory of DeepSpeed's files inside a checkpoint."""
_MANIFEST = "manifest.json"


class CheckpointError(RuntimeError):
    """No checkpoint can be loaded although some exist."""


def save(engine: Any, run_dir: Path, step: int, keep: int, topology: Topology) -> None:
    """Save the state after `step` optimizer steps; every process must call this.

    The manifest is written last inside the temporary directory, and the rename that follows is the commit. Older
    checkpoints are deleted only after it.
    """
    folder = run_dir / "checkpoints"
    final = folder / f"step-{step:08d}"
    partial = folder / f".{final.name}.partial"
    if topology.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
    dist.barrier()
    engine.save_checkpoint(str(partial), tag=TAG, client_state={"step": step}, save_latest=False)
    dist.barrier()
    if topology.is_main:
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        for path in files:
            _sync_file(path)
        content = {str(path.relative_to(partial)): sha256(path) for path in files}
        write_json(partial / _MANIFEST, {"step": step, "world_size": topology.world_size, "sha256": content})
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        sync_directory(folder)
        for old in newest_first(folder)[keep:]:
            shutil.rmtree(old)
    dist.barrier()


def resume(engine: Any, run_dir: Path, topology: Topology) -> int:
    """Load the newest checkpoint that verifies and return its step, or 0 where there is none.

    A damaged checkpoint is named on stderr and passed over, by all processes together.

    Raises:
        CheckpointError: when checkpoints exist but none verifies, or the newest was written on another topology.
    """
    chosen: list[Any] = [None]
    if topology.is_main:
        chosen[0] = _choose(run_dir / "checkpoints", topology.world_size)
    dist.broadcast_object_list(chosen, src=0)
    step, path, error = chosen[0]
    if error:
        raise CheckpointError(error)
    if path is None:
        return 0
    loaded, state = engine.load_checkpoint(path, tag=TAG)
    if loaded is None or state["step"] != step:
        raise CheckpointError(f"{path}: DeepSpeed could not load it; delete it to fall back to the one before")
    return step


def _choose(folder: Path, world_size: int) -> tuple[int, str | None, str | None]:
    """Return (step, path, None) of the checkpoint to load, (0, None, None) for none, or (0, None, error)."""
    candidates = newest_first(folder)
    for path in candidates:
        fault = damage(path)
        if fault:
            print(f"{path}: damaged ({fault}); trying the one before", file=sys.stderr, flush=True)
            continue
        manifest = json.loads((path / _MANIFEST).read_text())
        if manifest["world_size"] != world_size:
            return (
                0,
                None,
                (
                    f"{path}: written by {manifest['world_size']} process(es), but {world_size} were launched; "
                    f"launch {manifest['world_size']}, or start over in another directory"
                ),
            )
        return manifest["step"], str(path), None
    if candidates:
        return 0, None, f"{folder}: none of {len(candidates)} checkpoint(s) is intact; delete them to start over"
    return 0, None, None


def newest_first(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder`, whole or damaged."""
    return sorted(folder.glob("step-*"), reverse=True)


def damage(path: Path) -> str | None:
    """Say what is wrong with a checkpoint, or None."""
    try:
        expected = json.loads((path / _MANIFEST).read_text())["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"{_MANIFEST} is missing or unreadable"
    for name, checksum in expected.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if sha256(file) != checksum:
            return f"{name} does not match its checksum"
    return None


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
