"""How a process of a sweep's run is started by Slurm's `srun`, inside the allocation that the sweep runs in."""

from collections.abc import Sequence

from train.launch.devices import Devices, Slot


def step_command(slot: Slot, port: int, devices: Devices, more: Sequence[str], program: Sequence[str]) -> list[str]:
    """Return the `srun` command that starts `program` once for each device of `slot`, inside the current allocation.

    Steps share the allocation's resources (--overlap), because which run gets which device is decided here. When one
    task has ended the others have a minute: killing them at once would replace the exit status that says why.
    """
    hosts, numbers = [host for host, _ in slot.devices], slot.devices[0][1]
    place = [f"--nodes={len(hosts)}", f"--ntasks={len(hosts) * len(numbers)}", f"--ntasks-per-node={len(numbers)}"]
    share = ["--overlap", "--overcommit", "--mem=0", "--cpu-bind=none", "--kill-on-bad-exit=0", "--wait=60"]
    # The job may have a MASTER_ADDR, which is not of this step.
    variables = ["env", "--unset=MASTER_ADDR", f"MASTER_PORT={port}"]
    if devices.kind == "gpu":
        variables.append(f"CUDA_VISIBLE_DEVICES={','.join(map(str, numbers))}")
    return ["srun", *place, f"--nodelist={','.join(hosts)}", *share, *more, *variables, *program]
