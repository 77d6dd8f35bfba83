"""Stands in for a cluster of machines that are all this one: `srun`, `scontrol`, `sinfo`, `pdsh` and `ssh`.

Only the starting of processes is pretended, in the ways that matter to whoever calls: which variables they get, how
their exit statuses add up, which signals reach them. Compared with Slurm 22.05 and pdsh 2.34.
"""

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

PROGRAMS = ("srun", "scontrol", "sinfo", "pdsh", "ssh")


def install(folder: Path) -> None:
    """Put the programs into a folder, for PATH. Each appends its arguments to NAME.log there."""
    folder.mkdir()
    for name in PROGRAMS:
        program = folder / name
        program.write_text(f"#!{sys.executable}\n{Path(__file__).read_text()}")
        program.chmod(0o755)


def srun(arguments: list[str]) -> int:
    """Start the tasks of a step. SIGUSR1 is passed on to them; SIGTERM kills them."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("-n", "--ntasks", type=int, default=int(os.environ.get("SLURM_NTASKS", 1)))
    parser.add_argument("--nodelist", default=os.environ["SLURM_JOB_NODELIST"])
    parser.add_argument("--ntasks-per-node", type=int)
    for ignored in ("--nodes", "--mem", "--cpu-bind", "--kill-on-bad-exit", "--wait", "--export"):
        parser.add_argument(ignored)
    for ignored in ("--overlap", "--overcommit"):
        parser.add_argument(ignored, action="store_true")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    hosts = options.nodelist.split(",")
    on_each = options.ntasks_per_node or options.ntasks // len(hosts)
    assert on_each * len(hosts) == options.ntasks
    tasks: list[subprocess.Popen[bytes]] = []
    step = str(os.getpid())
    for number in range(options.ntasks):
        variables = {
            "SLURM_STEP_NUM_TASKS": str(options.ntasks),
            "SLURM_STEP_NODELIST": options.nodelist,
            "SLURM_STEP_TASKS_PER_NODE": f"{on_each}(x{len(hosts)})",
            "SLURM_STEP_ID": step,
            "SLURM_PROCID": str(number),
            "SLURM_LOCALID": str(number % on_each),
            "SLURM_NODEID": str(number // on_each),
        }
        tasks.append(subprocess.Popen(options.command, env=os.environ | variables))

    def deal_with(number: int, frame: FrameType | None) -> None:
        for task in tasks:
            task.send_signal(number if number == signal.SIGUSR1 else signal.SIGKILL)

    signal.signal(signal.SIGUSR1, deal_with)
    signal.signal(signal.SIGTERM, deal_with)
    statuses = [task.wait() for task in tasks]
    return max(status if status >= 0 else 128 - status for status in statuses)


def scontrol(arguments: list[str]) -> int:
    """`show hostnames a,b`, and `requeue JOB`, which is only recorded."""
    if arguments[:2] == ["show", "hostnames"]:
        print(*arguments[2].split(","), sep="\n")
    return 0


def pdsh(arguments: list[str]) -> int:
    """Run a command on hosts, each in the bare environment of a new login."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("-S", action="store_true")
    parser.add_argument("-f")
    parser.add_argument("-w", required=True)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    bare = {name: os.environ[name] for name in ("HOME", "PATH")}
    command = " ".join(options.command)
    ranks = enumerate(options.w.split(","))
    tasks = [subprocess.Popen(["bash", "-c", command.replace("%n", str(n))], env=bare) for n, _ in ranks]
    return max(abs(task.wait()) for task in tasks)


def ssh(arguments: list[str]) -> int:
    """`HOST hostname -I`; a host whose name begins with `absent` is not there."""
    words = shlex.split(re.sub(r"-o \S+ ", "", " ".join(arguments)))
    if words[0].startswith("absent"):
        return 255
    print("127.0.0.1")
    return 0


def main() -> int:
    """Be the program that this file was called as."""
    program = Path(sys.argv[0])
    with program.with_suffix(".log").open("a") as log:
        log.write(shlex.join(sys.argv[1:]) + "\n")
    return {"srun": srun, "scontrol": scontrol, "sinfo": lambda _: 0, "pdsh": pdsh, "ssh": ssh}[program.name](
        sys.argv[1:]
    )


if __name__ == "__main__":
    sys.exit(main())
