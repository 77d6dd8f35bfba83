"""Processes and devices: who am I, and which part of each batch is mine."""

import os
import socket
from dataclasses import dataclass
from datetime import timedelta

import torch

from train.distributed.slurm import rank_environment
from train.exit_codes import RunEnded


@dataclass(frozen=True)
class Topology:
    """One process among all of a run."""

    rank: int
    world_size: int
    local_rank: int
    pipeline_stages: int
    tensor_parallel: int = 1

    @property
    def data_parallel(self) -> int:
        """Number of replicas, each of `pipeline_stages` x `tensor_parallel` processes."""
        return self.world_size // (self.pipeline_stages * self.tensor_parallel)

    @property
    def replica(self) -> int:
        """Which replica this process belongs to: as in DeepSpeed, stages are the outermost dimension of the grid.

        The processes that share each matrix are neighbours, so that they talk within a machine.
        """
        return self.rank // self.tensor_parallel % self.data_parallel

    @property
    def part(self) -> int:
        """Which part of each matrix this process has, of `tensor_parallel`."""
        return self.rank % self.tensor_parallel

    @property
    def is_main(self) -> bool:
        """True on the one process that writes files."""
        return self.rank == 0

    @property
    def several_machines(self) -> bool:
        """True when the launcher or torchrun says that it has started only some of the processes on this machine."""
        here = os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or self.world_size
        return int(here) < self.world_size

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return torch.device("cuda", self.local_rank) if uses_gpu() else torch.device("cpu")


class NotAllCame(RunEnded):
    """Some process of the run did not join the others."""


def uses_gpu() -> bool:
    """Return whether this run trains on GPUs; `DS_ACCELERATOR=cpu` keeps it off them."""
    return os.environ.get("DS_ACCELERATOR", "cuda") == "cuda" and torch.cuda.is_available()


def launched_topology(pipeline_stages: int, tensor_parallel: int = 1) -> Topology:
    """Read what the launcher or Slurm put into the environment; a process started by hand is a world of its own.

    Raises:
        ValueError: when the processes cannot be cut into replicas, or are more than this machine's GPUs.
    """
    if "RANK" not in os.environ:
        os.environ |= rank_environment(os.environ)
    if "RANK" not in os.environ:
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        os.environ.setdefault("MASTER_PORT", "0")
    world_size = int(os.environ["WORLD_SIZE"])
    for key, size in (("pipeline_stages", pipeline_stages), ("tensor_parallel", tensor_parallel)):
        if world_size % size:
            near = max(s for s in range(1, size + 1) if world_size % s == 0)
            raise ValueError(
                f"parallel.{key}: {size} does not divide the {world_size} launched process(es); "
                f"nearest is {near}, or launch with --num_accelerators {size}"
            )
    local_rank = int(os.environ["LOCAL_RANK"])
    if uses_gpu() and local_rank >= (count := torch.cuda.device_count()):
        raise ValueError(
            f"process {local_rank} on {socket.gethostname()} sees {count} GPU(s) and none that is its own; launch one "
            "process for each GPU and let it see all of the machine's (in Slurm --gpus-per-node, not --gpus-per-task)"
        )
    return Topology(int(os.environ["RANK"]), world_size, local_rank, pipeline_stages, tensor_parallel)


def precision_problem(precision: str) -> str | None:
    """Return why this process's device cannot compute in `precision`, or None."""
    if precision == "fp16" and not uses_gpu():
        return "precision: fp16 does not run on a CPU, where DeepSpeed has no kernels for it; nearest is bf16"
    if precision == "bf16" and uses_gpu() and not torch.cuda.is_bf16_supported(including_emulation=False):
        return f"precision: {torch.cuda.get_device_name()} has no bf16 arithmetic; nearest is fp16"
    return None


def connect(topology: Topology, timeout: float = 1800.0) -> None:
    """Join the process group, unless joined already: NCCL on GPUs, gloo on CPUs.

    Args:
        topology: this process.
        timeout: seconds after which a collective that other ranks do not join is an error.

    Raises:
        ValueError: when another program listens on the port.
        NotAllCame: when some process did not join within `timeout`.
    """
    if torch.distributed.is_initialized():
        return
    if not uses_gpu():
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    # DeepSpeed would compile a shared-memory op for inference with a C++ compiler that a machine may lack, and a
    # killed compilation leaves a lock that hangs every later run. Training does not use the op.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if uses_gpu():
        torch.cuda.set_device(topology.device)
    elif "OMP_NUM_THREADS" not in os.environ:
        ranks_here = int(os.environ.get("LOCAL_SIZE", topology.world_size))  # the launcher sets LOCAL_SIZE
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks_here))
    try:
        deepspeed.init_distributed(verbose=False, timeout=timedelta(seconds=timeout))
    except (torch.distributed.DistNetworkError, torch.distributed.DistStoreError) as error:
        address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
        if "EADDRINUSE" not in str(error):
            raise NotAllCame(
                f"the {topology.world_size} processes of this run did not all meet at {address}:{port} within "
                f"{timeout:.0f} s; has each machine been launched, with this address, port and hostfile, and does its "
                f"own output name a mistake? ({str(error).splitlines()[0]})"
            ) from None
        raise ValueError(
            f"port {port} is in use, by another run on this machine perhaps; launch with another one: "
            f"deepspeed --master_port {int(port) + 1} ..."
        ) from None


def disconnect() -> None:
    """Leave the process group, so that a rank that stops for a reason does not look like one that crashed."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
