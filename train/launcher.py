"""The `deepspeed` command line and the environment of one run on one slot."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from train.processes import MARK
from train.slots import Devices, Slot, is_local
from train.slurm import step_command
from train.sweep import Run

PRETRAIN = Path(__file__).resolve().parent.parent / "scripts" / "pretrain.py"
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


def launch_arguments(run: Run, slot: Slot, port: int, devices: Devices, more: Sequence[str] = ()) -> list[str]:
    """Return what the launcher needs to train `run` on `slot`; `more` are further arguments for it."""
    if devices.hold_whole_runs:
        place = ["--num_accelerators", str(run.devices)]
    else:
        hosts = "@".join(f"{host}:{','.join(map(str, numbers))}" for host, numbers in slot.devices)
        place = ["--include", hosts]
    if devices.hostfile is not None:
        place += ["--hostfile", str(devices.hostfile)]
        if all(is_local(host) for host, _ in slot.devices):  # the launcher would ask ssh even so
            place += ["--no_ssh_check", "--master_addr", "127.0.0.1"]
        else:  # without this it starts the processes of a single machine here, even if the machine is another one
            place += ["--force_multi"]
    else:
        place += ["--hostfile", os.devnull]  # otherwise the launcher reads /job/hostfile where that exists
    return [*place, "--master_port", str(port), *more, *training_program(run)]


def training_program(run: Run) -> list[str]:
    """Return the script that trains `run`, and its arguments."""
    return [str(PRETRAIN), "--config", str(run.directory / "config.yaml"), "--run-dir", str(run.directory)]


def launch_command(run: Run, slot: Slot, port: int, devices: Devices, more: Sequence[str] = ()) -> list[str]:
    """Return the command that trains `run` on `slot`; `more` are further arguments for the launcher, or for srun."""
    if devices.remote == "slurm":
        return step_command(slot, port, devices, more, [sys.executable, "-u", *training_program(run)])
    return [*deepspeed_program(), *launch_arguments(run, slot, port, devices, more)]


def launch_environment(run: Run, devices: Devices) -> dict[str, str]:
    """Return the environment of a run's processes.

    Over ssh the launcher takes little more along than its `.deepspeed_env` names. So the run gets such a file of its
    own, with the user's lines and ours.
    """
    ours = {MARK: str(run.directory.resolve())}
    if devices.kind == "cpu":
        ours |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": str(max(1, devices.threads // run.devices))}
    environment = os.environ | ours
    # Ours if this process was itself launched; and the launcher numbers GPUs from CUDA_VISIBLE_DEVICES=all.
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "CUDA_VISIBLE_DEVICES"):
        environment.pop(name, None)
    if devices.hostfile is not None and devices.remote == "ssh":
        path = run.directory.resolve() / ENVIRONMENT_FILE
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
