"""The files of a checkpoint that hold fp32 weights and Adam moments, in pieces that any topology can put together.

Each process writes what it holds into `state-RANK-NUMBER.safetensors`, as one-dimensional tensors under the names
`KIND/PARAMETER/START`: the entries of the flattened parameter from START on. Parameters have their names in `GPT`, so
a piece means the same to one process, to a pipeline and to any stage of ZeRO, and a reader takes the entries it needs
out of whatever pieces there are. DeepSpeed's universal checkpoints (Lian et al. 2024, arXiv 2406.18820) come to the
same by a conversion after the fact. These files hold numbers alone: nothing in them can be run.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from model.config import ModelConfig
from model.transformer import parameter_shapes
from train.manifest import THREADS, Checksums, read_manifest

Weights = dict[str, Tensor]
_FILE_ENTRIES = 2**24
"""Entries of parameters in a file, 192 MiB with both moments."""


KINDS = ("weight", "exp_avg", "exp_avg_sq")
"""The fp32 weights, and the first and second moments of AdamW."""


@dataclass(frozen=True)
class Fragment:
    """Entries [start, start + count) of one flattened parameter."""

    name: str
    """Name of the parameter in `GPT`."""
    start: int
    count: int
    is_written: bool
    """Whether this process is the one to save it; others hold the same."""
    flat: Tensor
    """The tensor that AdamW updates."""
    offset: int
    """Where the entries begin in `flat`."""
    state: dict[str, Any]
    """AdamW's state of `flat`."""

    def view(self, kind: str) -> Tensor:
        """Return the entries of one of `KINDS` (count,), in the optimizer's own memory."""
        tensor = self.flat if kind == "weight" else self.state[kind]
        return tensor.detach().view(-1)[self.offset : self.offset + self.count]

    @property
    def step(self) -> int:
        """Updates that AdamW has made."""
        return int(self.state["step"])

    def set_step(self, step: int) -> None:
        """Set the updates that AdamW has made."""
        if isinstance(self.state["step"], Tensor):
            self.state["step"].fill_(step)
        else:
            self.state["step"] = step


def write_state(folder: Path, rank: int, held: Iterable[Fragment]) -> Checksums:
    """Write the fragments that are this process's to write; return the files' checksums."""

    def write(numbered: tuple[int, list[_Piece]]) -> tuple[str, dict[str, Any]]:
        number, pieces = numbered
        name = f"state-{rank:05d}-{number:03d}.safetensors"
        tensors = {
            f"{kind}/{fragment.name}/{fragment.start + begin}": fragment.view(kind)[begin:end].cpu().contiguous()
            for fragment, begin, end in pieces
            for kind in KINDS
        }
        steps = {fragment.name: fragment.step for fragment, _, _ in pieces}
        return name, write_file(folder / name, to_bytes(tensors, {"steps": json.dumps(steps)}))

    with ThreadPoolExecutor(THREADS) as pool:
        return dict(pool.map(write, enumerate(_files(fragment for fragment in held if fragment.is_written))))


_Piece = tuple[Fragment, int, int]
"""A fragment, and where a stretch of it begins and ends."""


def _files(held: Iterable[Fragment]) -> Iterator[list[_Piece]]:
    """Cut fragments into pieces and group them into files of at most `_FILE_ENTRIES`."""
    pieces: list[_Piece] = []
    room = _FILE_ENTRIES
    for fragment in held:
        begin = 0
        while begin < fragment.count:
            end = min(fragment.count, begin + room)
            pieces.append((fragment, begin, end))
            room -= end - begin
            begin = end
            if room == 0:
                yield pieces
                pieces, room = [], _FILE_ENTRIES
    if pieces:
        yield pieces


class StateReader:
    """Reads stretches of parameters from the pieces in a checkpoint's directory."""

    def __init__(self, folder: Path) -> None:
        """Open all files of states. Raises `SafetensorError` or `ValueError` for one that is not such a file."""
        self.folder = folder
        self._pieces: dict[tuple[str, str], list[tuple[int, int, Any, str]]] = {}
        self._steps: dict[str, int] = {}
        for file_name in sorted(read_manifest(folder)["files"]):
            if not file_name.startswith("state-"):
                continue
            file = safe_open(folder / file_name, "pt")
            for key in file.keys():  # noqa: SIM118 (it is no mapping)
                kind, name, start = key.split("/")
                (count,) = file.get_slice(key).get_shape()
                self._pieces.setdefault((kind, name), []).append((int(start), int(start) + count, file, key))
            self._steps |= json.loads(file.metadata()["steps"])
        for pieces in self._pieces.values():
            pieces.sort(key=lambda piece: piece[:2])

    def read(self, kind: str, name: str, start: int, count: int) -> Tensor:
        """Return the entries [start, start + count) of one of `KINDS` of a parameter, flattened.

        Raises:
            ValueError: when not all of them are there.
        """
        parts = []
        at, end = start, start + count
        for begin, stop, file, key in self._pieces.get((kind, name), []):
            if begin <= at < stop and at < end:
                parts.append(file.get_slice(key)[at - begin : min(end, stop) - begin])
                at = min(end, stop)
        if at < end:
            raise ValueError(f"{self.folder}: entry {at:,} of {kind} of '{name}' is not there")
        return torch.cat(parts)

    def step(self, name: str) -> int:
        """Return the updates that AdamW had made of a parameter."""
        return int(self._steps[name])

    def require(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Raise `ValueError` unless the parameters are exactly those of `shapes`."""
        found = {name: max(piece[1] for piece in pieces) for (_, name), pieces in self._pieces.items()}
        if missing := shapes.keys() - found.keys():
            raise ValueError(f"{self.folder}: there is no '{min(missing)}', which the run's model has")
        if surplus := found.keys() - shapes.keys():
            raise ValueError(f"{self.folder}: there is '{min(surplus)}', which the run's model has not")
        for name, shape in shapes.items():
            if found[name] != prod(shape):
                raise ValueError(f"{self.folder}: '{name}' has {found[name]:,} entries, and in the run's model {shape}")


@torch.no_grad()
def load_state(folder: Path, held: Iterable[Fragment], shapes: dict[str, tuple[int, ...]]) -> None:
    """Overwrite fragments with a checkpoint's weights and moments. Raises as `StateReader`."""
    reader = StateReader(folder)
    reader.require(shapes)
    for fragment in held:
        for kind in KINDS:
            fragment.view(kind).copy_(reader.read(kind, fragment.name, fragment.start, fragment.count))
        fragment.set_step(reader.step(fragment.name))


def read_weights(folder: Path, config: ModelConfig) -> Weights:
    """Return the fp32 weights in a checkpoint under their names in `GPT(config)`, in its order.

    From 16-bit runs these are the fp32 master weights. Raises as `StateReader`.
    """
    shapes = parameter_shapes(config)
    reader = StateReader(folder)
    reader.require(shapes)
    return {name: reader.read("weight", name, 0, prod(shape)).view(shape).float() for name, shape in shapes.items()}


def write_file(path: Path, content: bytes) -> dict[str, Any]:
    """Write a file, make it durable and return its size and checksum."""
    checksum = hashlib.sha256(content).hexdigest()
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": len(content), "sha256": checksum}
