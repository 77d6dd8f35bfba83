"""The weights of a checkpoint as one fp32 state of the plain `GPT`, whatever topology and precision wrote it.

What DeepSpeed leaves on disk, and what is read of it:

    mp_rank_00_model_states.pt                  the module's weights; one process or data parallelism, ZeRO 0-2
    layer_LL-model_states.pt                    the same for each layer of a pipeline
    zero_pp_rank_R_mp_rank_00_model_states.pt   ZeRO-3: no weights, but names and shapes in order
    [bf16_]zero_pp_rank_R_mp_rank_SS_optim_states.pt
                                                fp32 master weights of data-parallel rank R and pipeline stage SS,
                                                flattened, with the address of each parameter's fragment

Where the module's weights are fp32 they are the answer. Otherwise the masters are, and rounding them must give the
module's weights again. The files are pickles, and no code in them is run: see `_load`.
"""

import pickle
import re
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.config import ModelConfig
from model.transformer import GPT
from train.checkpoint import CheckpointError

Weights = dict[str, Tensor]


@torch.no_grad()
def consolidate(folder: Path, config: ModelConfig) -> Weights:
    """Return the fp32 weights in a DeepSpeed checkpoint under their names in `GPT(config)`, in its order.

    Args:
        folder: the directory that holds the `.pt` files.
        config: the model that was trained.

    Raises:
        CheckpointError: when a file is missing, cannot be read safely, or does not fit the model.
    """
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in GPT(config).named_parameters()}
    if any(folder.glob("zero_pp_rank_*_model_states.pt")):
        weights = _zero3_masters(folder)
    else:
        weights = _module_weights(folder, list(shapes))
        _require_shapes(folder, weights, shapes)
        if any(weight.dtype != torch.float32 for weight in weights.values()):
            rounded, weights = weights, _masters(folder, shapes)
            _require_agreement(folder, weights, rounded)
    _require_shapes(folder, weights, shapes)
    return {name: weights[name] for name in shapes}


# -------------------------------------------------------------------------------- the module's weights


def _module_weights(folder: Path, names: list[str]) -> Weights:
    """Read the weights that the forward pass uses, in whatever precision."""
    layers = _numbered(folder, r"layer_(\d+)-model_states\.pt")
    if not layers:
        return _load(folder / "mp_rank_00_model_states.pt")["module"]
    return {
        _plain_name(f"{index}.{name}", names): weight
        for (index,), path in layers
        for name, weight in _load(path).items()
    }


def _plain_name(name: str, names: list[str]) -> str:
    """Turn a pipeline's name of a parameter (`3.mlp.up.weight`, `tied_modules.embedding.weight`) into that in `GPT`.

    A pipeline numbers the layers of `GPT`, whose parameters are `names`, in their order.
    """
    first, _, rest = name.partition(".")
    if first == "tied_modules":
        return rest
    if not first.isdigit():
        return name
    layers = list(dict.fromkeys(".".join(n.split(".")[: 2 if n.startswith("blocks.") else 1]) for n in names))
    return f"{layers[int(first)]}.{rest}" if int(first) < len(layers) else name


# ------------------------------------------------------------------------------------- master weights


def _masters(folder: Path, shapes: dict[str, tuple[int, ...]]) -> Weights:
    """Join the fragments of fp32 master weights that ZeRO-1 and ZeRO-2 leave on each rank."""
    found: Weights = {}
    by_stage: dict[int, list[Path]] = {}
    for (stage, _), path in sorted(((s, r), p) for (r, s), p in _optimizer_files(folder)):
        by_stage.setdefault(stage, []).append(path)
    for paths in by_stage.values():
        fragments: dict[str, list[Tensor]] = {}
        for path in paths:
            state = _load(path)["optimizer_state_dict"]
            groups = zip(state["single_partition_of_fp32_groups"], state["param_slice_mappings"], strict=True)
            for flat, addresses in groups:
                for name, address in addresses.items():
                    fragment = flat.narrow(0, address.start, address.numel)
                    fragments.setdefault(_plain_name(name, list(shapes)), []).append(fragment)
        for name, parts in fragments.items():
            size = sum(part.numel() for part in parts)
            if size != prod(shapes.get(name, (0,))):
                raise CheckpointError(f"{folder}: {size:,} numbers of '{name}' do not make it {shapes.get(name)}")
            # A tied embedding is on the first stage and on the last, with equal values; the first one is taken.
            found.setdefault(name, torch.cat(parts).view(shapes[name]))
    return found


def _zero3_masters(folder: Path) -> Weights:
    """Join the masters of ZeRO-3, which cuts each parameter into one equal part for each rank, the last padded."""
    paths = [path for _, path in sorted(_optimizer_files(folder))]
    states = [_load(path)["optimizer_state_dict"] for path in paths]
    flats = [torch.cat([group.flatten() for group in state["fp32_flat_groups"]]) for state in states]
    groups = _load(folder / "zero_pp_rank_0_mp_rank_00_model_states.pt")["param_shapes"]
    if any(state["partition_count"] != len(paths) for state in states):
        raise CheckpointError(f"{folder}: {len(paths)} of {states[0]['partition_count']} optimizer files are there")
    weights, start = {}, 0
    for name, shape in (item for group in groups for item in group.items()):
        part = -(-shape.numel() // len(flats))
        whole = torch.cat([flat[start : start + part] for flat in flats])
        weights[name] = whole[: shape.numel()].view(shape)
        start += part
    if any(flat.numel() != start for flat in flats):
        raise CheckpointError(
            f"{folder}: the master weights have {flats[0].numel():,} numbers on a rank, not {start:,}"
        )
    return weights


def _optimizer_files(folder: Path) -> list[tuple[tuple[int, ...], Path]]:
    """List ((data-parallel rank, stage), file)."""
    files = _numbered(folder, r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
    if not files:
        raise CheckpointError(f"{folder}: there are no optimizer states, which hold the fp32 weights")
    return files


def _numbered(folder: Path, pattern: str) -> list[tuple[tuple[int, ...], Path]]:
    """List the files whose names match, each with the numbers in its name, in their order."""
    matches = ((re.fullmatch(pattern, path.name), path) for path in folder.iterdir())
    return sorted((tuple(int(number) for number in match.groups()), path) for match, path in matches if match)


# --------------------------------------------------------------------------------------------- checks


def _require_shapes(folder: Path, weights: Weights, shapes: dict[str, tuple[int, ...]]) -> None:
    if missing := shapes.keys() - weights.keys():
        raise CheckpointError(f"{folder}: there is no '{min(missing)}', which the run's model has")
    if surplus := weights.keys() - shapes.keys():
        raise CheckpointError(f"{folder}: there is '{min(surplus)}', which the run's model has not")
    for name, shape in shapes.items():
        if tuple(weights[name].shape) != shape:
            raise CheckpointError(f"{folder}: '{name}' is {tuple(weights[name].shape)}, and in the run's model {shape}")


def _require_agreement(folder: Path, masters: Weights, rounded: Weights) -> None:
    for name, weight in rounded.items():
        if name in masters and not torch.equal(masters[name].to(weight.dtype), weight):
            raise CheckpointError(f"{folder}: the fp32 and {weight.dtype} weights of '{name}' contradict each other")


# ------------------------------------------------------------------------------------- reading safely


@dataclass
class _Address:
    """Where a parameter's fragment lies in a flat tensor; stands in for DeepSpeed's `fragment_address`."""

    numel: int
    start: int


class _Unread:
    """Stands in for objects that an export does not look at."""


# The classes of DeepSpeed in its checkpoints. In their place the unpickler builds these, which do nothing.
_STAND_INS: list[Any] = [
    (_Address, "deepspeed.utils.tensor_fragment.fragment_address"),
    (int, "deepspeed.runtime.zero.config.ZeroStageEnum"),
    (_Unread, "deepspeed.runtime.fp16.loss_scaler.LossScaler"),
    (_Unread, "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler"),
]


def _load(path: Path) -> dict[str, Any]:
    """Read a `.pt` file of tensors and plain values, refusing one that would run anything else."""
    try:
        with torch.serialization.safe_globals(_STAND_INS):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: is missing") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it refers to {found[1]}, which no checkpoint of this trainer does" if found else "it is damaged"
        raise CheckpointError(f"{path}: is not read, because {reason}") from None
