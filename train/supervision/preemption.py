"""Signals that ask a run to end. All ranks save at the same step boundary, whichever of them was signalled.

A scheduler of jobs signals one rank, all of them, or, as the `deepspeed` launcher does, one after another with up to
30 s between them. A checkpoint is collective, so the ranks must agree on a step. They do so by the maximum of a flag
over all ranks, on a gloo group of its own: it runs on the CPU beside the step and costs an accelerator nothing.
"""

import contextlib
import os
import signal
import socket
import threading
from typing import Self

import torch
import torch.distributed as dist

from configs.cli import Status
from train.distributed.topology import Topology
from train.exit_codes import RunEnded

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
"""SIGUSR1 is what Slurm's `--signal=USR1@120` sends."""


class Preempted(RunEnded):
    """The run was asked to end, and has saved."""

    status = Status.STOPPED


class StopRequest:
    """Whether the run has been asked to end; the same answer on all ranks.

    Use as a context manager around the training loop, on the main thread. In it the signals are heard instead of
    obeyed, and a second SIGINT ends the process at once.
    """

    def __init__(self, topology: Topology) -> None:
        """Prepare the group; every rank must call this."""
        self.received: signal.Signals | None = None
        """The first signal that this rank has received."""
        self._group = dist.new_group(backend="gloo") if topology.world_size > 1 else None
        self._flag = torch.zeros(1, dtype=torch.int32)
        self._work: dist.Work | None = None

    def begin_step(self) -> None:
        """Start telling the other ranks what this one has received; it overlaps with the step that follows."""
        self._flag.fill_(self.received is not None)
        if self._group is not None:
            self._work = dist.all_reduce(self._flag, dist.ReduceOp.MAX, group=self._group, async_op=True)

    def agreed(self) -> bool:
        """Return whether any rank had been asked to end when it began this step; the same on all ranks."""
        if self._work is not None:
            self._work.wait()
        return bool(self._flag.item())

    def __enter__(self) -> Self:
        """Hear the signals.

        The thread hears them even while the main thread waits for a dead peer inside a collective, where no handler
        written in Python runs.
        """
        listening, self._told = socket.socketpair()
        self._told.setblocking(False)
        # What is ignored already stays ignored: that is what nohup asks for.
        heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        self._handlers = {number: signal.signal(number, lambda number, frame: None) for number in heard}
        self._wakeup = signal.set_wakeup_fd(self._told.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, args=(listening,), name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Give the signals back."""
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._told.close()  # which ends the thread
        self._thread.join()
        if self._group is not None:
            self._work = None
            dist.destroy_process_group(self._group)

    def _listen(self, listening: socket.socket) -> None:
        interrupts = 0
        with contextlib.closing(listening):
            while byte := listening.recv(1):
                number = signal.Signals(byte[0])
                self.received = self.received or number
                interrupts += number == signal.SIGINT
                if interrupts > 1:
                    os._exit(128 + signal.SIGINT)
