"""Slurm: what `srun` tells a process.

`srun` starts every rank itself and names it in SLURM_* variables; `deepspeed --launcher slurm` calls `srun` and adds
nothing, not even the master's address. Names and meanings: https://slurm.schedmd.com/srun.html.
"""

import re
from collections.abc import Mapping

# As in train/distributed/ports.py: below the ports that Linux hands out by itself.
_FIRST_PORT, _PORTS = 20_000, 12_000


def rank_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return RANK, WORLD_SIZE, ... of a process that `srun` started, or nothing if it is not one of several.

    The shell of a batch job is no such process, although it has SLURM_PROCID=0 and SLURM_NTASKS of the whole job. A
    MASTER_ADDR or MASTER_PORT in the environment holds; otherwise they are the first host of the step, and a port
    that follows from the step's number.
    """
    if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) == 1:
        return {}
    step = 131 * int(environment["SLURM_JOB_ID"]) + int(environment["SLURM_STEP_ID"])
    tasks_here = _tasks_per_node(environment["SLURM_STEP_TASKS_PER_NODE"])[int(environment["SLURM_NODEID"])]
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "LOCAL_SIZE": str(tasks_here),
        "MASTER_ADDR": environment.get("MASTER_ADDR") or first_host(environment["SLURM_STEP_NODELIST"]),
        "MASTER_PORT": environment.get("MASTER_PORT") or str(_FIRST_PORT + step % _PORTS),
    }


def first_host(nodes: str) -> str:
    """Return the first host of a Slurm node list: `gpu07` of `gpu[07-09,12],cpu1`."""
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", nodes).split(",")[0]


def _tasks_per_node(counts: str) -> list[int]:
    """Expand `2(x3),1` to [2, 2, 2, 1]."""
    parts = re.findall(r"(\d+)(?:\(x(\d+)\))?", counts)
    return [int(tasks) for tasks, nodes in parts for _ in range(int(nodes or 1))]
