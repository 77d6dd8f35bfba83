"""Every random number generator of a process: its seed, and its state as JSON."""

import base64
import random
from typing import Any

import numpy as np
import torch

from train.distributed.topology import uses_gpu


def seed_all(seed: int) -> None:
    """Begin all streams, so that a run depends neither on the machine nor on the runs before it in its process."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def rng_state() -> dict[str, Any]:
    """Return the states of Python's, NumPy's and torch's generators, the GPU's among them where there is one."""
    name, keys, *rest = np.random.get_state(legacy=True)
    state = {
        "python": random.getstate(),
        "numpy": [name, np.asarray(keys).tolist(), *rest],
        "torch": _encode(torch.get_rng_state()),
    }
    if uses_gpu():
        state["cuda"] = _encode(torch.cuda.get_rng_state())
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Continue the streams of `rng_state`. Raises `KeyError`, `TypeError` or `ValueError` for anything else."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(_decode(state["torch"]))
    if uses_gpu() and "cuda" in state:
        torch.cuda.set_rng_state(_decode(state["cuda"]))


def _encode(state: torch.Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _decode(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
