"""Hashes of integers, vectorised."""

import numpy as np
from numpy.typing import NDArray

UInt64s = NDArray[np.uint64]


def mix(x: UInt64s) -> UInt64s:
    """Hash 64 bits to 64 bits (the finaliser of SplitMix64, Steele et al. 2014); arithmetic wraps."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
