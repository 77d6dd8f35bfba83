"""Checkpoints: written aside, checksummed, renamed when whole; the newest one that verifies is loaded, anywhere.

    checkpoints/step-00000200/
        state-RANK-NUMBER.safetensors   fp32 weights and Adam moments in pieces of any topology (state_files.py)
        rng-RANK.json                   random number generators of each process
        loop.json                       counters, loss scale, and what the training loop keeps
        manifest.json                   step, topology, and size and checksum of every file; written last
    checkpoints/quarantine-00000300/    set aside by a rollback, never chosen

The schedule and the order of the data are functions of the step, and the W&B id lies beside the checkpoints in
`wandb-id.txt`, so the step restores all three. Weights of the forward pass are the fp32 weights rounded, as after any
step. A checkpoint so continues bit for bit on the topology that wrote it, and elsewhere up to the order of sums.
"""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from safetensors import SafetensorError

from data.files import rename
from model.transformer import parameter_shapes
from train.checkpoint.branching import branch_point
from train.checkpoint.fragments import fragments, refresh_weights, release_weights, scalars, set_scalars
from train.checkpoint.manifest import (
    QUARANTINE,
    STEP,
    CheckpointError,
    Checksums,
    NotSaved,
    damage,
    newest_first,
    prune,
    put_in_place,
    read_manifest,
    step_of,
    write_manifest,
)
from train.checkpoint.state_files import load_state, write_file, write_state
from train.config import RunConfig
from train.distributed.topology import Topology
from train.engine.random_state import rng_state, set_rng_state

_LOOP = "loop.json"
Result = TypeVar("Result")


@dataclass(frozen=True)
class Resumed:
    """Where a run continues."""

    step: int
    """Optimizer steps done; 0 where there was no checkpoint."""
    extra: dict[str, Any]
    """What the training loop had given to `save`, the same on every process; empty where there was no checkpoint."""


# ---------------------------------------------------------------------------------------------- writing


def save(engine: Any, run: RunConfig, run_dir: Path, step: int, extra: dict[str, Any], topology: Topology) -> None:
    """Save the state after `step` optimizer steps; every process must call this.

    The manifest is written last inside the temporary directory, and the rename that follows is the commit. Older
    checkpoints are deleted only after it.

    Args:
        engine: the engine, between two optimizer steps.
        run: its run; `checkpoint.keep` of the newest checkpoints stay, `checkpoint.branch_points`, and what a rollback
            may need.
        run_dir: the run's directory; everything goes into `checkpoints/` there.
        step: optimizer steps done.
        extra: small JSON values that the training loop wants back from `resume`, equal on every process.
        topology: this process.

    Raises:
        NotSaved: on every process, when one cannot write; the checkpoints before are as they were.
    """
    folder = run_dir / "checkpoints"
    final = folder / f"{STEP}{step:08d}"
    aside = folder / f".{final.name}.partial"

    def begin() -> None:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)

    def write() -> Checksums:
        files = write_state(aside, topology.rank, fragments(engine, run, topology))
        own: dict[str, Any] = {f"rng-{topology.rank:05d}.json": rng_state()}
        if topology.is_main:
            own[_LOOP] = {"extra": extra, "engine": scalars(engine)}
        return files | {name: write_file(aside / name, json.dumps(value).encode()) for name, value in own.items()}

    def commit() -> None:
        write_manifest(aside, step, _describe(run, topology), files)
        put_in_place(aside, final)
        prune(folder, run.checkpoint.keep, run.checkpoint.branch_points, run.spikes.reach)

    try:
        _together(begin, topology.is_main)
        files = {name: entry for part in _together(write) for name, entry in (part or {}).items()}
        _together(commit, topology.is_main)
    except CheckpointError as error:
        if topology.is_main:
            shutil.rmtree(aside, ignore_errors=True)
        way_out = "those before it are kept; if room is lacking, make some, and run again"
        raise NotSaved(f"{final}: cannot be written: {error}; {way_out}") from None


def quarantine(run_dir: Path, after: int, topology: Topology) -> None:
    """Rename the checkpoints of later steps than `after`, so that they are never chosen; every process must call this.

    They stay as `checkpoints/quarantine-STEP` until the run has saved a checkpoint of their step or a later one.
    """

    def set_aside() -> None:
        folder = run_dir / "checkpoints"
        for path in newest_first(folder):
            if step_of(path) > after:
                aside = path.with_name(f"{QUARANTINE}{step_of(path):08d}")
                shutil.rmtree(aside, ignore_errors=True)
                rename(path, aside)

    _together(set_aside, topology.is_main)


# ---------------------------------------------------------------------------------------------- reading


def resume(engine: Any, run: RunConfig, run_dir: Path, topology: Topology, at_most: int | None = None) -> Resumed:
    """Load the newest checkpoint that verifies, whatever topology wrote it; every process must call this.

    Where a run branches off from another is its oldest checkpoint, although it lies in the other's directory.

    A damaged checkpoint is named on stderr and passed over, by all processes together. The engine may be new, or have
    trained already.

    Args:
        engine: an engine of this run, between two optimizer steps.
        run: the run.
        run_dir: its directory.
        topology: this process.
        at_most: largest step that may be chosen; None allows all.

    Raises:
        CheckpointError: on every process, when checkpoints exist but none can be loaded.
    """
    folder = run_dir / "checkpoints"
    (names, *_) = _together(lambda: [path.name for path in newest_first(folder)])
    candidates = [folder / name for name in names or []]
    if run.branch is not None:
        candidates.append(branch_point(run.branch, run_dir))
    candidates = [path for path in candidates if at_most is None or step_of(path) <= at_most]
    for path in candidates:
        # The files are shared out, so that each is read by one process.
        faults = _together(partial(damage, path, part=(topology.rank, topology.world_size)))
        fault = next((fault for fault in faults if fault), None)
        if fault is None:
            return _load(path, engine, run, topology)
        if topology.is_main:
            print(f"{path}: damaged ({fault}); trying the one before", file=sys.stderr, flush=True)
    if candidates:
        raise CheckpointError(
            f"{candidates[-1].parent}: none of {len(candidates)} checkpoint(s) is intact; delete them to start over"
        )
    return Resumed(0, {})


def _load(path: Path, engine: Any, run: RunConfig, topology: Topology) -> Resumed:
    manifest = read_manifest(path)
    here = _describe(run, topology)
    if topology.is_main and manifest["written_by"] != here:
        print(f"{path}: written on {manifest['written_by']}; continuing on {here}", flush=True)

    def read() -> dict[str, Any]:
        load_state(path, fragments(engine, run, topology), parameter_shapes(run.model))
        loop = json.loads((path / _LOOP).read_text())
        set_scalars(engine, loop["engine"])
        own_rng = path / f"rng-{topology.rank:05d}.json"
        if own_rng.name in manifest["files"]:  # a process that the run did not have keeps the stream it began with
            set_rng_state(json.loads(own_rng.read_text()))
        return dict(loop["extra"])

    release_weights(engine)
    try:
        (extra, *_) = _together(read)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: cannot be loaded: {error}; delete it to fall back to the one before") from None
    refresh_weights(engine)
    return Resumed(manifest["step"], extra or {})


def _describe(run: RunConfig, topology: Topology) -> str:
    """Say on what a run is spread out; equal descriptions continue bit for bit."""
    processes = "1 process" if topology.world_size == 1 else f"{topology.world_size} processes"
    cut = f", matrices in {topology.tensor_parallel} parts" if topology.tensor_parallel > 1 else ""
    stages = f"{run.parallel.pipeline_stages} pipeline stage(s)"
    return f"{processes}, {stages}{cut}, ZeRO-{run.zero_stage}, {run.precision}"


# ---------------------------------------------------------------------------------------------- together


def _together(work: Callable[[], Result], here: bool = True) -> list[Result | None]:
    """Do `work` on every process for which `here` is true, and return the results by rank, on all.

    Raises:
        CheckpointError: on every process, when it failed on one.
    """
    result, failure = None, None
    try:
        result = work() if here else None
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        failure = str(error) if isinstance(error, OSError | SafetensorError | ValueError) else repr(error)
    outcomes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(outcomes, (result, failure))
    failures = [text for _, text in outcomes if text]
    if failures:
        raise CheckpointError(failures[0])
    return [value for value, _ in outcomes]
