"""W&B is best effort: what reaches its files, and that nothing it does reaches the training."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, wait_for
from train.config import WandbConfig
from train.telemetry import wandb_tracker as tracking
from train.telemetry.wandb_tracker import Tracker, stable_id

CANARY = "canary-3f9a1c"
_BLOCK, _FRAME = 32768, 7


def read_records(path: Path) -> list[Any]:
    """Read a `.wandb` file: W&B's protocol buffers in LevelDB's log format, as `wandb sync` reads it."""
    from wandb.proto.wandb_internal_pb2 import Record

    content = path.read_bytes()
    assert content[:4] == b":W&B"
    records, parts, at = [], b"", _FRAME
    while at + _FRAME <= len(content):
        if _BLOCK - at % _BLOCK < _FRAME:  # a frame never crosses a block; the rest of this one is padding
            at += _BLOCK - at % _BLOCK
            continue
        size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        parts += content[at + _FRAME : at + _FRAME + size]
        at += _FRAME + size
        if kind in (1, 4):  # a whole record, or the last part of one
            records.append(Record.FromString(parts))
            parts = b""
    return records


def offline_files(run_dir: Path, count: int = 1) -> list[list[Any]]:
    """Wait until W&B's own process has written `count` whole files of `run_dir`; return their records, oldest first."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        files = sorted(run_dir.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_ctime_ns)
        contents = [read_records(path) for path in files if path.stat().st_size]
        if sum(any(r.HasField("exit") for r in records) for records in contents) == count:
            return contents
        time.sleep(0.1)
    raise AssertionError(f"W&B has not finished {count} file(s) in {run_dir}")


def local_files(run_dir: Path) -> list[list[Any]]:
    """What W&B has written so far of runs that began online."""
    return [read_records(path) for path in run_dir.glob("wandb/run-*/*.wandb") if path.stat().st_size]


def history(records: list[Any]) -> list[dict[str, str]]:
    """The logged rows, values as JSON text."""
    rows = [record.history.item for record in records if record.HasField("history")]
    return [{item.key or ".".join(item.nested_key): item.value_json for item in row} for row in rows]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)


def start(run_dir: Path, mode: Any = "offline", **settings: Any) -> Tracker:
    return Tracker(WandbConfig(mode=mode), "name", run_dir, settings)


@pytest.mark.usefixtures("offline")
def test_a_resumed_and_rewound_run_loses_nothing(tmp_path: Path) -> None:
    tracker = start(tmp_path, lr=0.1)
    for step in (1, 2, 3):
        tracker.log({"step": step, "tokens": step * 100, "loss": 5.0})
    tracker.alert("spike", "loss 5.0 is far above 3.0")
    tracker.log({"step": 2, "tokens": 200, "loss": 3.0})  # after a rollback to step 1
    tracker.finish({"val_loss": 2.0})
    again = start(tmp_path, lr=0.1)
    again.log({"step": 3, "tokens": 300, "loss": 2.5})
    again.finish({})

    first, second = offline_files(tmp_path, 2)
    assert [(row["tokens"], row["loss"]) for row in history(first)] == [
        *(("100", "5"), ("200", "5"), ("300", "5")),
        ("200", "3"),
    ]
    assert [row["tokens"] for row in history(second)] == ["300"]
    ids = {record.run.run_id for record in first + second if record.HasField("run")}
    assert ids == {stable_id(tmp_path)}
    metrics = [record.metric for record in first if record.HasField("metric")]
    assert {m.step_metric for m in metrics if m.glob_name == "*"} == {"tokens"}  # steps may repeat, tokens are the axis
    alerts = [record.alert for record in first if record.HasField("alert")]
    assert [(alert.title, alert.text) for alert in alerts] == [("spike", "loss 5.0 is far above 3.0")]


@pytest.mark.usefixtures("offline")
def test_no_secret_of_the_environment_the_command_line_or_the_configuration_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "DATABASE_URL"):
        monkeypatch.setenv(name, f"{CANARY}{'0' * 40}")
    monkeypatch.setattr("sys.argv", ["pretrain.py", f"--password={CANARY}"])
    for key, value in {"COUNT": "1", "KEY_0": "remote.origin.url", "VALUE_0": f"https://me:{CANARY}@host/x"}.items():
        monkeypatch.setenv(f"GIT_CONFIG_{key}", value)  # a remote with a password, as some hosts advise
    data = {
        "dataset": f"https://me:{CANARY}@host/text",
        "files": (f"https://host/text?v=1&access_token={CANARY}&x=2", f"hf_{CANARY.replace('-', '')}0000"),
        "subset": f"with {CANARY}{'0' * 40}",  # the value of HF_TOKEN
    }
    tracker = start(tmp_path, lr=0.1, data=data)
    tracker.log({"step": 1, "tokens": 100, "loss": 5.0})
    tracker.finish({})
    (records,) = offline_files(tmp_path)
    assert history(records)
    told = {item.key: json.loads(item.value_json) for r in records if r.HasField("run") for item in r.run.config.update}
    assert told["lr"] == 0.1
    assert told["data"] == {
        "dataset": "https://[secret]@host/text",
        "files": ["https://host/text?v=1&[secret]&x=2", "[secret]"],
        "subset": "with [secret]",
    }
    holders = [p for p in tmp_path.rglob("*") if p.is_file() and CANARY.encode() in p.read_bytes()]
    assert not holders


def test_without_a_key_runs_are_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert tracking._mode("auto") == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password x\n")
    assert tracking._mode("auto") == "online"


_ANSWERS: dict[str, Any] = {
    "RunResumeStatus": {"model": {"id": "p", "name": "project", "entity": {"id": "e", "name": "me"}, "bucket": None}},
    "UpsertBucket": {
        "upsertBucket": {
            "bucket": {
                **{"id": "x", "name": "run", "displayName": "run", "historyLineCount": 0},
                "project": {"id": "p", "name": "project", "entity": {"id": "e", "name": "me"}},
            },
            "inserted": True,
        }
    },
}
"""What a W&B server says to the questions of a run that begins."""


@contextmanager
def wandb_server(monkeypatch: pytest.MonkeyPatch, status: int) -> Iterator[tuple[list[str], Callable[[], None]]]:
    """A server that W&B takes for its own, and that always answers with `status`: what it was asked, and its end."""
    import wandb

    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.rfile.read(int(self.headers.get("Content-Length", 0))).decode())
            answer = next((answer for question, answer in _ANSWERS.items() if question in asked[-1]), {})
            self.send_response(status)
            self.send_header("Retry-After", "1")
            self.end_headers()
            self.wfile.write(json.dumps({"data": answer}).encode())

        do_GET = do_POST

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)

    def kill() -> None:
        server.shutdown()
        server.server_close()

    wandb.teardown()  # W&B reads its address once in a process
    yield asked, kill
    kill()
    monkeypatch.undo()
    wandb.teardown()


@pytest.mark.usefixtures("offline")
def test_a_rate_limited_run_goes_offline_with_every_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "_START_SECONDS", 2)
    with wandb_server(monkeypatch, status=429):
        tracker = start(tmp_path, "online")
        for step in range(1, 6):
            tracker.log({"step": step, "tokens": step * 100, "loss": 5.0})
        tracker.finish({})
        assert [row["step"] for row in history(offline_files(tmp_path)[0])] == ["1", "2", "3", "4", "5"]
        assert "logging offline, upload later with `wandb sync`" in capsys.readouterr().err


@pytest.mark.usefixtures("offline")
def test_a_server_that_dies_in_mid_run_costs_no_time_and_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.setattr(tracking, "_START_SECONDS", 5)
    monkeypatch.setattr(tracking, "_FINISH_SECONDS", 1)
    with wandb_server(monkeypatch, status=200) as (asked, kill):
        tracker = start(tmp_path, "online")
        tracker.log({"step": 1, "tokens": 100, "loss": 5.0})
        wait_for(lambda: any("UpsertBucket" in question for question in asked), 30)
        kill()
        begin = time.perf_counter()
        for step in range(2, 2000):
            tracker.log({"step": step, "tokens": step * 100, "loss": 5.0})
        assert time.perf_counter() - begin < 0.5
        tracker.finish({})
        assert time.perf_counter() - begin < 15
        wandb.teardown()  # as at the end of the process
        # All rows wait in W&B's own file, from which `wandb sync` takes them.
        assert [len(history(records)) for records in local_files(tmp_path)] == [1999]


class _FailingRun:
    """A W&B run whose server goes away after the first row."""

    def __init__(self, fail: Any) -> None:
        self.rows: list[dict[str, Any]] = []
        self.fail = fail

    def log(self, row: dict[str, Any]) -> None:
        if self.rows:
            self.fail()
        self.rows.append(row)

    alert = finish = summary = None


def _refuse() -> None:
    raise OSError("connection refused")


def test_an_error_in_mid_run_is_said_once_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _FailingRun(_refuse)
    monkeypatch.setattr(tracking, "_start", lambda _: run)
    tracker = start(tmp_path, "online")
    for step in range(20_000):  # twice what the queue holds
        tracker.log({"step": step})
    tracker.alert("spike", "text")
    tracker.finish({})
    assert run.rows == [{"step": 0}]
    assert capsys.readouterr().err.count("W&B is off for this run (OSError: connection refused)") == 1


def test_a_server_that_hangs_in_mid_run_costs_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = threading.Event()
    run = _FailingRun(answer.wait)
    monkeypatch.setattr(tracking, "_start", lambda _: run)
    tracker = start(tmp_path, "online")
    begin = time.perf_counter()
    for step in range(20_000):
        tracker.log({"step": step})
    tracker.alert("spike", "text")
    tracker.finish({})
    assert time.perf_counter() - begin < 5
    assert len(run.rows) == 1
    answer.set()


def make_tracker(mode: Any, run_dir: Path) -> Tracker:
    return Tracker(WandbConfig(mode=mode), "name", run_dir, {"lr": 0.1})


def test_offline_run_is_written_where_wandb_sync_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    tracker = make_tracker("offline", tmp_path)
    for step in range(1, 4):
        tracker.log({"step": step, "tokens": step * 100, "loss": 5.0 - step})
    tracker.finish({"val_loss": 2.0})
    [binary] = tmp_path.glob("wandb/offline-run-*/*.wandb")
    deadline = time.monotonic() + 30  # W&B's own process writes the file
    while b"val_loss" not in binary.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.1)
    content = binary.read_bytes()
    assert all(word in content for word in (stable_id(tmp_path).encode(), b"tokens", b"loss", b"val_loss"))


def test_a_resumed_run_keeps_its_id_and_another_run_has_its_own(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert stable_id(tmp_path / "a") == stable_id(tmp_path / "a")
    assert stable_id(tmp_path / "a") != stable_id(tmp_path / "b")


_DEAD_SERVER = """
import sys, time
from pathlib import Path
from train.config import WandbConfig
from train.telemetry.wandb_tracker import Tracker
begin = time.perf_counter()
tracker = Tracker(WandbConfig(mode="online"), "name", Path(sys.argv[1]), {})
for step in range(1000):
    tracker.log({"step": step, "tokens": step, "loss": 1.0})
print("queued in", time.perf_counter() - begin)
"""


def test_dead_server_does_not_hold_training(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    environment |= {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _DEAD_SERVER, str(tmp_path)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 5  # an init that blocked would take 100 s
    assert time.perf_counter() - begin < 60


def test_missing_wandb_is_said_and_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    tracker = make_tracker("offline", tmp_path)
    tracker.log({"step": 1})
    tracker.finish({})
    assert "W&B is off for this run" in capsys.readouterr().err
