"""Runs that are signalled, hang, meet another run or run out of something."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from configs.cli import DESCRIPTIONS, Status
from data.files import only_process
from tests.conftest import ROOT, Ranks, free_port, read_record, read_rows, run_ranks, start_rank, wait_for
from train.launch.run_state import checkpoint_step
from train.supervision.jit_locks import clear_stale_locks

GPUS = torch.cuda.device_count()
CURVE = ("step", "tokens", "loss", "grad_norm", "lr")


def curve(run_dir: Path) -> list[tuple[float, ...]]:
    return [tuple(row[key] for key in CURVE) for row in read_rows(run_dir)]


def logged(run_dir: Path, step: int) -> bool:
    path = run_dir / "metrics.jsonl"
    return path.exists() and path.read_bytes().count(b"\n") >= step


@pytest.fixture(scope="module")
def whole(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 100 steps on two pipeline stages that nothing disturbed."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    run_ranks(2, small_run, run_dir, *LONG)
    return run_dir


LONG = ("--train.steps=100", "--train.micro_batch_size=4", "--parallel.pipeline_stages=2")


@pytest.mark.slow
def test_one_rank_is_signalled_and_all_save_at_the_same_step(whole: Path, small_run: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    ranks = Ranks(2, ["--config", str(small_run), "--run-dir", str(run_dir), *LONG])
    wait_for(lambda: logged(run_dir, 20))
    ranks.processes[1].send_signal(signal.SIGTERM)
    _, output = ranks.finish()
    assert [process.returncode for process in ranks.processes] == [Status.STOPPED] * 2, output
    assert "Traceback" not in output
    # What was logged last is what was saved: nothing is lost.
    assert 20 <= read_rows(run_dir)[-1]["step"] == checkpoint_step(run_dir) < 100
    assert not list((run_dir / ".heartbeat").iterdir())
    run_ranks(2, small_run, run_dir, *LONG)
    assert curve(run_dir) == curve(whole)
    assert read_record(run_dir)["val_loss"] == read_record(whole)["val_loss"]


@pytest.mark.slow
def test_ranks_of_two_runs_on_one_port_refuse_each_other(small_run: Path, tmp_path: Path) -> None:
    port = free_port()
    arguments = [["--config", str(small_run), "--run-dir", str(tmp_path / name)] for name in "ab"]
    ranks = [start_rank(rank, 2, port, arguments[rank]) for rank in (0, 1)]
    outputs = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [Status.FOREIGN_RANK] * 2, outputs
    assert f"rank 0 is of {tmp_path}/a" in outputs[0]
    assert f"but rank 1 is of {tmp_path}/b" in outputs[0]
    assert "step 1/" not in "".join(outputs)


@pytest.mark.slow
def test_taken_port_is_a_sentence(small_run: Path, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        rank = start_rank(0, 1, port, ["--config", str(small_run), "--run-dir", str(tmp_path / "run")])
        output, _ = rank.communicate(timeout=120)
    assert rank.returncode == Status.USER_ERROR, output
    assert f"port {port} is in use" in output
    assert f"--master_port {port + 1}" in output
    assert "Traceback" not in output


@pytest.mark.slow
@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(GPUS < 2, reason="one GPU")])]
)
def test_hung_rank_is_named_and_ends_the_run(
    device: str, small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", device)
    run_dir = tmp_path / "run"
    limits = ["--watchdog.step_timeout=3", "--train.steps=100000"]
    ranks = Ranks(2, ["--config", str(small_run), "--run-dir", str(run_dir), *limits])
    wait_for(lambda: logged(run_dir, 20))
    ranks.processes[1].send_signal(signal.SIGSTOP)
    output, _ = ranks.processes[0].communicate(timeout=120)
    ranks.processes[1].kill()
    ranks.processes[1].communicate()
    assert ranks.processes[0].returncode == Status.HUNG, output
    assert f"rank 1 ({socket.gethostname()}, process {ranks.processes[1].pid}, stopped) has been training" in output


# A rank that ends early with status 0, and one that runs out of memory as under `ulimit -v`, at its fifth step.
MAIN = """
from train.__main__ import main
sys.exit(main())
"""
SABOTAGE = """
import itertools, os, resource, sys, torch
import train.loop
step, count, how = train.loop.train_step, itertools.count(1), sys.argv.pop(1)
def train_step(*arguments):
    if next(count) == 5 and os.environ["RANK"] == "1":
        if how == "exit":
            os._exit(0)
        resource.setrlimit(resource.RLIMIT_AS, (2**37, 2**37))
        torch.empty(2**36)
    return step(*arguments)
train.loop.train_step = train_step
"""


@pytest.mark.slow
@pytest.mark.parametrize(("how", "statuses"), [("exit", [1, 0]), ("memory", [1, Status.OUT_OF_MEMORY])])
def test_end_of_one_rank_ends_the_others(how: str, statuses: list[int], small_run: Path, tmp_path: Path) -> None:
    arguments = [how, "--config", str(small_run), "--run-dir", str(tmp_path / "run")]
    ranks = Ranks(2, arguments, ("-c", SABOTAGE + MAIN))
    _, output = ranks.finish()
    assert [process.returncode for process in ranks.processes] == statuses, output
    assert "another rank of this run has ended" in output
    assert "Traceback" not in output
    assert not (tmp_path / "run/record.json").exists()
    if how == "memory":
        assert "--train.micro_batch_size=1 (now 2; gradients accumulate)" in output
        assert "--train.activation_checkpointing=true" in output
        assert "--parallel.zero_stage=1 (now 0)" in output


@pytest.mark.slow
def test_full_disk_keeps_what_is_written(whole: Path, small_run: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    arguments = ["--config", str(small_run), "--run-dir", str(run_dir), *LONG]
    program = ["-c", "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n" + MAIN]
    ranks = Ranks(2, arguments, program)
    _, output = ranks.finish()
    assert ranks.processes[0].returncode == Status.DISK_FULL, output
    assert "make room and run again" in output
    assert "Traceback" not in output
    run_ranks(2, small_run, run_dir, *LONG)
    assert curve(run_dir) == curve(whole)


# The top process dies of the signal, and its launcher below of its own; killed, the launcher reports success.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "number", "ranks", "status"),
    [
        ("deepspeed", signal.SIGINT, 1, -signal.SIGINT),
        ("deepspeed.launcher.launch", signal.SIGTERM, 2, 1),
        ("deepspeed.launcher.launch", signal.SIGKILL, 1, 0),
    ],
)
def test_ranks_save_and_end_with_their_launcher(
    victim: str, number: signal.Signals, ranks: int, status: int, small_run: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    program = [str(Path(sys.executable).with_name("deepspeed")), "--num_accelerators", str(ranks)]
    script = ["scripts/pretrain.py", "--config", str(small_run), "--run-dir", str(run_dir), "--train.steps=100000"]
    with (tmp_path / "log.txt").open("w") as log:
        top = subprocess.Popen(
            [*program, "--master_port", str(free_port()), *script],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            # A shell that runs the tests in the background has them, and what they start, ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    wait_for(lambda: logged(run_dir, 20))
    below = psutil.Process(top.pid).children(recursive=True)
    target = top.pid if victim == "deepspeed" else next(p.pid for p in below if victim in p.cmdline())
    os.kill(target, number)
    assert top.wait(timeout=90) == status
    _, alive = psutil.wait_procs(below, timeout=60)
    for process in alive:
        process.kill()
    assert not alive
    assert read_rows(run_dir)[-1]["step"] == checkpoint_step(run_dir) >= 20
    with only_process(run_dir / ".lock", "the directory"):  # free for the next launch
        pass


def test_lock_of_a_killed_compilation_is_cleared(tmp_path: Path) -> None:
    for name in ("killed", "alive"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "lock").touch()
    with (tmp_path / "alive/lock").open():
        assert clear_stale_locks(tmp_path) == [tmp_path / "killed/lock"]
    assert (tmp_path / "alive/lock").exists()


def test_documentation_explains_every_status() -> None:
    text = (ROOT / "docs/running.md").read_text()
    for status in Status:
        assert f"\n| {status} | {DESCRIPTIONS[status]}" in text
