"""Places for runs: cores of this machine, its GPUs, or the machines of a hostfile."""

import glob
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from configs.reader import ConfigError, Problem
from train.sweep.config import SweepConfig
from train.sweep.run import Run, Sweep


@dataclass(frozen=True)
class Slot:
    """The devices that one run has to itself."""

    devices: tuple[tuple[str, tuple[int, ...]], ...]
    """(host, device numbers) for every host."""


@dataclass(frozen=True)
class Devices:
    """All that runs can be placed on."""

    kind: Literal["cpu", "gpu"]
    hosts: Mapping[str, tuple[int, ...]]
    """Host -> device numbers. On this machine's CPU a device is a share of `threads` cores, and holds one run; on the
    CPUs of a hostfile it is a process, as it is for the launcher."""
    threads: int = 1
    """Cores of a run on a CPU."""
    hostfile: Path | None = None
    remote: Literal["ssh", "slurm"] = "ssh"
    parallel_runs: int | None = None
    runs_per_gpu: int = 1

    @property
    def hold_whole_runs(self) -> bool:
        """Whether a device holds all processes of a run."""
        return self.kind == "cpu" and self.hostfile is None

    @property
    def total(self) -> int:
        """Number of devices."""
        return sum(len(numbers) for numbers in self.hosts.values())

    def problem(self, run: Run) -> str | None:
        """Say why a run can never be placed, or None."""
        if self.hold_whole_runs or Pool(self).take(run) is not None:
            return None
        noun = "GPUs" if self.kind == "gpu" else "processes"
        have = ", ".join(f"{len(numbers)} on {host}" for host, numbers in self.hosts.items()) or "none on this machine"
        if run.devices <= self.total:
            return f"{run.devices} {noun} are more than one machine has ({have}) and do not fill whole machines"
        return f"{run.devices} {noun} are needed, and there are {have}"

    def __str__(self) -> str:
        machines = f" on {len(self.hosts)} machines" if len(self.hosts) > 1 else ""
        if self.kind == "cpu" and self.hostfile is not None:
            return f"{self.total} CPU process{'es' if self.total != 1 else ''}{machines}"
        if self.kind == "cpu":
            return f"{self.total} x {self.threads} CPU core{'s' if self.threads > 1 else ''}"
        shared = f", {self.runs_per_gpu} runs on each" if self.runs_per_gpu > 1 else ""
        return f"{self.total} GPU{'s' if self.total != 1 else ''}{machines}{shared}"


@dataclass
class Pool:
    """Hands out devices; each is with one run at a time, or with `runs_per_gpu`."""

    devices: Devices
    _free: dict[str, list[int]] = field(init=False)
    _taken: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        shares = self.devices.runs_per_gpu
        self._free = {host: list(numbers) * shares for host, numbers in self.devices.hosts.items()}

    def take(self, run: Run) -> Slot | None:
        """Return devices for a run, or None while there are not enough.

        A run goes onto one machine, the one that it fills best; one that is too large for any goes onto whole machines.
        Where runs share GPUs, it goes onto the GPU with the fewest.
        """
        if self.devices.parallel_runs is not None and self._taken >= self.devices.parallel_runs:
            return None
        if self.devices.runs_per_gpu > 1:
            places = [(host, (number,)) for host, numbers in self._free.items() for number in numbers]
            return self._hand_out([max(places, key=places.count)]) if places and run.devices == 1 else None
        count = 1 if self.devices.hold_whole_runs else run.devices
        fitting = [host for host, free in self._free.items() if len(free) >= count]
        if fitting:
            host = min(fitting, key=lambda host: len(self._free[host]))
            return self._hand_out([(host, tuple(self._free[host][:count]))])
        whole: list[tuple[str, tuple[int, ...]]] = []
        for host, numbers in self.devices.hosts.items():
            if numbers and len(self._free[host]) == len(numbers) <= count:
                whole.append((host, tuple(self._free[host])))
                count -= len(numbers)
        return self._hand_out(whole) if len(whole) > 1 and not count else None

    def _hand_out(self, taken: Sequence[tuple[str, tuple[int, ...]]]) -> Slot:
        for host, numbers in taken:
            for number in numbers:
                self._free[host].remove(number)
        self._taken += 1
        return Slot(tuple(taken))

    def give_back(self, slot: Slot) -> None:
        """Take devices back."""
        for host, numbers in slot.devices:
            self._free[host] = sorted([*self._free[host], *numbers])
        self._taken -= 1


# ------------------------------------------------------------------------------------------ detection


def find_devices(config: SweepConfig) -> Devices:
    """Find what a sweep may run on.

    Raises:
        ConfigError: for a hostfile that cannot be read, `remote: slurm` outside of Slurm, GPU numbers that the
            launcher does not understand, or runs that are to share a GPU where there is none.
    """
    threads = config.threads_per_run or config.devices_per_run
    if config.hostfile is not None:
        path = Path(config.hostfile)
        hosts = read_hostfile(path)
        if config.remote == "slurm":
            _require_slurm(path, hosts)
        kind: Literal["cpu", "gpu"] = "cpu" if config.device == "cpu" else "gpu"
        devices = Devices(kind, hosts, threads, path.resolve(), config.remote)
    elif config.device != "cpu" and ((gpus := local_gpus()) or config.device == "gpu"):
        devices = Devices("gpu", {"localhost": gpus} if gpus else {})
    else:
        places = tuple(range(max(1, available_cores() // threads)))
        devices = Devices("cpu", {"localhost": places}, threads)
    if devices.kind == "cpu" and config.runs_per_gpu > 1:
        message = f"{config.runs_per_gpu} is for GPUs; threads_per_run shares out the cores of a CPU; nearest is 1"
        raise ConfigError([Problem("sweep", "runs_per_gpu", message)])
    return replace(devices, parallel_runs=config.parallel_runs, runs_per_gpu=config.runs_per_gpu)


def _require_slurm(path: Path, hosts: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse `remote: slurm` where srun could not start the runs."""
    if shutil.which("srun") is None or "SLURM_JOB_ID" not in os.environ:
        message = "slurm works inside an allocation only (sbatch or salloc), where srun is in PATH; nearest is 'ssh'"
        raise ConfigError([Problem("sweep", "remote", message)])
    if len({len(numbers) for numbers in hosts.values()}) > 1:
        message = "srun starts equally many processes on each machine of a run; give all hosts the same slots"
        raise ConfigError([Problem(str(path), "", message)])


def require_devices(sweep: Sweep, devices: Devices) -> None:
    """Raise `ConfigError` when some run can never be placed."""
    problems = {devices.problem(run): run for run in reversed(sweep.runs)}
    found = [Problem(f"run {run.name}", "devices_per_run", text) for text, run in problems.items() if text is not None]
    if found:
        raise ConfigError(found)


def as_if(devices: Devices, sweep: Sweep) -> Devices:
    """Return `devices`, or one machine that holds the largest run where some run cannot be placed on them."""
    if all(devices.problem(run) is None for run in sweep.runs):
        return devices
    numbers = tuple(range(max(run.devices for run in sweep.runs)))
    return Devices("gpu", {"one machine": numbers}, runs_per_gpu=devices.runs_per_gpu)


def available_cores() -> int:
    """Return the cores that this process may use: its affinity, within the limit of its container (cgroup v2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):
        return cores


def local_gpus() -> tuple[int, ...]:
    """Return the numbers of this machine's GPUs that torch can use and CUDA_VISIBLE_DEVICES allows."""
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        return ()
    if not (glob.glob("/dev/nvidia[0-9]*") or os.path.exists("/dev/kfd") or shutil.which("nvidia-smi")):
        return ()
    # In a process of its own: torch takes seconds to import and would hold memory on a GPU.
    count = "import torch; print(torch.cuda.device_count())"
    result = subprocess.run([sys.executable, "-c", count], capture_output=True, text=True)
    available = int(result.stdout) if result.returncode == 0 else 0
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if not allowed or not available:
        return tuple(range(available))
    if not re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", allowed):
        message = f"'{allowed}' is not a list of numbers such as 0,1, and the deepspeed launcher takes no other"
        raise ConfigError([Problem("environment", "CUDA_VISIBLE_DEVICES", message)])
    return tuple(int(number) for number in allowed.split(","))[:available]


def read_hostfile(path: Path) -> dict[str, tuple[int, ...]]:
    """Read `host slots=N` lines, as DeepSpeed does. Raises `ConfigError` with every problem."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([Problem(str(path), "", f"cannot be read: {error}")]) from None
    hosts: dict[str, tuple[int, ...]] = {}
    problems = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = re.match(r"\s*([A-Za-z0-9][\w.-]*)\s+slots=(\d+)", line)
        if match is None:
            problems.append(Problem(str(path), f"line {number}", f"{line.strip()!r} is not of the form 'host slots=8'"))
        elif match[1] in hosts:
            problems.append(Problem(str(path), f"line {number}", f"the host '{match[1]}' is given twice"))
        else:
            hosts[match[1]] = tuple(range(int(match[2])))
    if not hosts and not problems:
        problems.append(Problem(str(path), "", "names no host; expected lines of the form 'host slots=8'"))
    if problems:
        raise ConfigError(problems)
    return hosts


def is_local(host: str) -> bool:
    """Return whether a name of a hostfile is this machine."""
    return host in ("localhost", "127.0.0.1", socket.gethostname(), socket.getfqdn())
