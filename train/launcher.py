"""The `deepspeed` command line and the environment of one run on one slot."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from train.processes import MARK
from train.slots import Devices, Slot, is_local
from train.sweep import Run

PRETRAIN = Path(__file__).resolve().parent.parent / "scripts" / "pretrain.py"


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
    if devices.kind == "cpu":
        place = ["--num_accelerators", str(run.devices)]
    else:
        hosts = "@".join(f"{host}:{','.join(map(str, numbers))}" for host, numbers in slot.devices)
        place = ["--include", hosts]
    if devices.hostfile is not None:
        place += ["--hostfile", str(devices.hostfile)]
        # Without this the launcher starts the processes of a single machine here, even if the machine is another one.
        place += ["--force_multi"] if not all(is_local(host) for host, _ in slot.devices) else []
    else:
        place += ["--hostfile", os.devnull]  # otherwise the launcher reads /job/hostfile where that exists
    files = ["--config", str(run.directory / "config.yaml"), "--run-dir", str(run.directory)]
    return [*place, "--master_port", str(port), *more, str(PRETRAIN), *files]


def launch_environment(run: Run, devices: Devices) -> dict[str, str]:
    """Return the environment of a run's processes."""
    environment = os.environ | {MARK: str(run.directory.resolve())}
    # Ours if this process was itself launched; and the launcher numbers GPUs from CUDA_VISIBLE_DEVICES=all.
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "CUDA_VISIBLE_DEVICES"):
        environment.pop(name, None)
    if devices.kind == "cpu":
        environment |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": str(max(1, devices.threads // run.devices))}
    return environment
