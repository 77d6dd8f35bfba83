"""What `test_resharding.py` starts on two and on four processes: many engines in turn, results as JSON.

python -m tests.helpers.checkpoint_ranks SMALL.yaml OUT_OF_TWO OUT_OF_FOUR
"""

import json
import os
import pickle
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from data.loading.batches import windows_per_epoch
from data.loading.mixture import open_mixture
from model.parameters import parameter_table
from train.checkpoint.checkpoint import Checkpoints, Resumed
from train.checkpoint.fragments import fragments
from train.checkpoint.manifest import MANIFEST, CheckpointError, read_manifest, write_manifest
from train.checkpoint.state_files import KINDS, StateReader, write_file
from train.config import RunConfig, load_run
from train.distributed.topology import Topology, connect, disconnect, launched_topology
from train.engine.ds_config import derive
from train.engine.engine import build_engine, gradient_norm, release, train_step
from train.engine.micro_batches import training_batches
from train.loop import checkpoints_of

EXTRA = {"skip": [[3, 5]], "attempt": 2, "spikes": {"baseline": 0.1}}
HALF, STEPS = 4, 8

Curve = list[tuple[float, float]]


class Case:
    """One topology, precision and tying; engines of it, and their curves."""

    def __init__(self, config: Path, out: Path, shape: tuple[Any, ...], tied: bool = False) -> None:
        precision, stages, zero, tensor, offload = (*shape, *(1, False)[len(shape) - 3 :])
        self.topology: Topology = launched_topology(stages, tensor)
        self.name = f"{precision}-pp{stages}-tp{tensor}-zero{zero}{'-offload' * offload}-{'tied' if tied else 'untied'}"
        self.run: RunConfig = load_run(
            config,
            [
                f"--precision={precision}",
                f"--parallel.pipeline_stages={stages}",
                f"--parallel.zero_stage={zero}",
                f"--parallel.tensor_parallel={tensor}",
                f"--parallel.offload_optimizer={str(offload).lower()}",
                f"--model.tie_embeddings={str(tied).lower()}",
                f"--model.bias={str(not tied).lower()}",
                "--data.vocab_size=299",  # odd, so that partitions cut through parameters
                "--model.parametrization=completep",  # more groups of parameters
                "--checkpoint.keep=9",
                "--train.micro_batch_size=4",
            ],
        )
        self.mixture = open_mixture(self.run.data)
        self.run_dir = out / self.name
        self.table = parameter_table(self.run.model)
        # Step HALF is the last of an epoch of the data, or the one after it.
        epoch = (
            windows_per_epoch(self.mixture.components[0].corpus, self.run.train.sequence_length)
            // self.run.train.global_batch_size
        )
        self.before = epoch - HALF

    def engine(self) -> Any:
        torch.manual_seed(0)
        plan = self.run.step_plan
        return build_engine(plan, self.table, self.run.seed, derive(plan, self.topology.data_parallel))

    def train(self, engine: Any, first: int, end: int) -> Curve:
        curve = []
        for step in range(first, end):
            batches = training_batches(self.mixture, self.run.train, self.run.seed, self.before + step, self.topology)
            loss = train_step(engine, batches, 0.01, self.topology)
            curve.append((loss.item(), gradient_norm(engine)))
        return curve

    def checkpoints(self, run_dir: Path | None = None) -> Checkpoints:
        return checkpoints_of(self.run, run_dir or self.run_dir, self.table, self.topology)

    def save(self, engine: Any, step: int, run_dir: Path | None = None) -> None:
        self.checkpoints(run_dir).save(engine, step, EXTRA)

    def resume(self, engine: Any, run_dir: Path | None = None, at_most: int | None = None) -> Resumed:
        return self.checkpoints(run_dir).resume(engine, at_most)


def draws() -> list[float]:
    """One number from each generator of this process."""
    return [random.random(), float(np.random.random()), float(torch.rand(()))]


def same_topology(case: Case) -> dict[str, Any]:
    """Train, save in the middle, and continue in the same engine, after going back in it, and in a new one."""
    engine = case.engine()
    case.train(engine, 0, HALF)
    random.seed(case.topology.rank)
    np.random.seed(case.topology.rank)
    case.save(engine, HALF)
    numbers = draws()
    whole = case.train(engine, HALF, STEPS)
    case.resume(engine)
    back = case.train(engine, HALF, STEPS)
    release(engine)
    engine = case.engine()
    resumed = case.resume(engine)
    continues = [resumed == Resumed(HALF, EXTRA), draws() == numbers]
    new = case.train(engine, HALF, STEPS)
    release(engine)
    return {"curve": whole, "back": back, "new": new, "continues": continues}


def other_topology(case: Case, source: Case, out: Path) -> dict[str, Any]:
    """Continue another topology's checkpoint; the state must survive the move exactly."""
    engine = case.engine()
    case.resume(engine, source.run_dir)
    case.save(engine, HALF, out)
    before, after = (
        StateReader(folder / f"checkpoints/step-{HALF:08d}", case.table) for folder in (source.run_dir, out)
    )
    exact = all(
        torch.equal(*(reader.read(kind, name, 0, int(np.prod(info.shape))) for reader in (before, after)))
        and before.step(name) == after.step(name) == HALF
        for name, info in case.table.items()
        for kind in KINDS
    )
    curve = case.train(engine, HALF, STEPS)
    release(engine)
    return {"exact": exact, "curve": curve}


def around_an_epoch(case: Case, out: Path) -> list[bool]:
    """Whether checkpoints before, at and after the end of an epoch continue as if there had been none."""
    engine = case.engine()
    case.train(engine, 0, HALF - 1)
    for step in (HALF - 1, HALF, HALF + 1):
        case.save(engine, step, out)
        case.train(engine, step, step + 1)
    whole = case.train(engine, HALF + 2, STEPS)
    same = []
    for step in (HALF - 1, HALF, HALF + 1):
        case.resume(engine, out, at_most=step)
        same.append(case.train(engine, step, STEPS)[HALF + 2 - step :] == whole)
    release(engine)
    return same


def without_moments(case: Case) -> Curve:
    """Negative control: the same weights with Adam's moments lost."""
    engine = case.engine()
    case.resume(engine)
    for held in fragments(engine, case.table, case.topology):
        for kind in KINDS[1:]:
            held.view(kind).zero_()
    curve = case.train(engine, HALF, STEPS)
    release(engine)
    return curve


def without_rng(case: Case) -> bool:
    """Negative control: whether streams go on although their file is not in the checkpoint."""
    path = case.run_dir / f"checkpoints/step-{HALF:08d}"
    engine = case.engine()
    case.resume(engine)
    numbers = draws()
    if case.topology.is_main:
        manifest = read_manifest(path)
        files = {name: entry for name, entry in manifest["files"].items() if not name.startswith("rng-")}
        write_manifest(path, HALF, manifest["written_by"], files)
    dist.barrier()
    case.resume(engine)
    release(engine)
    return draws() == numbers


class Evil:
    """Makes a directory when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.witness),)


def damages(witness: Path) -> Iterator[tuple[str, Callable[[Path], None]]]:
    def flip(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(bytes(content))

    def truncate(file: Path) -> None:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    def evil(file: Path) -> None:
        file.unlink()
        entry = write_file(file, pickle.dumps(Evil(witness)))
        if file.name != MANIFEST:  # the attacker mends the manifest
            manifest = read_manifest(file.parent)
            files = manifest["files"] | {file.name: entry}
            write_manifest(file.parent, manifest["step"], manifest["written_by"], files)

    yield from (("flip", flip), ("truncate", truncate), ("delete", Path.unlink), ("evil", evil))


def damaged(case: Case, witness: Path) -> dict[str, list[Any]]:
    """Damage every file of the newest checkpoint in every way, and say what each process then resumes."""
    engine = case.engine()
    for step in (2, 4):
        case.train(engine, step - 2, step)
        case.save(engine, step)
    newest = case.run_dir / "checkpoints/step-00000004"
    intact = case.run_dir / "intact"
    if case.topology.is_main:
        shutil.copytree(newest, intact)
    outcomes: dict[str, list[Any]] = {}
    dist.barrier()
    for name in sorted(path.name for path in intact.iterdir()):
        for how, damage in damages(witness):
            if case.topology.is_main:
                damage(newest / name)
            dist.barrier()
            try:
                outcome: Any = case.resume(engine).step
            except CheckpointError as error:
                outcome = str(error)
            steps: list[Any] = [None] * case.topology.world_size
            dist.all_gather_object(steps, outcome)
            outcomes[f"{how} {name}"] = steps
            if case.topology.is_main:
                shutil.rmtree(newest)
                shutil.copytree(intact, newest)
            dist.barrier()
    release(engine)
    return outcomes


def rolled_back(case: Case) -> list[Any]:
    """Go back before a step, set the later checkpoints aside, and pass them again."""
    folder = case.run_dir / "checkpoints"
    engine = case.engine()
    steps = [case.resume(engine, at_most=3).step]
    case.checkpoints().quarantine(after=3)
    steps.append(case.resume(engine).step)
    names = [sorted(path.name for path in folder.iterdir())]
    case.train(engine, 2, 4)
    case.save(engine, 4)
    release(engine)
    return [steps, *names, sorted(path.name for path in folder.iterdir())]


SHAPES = [("fp32", 1, 0), ("fp32", 1, 1), ("fp32", 1, 2), ("fp32", 1, 3), ("fp32", 2, 0), ("fp32", 2, 1)]
SHAPES += [("bf16", 1, 1), ("bf16", 1, 2), ("bf16", 1, 3), ("bf16", 2, 1)]
OFFLOADED = ("bf16", 1, 3, 1, True)
"""Precision, pipeline stages, ZeRO stage, and where not 1 and False parts of each matrix and offloading."""
TIED = [("fp32", 1, 0), ("fp32", 1, 1), ("fp32", 2, 0), ("fp32", 2, 1), ("bf16", 2, 1)]
"""The same, where an embedding that is tied to the readout may lie in two places."""
CUT = [("bf16", 1, 1, 2), ("bf16", 1, 2, 2), ("fp32", 1, 1, 2), ("fp32", 1, 3, 2)]
"""The same and tensor parallelism."""


def continued(cases: list[Case], sources: list[Case], out: Path) -> dict[str, Any]:
    """Continue each case by itself, and from the checkpoint of its source where that is of the same science."""
    results: dict[str, Any] = {"same": {case.name: same_topology(case) for case in cases}, "other": {}}
    for case, source in zip(cases, sources, strict=True):
        if case.run.precision == source.run.precision and case.run.model == source.run.model:
            results["other"][case.name] = [source.name, other_topology(case, source, out / "moved" / case.name)]
    return results


def on_two(config: Path, out: Path) -> dict[str, Any]:
    """Do everything that needs two processes; return what this one found."""
    cases = [Case(config, out, shape, tied=True) for shape in TIED]
    cases += [Case(config, out, shape) for shape in [*CUT, *SHAPES, OFFLOADED]]
    results = continued(cases, [cases[-1], *cases[:-1]], out)
    zero1 = cases[1]
    results["without moments"] = without_moments(zero1)
    results["epoch"] = around_an_epoch(zero1, out / "epoch")
    results["without rng"] = without_rng(zero1)
    damaged_case = Case(config, out / "damaged", ("bf16", 1, 1), tied=True)
    results["damaged"] = damaged(damaged_case, out / "it-ran")
    results["rolled back"] = rolled_back(damaged_case)
    return results


def on_four(config: Path, out: Path, before: Path) -> dict[str, Any]:
    """Two replicas of two processes that share each matrix, or are stages; they also continue what two had saved."""
    moves = [
        *zip(CUT[1:], [OFFLOADED, ("fp32", 1, 3, 2), ("fp32", 2, 1)], strict=True),
        (("bf16", 2, 1), ("bf16", 1, 3)),
    ]
    cases, sources = ([Case(config, folder, move[i]) for move in moves] for i, folder in enumerate((out, before)))
    return continued(cases, sources, out)


if __name__ == "__main__":
    connect(launched_topology(1))
    small, two, four = map(Path, sys.argv[1:])
    found, folder = (on_two(small, two), two) if dist.get_world_size() == 2 else (on_four(small, four, two), four)
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(found))
    disconnect()
