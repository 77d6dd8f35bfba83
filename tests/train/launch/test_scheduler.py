"""The scheduler against a stand-in for the trainer."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from configs.reader import ConfigError
from tests.conftest import ROOT
from train.distributed.ports import reserve_port
from train.launch.devices import Devices, Slot
from train.launch.events import last_failures, last_meaningful_lines, note_event, read_events
from train.launch.job_queue import Job, enqueue
from train.launch.plan import make_plan, measured_startup
from train.launch.run_state import read_states
from train.launch.scheduler import Command, SweepOutcome, run_sweep
from train.supervision.processes import MARK, processes_of, start_guard, stop
from train.sweep.expand import load_sweep
from train.sweep.run import Sweep

FAKE = ROOT / "tests" / "helpers" / "fake_trainer.py"
BASE = """\
precision: fp32
model: {size: tiny-1k}
data: {vocab_size: 257}
train: {sequence_length: 16, global_batch_size: 4, micro_batch_size: 4, tokens: 640}
optimizer: {lr: 0.01}
"""


def make_sweep(folder: Path, sizes: str = "[tiny-1k, tiny-3k, tiny-6k]", *overrides: str) -> Sweep:
    folder.mkdir(exist_ok=True)
    (folder / "run.yaml").write_text(BASE)
    (folder / "sweep.yaml").write_text(f"name: ladder\nbase: run.yaml\naxes: {{model.size: {sizes}}}\n")
    where = f"--runs_dir={folder / 'runs'}"
    return load_sweep(folder / "sweep.yaml", [where, "--grace_seconds=1", *overrides])


def go(sweep: Sweep, behaviours: dict[str, str] | None = None, slots: int = 2) -> SweepOutcome:
    """Run a sweep with the stand-in; behaviours go by the size of a run."""
    devices = Devices("cpu", {"localhost": tuple(range(slots))})
    return run_sweep(make_plan(sweep, devices), lambda: None, fake_command(behaviours))


def fake_command(behaviours: dict[str, str] | None = None) -> Command:
    by_run = json.dumps({f"{size}-640tok": behaviour for size, behaviour in (behaviours or {}).items()})
    return lambda directory, processes, slot, port: [
        *("env", f"FAKE_PORT={port}", sys.executable, str(FAKE), str(directory), by_run)
    ]


def launches(sweep: Sweep) -> list[tuple[str, int, int]]:
    """(run, port, pid) of every time that a run was begun."""
    path = sweep.config.directory / "order.txt"
    lines = map(str.split, path.read_text().splitlines() if path.exists() else [])
    return [(name, int(port), int(pid)) for name, port, pid in lines]


def wait_for(condition: object, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


def alive(pid_file: Path) -> bool:
    pid = int(pid_file.read_text())
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_all_complete_then_nothing_to_do(tmp_path):
    sweep = make_sweep(tmp_path)
    outcome = go(sweep)
    assert {state.state for state in outcome.states.values()} == {"complete"}
    assert not outcome.failures
    assert len(launches(sweep)) == 3
    go(sweep)
    assert len(launches(sweep)) == 3


def test_every_completion_is_told(tmp_path):
    sweep, told = make_sweep(tmp_path), []
    plan = make_plan(sweep, Devices("cpu", {"localhost": (0, 1)}))
    run_sweep(plan, lambda: None, fake_command({"tiny-3k": "crash"}), lambda: told.append(len(told)))
    assert told == [0, 1]


def test_stored_configuration_is_the_whole_run(tmp_path):
    from train.config import load_run

    sweep = make_sweep(tmp_path)
    go(sweep)
    for run in sweep.runs:
        assert load_run(run.directory / "config.yaml") == run.config
        assert run.config.wandb.group == "ladder"


def test_unfinished_run_is_launched_again(tmp_path):
    sweep = make_sweep(tmp_path)
    go(sweep, {"tiny-3k": "crash"})
    assert read_states(sweep.runs, {})["tiny-3k-640tok"].state == "failed"
    outcome = go(sweep)
    assert {state.state for state in outcome.states.values()} == {"complete"}
    assert [name for name, *_ in launches(sweep)].count("tiny-3k-640tok") == 2
    assert len(launches(sweep)) == 4
    assert not last_failures(sweep.config.directory)


def workers_of(sweep: Sweep) -> list[list[str]]:
    """Which runs each worker has begun, by size."""
    by_pid: dict[int, list[str]] = {}
    for name, _, pid in launches(sweep):
        by_pid.setdefault(pid, []).append(name.removesuffix("-640tok"))
    return list(by_pid.values())


def test_one_launch_for_many_runs(tmp_path):
    sweep = make_sweep(tmp_path, "[tiny-1k, tiny-3k, tiny-6k, tiny-14k]")
    go(sweep, slots=1)
    assert workers_of(sweep) == [["tiny-14k", "tiny-6k", "tiny-3k", "tiny-1k"]]
    assert [event["warm"] for event in read_events(sweep.config.directory) if event["event"] == "started"] == [
        *(False, True, True, True)
    ]
    assert not list(sweep.config.directory.glob(".worker-*"))


def test_no_more_runs_per_launch_than_asked_for(tmp_path):
    sweep = make_sweep(tmp_path, "[tiny-1k, tiny-3k, tiny-6k]", "--runs_per_launch=2")
    go(sweep, slots=1)
    assert workers_of(sweep) == [["tiny-6k", "tiny-3k"], ["tiny-1k"]]


def test_failed_run_takes_its_worker_with_it(tmp_path):
    sweep = make_sweep(tmp_path, "[tiny-1k, tiny-3k, tiny-6k, tiny-14k]")
    go(sweep, {"tiny-6k": "crash"}, slots=1)
    assert workers_of(sweep) == [["tiny-14k", "tiny-6k"], ["tiny-3k", "tiny-1k"]]
    logs = {run.config.model.size: (run.directory / "log.txt").read_text() for run in sweep.runs}
    assert [size for size, log in logs.items() if "the sky fell" in log] == ["tiny-6k"]


def test_workers_make_room_for_a_run_of_another_size(tmp_path):
    """Two runs on one GPU each, then one on both."""
    large = "--points=[{model.size: tiny-1k, devices_per_run: 2, train.micro_batch_size: 2}]"
    sweep = make_sweep(tmp_path, "[tiny-25k, tiny-98k]", large)
    devices = Devices("gpu", {"localhost": (0, 1)})
    outcome = run_sweep(make_plan(sweep, devices), lambda: None, fake_command())
    assert {state.state for state in outcome.states.values()} == {"complete"}
    assert len(workers_of(sweep)) == 3
    assert launches(sweep)[-1][0] == "tiny-1k-640tok"


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("crash", "exit status 1: ValueError: the sky fell"),
        ("killed", "killed by SIGKILL"),
        ("rank-killed", "a rank was killed by SIGKILL"),
        (
            "memory",
            "exit status 8, the device or the machine has too little memory for the run: out of memory",
        ),
        ("orphan", "exit status is 0 but record.json is not complete"),
        ("nothing", "record.json is not complete"),
    ],
)
def test_failure_leaves_siblings_alone(tmp_path, behaviour, reason):
    sweep = make_sweep(tmp_path)
    outcome = go(sweep, {"tiny-3k": behaviour}, slots=1)
    assert [failure.run.name for failure in outcome.failures] == ["tiny-3k-640tok"]
    assert reason in outcome.failures[0].reason
    states = {name: state.state for name, state in outcome.states.items()}
    assert states == {"tiny-1k-640tok": "complete", "tiny-3k-640tok": "failed", "tiny-6k-640tok": "complete"}
    assert not processes_of(sweep.config.directory)


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        ("hang-once", r"hung: rank 0 \(.*, process \d+, stopped\) has been training after step 7 for over 1 s"),
        ("never-begins", "hung: rank 0 has not begun"),
    ],
)
def test_hung_run_is_killed_and_launched_again(tmp_path, behaviour, said):
    sweep = make_sweep(tmp_path, "[tiny-1k, tiny-3k]", "--retries=1", "--watchdog.startup_timeout=5")
    begin = time.monotonic()
    outcome = go(sweep, {"tiny-3k": behaviour})
    assert time.monotonic() - begin < 60
    assert {state.state for state in outcome.states.values()} == {"complete"}
    (failed,) = [event for event in read_events(sweep.config.directory) if event["event"] == "failed"]
    assert re.fullmatch(said, failed["reason"])
    assert not processes_of(sweep.config.directory)


def test_retries_but_not_after_a_mistake_in_the_input(tmp_path):
    sweep = make_sweep(tmp_path, "[tiny-1k, tiny-3k]", "--retries=1")
    outcome = go(sweep, {"tiny-1k": "crash-once", "tiny-3k": "input"})
    assert [failure.run.config.model.size for failure in outcome.failures] == ["tiny-3k"]
    names = [name for name, *_ in launches(sweep)]
    assert names.count("tiny-1k-640tok") == 2
    assert names.count("tiny-3k-640tok") == 1


def test_longest_first_and_a_port_each(tmp_path):
    sweep = make_sweep(tmp_path, "[tiny-1k, tiny-25k, tiny-6k]")
    go(sweep, {"tiny-25k": "slow", "tiny-6k": "slow"}, slots=1)
    assert [name.rsplit("-", 1)[0] for name, *_ in launches(sweep)] == ["tiny-25k", "tiny-6k", "tiny-1k"]
    reserved = [reserve_port() for _ in range(20)]
    assert len({port.number for port in reserved}) == 20
    for port in reserved:
        port.release()


def test_port_stays_reserved_against_another_process():
    mine = reserve_port()
    code = f"from train.distributed.ports import _bind; import sys; sys.exit(_bind({mine.number + 1}) is not None)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    mine.release()
    assert subprocess.run([sys.executable, "-c", code]).returncode == 1


def test_begun_run_with_another_configuration_is_refused(tmp_path):
    go(make_sweep(tmp_path), {"tiny-3k": "crash"})
    changed = make_sweep(tmp_path, "[tiny-1k, tiny-3k, tiny-6k]", "--optimizer.lr=0.02", "--wandb.mode=disabled")
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    with pytest.raises(ConfigError) as refused:
        go(changed)
    told = str(refused.value)
    assert told.count("optimizer.lr: the run there has 0.01, and the sweep now says 0.02") == 3
    assert "--runs_dir" in told
    assert "wandb" not in told
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before


def test_run_that_never_began_takes_the_new_configuration(tmp_path):
    go(make_sweep(tmp_path, "[tiny-1k]"), {"tiny-1k": "input"})
    outcome = go(make_sweep(tmp_path, "[tiny-1k]", "--optimizer.lr=0.02"))
    assert outcome.states["tiny-1k-640tok"].state == "complete"


def test_one_sweep_per_directory(tmp_path):
    sweep = make_sweep(tmp_path)
    sweep.config.directory.mkdir()
    with (sweep.config.directory / ".sweep.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match="in use by another process"):
            go(sweep)
    assert not launches(sweep)


def test_corpus_is_prepared_once_and_only_when_there_is_work(tmp_path):
    sweep = make_sweep(tmp_path)
    plan = make_plan(sweep, Devices("cpu", {"localhost": (0, 1)}))
    calls = []

    def command(directory: Path, processes: int, slot: Slot, port: int) -> list[str]:
        assert calls
        return fake_command()(directory, processes, slot, port)

    for _ in range(2):
        run_sweep(plan, lambda: calls.append(1), command)
    assert calls == [1]


def test_what_an_earlier_sweep_left_running_is_ended(tmp_path):
    sweep = make_sweep(tmp_path, "[tiny-1k]")
    directory = sweep.config.directory / ".worker-0"
    directory.mkdir(parents=True)
    enqueue(directory, Job(1, sweep.runs[0].directory))
    environment = os.environ | {MARK: str(directory.resolve())}
    left = subprocess.Popen([sys.executable, str(FAKE), str(directory), "stubborn"], env=environment)
    wait_for((directory / "stubborn").exists)
    assert read_states(sweep.runs, {})["tiny-1k-640tok"].state == "running"
    outcome = go(sweep)
    assert left.wait(timeout=5) == -signal.SIGKILL
    assert outcome.states["tiny-1k-640tok"].state == "complete"
    assert not directory.exists()


# ------------------------------------------------------------------------------- being ended from outside

DRIVER = textwrap.dedent("""
    import signal, sys
    from pathlib import Path
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    from tests.train.launch.test_scheduler import go, make_sweep
    outcome = go(make_sweep(Path(sys.argv[1]), "[tiny-1k, tiny-3k]", "--grace_seconds=" + sys.argv[2]),
                 {"tiny-1k": "family", "tiny-3k": "family"})
    sys.exit(128 + (outcome.interrupted_by or 0))
""")


def start_driver(folder: Path, grace: float) -> tuple[subprocess.Popen[bytes], list[Path]]:
    """Start a sweep of two runs, each a launcher and a grandchild that ignores signals, in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(folder), str(grace)], cwd=folder, env=environment)
    stubborn = [folder / "runs" / f"{size}-640tok" / "stubborn" for size in ("tiny-1k", "tiny-3k")]
    wait_for(lambda: all(path.exists() and path.read_text() for path in stubborn))
    return driver, [*stubborn, *(path.with_name("pid") for path in stubborn)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_ends_every_process_of_every_run(tmp_path, number):
    driver, pids = start_driver(tmp_path, 0.5)
    driver.send_signal(number)
    assert driver.wait(timeout=15) == 128 + number
    assert not any(map(alive, pids))
    assert {event["event"] for event in read_events(tmp_path / "runs")} == {"started", "stopped"}


def test_second_signal_does_not_wait(tmp_path):
    driver, pids = start_driver(tmp_path, 600)
    driver.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert driver.poll() is None
    begin = time.monotonic()
    driver.send_signal(signal.SIGINT)
    driver.wait(timeout=15)
    assert time.monotonic() - begin < 5
    assert not any(map(alive, pids))


def test_sigkill_of_the_sweep_leaves_no_orphan(tmp_path):
    driver, pids = start_driver(tmp_path, 0.5)
    driver.kill()
    driver.wait()
    wait_for(lambda: not any(map(alive, pids)), 10)


def test_training_processes_are_asked_first_and_together(tmp_path):
    """A launcher that would end its workers one after another is not signalled while they save."""
    script = (
        "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(print(sys.argv[1], flush=True)));"
        "print(1, flush=True); time.sleep(60)"
    )
    environment = os.environ | {MARK: str(tmp_path)}
    launched = [
        subprocess.Popen([sys.executable, "-c", script, name], env=environment | more, stdout=subprocess.PIPE)
        for name, more in {"launcher": {}, "worker": {"RANK": "0"}}.items()
    ]
    for process in launched:
        assert process.stdout is not None
        process.stdout.readline()
    assert stop(tmp_path, 1.0) == 2
    outputs = [process.communicate()[0] for process in launched]
    assert outputs == [b"", b"worker\n"]


def test_workers_of_the_next_sweep_are_none_of_the_guards_business(tmp_path):
    """The guard of a killed sweep is still at work when the next one launches into the same directory."""
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    old, new = (os.environ | {MARK: str(tmp_path / f".worker-{name}")} for name in ("old", "new"))
    deaf = [
        sys.executable,
        "-c",
        "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(60)",
    ]
    first = subprocess.Popen(deaf, env=old, stdout=subprocess.PIPE)
    assert first.stdout is not None
    first.stdout.readline()
    with ThreadPoolExecutor(1) as guard:
        ended = guard.submit(stop, tmp_path, 1.0)
        time.sleep(0.5)
        second = subprocess.Popen(sleep, env=new)
        assert ended.result(timeout=30) == 1
    assert first.wait(timeout=5) == -signal.SIGKILL
    assert second.poll() is None
    second.kill()
    second.wait()


def test_guard_ends_with_its_owner(tmp_path):
    guard = start_guard(tmp_path, 0.1)
    assert guard.poll() is None
    guard.communicate(timeout=10)
    assert guard.returncode == 0


# --------------------------------------------------------------------------------------- reading a failure


def test_log_lines_that_say_what_went_wrong(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text(
        "RuntimeError: of an earlier launch\n"
        "=== 2026-01-01 00:00:00 deepspeed ...\n"
        "[2026-01-01 00:00:00,123] [INFO] [launch.py:1:main] nnodes=1\n"
        "step 1/10  loss 5.5\n"
        "[rank0]: Traceback (most recent call last):\n"
        '[rank0]:   File "x.py", line 1, in f\n'
        "[rank0]: torch.OutOfMemoryError: CUDA out of memory\n"
        "[rank1]: torch.OutOfMemoryError: CUDA out of memory\n"
        "[2026-01-01 00:00:00,123] [ERROR] [launch.py:1:main] ['python'] exits with return code = 1\n"
    )
    start = log.read_text().index("===")
    assert last_meaningful_lines(log, start) == ["torch.OutOfMemoryError: CUDA out of memory"]
    assert last_meaningful_lines(tmp_path / "absent") == []


def test_journal_survives_a_torn_line(tmp_path):
    sweep = make_sweep(tmp_path, "[tiny-1k]")
    go(sweep, {"tiny-1k": "crash"})
    with (tmp_path / "runs" / "events.jsonl").open("a") as file:
        file.write('{"time": "2026')
    assert "sky fell" in last_failures(tmp_path / "runs")["tiny-1k-640tok"]
    go(sweep)
    assert not last_failures(tmp_path / "runs")


def test_measured_speed_replaces_the_assumption(tmp_path):
    sweep = make_sweep(tmp_path)
    devices = Devices("cpu", {"localhost": (0, 1)})
    assert "assumed" in make_plan(sweep, devices).basis
    go(sweep, {"tiny-6k": "crash"})
    plan = make_plan(sweep, devices)
    assert re.search("measured speed of 2 finished runs", plan.basis)
    # The stand-in trains 640 tokens/s at both sizes: 1 s for 640 tokens; a larger size takes longer.
    handover = plan.seconds["tiny-1k-640tok"] - 1
    assert plan.seconds["tiny-3k-640tok"] == pytest.approx(1 + handover)
    assert plan.seconds["tiny-6k-640tok"] > 1.2 + handover


def test_measured_startup_tells_a_launch_from_a_handover(tmp_path):
    sweep = make_sweep(tmp_path)
    assert measured_startup(sweep) == (11.0, 1.0)
    go(sweep)
    events = sweep.config.directory / "events.jsonl"
    events.unlink()
    for run, warm, seconds in zip(sweep.runs, (False, True, True), (9.1, 0.5, 0.7), strict=True):
        note_event(sweep.config.directory, run.name, "started", warm=warm)
        note_event(sweep.config.directory, run.name, "complete", seconds=seconds)
    assert measured_startup(sweep) == (pytest.approx(9.0 - 0.5), pytest.approx(0.5))  # records say .1 s of training


def test_record_that_is_not_complete_does_not_count(tmp_path):
    sweep = make_sweep(tmp_path, "[tiny-1k]")
    go(sweep)
    path = sweep.runs[0].directory / "record.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "complete": False}))
    assert read_states(sweep.runs, {})["tiny-1k-640tok"].state == "resumable"
    go(sweep)
    assert len(launches(sweep)) == 2
