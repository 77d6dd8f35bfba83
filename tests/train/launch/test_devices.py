"""Placing runs on devices, and the commands that follow."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from configs.reader import ConfigError
from train.config import load_run
from train.launch.devices import Devices, Pool, Slot, available_cores, find_devices, read_hostfile, require_devices
from train.launch.launcher import deepspeed_program, launch_command, launch_environment
from train.launch.plan import Plan, make_plan
from train.supervision.processes import MARK
from train.sweep.config import SweepConfig
from train.sweep.expand import load_sweep
from train.sweep.run import Run, Sweep

TINY = Path(__file__).parents[3] / "configs" / "runs" / "tiny.yaml"
TWO_HOSTS = {"a": (0, 1, 2, 3), "b": (0, 1, 2, 3)}


def make_run(devices: int = 1, name: str = "r") -> Run:
    return Run(load_run(TINY, [f"--name={name}", "--train.global_batch_size=64"]), devices, Path("runs/x") / name)


def config(**keys: object) -> SweepConfig:
    return SweepConfig(name="s", base="b", **keys)  # type: ignore[arg-type]


def test_no_device_is_with_two_runs_at_a_time():
    pool = Pool(Devices("gpu", TWO_HOSTS))
    slots = [pool.take(make_run(count)) for count in (2, 3, 2, 1)]
    assert pool.take(make_run(1)) is None
    taken = [(host, number) for slot in slots if slot for host, numbers in slot.devices for number in numbers]
    assert sorted(taken) == [(host, number) for host in "ab" for number in range(4)]
    for slot in slots:
        assert slot is not None
        pool.give_back(slot)
    assert pool.take(make_run(8)) == Slot((("a", (0, 1, 2, 3)), ("b", (0, 1, 2, 3))))


def test_small_runs_fill_machines_up():
    pool = Pool(Devices("gpu", TWO_HOSTS))
    assert pool.take(make_run(3)) == Slot((("a", (0, 1, 2)),))
    assert pool.take(make_run(1)) == Slot((("a", (3,)),))
    assert pool.take(make_run(4)) == Slot((("b", (0, 1, 2, 3)),))


def test_small_runs_share_gpus_evenly():
    pool = Pool(Devices("gpu", {"a": (0, 1), "b": (3,)}, runs_per_gpu=2))
    slots = [pool.take(make_run()) for _ in range(7)]
    places = [(host, number) for slot in slots if slot for host, (number,) in slot.devices]
    assert places == [("a", 0), ("a", 1), ("b", 3), ("a", 0), ("a", 1), ("b", 3)]
    assert slots[6] is None
    assert slots[1] is not None
    pool.give_back(slots[1])
    assert pool.take(make_run()) == Slot((("a", (1,)),))
    assert pool.take(make_run(2)) is None


def test_sharing_is_refused_where_it_makes_no_sense(tmp_path):
    with pytest.raises(ConfigError, match=r"runs_per_gpu: 4 is for GPUs; .* nearest is 1"):
        find_devices(config(device="cpu", runs_per_gpu=4))
    path = tmp_path / "sweep.yaml"
    path.write_text(f"name: s\nbase: {TINY}\nruns_per_gpu: 4\naxes: {{devices_per_run: [1, 2]}}\n")
    with pytest.raises(ConfigError, match=r"devices_per_run: 2 does not work with runs_per_gpu=4: .* nearest is 1"):
        load_sweep(path)


def test_expected_time_on_a_shared_gpu():
    """What two runs on a GPU compute takes each twice as long; what they wait for does not, and the GPU costs once."""
    run = make_run()
    plans = [
        make_plan(Sweep(config(flops_per_second=1e9), (run,)), Devices("gpu", {"a": (0,)}, runs_per_gpu=share))
        for share in (1, 2)
    ]
    alone, shared = (plan.seconds[run.name] for plan in plans)
    assert shared - alone == pytest.approx(run.config.tokens * run.config.flops_per_token / 1e9)
    assert "1 GPU, 2 runs on each" in str(plans[1].devices)


@pytest.mark.parametrize(
    ("hosts", "count", "words"),
    [
        (TWO_HOSTS, 9, "9 GPUs are needed, and there are 4 on a, 4 on b"),
        (TWO_HOSTS, 6, "6 GPUs are more than one machine has .* do not fill whole machines"),
        ({}, 1, "1 GPUs are needed, and there are none on this machine"),
    ],
)
def test_runs_that_fit_nowhere_are_refused(hosts, count, words):
    sweep = Sweep(config(), (make_run(1 if hosts else count), make_run(count)))
    with pytest.raises(ConfigError, match=words):
        require_devices(sweep, Devices("gpu", hosts))


def test_cpu_cores_are_shared_out(monkeypatch):
    monkeypatch.setattr("train.launch.devices.available_cores", lambda: 8)
    assert find_devices(config(device="cpu")).total == 8
    devices = find_devices(config(device="cpu", threads_per_run=3))
    assert (devices.total, devices.threads) == (2, 3)
    assert find_devices(config(device="cpu", threads_per_run=16)).total == 1
    assert find_devices(config(device="cpu", devices_per_run=2)).total == 4
    pool = Pool(find_devices(config(device="cpu", parallel_runs=2)))
    assert [pool.take(make_run()) is None for _ in range(3)] == [False, False, True]


def test_cores_of_a_container(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)), raising=False)
    for text, cores in (("max 100000\n", 16), ("250000 100000\n", 2), ("50000 100000\n", 1), ("nonsense", 16)):
        monkeypatch.setattr(Path, "read_text", lambda self, text=text: text)
        assert available_cores() == cores


def test_hostfile(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("# ours\nnode-1 slots=2\n\nnode-2.local   slots=4\n")
    assert read_hostfile(path) == {"node-1": (0, 1), "node-2.local": (0, 1, 2, 3)}
    path.write_text("node-1 slots=2\nnode-1 slots=3\nnode-2 gpus=4\n-oProxyCommand=x slots=1\n")
    with pytest.raises(ConfigError) as error:
        read_hostfile(path)
    told = str(error.value)
    assert "line 2: the host 'node-1' is given twice" in told
    assert "line 3: 'node-2 gpus=4' is not of the form 'host slots=8'" in told
    assert "line 4" in told
    path.write_text("\n")
    with pytest.raises(ConfigError, match="names no host"):
        read_hostfile(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        find_devices(config(hostfile=str(tmp_path / "absent")))


def launch_arguments(*launch):
    """What the launcher is given."""
    command, program = launch_command(*launch), deepspeed_program()
    assert command[: len(program)] == program
    return command[len(program) :]


def test_launcher_arguments():
    worker = Path("runs/s/.worker-0")
    slot = Slot((("localhost", (1,)),))
    cpu = launch_arguments(worker, 2, slot, 20_000, Devices("cpu", {"localhost": (0, 1)}, 2))
    assert cpu[:2] == ["--num_accelerators", "2"]
    assert cpu[cpu.index("--master_port") + 1] == "20000"
    assert cpu[-2:] == ["--jobs", str(worker.resolve())]
    slot = Slot((("localhost", (2, 5)),))
    gpu = launch_arguments(worker, 2, slot, 1, Devices("gpu", {"localhost": tuple(range(8))}))
    assert gpu[:2] == ["--include", "localhost:2,5"]
    assert "--force_multi" not in gpu
    devices = Devices("gpu", TWO_HOSTS, hostfile=Path("/h"))
    far = launch_arguments(worker, 2, Slot((("a", (0, 1)),)), 1, devices, ["--launcher", "slurm"])
    assert far[far.index("--hostfile") + 1] == "/h"
    assert "--force_multi" in far
    assert far[far.index("--launcher") + 1] == "slurm"
    both = launch_arguments(worker, 2, Slot((("a", (0, 1, 2, 3)), ("b", (0, 1, 2, 3)))), 1, devices)
    assert both[1] == "a:0,1,2,3@b:0,1,2,3"


def test_launcher_understands_our_arguments():
    """The launcher's own parser reads them as meant."""
    runner = pytest.importorskip("deepspeed.launcher.runner")
    devices = Devices("gpu", TWO_HOSTS, hostfile=Path("/h"))
    arguments = launch_arguments(Path("w"), 8, Slot((("a", (0, 1, 2, 3)), ("b", (0, 1, 2, 3)))), 20_002, devices)
    parsed = runner.parse_args(arguments)
    assert (parsed.master_port, parsed.hostfile, parsed.force_multi) == (20_002, "/h", True)
    assert runner.parse_inclusion_exclusion({"a": 4, "b": 4, "c": 4}, parsed.include, "") == {
        "a": [0, 1, 2, 3],
        "b": [0, 1, 2, 3],
    }
    assert Path(parsed.user_script).name == "pretrain.py"
    assert parsed.user_args == ["--jobs", str(Path("w").resolve())]


def test_environment_of_a_worker(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "7")
    environment = launch_environment(Path("w"), 2, Devices("cpu", {"localhost": (0,)}, threads=4))
    assert not {"RANK", "WORLD_SIZE", "CUDA_VISIBLE_DEVICES"} & environment.keys()
    assert (environment["DS_ACCELERATOR"], environment["OMP_NUM_THREADS"]) == ("cpu", "2")
    assert environment[MARK] == str(Path("w").resolve())


def test_expected_time_of_the_whole_sweep():
    """Longest first onto two places: 6 and 4 start, 3 follows the 4, 1 follows the 6."""
    runs = tuple(make_run(1, name) for name in "abcd")
    seconds = {"a": 3.0, "b": 6.0, "c": 1.0, "d": 4.0}
    plan = Plan(Sweep(config(), runs), Devices("gpu", {"x": (0, 1)}), seconds, "")
    assert "".join(run.name for run in plan.order()) == "bdac"
    assert plan.wall_seconds(seconds) == 7.0
    assert plan.wall_seconds({"a": 3.0}) == 3.0
    assert plan.wall_seconds({}) == 0.0
    # A launch takes 2: 8 and 6 end the first of each place, then 3 and 1 follow without another launch.
    assert replace(plan, launch=2.0).wall_seconds(seconds) == 9.0
    once = replace(plan.sweep, config=config(runs_per_launch=1))
    assert replace(plan, sweep=once, launch=2.0).wall_seconds(seconds) == 11.0
    too_large = Plan(Sweep(config(), (make_run(4),)), Devices("gpu", {"x": (0, 1)}), {"r": 1.0}, "")
    assert math.isinf(too_large.wall_seconds({"r": 1.0}))
