"""This process's part of each global batch, as tensors."""

from collections.abc import Iterator

import numpy as np
import torch

from data.loading.batches import Windows
from data.loading.mixture import Mixture, training_windows
from model.loss import IGNORE
from train.config import TrainConfig
from train.distributed.topology import Topology, uses_gpu
from train.engine.engine import MicroBatch


def training_batches(
    mixture: Mixture, train: TrainConfig, seed: int, step: int, topology: Topology
) -> Iterator[MicroBatch]:
    """Yield the micro-batches of optimizer step `step` (from 0) for this process's replica.

    The global batch is a function of (seed, step) alone. Micro-batch k of replica r takes the k-th stretch of
    `micro_batch_size` rows among those of all replicas, so that one replica that accumulates sees the same rows in the
    same groups as several replicas side by side.
    """
    size, replicas = train.micro_batch_size, topology.data_parallel
    for k in range(train.micro_batches(replicas)):
        start = (k * replicas + topology.replica) * size
        rows = slice(start, start + size)
        yield _split(training_windows(mixture, seed, step, train.global_batch_size, train.sequence_length, rows))


def validation_batches(windows: Windows, micro_batch_size: int, topology: Topology) -> list[MicroBatch]:
    """Return this replica's share of the validation windows.

    The last micro-batches are filled up with rows whose targets do not count, so that every replica runs as many
    micro-batches of one shape.
    """
    size, replicas = micro_batch_size, topology.data_parallel
    per_replica = -(-len(windows) // (size * replicas))
    padded = np.full((per_replica * size * replicas, windows.sequence_length + 1), IGNORE, dtype=np.int64)
    padded[: len(windows)] = windows[:]
    batches = []
    for k in range(per_replica):
        start = (k * replicas + topology.replica) * size
        tokens, targets = _split(padded[start : start + size])
        batches.append((tokens.clamp(min=0), targets))
    return batches


def _split(windows: np.ndarray) -> MicroBatch:
    """Cut windows (B, T + 1) into tokens (B, T) and next tokens (B, T)."""
    tokens, targets = (torch.from_numpy(np.ascontiguousarray(part)) for part in (windows[:, :-1], windows[:, 1:]))
    if uses_gpu():  # a copy from pageable memory would wait until the GPU has finished its queue
        tokens, targets = tokens.pin_memory(), targets.pin_memory()
    return tokens, targets
