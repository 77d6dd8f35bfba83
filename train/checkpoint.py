"""Checkpoints: written aside, checksummed, renamed when whole; the newest one that verifies is loaded."""

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from data.shards import sync_directory
from train.config import RunConfig
from train.files import sha256, write_json
from train.status import RunEnded, Status
from train.topology import Topology

TAG = "state"
"""Directory of DeepSpeed's files inside a checkpoint."""
_MANIFEST = "manifest.json"


class CheckpointError(RunEnded):
    """No checkpoint can be loaded although some exist."""

    status = Status.NO_CHECKPOINT


@dataclass(frozen=True)
class Resumed:
    """Where a run continues."""

    step: int
    """Optimizer steps done; 0 where there was no checkpoint."""
    extra: dict[str, Any]
    """What the training loop had given to `save`, the same on every process; empty where there was no checkpoint."""


def save(engine: Any, run: RunConfig, run_dir: Path, step: int, extra: dict[str, Any], topology: Topology) -> None:
    """Save the state after `step` optimizer steps; every process must call this.

    The manifest is written last inside the temporary directory, and the rename that follows is the commit. Older
    checkpoints are deleted only after it.

    Args:
        engine: the engine, between two optimizer steps.
        run: its run; `checkpoint.keep` of the newest checkpoints stay.
        run_dir: the run's directory; everything goes into `checkpoints/` there.
        step: optimizer steps done.
        extra: small JSON values that the training loop wants back from `resume`, equal on every process.
        topology: this process.
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
        write_json(
            partial / _MANIFEST, {"step": step, "world_size": topology.world_size, "extra": extra, "sha256": content}
        )
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        sync_directory(folder)
        for old in newest_first(folder)[run.checkpoint.keep :]:
            shutil.rmtree(old)
    dist.barrier()


def resume(engine: Any, run: RunConfig, run_dir: Path, topology: Topology, at_most: int | None = None) -> Resumed:
    """Load the newest checkpoint that verifies; every process must call this.

    A damaged checkpoint is named on stderr and passed over, by all processes together.

    Args:
        engine: an engine of this run.
        run: the run.
        run_dir: its directory.
        topology: this process.
        at_most: largest step that may be chosen; None allows all.

    Raises:
        CheckpointError: when checkpoints exist but none can be loaded.
    """
    chosen: list[Any] = [None]
    if topology.is_main:
        chosen[0] = _choose(run_dir / "checkpoints", topology.world_size, at_most)
    dist.broadcast_object_list(chosen, src=0)
    step, path, extra, error = chosen[0]
    if error:
        raise CheckpointError(error)
    if path is None:
        return Resumed(0, {})
    loaded, state = engine.load_checkpoint(path, tag=TAG)
    if loaded is None or state["step"] != step:
        raise CheckpointError(f"{path}: DeepSpeed could not load it; delete it to fall back to the one before")
    return Resumed(step, extra)


def tombstone(run_dir: Path, after: int, topology: Topology) -> None:
    """Rename the checkpoints of later steps than `after`, so that they are never chosen; every process must call this.

    They stay as `checkpoints/tombstone-STEP` until the run has saved a checkpoint of a later step than theirs.
    """
    if topology.is_main:
        folder = run_dir / "checkpoints"
        for path in newest_first(folder):
            if step_of(path) > after:
                grave = path.with_name(path.name.replace("step", "tombstone"))
                shutil.rmtree(grave, ignore_errors=True)
                path.rename(grave)
        if folder.exists():
            sync_directory(folder)
    dist.barrier()


def _choose(folder: Path, world_size: int, at_most: int | None) -> tuple[int, str | None, dict[str, Any], str | None]:
    """Return (step, path, extra, None) of the checkpoint to load; path is None for none; the last is an error."""
    candidates = [path for path in newest_first(folder) if at_most is None or step_of(path) <= at_most]
    for path in candidates:
        fault = damage(path)
        if fault:
            print(f"{path}: damaged ({fault}); trying the one before", file=sys.stderr, flush=True)
            continue
        manifest = json.loads((path / _MANIFEST).read_text())
        if manifest["world_size"] != world_size:
            error = (
                f"{path}: written by {manifest['world_size']} process(es), but {world_size} were launched; "
                f"launch {manifest['world_size']}, or start over in another directory"
            )
            return 0, None, {}, error
        return manifest["step"], str(path), manifest.get("extra", {}), None
    if candidates:
        error = f"{folder}: none of {len(candidates)} checkpoint(s) is intact; delete them to start over"
        return 0, None, {}, error
    return 0, None, {}, None


def step_of(path: Path) -> int:
    """Return the optimizer steps done at a checkpoint, by its name."""
    return int(path.name.removeprefix("step-"))


def newest_first(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder`, whole or damaged."""
    return sorted(folder.glob("step-" + "[0-9]" * 8), reverse=True)


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
