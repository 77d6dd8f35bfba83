"""Which stretch of each parameter's fp32 state this process holds, wherever DeepSpeed keeps it.

    plain fp32 (ZeRO-0)   the parameter itself; every replica holds all of it
    ZeRO-1 and ZeRO-2     a stretch of the flat fp32 partition of its group; `parameter._hp_mapping` has both addresses
    ZeRO-3                an equal part of each parameter, the last one padded, in the flat partition of its subgroup

Under tensor parallelism a parameter is what this process has of a matrix, and `parameter` carries what DeepSpeed noted
when it cut it.

AdamW's moments are laid out like the tensor that it updates, so one address serves the weights and both moments.
"""

from collections.abc import Iterator
from contextlib import suppress
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.checkpoint.constants import DS_AUTOTP_UC_META
from torch import Tensor, nn

from model.parameters import ParameterTable
from train.checkpoint.slices import Place, in_columns, in_rows
from train.checkpoint.state_files import KINDS, Fragment
from train.distributed.topology import Topology
from train.engine.engine import named_parameters


class UnsupportedEngine(ValueError):
    """The engine keeps its state where this program cannot reach it."""


def fragments(engine: Any, table: ParameterTable, topology: Topology) -> Iterator[Fragment]:
    """Yield all that this process holds, between two optimizer steps.

    Raises:
        UnsupportedEngine: for optimizer states on NVMe, and parameters that are not those of `GPT`.
    """
    for index, (name, parameter) in enumerate(named_parameters(engine)):
        here = tuple(getattr(parameter, "ds_shape", parameter.shape))
        cut = getattr(parameter, DS_AUTOTP_UC_META, {"partition_dim": None, "original_shape": here})
        shape = table[name].shape if name in table else None
        if shape != cut["original_shape"]:
            raise UnsupportedEngine(f"'{name}' is {here} on this process, and {shape} in the model")
        held = _locate(engine, parameter)
        if held is None:
            continue
        flat, offset, start, count = held
        # What every replica holds whole is shared out among them, so that they write side by side; so is what every
        # process of a replica holds alike.
        is_mine = flat is not parameter or index % topology.data_parallel == topology.replica
        is_mine &= cut["partition_dim"] is not None or index % topology.tensor_parallel == topology.part
        is_written = is_mine and not getattr(parameter, "is_tied_copy", False)
        count = min(count, prod(here) - start)
        for place in _places(cut, topology.part, start, count):
            yield Fragment(name, place, is_written, flat, offset, _optimizer_state(engine.basic_optimizer, flat))
            offset += place.count


def _places(cut: dict[str, Any], part: int, start: int, count: int) -> Iterator[Place]:
    """Yield where entries of this process's part of a parameter lie in the whole."""
    dimension, length = cut["partition_dim"], prod(cut["original_shape"][1:])
    if dimension is None:
        parts = [(0, cut["original_shape"][0])]
    elif dimension == 0:
        widths, sizes = cut["sub_param_shard_widths"], cut["sub_param_sizes"]
        parts = [(sum(sizes[:i]) + sum(width[:part]), width[part]) for i, width in enumerate(widths)]
    else:
        widths = cut["partition_sizes"]
        yield from in_columns(sum(widths[:part]), widths[part], length, start, count)
        return
    yield from in_rows(parts, length, start, count)


def _locate(engine: Any, parameter: nn.Parameter) -> tuple[Tensor, int, int, int] | None:
    """Return (flat tensor, offset in it, first entry, number of entries), or None where nothing is held."""
    zero = engine.optimizer
    if hasattr(parameter, "ds_id"):  # ZeRO-3
        if zero.swap_optimizer or any(f is None for f in zero.fp16_partitioned_groups_flat):
            raise UnsupportedEngine("states offloaded to NVMe cannot be saved; nearest is device: cpu")
        group, offset, count = zero.grad_position[zero.get_param_id(parameter)]
        rank = zero._get_param_partition_rank(parameter)
        return zero.fp32_partitioned_groups_flat[group], offset, rank * count, count
    if hasattr(parameter, "_hp_mapping"):  # ZeRO-1 and ZeRO-2
        if (address := parameter._hp_mapping) is None:
            return None
        (flat,) = engine.basic_optimizer.param_groups[address.param_group_index]["params"]
        held, where = address.lp_fragment_address, address.hp_fragment_address
        return flat, where.start, held.start, held.numel
    if zero is not engine.basic_optimizer:
        raise UnsupportedEngine(f"the state of DeepSpeed's {type(zero).__name__} cannot be saved; nearest is ZeRO-1")
    return parameter, 0, 0, parameter.numel()


def _optimizer_state(optimizer: torch.optim.Optimizer, flat: Tensor) -> dict[str, Any]:
    """Return AdamW's state of a tensor, made as AdamW makes it where no step has been taken yet."""
    state = optimizer.state[flat]
    if not state:
        is_torch = isinstance(optimizer, torch.optim.AdamW)  # DeepSpeed's own for CPUs counts in a Python number
        state["step"] = torch.zeros((), dtype=torch.float32, device=flat.device) if is_torch else 0
        state |= {kind: torch.zeros_like(flat, requires_grad=False) for kind in KINDS[1:]}
    return state


def without_gradient(engine: Any, table: ParameterTable, topology: Topology) -> list[str]:
    """Return the parameters that no gradient has ever reached: AdamW's first moment is zero in every entry.

    Every process must call this, between two optimizer steps. Where nothing at all has been updated, as while fp16
    looks for its loss scale, or the state cannot be reached, none are returned.
    """
    reached: dict[str, bool] = {}
    with suppress(UnsupportedEngine):
        for fragment in fragments(engine, table, topology):
            reached[fragment.name] = reached.get(fragment.name, False) or bool(fragment.view("exp_avg").any())
    parts: list[dict[str, bool]] = [{}] * topology.world_size
    dist.all_gather_object(parts, reached)
    learning = {name for part in parts for name, some in part.items() if some}
    return sorted({name for part in parts for name in part} - learning) if learning else []


def release_weights(engine: Any) -> None:
    """Under ZeRO-3, give up gathered parameters before their parts change; every process must call this."""
    if engine.zero_optimization_partition_weights():
        engine.optimizer.checkpoint_event_prologue()


def refresh_weights(engine: Any) -> None:
    """Round changed fp32 weights to those of the forward pass, on all replicas; every process must call this."""
    zero = engine.optimizer
    if engine.zero_optimization_partition_weights():
        for group in range(len(zero.fp16_groups)):
            zero._reassign_or_swap_out_partitioned_parameters(group)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].partition(zero.persistent_parameters)
        zero.checkpoint_event_epilogue()
    elif zero is not engine.basic_optimizer:
        zero.update_lp_params()


_COUNTERS = ("global_steps", "global_samples", "skipped_steps")
_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def scalars(engine: Any) -> dict[str, dict[str, float]]:
    """Return what else the engine counts: steps taken and skipped, and the loss scale of fp16 with its history."""
    scaler = vars(engine.optimizer.loss_scaler) if engine.fp16_enabled() else {}
    return {
        "counters": {key: getattr(engine, key) for key in _COUNTERS},
        "loss_scaler": {key: scaler[key] for key in _SCALER if key in scaler},
    }


def set_scalars(engine: Any, values: dict[str, dict[str, float]]) -> None:
    """Set what `scalars` returned."""
    for key in _COUNTERS:
        setattr(engine, key, values["counters"][key])
    if engine.fp16_enabled():
        vars(engine.optimizer.loss_scaler).update(values["loss_scaler"])
