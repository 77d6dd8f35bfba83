"""Several machines: real training over two hosts, with as little of the hosts pretended as a machine allows."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from configs.reader import ConfigError
from tests.conftest import ROOT, free_port, read_record, read_rows, run_ranks
from tests.helpers import fake_cluster
from train.config import load_run
from train.distributed import consistency as agreement
from train.distributed import slurm
from train.distributed.topology import Topology
from train.launch import srun
from train.launch.devices import Devices, Slot, find_devices
from train.supervision.processes import MARK, stop
from train.sweep.config import SweepConfig

FP32 = 1e-5  # as in test_topologies.py


def largest_difference(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> float:
    return max(abs(a["loss"] - b["loss"]) for a, b in zip(rows, others, strict=True))


@pytest.fixture(scope="module")
def one_process(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(1, small_run, tmp_path_factory.mktemp("reference") / "run")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shell of a Slurm job with two hosts, which are this machine; returns the folder of its programs."""
    programs = tmp_path / "bin"
    fake_cluster.install(programs)
    here = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{programs}:{here}:{os.environ['PATH']}")
    job = {"JOB_ID": "7", "JOB_NODELIST": "127.0.0.2,127.0.0.3", "NTASKS": "2", "NTASKS_PER_NODE": "1"}
    job |= {"PROCID": "0", "SUBMIT_DIR": str(ROOT)}
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    return programs


def finish(command: list[object], status: int = 0) -> str:
    """Run a command in the checkout and return what it printed."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=240)
    assert done.returncode == status, done.stdout
    return done.stdout


# -------------------------------------------------------------------------------- one launch on each host, without ssh


def _namespaces() -> bool:
    """Make two network namespaces with a cable between them; False where that is not allowed."""
    if os.geteuid() or not shutil.which("ip"):
        return False
    commands = [
        "ip netns add testbed-a",
        "ip netns add testbed-b",
        "ip link add cable-a netns testbed-a type veth peer name cable-b netns testbed-b",
        "ip -n testbed-a addr add 10.231.77.1/24 dev cable-a",
        "ip -n testbed-b addr add 10.231.77.2/24 dev cable-b",
        *(f"ip -n testbed-{x} link set {device} up" for x in "ab" for device in ("lo", f"cable-{x}")),
        "ip netns exec testbed-a true",
    ]
    return all(subprocess.run(command.split(), capture_output=True).returncode == 0 for command in commands)


@pytest.fixture
def hosts() -> Iterator[list[tuple[str, list[str], dict[str, str]]]]:
    """Two hosts as (address, how to run a command there, environment): namespaces, or else addresses of this one."""
    try:
        if _namespaces():
            yield [
                (f"10.231.77.{n}", ["ip", "netns", "exec", f"testbed-{x}"], {"GLOO_SOCKET_IFNAME": f"cable-{x}"})
                for n, x in ((1, "a"), (2, "b"))
            ]
        else:
            yield [(f"127.0.0.{n}", [], {}) for n in (1, 2)]
    finally:
        for x in "ab":
            if shutil.which("ip"):
                subprocess.run(["ip", "netns", "del", f"testbed-{x}"], capture_output=True)


@pytest.mark.slow
def test_a_launch_on_each_host(
    hosts: list[tuple[str, list[str], dict[str, str]]],
    small_run: Path,
    one_process: list[dict[str, Any]],
    tmp_path: Path,
) -> None:
    """`--no_ssh`, as on Kubernetes."""
    hostfile = tmp_path / "hosts"
    hostfile.write_text("".join(f"{address} slots=1\n" for address, *_ in hosts))
    port, deepspeed = str(free_port()), Path(sys.executable).with_name("deepspeed")
    nodes = []
    for rank, (_, inside, environment) in enumerate(hosts):
        launcher = [*inside, sys.executable, deepspeed, "--hostfile", hostfile, "--no_ssh", "--node_rank", str(rank)]
        address = ["--master_addr", hosts[0][0], "--master_port", port]
        program = ["scripts/pretrain.py", "--config", small_run, "--run-dir", tmp_path / "run"]
        command = [str(word) for word in (*launcher, *address, *program)]
        nodes.append(subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, stderr=subprocess.STDOUT))
    assert [node.wait(timeout=240) for node in nodes] == [0, 0]
    assert largest_difference(one_process, read_rows(tmp_path / "run")) < FP32
    assert read_record(tmp_path / "run")["world_size"] == 2


# -------------------------------------------------------------------------------------------------------------- Slurm


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu7", "gpu7"), ("a,b", "a"), ("gpu[07-09,12],cpu1", "gpu07"), ("r[1-2]n[3,5]-ib", "r1n3-ib")],
)
def test_first_host_of_a_node_list(nodes: str, first: str) -> None:
    assert slurm.first_host(nodes) == first


def test_what_srun_tells_a_rank() -> None:
    job = {"SLURM_JOB_ID": "9", "SLURM_PROCID": "0", "SLURM_NTASKS": "3", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    assert slurm.rank_environment(job) == {}  # the shell of a batch job, whose variables these are
    step = {"SLURM_STEP_ID": "2", "SLURM_STEP_NUM_TASKS": "3", "SLURM_STEP_TASKS_PER_NODE": "2,1"}
    step |= {"SLURM_PROCID": "2", "SLURM_NODEID": "1", "SLURM_STEP_NODELIST": "n[1-2]"}
    told = slurm.rank_environment(job | step)
    rank = {"RANK": "2", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "LOCAL_SIZE": "1", "MASTER_ADDR": "n1"}
    assert told == rank | {"MASTER_PORT": str(20_000 + 131 * 9 + 2)}
    assert slurm.rank_environment(job | step | {"MASTER_ADDR": "x", "MASTER_PORT": "5"})["MASTER_ADDR"] == "x"
    assert slurm.rank_environment(job | step | {"SLURM_STEP_NUM_TASKS": "1"}) == {}


def test_a_run_of_a_sweep_is_a_step() -> None:
    devices = Devices("gpu", {"a": (0, 1, 2), "b": (0, 1, 2)}, remote="slurm")
    command = srun.step_command(Slot((("a", (1, 2)),)), 20_004, devices, ["--label"], ["python", "x"])
    assert command[:5] == ["srun", "--nodes=1", "--ntasks=2", "--ntasks-per-node=2", "--nodelist=a"]
    variables = ["env", "--unset=MASTER_ADDR", "MASTER_PORT=20004", "CUDA_VISIBLE_DEVICES=1,2"]
    assert command[-7:] == ["--label", *variables, "python", "x"]
    whole = srun.step_command(Slot((("a", (0, 1, 2)), ("b", (0, 1, 2)))), 1, devices, [], [])
    assert whole[1:5] == ["--nodes=2", "--ntasks=6", "--ntasks-per-node=3", "--nodelist=a,b"]


def test_slurm_is_refused_where_it_cannot_work(tmp_path: Path, cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(text: str) -> Devices:
        (tmp_path / "hosts").write_text(text)
        return find_devices(SweepConfig(name="s", base="b", hostfile=str(tmp_path / "hosts"), remote="slurm"))

    assert find("a slots=2\nb slots=2\n").remote == "slurm"
    with pytest.raises(ConfigError, match="give all hosts the same slots"):
        find("a slots=2\nb slots=1\n")
    monkeypatch.delenv("SLURM_JOB_ID")
    with pytest.raises(ConfigError, match="inside an allocation only"):
        find("a slots=2\nb slots=2\n")


@pytest.mark.slow
def test_deepspeeds_slurm_launcher(
    cluster: Path, small_run: Path, one_process: list[dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "hosts").write_text("127.0.0.2 slots=1\n127.0.0.3 slots=1\n")
    launcher = ["deepspeed", "--launcher", "slurm", "--hostfile", tmp_path / "hosts", "--no_ssh_check"]
    address = ["--master_addr", "127.0.0.2", "scripts/pretrain.py"]  # lost by the launcher
    run = ["--config", small_run, "--run-dir", tmp_path / "run", "--parallel.pipeline_stages=2"]
    finish([*launcher, *address, *run])
    assert largest_difference(one_process, read_rows(tmp_path / "run")) < FP32
    assert read_record(tmp_path / "run")["world_size"] == 2


@pytest.mark.parametrize(("ends_with", "requeued"), [(0, False), (1, False), (5, True), (138, True)])
def test_a_job_that_was_asked_to_end_is_queued_again(ends_with: int, requeued: bool, cluster: Path) -> None:
    (cluster / "srun").write_text(f'#!/bin/sh\necho "$@"\nexit {ends_with}\n')
    said = finish(["bash", "scripts/slurm/slurm.sbatch", "--config", "x y.yaml"], ends_with)
    assert said.endswith("python -u scripts/pretrain.py --config x y.yaml\n")
    assert ((cluster / "scontrol.log").exists() and (cluster / "scontrol.log").read_text() == "requeue 7\n") == requeued


def sweep_file(folder: Path, small_run: Path, axes: str) -> list[object]:
    """Write a sweep of runs of 4 steps on the CPU."""
    run = "run: {train: {steps: 4}}"
    (folder / "sweep.yaml").write_text(f"name: hosts\nbase: {small_run}\ndevice: cpu\n{run}\naxes: {axes}\n")
    return [folder / "sweep.yaml", f"--runs_dir={folder / 'runs'}"]


@pytest.mark.slow
def test_a_sweep_in_an_allocation(cluster: Path, small_run: Path, tmp_path: Path) -> None:
    sweep = sweep_file(tmp_path, small_run, "{devices_per_run: [2]}")
    finish(["bash", "scripts/slurm/slurm_sweep.sbatch", *sweep])
    (run,) = (tmp_path / "runs").glob("*/record.json")
    assert read_record(run.parent)["world_size"] == 2
    assert (
        "--nodes=2 --ntasks=2 --ntasks-per-node=1 --nodelist=127.0.0.2,127.0.0.3" in (cluster / "srun.log").read_text()
    )


# ---------------------------------------------------------------------------------------------------------------- ssh


@pytest.mark.slow
def test_a_sweep_over_ssh(cluster: Path, small_run: Path, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("127.0.0.2 slots=1\n127.0.0.3 slots=1\n")
    finish(
        [
            sys.executable,
            "scripts/sweep.py",
            *sweep_file(tmp_path, small_run, "{seed: [0, 1]}"),
            f"--hostfile={tmp_path / 'hosts'}",
        ]
    )
    assert len(list((tmp_path / "runs").glob("*/record.json"))) == 2
    called = (cluster / "pdsh.log").read_text()
    assert " -w 127.0.0.2 " in called
    assert " -w 127.0.0.3 " in called


# ----------------------------------------------------------------------------------------------- machines that disagree


def meet(monkeypatch: pytest.MonkeyPatch, *acts: Callable[[Topology], None]) -> list[str]:
    """Let a thread play each rank, connected with the others, and return what each was told."""
    gathered: list[Any] = [None] * len(acts)
    barrier = threading.Barrier(len(acts), timeout=60)

    def gather(value: Any, topology: Topology) -> list[Any]:
        barrier.wait()
        gathered[topology.rank] = value
        barrier.wait()
        return list(gathered)

    def play(rank: int) -> None:
        try:
            acts[rank](Topology(rank, len(acts), 0, 1))
        except ValueError as error:
            told[rank] = str(error)

    monkeypatch.setattr(agreement, "_gather", gather)
    told = [""] * len(acts)
    threads = [threading.Thread(target=play, args=(rank,)) for rank in range(len(acts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return told


def disagreement(monkeypatch: pytest.MonkeyPatch, *views: dict[str, Any]) -> list[str]:
    """Let ranks with these arguments compare what they see, and return what each was told."""
    defaults = {"ds_config": {}, "patience": 0.5}
    acts = (partial(agreement.require_agreement, **(defaults | view)) for view in views)
    return meet(monkeypatch, *(lambda topology, act=act: act(topology=topology) for act in acts))


def test_a_mistake_on_one_machine_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    fine, wrong = (partial(agreement.exchange_mistakes, mistake) for mistake in (None, "no such file"))
    assert meet(monkeypatch, fine, fine) == ["", ""]
    told = meet(monkeypatch, fine, wrong, wrong)
    assert told == [f"{socket.gethostname()} (rank 1): no such file"] * 3


def test_machines_that_differ_are_named(small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared, other = tmp_path / "shared", tmp_path / "other"
    for folder in (shared, other):
        folder.mkdir()
        (folder / "config.yaml").write_text(folder.name)
    first = {"run": load_run(small_run), "mixture": SimpleNamespace(fingerprint="abc"), "run_dir": shared}
    elsewhere = first | {"run": load_run(small_run, ["--data.directory=/scratch/corpora"])}
    assert disagreement(monkeypatch, first, elsewhere) == ["", ""]

    told, same = disagreement(monkeypatch, first, first | {"run": load_run(small_run, ["--optimizer.lr=0.02"])})
    assert told == same
    assert "(rank 1): optimizer.lr is 0.02, and 0.01 on" in told
    told, *_ = disagreement(monkeypatch, first, first, first | {"mixture": SimpleNamespace(fingerprint="abd")})
    assert "(rank 2): the corpus is abd, and abc on" in told
    told, _ = disagreement(monkeypatch, first, first | {"ds_config": {"zero_optimization": {"stage": 1}}})
    assert "(rank 1): deepspeed.zero_optimization.stage is 1, and None on" in told
    told, _ = disagreement(monkeypatch, first, first | {"run_dir": other})
    assert f"(rank 1): {other} is not the directory {shared} of" in told
    monkeypatch.setattr(agreement, "code_hash", lambda: threading.current_thread().name)
    told, _ = disagreement(monkeypatch, first, first)
    assert "(rank 1): the code is" in told


# --------------------------------------------------------------------------------------------------- asking them to end


def test_every_worker_of_a_sweep_is_asked_to_end(tmp_path: Path) -> None:
    """One with ranks on this machine, whose launcher is left alone; one with a launcher only; and one behind srun."""
    listen = "import signal, sys\nsignal.signal(int(sys.argv[1]), lambda *_: sys.exit(5))\n"
    listen += "print(flush=True)\nsignal.pause()\n"
    srun = tmp_path / "srun"  # the name of the process
    srun.write_text(f"#!{sys.executable}\n{listen}")
    srun.chmod(0o755)
    python = [sys.executable, "-c", listen]
    asked = [("near", {"RANK": "0"}, [*python, "15"]), ("far", {}, [*python, "15"]), ("slurm", {}, [srun, "10"])]
    processes = []
    for worker, variables, command in [*asked, ("near", {}, [*python, "15"])]:
        environment = os.environ | variables | {MARK: str(tmp_path / worker)}
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE))
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    assert stop(tmp_path, grace=1.0) == 4
    assert [process.wait() for process in processes] == [5, 5, 5, -signal.SIGKILL]
