"""A rendezvous port for each run: two jobs that share one can mix their tensors without an error.

The port is used only seconds after it is chosen, by another process. So a reservation of the even port p is a socket
bound to p + 1 and held until the run ends: whoever wants to reserve p fails to bind p + 1, and the kernel gives the
reservation back when its holder dies.
"""

import random
import socket
from dataclasses import dataclass

# Below the ports that Linux hands out by itself (32768 and up), so that no outgoing connection takes one meanwhile.
_FIRST, _LAST = 20_000, 32_000


@dataclass(frozen=True)
class ReservedPort:
    """A free TCP port of this machine that no other sweep will choose."""

    number: int
    _held: socket.socket

    def release(self) -> None:
        """Give the port back."""
        self._held.close()


def reserve_port() -> ReservedPort:
    """Reserve a free port.

    Raises:
        OSError: when none is free.
    """
    candidates = range(_FIRST, _LAST, 2)
    for port in random.sample(candidates, len(candidates)):
        held = _bind(port + 1)
        if held is None:
            continue
        free = _bind(port)
        if free is not None:
            free.close()
            return ReservedPort(port, held)
        held.close()
    raise OSError(f"no free TCP port between {_FIRST} and {_LAST}")


def _bind(port: int) -> socket.socket | None:
    """Bind a port on all interfaces, without SO_REUSEADDR: a port that is still closing counts as taken."""
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        bound.bind(("", port))
    except OSError:
        bound.close()
        return None
    return bound
