"""Stands in for a worker in tests of the scheduler: `fake_trainer.py WORKER_DIR '{"RUN": "BEHAVIOUR"}'`.

A run leaves what a run leaves (metrics.jsonl, record.json), quickly, or fails in one of the ways that runs fail.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from train.config import WatchdogConfig
from train.launch.job_queue import current_job, mark_done
from train.supervision.heartbeat import HeartbeatWriter


def log_step(directory: Path, step: int) -> None:
    row = {
        "step": step,
        "tokens": step * 64,
        "loss": 3.0 / step,
        "grad_norm": 1.0,
        "lr": 0.01,
        "tokens_per_second": 640,
    }
    with (directory / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def complete(directory: Path) -> None:
    record = {"complete": True, "N": 1000, "D": 640, "val_loss": 2.5, "bits_per_byte": 1.2, "seconds": 0.1}
    (directory / "record.json").write_text(json.dumps(record))


def ignore_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def train(directory: Path, behaviour: str) -> int:
    (directory / "pid").write_text(str(os.getpid()))
    with (directory.parent / "order.txt").open("a") as file:
        file.write(f"{directory.name} {os.environ['FAKE_PORT']} {os.getpid()}\n")
    if behaviour == "family":  # a launcher with a child that outlives it
        subprocess.Popen([sys.executable, __file__, str(directory), "stubborn"], start_new_session=True)
        log_step(directory, 1)
        time.sleep(600)
    if behaviour == "orphan":  # the launcher dies with status 0, its rank goes on
        subprocess.Popen([sys.executable, __file__, str(directory), "stubborn"], start_new_session=True)
        while not (directory / "stubborn").exists():
            time.sleep(0.02)
        sys.exit(0)
    if behaviour == "crash":
        log_step(directory, 1)
        print("Traceback (most recent call last):\n  File 'x', line 1\nValueError: the sky fell", file=sys.stderr)
        return 1
    if behaviour == "rank-killed":  # as the launcher reports it
        return -signal.SIGKILL & 0xFF
    if behaviour == "input":
        print("pretrain.py: a mistake in the input", file=sys.stderr)
        return 2
    if behaviour == "memory":
        print("out of memory: [enforce fail at alloc_cpu.cpp:120]", file=sys.stderr)
        return 8
    if behaviour == "hang-once" and not (directory / "hung").exists():
        (directory / "hung").touch()
        with HeartbeatWriter(directory, 0, WatchdogConfig(step_timeout=1.0, startup_timeout=1.0)) as heart:
            heart.begin_step(7)
            os.kill(os.getpid(), signal.SIGSTOP)
    if behaviour == "never-begins" and not (directory / "hung").exists():
        (directory / "hung").touch()
        os.kill(os.getpid(), signal.SIGSTOP)
    if behaviour == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "crash-once" and not (directory / "crashed").exists():
        (directory / "crashed").touch()
        return 1
    if behaviour == "nothing":  # says that it is done, and is not
        return 0
    if behaviour == "slow":
        time.sleep(1.0)
    log_step(directory, 1)
    complete(directory)
    return 0


def stubborn(directory: Path) -> None:
    """Ignore everything but SIGKILL, in a session of its own."""
    ignore_signals()
    (directory / "stubborn").write_text(str(os.getpid()))
    time.sleep(600)


def main() -> int:
    directory = Path(sys.argv[1])
    if sys.argv[2] == "stubborn":
        stubborn(directory)
    behaviours = json.loads(sys.argv[2])
    done = 0
    while True:
        job = current_job(directory)
        if job is None or job.number == done:
            time.sleep(0.02)
        elif job.run_dir is None:
            return 0
        elif status := train(job.run_dir, behaviours.get(job.run_dir.name, "complete")):
            return status
        else:
            done = job.number
            mark_done(directory, done)


if __name__ == "__main__":
    sys.exit(main())
