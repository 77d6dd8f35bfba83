"""Before the first step: do all machines of a run train the same thing?

Machines have disks of their own. One with an older checkout, another corpus or another command line would train along,
and nothing but the loss would tell.
"""

import dataclasses
import hashlib
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed

from configs.keys import flatten
from data.loading.mixture import Mixture
from train.config import RunConfig
from train.distributed.topology import Topology

_ROOT = Path(__file__).resolve().parents[2]


def exchange_mistakes(mine: str | None, topology: Topology) -> None:
    """Tell all processes a mistake that this one found before it was connected, or hear theirs.

    A process that just ended would leave those of other machines waiting for it.

    Raises:
        ValueError: on every process, when any has found one.
    """
    if topology.world_size == 1:
        return
    found: dict[str, str] = {}
    for rank, (host, mistake) in enumerate(_gather((socket.gethostname(), mine), topology)):
        if mistake is not None:
            found.setdefault(mistake, f"{host} (rank {rank})")
    if found:
        raise ValueError("\n".join(f"{where}: {mistake}" for mistake, where in found.items()))


def require_agreement(
    run: RunConfig,
    ds_config: Mapping[str, Any],
    mixture: Mixture,
    run_dir: Path,
    topology: Topology,
    patience: float = 60.0,
) -> None:
    """Compare what every process sees with what the main one sees. The process group must be connected.

    Args:
        run: the run; only `data.directory` may differ between machines.
        ds_config: the configuration that DeepSpeed is given.
        mixture: the corpora, compared by their fingerprint.
        run_dir: must be one directory for all: each process saves its part of a checkpoint there and reads others'.
            The main process has just written `config.yaml` in it.
        topology: this process among all.
        patience: seconds that a network file system may take to show that file elsewhere.

    Raises:
        ValueError: on every process, naming the host and all that differs there.
    """
    if topology.world_size == 1:
        return
    mine = {
        **flatten(dataclasses.asdict(run)),
        **flatten(ds_config, "deepspeed."),
        "the corpus": mixture.fingerprint,
        "the code": code_hash(),
        "torch": torch.__version__,
        "DeepSpeed": deepspeed.__version__,
    }
    del mine["data.directory"]
    marker = run_dir / "config.yaml"
    views = _gather((socket.gethostname(), run_dir.resolve(), mine, _stamp(marker)), topology)
    main_host, main_dir, reference, stamp = views[0]
    problems = []
    for rank, (host, _, facts, _) in enumerate(views):
        for key in sorted(reference.keys() | facts.keys()):
            here, there = facts.get(key), reference.get(key)
            if here != there:
                problems.append(f"{host} (rank {rank}): {key} is {here}, and {there} on {main_host} (rank 0)")
    deadline = time.monotonic() + patience
    while not problems and _stamp(marker) != stamp and time.monotonic() < deadline:
        time.sleep(0.2)
    sees_it = _gather(bool(problems) or _stamp(marker) == stamp, topology)
    for (rank, (host, directory, *_)), sees in zip(enumerate(views), sees_it, strict=True):
        if not sees:
            problems.append(
                f"{host} (rank {rank}): {directory} is not the directory {main_dir} of {main_host} (rank 0)"
            )
    if problems:
        advice = "all machines need the same checkout, packages, data and command, and --run-dir on a disk they share"
        raise ValueError("\n".join(["the machines of this run differ:", *problems[:20], advice]))


def _gather(value: Any, topology: Topology) -> list[Any]:
    values: list[Any] = [None] * topology.world_size
    torch.distributed.all_gather_object(values, value)
    return values


def _stamp(path: Path) -> tuple[int, int, bytes] | None:
    """Return what tells a file that was just written from any other, on whatever machine it is read."""
    try:
        status = path.stat()
        return int(status.st_mtime), status.st_size, path.read_bytes()
    except OSError:
        return None


def code_hash(root: Path = _ROOT) -> str:
    """Hash the source files that training runs, in all rooms below `root`."""
    digest = hashlib.sha256()
    for package in ("configs", "data", "evaluation", "model", "train"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]
