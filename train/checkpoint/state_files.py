"""The files of a checkpoint that hold fp32 weights and Adam moments, in pieces that any topology can put together.

Each process writes what it holds into `state-RANK-NUMBER.safetensors`, as tensors under the names
`KIND/PARAMETER/START`: of one dimension where they are the entries of the flattened parameter from START on, of two
where they are some columns of consecutive rows of a matrix, the first of which begins at START. Parameters have their
names in `GPT`, so a piece means the same to one process, to a pipeline, to any stage of ZeRO and to tensor parallelism,
and a reader takes the entries it needs out of whatever pieces there are. DeepSpeed's universal checkpoints (Lian et al.
2024, arXiv 2406.18820) come to the same by a conversion after the fact. These files hold numbers alone: nothing in them
can be run.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from data.files import sync
from model.parameters import ParameterTable
from train.checkpoint.manifest import THREADS, Checksums, read_manifest
from train.checkpoint.slices import Place

Weights = dict[str, Tensor]
_FILE_ENTRIES = 2**24
"""Entries of parameters in a file, 192 MiB with both moments."""


KINDS = ("weight", "exp_avg", "exp_avg_sq")
"""The fp32 weights, and the first and second moments of AdamW."""


@dataclass(frozen=True)
class Fragment:
    """A piece of one parameter that lies in one stretch of the optimizer's memory."""

    name: str
    """Name of the parameter in `GPT`."""
    place: Place
    """Where in the parameter."""
    is_written: bool
    """Whether this process is the one to save it; others hold the same."""
    flat: Tensor
    """The tensor that AdamW updates."""
    offset: int
    """Where the entries begin in `flat`."""
    state: dict[str, Any]
    """AdamW's state of `flat`."""

    def view(self, kind: str) -> Tensor:
        """Return the entries of one of `KINDS`, of the shape of `place`, in the optimizer's own memory."""
        tensor = self.flat if kind == "weight" else self.state[kind]
        return tensor.detach().view(-1)[self.offset : self.offset + self.place.count].view(self.place.shape)

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
            f"{kind}/{fragment.name}/{fragment.place.row(begin)}": fragment.view(kind)[begin:end].cpu().contiguous()
            for fragment, begin, end in pieces
            for kind in KINDS
        }
        steps = {fragment.name: fragment.step for fragment, _, _ in pieces}
        return name, write_file(folder / name, to_bytes(tensors, {"steps": json.dumps(steps)}))

    with ThreadPoolExecutor(THREADS) as pool:
        return dict(pool.map(write, enumerate(_files(fragment for fragment in held if fragment.is_written))))


_Piece = tuple[Fragment, int, int]
"""A fragment, and which of its rows a piece begins and ends with."""


def _files(held: Iterable[Fragment]) -> Iterator[list[_Piece]]:
    """Cut fragments into pieces and group them into files of `_FILE_ENTRIES`, and of a row more at most."""
    pieces: list[_Piece] = []
    room = _FILE_ENTRIES
    for fragment in held:
        rows, *width = fragment.place.shape
        begin = 0
        while begin < rows:
            end = min(rows, begin + -(-room // prod(width)))
            pieces.append((fragment, begin, end))
            room -= (end - begin) * prod(width)
            begin = end
            if room <= 0:
                yield pieces
                pieces, room = [], _FILE_ENTRIES
    if pieces:
        yield pieces


class StateReader:
    """Reads stretches of parameters from the pieces in a checkpoint's directory."""

    def __init__(self, folder: Path, table: ParameterTable) -> None:
        """Open all files of states of a model with these parameters.

        Raises:
            SafetensorError: for one that is not such a file.
            ValueError: for the same, and unless the parameters are exactly those of `table`.
        """
        self.folder, self._table = folder, table
        self._pieces: dict[tuple[str, str], list[tuple[Place, Any]]] = {}
        self._steps: dict[str, int] = {}
        for file_name in sorted(read_manifest(folder)["files"]):
            if not file_name.startswith("state-"):
                continue
            file = safe_open(folder / file_name, "pt")
            for key in file.keys():  # noqa: SIM118 (it is no mapping)
                kind, name, start = key.split("/")
                content = file.get_slice(key)
                shape = tuple(content.get_shape())
                place = Place(int(start), shape, self._row_length(name) if len(shape) == 2 else 1)
                self._pieces.setdefault((kind, name), []).append((place, content))
            self._steps |= json.loads(file.metadata()["steps"])
        self._require_parameters()

    def read(self, kind: str, name: str, start: int, count: int) -> Tensor:
        """Return the entries [start, start + count) of one of `KINDS` of a parameter, flattened.

        Raises:
            ValueError: when not all of them are there.
        """
        row = self._row_length(name)
        first, end = start // row, -(-(start + count) // row)  # whole rows, so that rectangles fit in
        entries = torch.empty((end - first) * row)
        found = torch.zeros(len(entries), dtype=torch.bool)
        for place, content in self._pieces.get((kind, name), []):
            begin, stop = place.rows_between(first * row, end * row)
            if begin < stop:
                where = Place(place.row(begin) - first * row, (stop - begin, *place.shape[1:]), place.stride)
                where.of(entries).copy_(content[begin:stop])
                where.of(found).fill_(True)
        if not found.all():
            entry = first * row + int(found.int().argmin())
            raise ValueError(f"{self.folder}: entry {entry:,} of {kind} of '{name}' is not there")
        return entries[start - first * row :][:count]

    def step(self, name: str) -> int:
        """Return the updates that AdamW had made of a parameter."""
        return int(self._steps[name])

    def _row_length(self, name: str) -> int:
        """Entries of a row of a matrix, 1 for a vector and for what the model has not."""
        shape = self._table[name].shape if name in self._table else ()
        return shape[1] if len(shape) == 2 else 1

    def _require_parameters(self) -> None:
        found = {name: max(place.end for place, _ in pieces) for (_, name), pieces in self._pieces.items()}
        if missing := self._table.keys() - found.keys():
            raise ValueError(f"{self.folder}: there is no '{min(missing)}', which the run's model has")
        if surplus := found.keys() - self._table.keys():
            raise ValueError(f"{self.folder}: there is '{min(surplus)}', which the run's model has not")
        for name, info in self._table.items():
            if found[name] != prod(info.shape):
                here = f"'{name}' has {found[name]:,} entries"
                raise ValueError(f"{self.folder}: {here}, and in the run's model {info.shape}")


@torch.no_grad()
def load_state(folder: Path, held: Iterable[Fragment], table: ParameterTable) -> None:
    """Overwrite fragments with a checkpoint's weights and moments. Raises as `StateReader`."""
    reader = StateReader(folder, table)
    for fragment in held:
        place = fragment.place
        for kind in KINDS:
            around = reader.read(kind, fragment.name, place.start, place.end - place.start)
            fragment.view(kind).copy_(replace(place, start=0).of(around))
        fragment.set_step(reader.step(fragment.name))


def read_weights(folder: Path, table: ParameterTable) -> Weights:
    """Return the fp32 weights in a checkpoint under their names in `GPT`, in its order.

    From 16-bit runs these are the fp32 master weights. Raises as `StateReader`.
    """
    reader = StateReader(folder, table)
    return {
        name: reader.read("weight", name, 0, prod(info.shape)).view(info.shape).float() for name, info in table.items()
    }


def write_file(path: Path, content: bytes) -> dict[str, Any]:
    """Write a file, make it durable and return its size and checksum."""
    checksum = hashlib.sha256(content).hexdigest()
    with path.open("xb") as file:
        file.write(content)
        sync(file)
    return {"bytes": len(content), "sha256": checksum}
