"""Launch a worker on a slot through the `deepspeed` program, and see how it gets on."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from train.distributed.ports import ReservedPort
from train.launch.devices import Devices, Slot, is_local
from train.launch.job_queue import Job, enqueue, jobs_done, mark_done
from train.launch.srun import step_command
from train.supervision.processes import MARK

PRETRAIN = Path(__file__).resolve().parents[2] / "scripts" / "pretrain.py"
ENVIRONMENT_FILE = ".deepspeed_env"


def deepspeed_program() -> list[str]:
    """Return the launcher that is installed beside this interpreter, whether or not its environment is activated.

    Raises:
        FileNotFoundError: when it is not installed.
    """
    program = Path(sys.executable).with_name("deepspeed")
    if not program.exists():
        raise FileNotFoundError(f"{program} is missing: install the project with its `train` extra")
    return [sys.executable, str(program)]


def launch_command(
    worker: Path, processes: int, slot: Slot, port: int, devices: Devices, more: Sequence[str] = ()
) -> list[str]:
    """Return the command that starts a worker.

    Args:
        worker: its directory, where runs are handed over.
        processes: GPUs, or processes on a CPU.
        slot: where.
        port: for the rendezvous.
        devices: what the slot is part of.
        more: further arguments for the launcher, or for srun.
    """
    program = [str(PRETRAIN), "--jobs", str(worker.resolve())]
    if devices.remote == "slurm":
        return step_command(slot, port, devices, more, [sys.executable, "-u", *program])
    if devices.hold_whole_runs:
        place = ["--num_accelerators", str(processes)]
    else:
        hosts = "@".join(f"{host}:{','.join(map(str, numbers))}" for host, numbers in slot.devices)
        place = ["--include", hosts]
    if devices.hostfile is None:
        place += ["--hostfile", os.devnull]  # otherwise the launcher reads /job/hostfile where that exists
    else:
        place += ["--hostfile", str(devices.hostfile)]
        if all(is_local(host) for host, _ in slot.devices):  # the launcher would ask ssh even so
            place += ["--no_ssh_check", "--master_addr", "127.0.0.1"]
        else:  # without this it starts the processes of a single machine here, even if the machine is another one
            place += ["--force_multi"]
    return [*deepspeed_program(), *place, "--master_port", str(port), *more, *program]


def launch_environment(worker: Path, processes: int, devices: Devices) -> dict[str, str]:
    """Return the environment of a worker's processes.

    Over ssh the launcher takes little more along than its `.deepspeed_env` names. So the worker gets such a file of
    its own, with the user's lines and ours.
    """
    ours = {MARK: str(worker.resolve())}
    if devices.kind == "cpu":
        ours |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": str(max(1, devices.threads // processes))}
    environment = os.environ | ours
    # Ours if this process was itself launched; and the launcher numbers GPUs from CUDA_VISIBLE_DEVICES=all.
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "CUDA_VISIBLE_DEVICES"):
        environment.pop(name, None)
    if devices.hostfile is not None and devices.remote == "ssh":
        path = worker.resolve() / ENVIRONMENT_FILE
        path.touch(mode=0o600)  # the user's lines may hold keys
        path.write_text("".join(f"{line}\n" for line in [*_users_lines(), *(f"{k}={v}" for k, v in ours.items())]))
        environment["DS_ENV_FILE"] = str(path)
    return environment


def _users_lines() -> list[str]:
    """Return what the launcher would read from the user's `.deepspeed_env` files, the later line winning.

    Empty lines and comments, on which the launcher stops with an error, are left out.
    """
    name = os.environ.get("DS_ENV_FILE", ENVIRONMENT_FILE)
    files = dict.fromkeys(folder / name for folder in (Path.home(), Path.cwd()))
    lines = [line.strip() for path in files if path.is_file() for line in path.read_text().splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


@dataclass(eq=False)
class Worker:
    """One launch, which trains one run after another (`train.launch.worker`)."""

    directory: Path
    processes: int
    slot: Slot
    port: ReservedPort
    command: list[str]
    process: subprocess.Popen[bytes]
    handed: int = 0
    """Jobs handed over so far."""
    ending_since: float | None = None
    """When it was told that no run follows, on the monotonic clock."""

    @property
    def log(self) -> Path:
        """What the launcher prints, and the worker before its first run."""
        return self.directory / "log.txt"

    def enqueue(self, run_dir: Path | None) -> None:
        """Hand over the next run, or None to let the worker end."""
        self.handed += 1
        enqueue(self.directory, Job(self.handed, run_dir))
        if run_dir is None:
            self.ending_since = time.monotonic()

    def is_done(self) -> bool:
        """Return whether all that was handed over is done."""
        return jobs_done(self.directory) >= self.handed

    def is_overdue(self, seconds: float) -> bool:
        """Return whether it was told to end longer ago than that."""
        return self.ending_since is not None and time.monotonic() - self.ending_since > seconds


def start_worker(
    directory: Path, processes: int, slot: Slot, port: ReservedPort, command: list[str], devices: Devices
) -> Worker:
    """Run `command` on a slot; `directory` is the worker's, and empty."""
    mark_done(directory, 0)
    with (directory / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=launch_environment(directory, processes, devices),
            start_new_session=True,  # so that Ctrl-C reaches the sweep alone, which ends all processes together
        )
    return Worker(directory, processes, slot, port, command, process)
