"""Make sure that all connected processes belong to the same run.

Two runs that meet on one port can mix: the late rank of one joins the other, and a sum over ranks is then one over
both, without any error. So all ranks exchange what they are about to do, through the very group that they will train
over, before they train.
"""

import hashlib
import os
import socket
from pathlib import Path

import psutil
import torch
import torch.distributed as dist

from configs.cli import Status
from train.distributed.topology import Topology
from train.exit_codes import RunEnded

_DIGEST, _WORDS = 32, 480
"""Bytes of a card: a checksum of everything that must agree, and words for the message."""


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
    cards = [torch.empty_like(mine) for _ in range(topology.world_size)]
    dist.all_gather(cards, mine)
    different = [rank for rank, card in enumerate(cards) if not torch.equal(card[:_DIGEST], mine[:_DIGEST])]
    if different:
        others = "; ".join(f"rank {rank} is {_words(cards[rank])}" for rank in different[:4])
        raise ForeignRank(
            f"rank {topology.rank} is {_words(mine)}, but {others}. Two runs share the port "
            f"{os.environ.get('MASTER_PORT')}; launch each with a --master_port of its own"
        )


def _card(run_dir: Path, topology: Topology) -> torch.Tensor:
    facts = [str(run_dir.resolve()), str(topology.world_size)]
    if os.environ.get("LOCAL_SIZE") == str(topology.world_size):
        # All ranks are children of one launcher, which tells two launches of the same run apart.
        launcher = psutil.Process().parent()
        facts.append(f"{launcher.pid} {launcher.create_time()}" if launcher else "")
    digest = hashlib.sha256("\0".join(facts).encode()).digest()
    words = f"of {run_dir.resolve()} on {socket.gethostname()}".encode()[:_WORDS].ljust(_WORDS)
    return torch.frombuffer(bytearray(digest + words), dtype=torch.uint8).to(topology.device)


def _words(card: torch.Tensor) -> str:
    return bytes(card[_DIGEST:].tolist()).decode(errors="replace").strip()
