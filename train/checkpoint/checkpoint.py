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
from model.parameters import ParameterTable
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
from train.config import CheckpointConfig, Precision
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


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a run, as one of its processes writes and reads them; all processes must do so together."""

    run_dir: Path
    """The run's directory; everything lies in `checkpoints/` there."""
    config: CheckpointConfig
    """How many of the newest are kept, and those that stay for branches."""
    reach: int
    """Steps that a rollback may go back; a checkpoint at least so much older than the newest is kept."""
    table: ParameterTable
    """The parameters of the run's model."""
    topology: Topology
    """This process."""
    spread: str
    """On what the run is spread out, for people: equal descriptions continue bit for bit."""
    begins_at: Path | None = None
    """The checkpoint of another run that this one branches off from."""

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return self.run_dir / "checkpoints"

    def save(self, engine: Any, step: int, extra: dict[str, Any]) -> None:
        """Save the state after `step` optimizer steps.

        The manifest is written last inside the temporary directory, and the rename that follows is the commit. Older
        checkpoints are deleted only after it.

        Args:
            engine: the engine, between two optimizer steps.
            step: optimizer steps done.
            extra: small JSON values that the training loop wants back from `resume`, equal on every process.

        Raises:
            NotSaved: on every process, when one cannot write; the checkpoints before are as they were.
        """
        topology = self.topology
        final = self.folder / f"{STEP}{step:08d}"
        aside = self.folder / f".{final.name}.partial"

        def begin() -> None:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)

        def write() -> Checksums:
            files = write_state(aside, topology.rank, fragments(engine, self.table, topology))
            own: dict[str, Any] = {f"rng-{topology.rank:05d}.json": rng_state()}
            if topology.is_main:
                own[_LOOP] = {"extra": extra, "engine": scalars(engine)}
            return files | {name: write_file(aside / name, json.dumps(value).encode()) for name, value in own.items()}

        def commit() -> None:
            write_manifest(aside, step, self.spread, files)
            put_in_place(aside, final)
            prune(self.folder, self.config.keep, self.config.branch_points, self.reach)

        try:
            _together(begin, topology.is_main)
            files = {name: entry for part in _together(write) for name, entry in (part or {}).items()}
            _together(commit, topology.is_main)
        except CheckpointError as error:
            if topology.is_main:
                shutil.rmtree(aside, ignore_errors=True)
            way_out = "those before it are kept; if room is lacking, make some, and run again"
            raise NotSaved(f"{final}: cannot be written: {error}; {way_out}") from None

    def quarantine(self, after: int) -> None:
        """Rename the checkpoints of later steps than `after`, so that they are never chosen.

        They stay as `checkpoints/quarantine-STEP` until the run has saved a checkpoint of their step or a later one.
        """

        def set_aside() -> None:
            for path in newest_first(self.folder):
                if step_of(path) > after:
                    aside = path.with_name(f"{QUARANTINE}{step_of(path):08d}")
                    shutil.rmtree(aside, ignore_errors=True)
                    rename(path, aside)

        _together(set_aside, self.topology.is_main)

    def resume(self, engine: Any, at_most: int | None = None) -> Resumed:
        """Load the newest checkpoint that verifies, whatever topology wrote it.

        Where a run branches off from another is its oldest checkpoint, although it lies in the other's directory.

        A damaged checkpoint is named on stderr and passed over, by all processes together. The engine may be new, or
        have trained already.

        Args:
            engine: an engine of this run, between two optimizer steps.
            at_most: largest step that may be chosen; None allows all.

        Raises:
            CheckpointError: on every process, when checkpoints exist but none can be loaded.
        """
        topology = self.topology
        (names, *_) = _together(lambda: [path.name for path in newest_first(self.folder)])
        candidates = [self.folder / name for name in names or []]
        if self.begins_at is not None:
            candidates.append(self.begins_at)
        candidates = [path for path in candidates if at_most is None or step_of(path) <= at_most]
        for path in candidates:
            # The files are shared out, so that each is read by one process.
            faults = _together(partial(damage, path, part=(topology.rank, topology.world_size)))
            fault = next((fault for fault in faults if fault), None)
            if fault is None:
                return self._load(path, engine)
            if topology.is_main:
                print(f"{path}: damaged ({fault}); trying the one before", file=sys.stderr, flush=True)
        if candidates:
            raise CheckpointError(
                f"{candidates[-1].parent}: none of {len(candidates)} checkpoint(s) is intact; delete them to start over"
            )
        return Resumed(0, {})

    def _load(self, path: Path, engine: Any) -> Resumed:
        topology, manifest = self.topology, read_manifest(path)
        if topology.is_main and manifest["written_by"] != self.spread:
            print(f"{path}: written on {manifest['written_by']}; continuing on {self.spread}", flush=True)

        def read() -> dict[str, Any]:
            load_state(path, fragments(engine, self.table, topology), self.table)
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
            way_out = "delete it to fall back to the one before"
            raise CheckpointError(f"{path}: cannot be loaded: {error}; {way_out}") from None
        refresh_weights(engine)
        return Resumed(manifest["step"], extra or {})


def describe_spread(topology: Topology, zero_stage: int, precision: Precision) -> str:
    """Say on what a run is spread out."""
    processes = "1 process" if topology.world_size == 1 else f"{topology.world_size} processes"
    cut = f", matrices in {topology.tensor_parallel} parts" if topology.tensor_parallel > 1 else ""
    return f"{processes}, {topology.pipeline_stages} pipeline stage(s){cut}, ZeRO-{zero_stage}, {precision}"


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
