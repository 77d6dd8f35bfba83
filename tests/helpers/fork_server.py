"""A process that has imported torch and DeepSpeed and forks into ranks, which then start in 50 ms and not in 5 seconds.

`Forked` is what `subprocess.Popen` would be. Each rank is a process of its own with its own environment, standard
output, signals and exit status; only the imports are shared. Programs that a launcher starts import by themselves:
`test_topologies.py`, `test_multinode.py` and `test_supervision.py` have some.
"""

import atexit
import gc
import json
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
PRELOADED = ("train.run", "train.loop", "train.launch.worker", "deepspeed.runtime.zero.muon.muon_optimizer")


class Forked:
    """A process that the server has forked, with the methods of `subprocess.Popen` that the tests use."""

    def __init__(self, output: int, report: int) -> None:
        self._output, self._report = output, os.fdopen(report)
        self.returncode: int | None = None
        self.pid = int(self._report.readline())

    def poll(self) -> int | None:
        """Return the exit status, or None while the process runs."""
        if self.returncode is None and select.select([self._report], [], [], 0)[0]:
            self.returncode = int(self._report.readline())
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL, unless the process has ended."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float = 120) -> tuple[str, None]:
        """Read all that is printed and wait for the end. Raises `subprocess.TimeoutExpired`."""
        deadline, printed = time.monotonic() + timeout, bytearray()
        while self._wait_for(self._output, deadline) and (some := os.read(self._output, 1 << 16)):
            printed += some
        os.close(self._output)
        self._wait_for(self._report.fileno(), deadline)
        self.poll()
        return printed.decode(), None

    def _wait_for(self, descriptor: int, deadline: float) -> bool:
        if not select.select([descriptor], [], [], max(deadline - time.monotonic(), 0))[0]:
            raise subprocess.TimeoutExpired(f"process {self.pid}", 0)
        return True


_server: socket.socket | None = None


def fork_python(words: Sequence[str], environment: Mapping[str, str]) -> Forked:
    """Start `python WORDS` in the checkout; the words begin with -m or -c."""
    global _server
    if _server is None:
        _server = _start_server()
    (output, printed), (report, reported) = os.pipe(), os.pipe()
    request = json.dumps({"words": list(words), "environment": dict(environment)})
    socket.send_fds(_server, [request.encode()], [printed, reported])
    os.close(printed)
    os.close(reported)
    return Forked(output, report)


def _start_server() -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.fork_server", str(theirs.fileno())],
        cwd=ROOT,
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    theirs.close()

    def end() -> None:
        ours.close()
        process.wait(timeout=30)

    atexit.register(end)
    return ours


def main() -> None:
    """Fork for each request until the tests have ended. In the rank, do what the request says and return."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in PRELOADED:
        __import__(name)
    gc.collect()
    gc.freeze()  # a collection by DeepSpeed or a test then takes a millisecond, and pages stay shared
    requests = socket.socket(fileno=int(sys.argv[1]))
    while True:
        message, descriptors, *_ = socket.recv_fds(requests, 1 << 20, 2)
        if not message:
            return _reap()
        sys.stdout.flush()
        if os.fork() == 0:
            requests.close()
            return _fork_rank(json.loads(message), *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        _reap()


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _fork_rank(request: dict, printed: int, reported: int) -> None:
    """Wait for the rank and report how it ended; the rank itself runs its program and returns."""
    rank = os.fork()
    if rank:
        os.close(printed)
        os.write(reported, f"{rank}\n".encode())
        status = os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1])
        os.write(reported, f"{status}\n".encode())
        os._exit(0)
    os.close(reported)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    os.close(printed)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["environment"])
    random.seed()  # as after a start of its own
    sys.modules["numpy"].random.seed()
    how, what, *arguments = request["words"]
    if how == "-m":
        sys.argv = [what, *arguments]
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.argv = [how, *arguments]
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    main()
