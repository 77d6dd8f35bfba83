"""Failures that have a known cause: out of memory, a full disk, the end of another rank, the limits of fp16."""

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from configs.cli import Status
from configs.reader import check
from train.config import StepPlan
from train.distributed.topology import uses_gpu
from train.exit_codes import RunEnded

_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "std::bad_alloc")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_ROOM_WORDS = ("file write failed", "No space left on device")
_PEER_ENDED = ("Connection closed by peer", "Connection reset by peer", "ncclRemoteError", "remote process exited")
_SCALE_FLOOR = "loss scale already at minimum"
_AFTER_THE_OTHER = 5.0
"""Seconds: several times what the launcher takes to notice the rank that ended first, whose status it passes on."""


class OutOfMemory(RunEnded):
    """The device or the machine has too little memory."""

    status = Status.OUT_OF_MEMORY
    told_by_all = True


class DiskFull(RunEnded):
    """A file could not be written."""

    status = Status.DISK_FULL
    told_by_all = True


class LossScaleFloor(RunEnded):
    """The gradients of fp16 overflow at any loss scale."""

    status = Status.DIVERGED


class PeerEnded(RunEnded):
    """Another rank ended while this one waited for it."""

    told_by_all = True


@contextmanager
def known_failures(plan: StepPlan, data_parallel: int) -> Iterator[None]:
    """Tell the failures of a run of such steps on `data_parallel` replicas that have a known cause by a `RunEnded`."""
    try:
        yield
    except RunEnded:
        raise
    except Exception as error:
        message = str(error)
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in message for word in _NO_MEMORY):
            first_line = message.strip().split("\n")[0][:300]
            raise OutOfMemory(f"out of memory: {first_line}\n{memory_advice(plan, data_parallel)}") from error
        if getattr(error, "errno", None) in _NO_ROOM or any(word in message for word in _NO_ROOM_WORDS):
            raise DiskFull(f"{message}; make room and run again to continue") from error
        if _SCALE_FLOOR in message:
            raise LossScaleFloor("gradients overflow at the smallest loss scale; try precision=bf16") from error
        if any(words in message for words in _PEER_ENDED):
            time.sleep(_AFTER_THE_OTHER)
            raise PeerEnded("another rank of this run has ended; its own lines say why") from error
        raise


def memory_advice(plan: StepPlan, data_parallel: int) -> str:
    """Return the ways to need less memory that leave the loss curve as it is, the cheapest first."""
    ways = []
    share = plan.train.global_batch_size // data_parallel
    smaller = [m for m in range(1, plan.train.micro_batch_size) if share % m == 0]
    if smaller:
        ways.append(f"--train.micro_batch_size={smaller[-1]} (now {plan.train.micro_batch_size}; gradients accumulate)")
    if not plan.train.activation_checkpointing:
        ways.append("--train.activation_checkpointing=true")
    stages, parts, zero = plan.parallel.pipeline_stages, plan.parallel.tensor_parallel, plan.zero_stage
    others: list[tuple[str, bool, dict[str, Any]]] = [
        (f"--parallel.zero_stage={zero + 1} (now {zero})", data_parallel > 1 and zero < 3, {"zero_stage": zero + 1}),
        ("--parallel.offload_optimizer=true", uses_gpu(), {"offload_optimizer": True}),
        (f"more devices, with --parallel.pipeline_stages={stages + 1}", True, {"pipeline_stages": stages + 1}),
        (f"more devices, with --parallel.tensor_parallel={2 * parts}", True, {"tensor_parallel": 2 * parts}),
    ]
    for way, helps, keys in others:
        changed = replace(plan, parallel=replace(plan.parallel, **keys))
        if helps and changed != plan and not any(check(changed)):
            ways.append(way)
    return "less memory for the same losses: " + ", or ".join(ways)
