"""Runs that are signalled, hang, meet another run or run out of something."""

import signal
from pathlib import Path

import pytest
from conftest import Ranks, read_record, read_rows, run_ranks, wait_for

from train.runstate import checkpoint_step
from train.status import Status

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


LONG = ("--train.steps=100", "--parallel.pipeline_stages=2")


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
