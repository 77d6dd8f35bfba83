"""Runs with faults injected, one after another in one launch; what the spike tests run on their ranks.

    python -m tests.helpers.fault_ranks CONFIG.yaml FOLDER CASES.json

CASES maps the name of a run to {overrides, fault}; each is trained in FOLDER/NAME, and its exit status is written to
FOLDER/NAME/status.txt. The faults replace functions that the training loop calls; the shipped command has no such door.
"""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from train import loop
from train.config import load_run
from train.distributed.topology import connect, disconnect, launched_topology
from train.engine.engine import MicroBatch, named_parameters
from train.exit_codes import print_error
from train.run import run_job


@dataclass
class Fault:
    """What goes wrong, and at which steps (from 0)."""

    kind: str
    """random_tokens, lr_x30, weights_x10, nan_gradient, frozen_block or exit."""
    steps: list[int]
    """Data steps of `random_tokens`, else optimizer steps."""
    once: bool = True
    """Only in the first attempt."""
    rank: int = 0
    """Where the gradient is not a number."""
    at: str = ""
    """Where the process exits: `going back`, before the rollback lasts, or `gone back`, just after."""


def inject(fault: Fault, patch: pytest.MonkeyPatch, run: Any) -> None:
    """Put a fault between the training loop and what it calls."""
    batches, train_step, resume, save = loop.training_batches, loop.train_step, loop._resume, loop.Checkpoints.save
    attempts = 0

    def faulty_batches(corpus: Any, train: Any, seed: int, step: int, topology: Any) -> Iterator[MicroBatch]:
        draw = torch.Generator().manual_seed(step)
        for tokens, targets in batches(corpus, train, seed, step, topology):
            if fault.kind in ("random_tokens", "exit") and step in fault.steps:
                tokens = torch.randint(run.model.vocab_size, tokens.shape, generator=draw)
                targets = torch.randint(run.model.vocab_size, tokens.shape, generator=draw)
            yield tokens, targets

    def faulty_step(engine: Any, micro_batches: Any, lr: float, topology: Any) -> torch.Tensor:
        hooks = []
        if engine.global_steps in fault.steps and (attempts == 1 or not fault.once):
            if fault.kind == "lr_x30":
                lr *= 30
            elif fault.kind == "weights_x10":
                for _, parameter in named_parameters(engine):
                    parameter.data.mul_(10)
            elif fault.kind == "nan_gradient" and topology.rank == fault.rank:
                for _, parameter in named_parameters(engine):
                    hooks.append(parameter.register_hook(lambda gradient: gradient * torch.nan))
            elif fault.kind == "frozen_block":
                for name, parameter in named_parameters(engine):
                    if name.startswith("blocks.1."):
                        hooks.append(parameter.register_hook(lambda gradient: gradient * 0))
        loss = train_step(engine, micro_batches, lr, topology)
        for hook in hooks:
            hook.remove()
        return loss

    def counted_resume(*arguments: Any) -> Any:
        nonlocal attempts
        attempts += 1
        if fault.at == "going back" and attempts == 2:
            os._exit(9)
        resumed = resume(*arguments)
        if fault.at == "gone back" and attempts == 2:
            os._exit(9)
        return resumed

    def dying_save(*arguments: Any) -> None:
        if fault.at == "saving" and attempts == 2:
            os._exit(9)
        save(*arguments)

    patch.setattr(loop, "training_batches", faulty_batches)
    patch.setattr(loop, "train_step", faulty_step)
    patch.setattr(loop, "_resume", counted_resume)
    patch.setattr(loop.Checkpoints, "save", dying_save)


def main() -> None:
    """Train all cases."""
    config, folder, cases = sys.argv[1:]
    topology = launched_topology(1)
    connect(topology, 60)
    for name, case in json.loads(Path(cases).read_text()).items():
        run = load_run(config, case.get("overrides", []))
        with pytest.MonkeyPatch.context() as patch:
            if "fault" in case:
                inject(Fault(**case["fault"]), patch, run)
            try:
                status = run_job(run, Path(folder) / name, config)
            except loop.RunEnded as error:
                status = print_error(str(error), error.status)
        if topology.is_main:
            (Path(folder) / name / "status.txt").write_text(str(status))
    disconnect()


if __name__ == "__main__":
    main()
