"""A run of a sweep, and the sweep expanded into its runs."""

from dataclasses import dataclass
from pathlib import Path

from train.config import RunConfig
from train.sweep.config import SweepConfig
from train.sweep.hparam_rules import Derived


@dataclass(frozen=True)
class Run:
    """One run of a sweep."""

    config: RunConfig
    devices: int
    """GPUs, or processes on a CPU."""
    directory: Path
    derived: tuple[Derived, ...] = ()
    """What the sweep's rules gave."""

    @property
    def name(self) -> str:
        """The name of the run and of its directory."""
        return self.config.name

    @property
    def data_parallel(self) -> int:
        """Number of model replicas."""
        return self.devices // self.config.parallel.devices_per_replica


@dataclass(frozen=True)
class Sweep:
    """A sweep, expanded."""

    config: SweepConfig
    runs: tuple[Run, ...]
