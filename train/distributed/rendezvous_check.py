"""Make sure that all connected processes belong to the same run.

Two runs that meet on one port can mix: the late rank of one joins the other, and a sum over ranks is then one over
both, without any error. So all ranks exchange what they are about to do, through the very group that they will train
over, before they train.
"""

import os
import socket
from pathlib import Path
from typing import Any

import psutil
import torch.distributed as dist

from configs.cli import Status
from train.distributed.topology import Topology
from train.exit_codes import RunEnded


class ForeignRank(RunEnded):
    """A process of another run is in the group."""

    status = Status.FOREIGN_RANK
    told_by_all = True


def require_one_run(run_dir: Path, topology: Topology) -> None:
    """Exchange cards with all connected ranks.

    Raises:
        ForeignRank: on every rank, when not all are of one launch of this run.
    """
    mine = _card(run_dir, topology)
    cards: list[Any] = [None] * topology.world_size
    dist.all_gather_object(cards, mine)
    different = [f"rank {rank} is {words}" for rank, (facts, words) in enumerate(cards) if facts != mine[0]]
    if different:
        raise ForeignRank(
            f"rank {topology.rank} is {mine[1]}, but {'; '.join(different[:4])}. Two runs share the port "
            f"{os.environ.get('MASTER_PORT')}; launch each with a --master_port of its own"
        )


def _card(run_dir: Path, topology: Topology) -> tuple[list[str], str]:
    """Return everything that must agree, and words for the message."""
    facts = [str(run_dir.resolve()), str(topology.world_size)]
    if os.environ.get("LOCAL_SIZE") == str(topology.world_size):
        # All ranks are children of one launcher, which tells two launches of the same run apart.
        launcher = psutil.Process().parent()
        facts.append(f"{launcher.pid} {launcher.create_time()}" if launcher else "")
    return facts, f"of {run_dir.resolve()} on {socket.gethostname()}"
