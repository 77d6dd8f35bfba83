"""A warm worker trains what launches of their own would train, bit for bit."""

import signal
import time
from pathlib import Path

import pytest

from configs.cli import Status
from configs.reader import dump_yaml
from data.files import write_text
from tests.conftest import Ranks, read_record, read_rows, run_ranks, wait_for
from train.config import load_run
from train.launch.job_queue import Job, enqueue, jobs_done, mark_done
from train.launch.run_state import checkpoint_step, last_row

SMALL = ["--train.steps=12", "--eval.interval=5"]
WIDE = [*SMALL, "--model.d_model=32", "--train.sequence_length=16", "--seed=1"]
STAGES = ["--parallel.pipeline_stages=2"]


class Worker:
    """A worker without the launcher and its seconds, and runs for it."""

    def __init__(self, processes: int, config: Path, folder: Path) -> None:
        self.processes, self.config, self.directory, self.handed = processes, config, folder / "worker", 0
        self.directory.mkdir(parents=True)
        mark_done(self.directory, 0)
        self.ranks = Ranks(processes, ["--jobs", str(self.directory)])

    def enqueue(self, run_dir: Path | None, *overrides: str, wait: bool = True) -> None:
        """Hand over the next run, and wait until it is done or the worker has ended."""
        if run_dir is not None:
            write_text(run_dir / "config.yaml", dump_yaml(load_run(self.config, list(overrides))))
        self.handed += 1
        enqueue(self.directory, Job(self.handed, run_dir))
        while wait and jobs_done(self.directory) < self.handed and self.ranks.processes[0].poll() is None:
            time.sleep(0.05)


def result(run_dir: Path) -> list[dict[str, float]]:
    """Return what a run measured, without times."""
    keys = ("step", "tokens", "loss", "grad_norm", "lr", "val_loss")
    rows = [*read_rows(run_dir), read_record(run_dir)]
    return [{key: row[key] for key in keys if key in row} for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "ladder"),
    [
        pytest.param(1, [SMALL, [*WIDE, "--precision=bf16"], [*SMALL, "--parallel.zero_stage=1"]], id="one-process"),
        pytest.param(2, [[*SMALL, "--parallel.zero_stage=2"], [*WIDE, *STAGES], SMALL], id="two-processes"),
    ],
)
def test_worker_trains_what_launches_of_their_own_train(
    processes: int, ladder: list[list[str]], small_run: Path, tmp_path: Path
) -> None:
    """Sizes, precisions, ZeRO stages and pipelines follow each other in the same processes."""
    worker = Worker(processes, small_run, tmp_path)
    for number, overrides in enumerate(ladder):
        worker.enqueue(tmp_path / f"warm-{number}", *overrides)
    worker.enqueue(None)
    status, output = worker.ranks.finish()
    assert (status, jobs_done(worker.directory)) == (0, len(ladder)), output
    assert "step 12/12" not in output
    for number, overrides in enumerate(ladder[1:], 1):  # the first was the first of its process, too
        run_ranks(processes, small_run, tmp_path / f"alone-{number}", *overrides)
        assert result(tmp_path / f"warm-{number}") == result(tmp_path / f"alone-{number}")
        assert "step 12/12" in (tmp_path / f"warm-{number}" / "log.txt").read_text()


@pytest.mark.slow
def test_failure_ends_the_worker_with_the_exit_status_of_the_run(small_run: Path, tmp_path: Path) -> None:
    worker = Worker(1, small_run, tmp_path)
    worker.enqueue(tmp_path / "good", *SMALL)
    worker.enqueue(tmp_path / "bad", *SMALL, *STAGES)
    status, output = worker.ranks.finish()
    assert (status, jobs_done(worker.directory)) == (Status.USER_ERROR, 1), output
    assert "2 does not divide the 1 launched process" in (tmp_path / "bad" / "log.txt").read_text()
    assert (tmp_path / "good" / "record.json").exists()
    assert "stages" not in (tmp_path / "good" / "log.txt").read_text()


@pytest.mark.slow
def test_signal_in_a_later_run_of_a_worker_saves_it(small_run: Path, tmp_path: Path) -> None:
    """As from a sweep that is asked to end; `checkpoint.interval` is null."""
    first, second = (Worker(1, small_run, tmp_path / name) for name in ("first", "second"))
    first.enqueue(tmp_path / "done", *SMALL)
    first.enqueue(tmp_path / "stopped", "--train.steps=200", wait=False)
    wait_for(lambda: last_row(tmp_path / "stopped/metrics.jsonl").get("step", 0) >= 20)
    first.ranks.processes[0].send_signal(signal.SIGTERM)
    status, output = first.ranks.finish()
    assert (status, jobs_done(first.directory)) == (Status.STOPPED, 1), output
    saved = checkpoint_step(tmp_path / "stopped")
    assert 20 <= saved == last_row(tmp_path / "stopped/metrics.jsonl")["step"] < 200
    for name in ("stopped", "whole"):
        second.enqueue(tmp_path / name, "--train.steps=200")
    second.enqueue(None)
    assert second.ranks.finish()[0] == 0
    assert result(tmp_path / "stopped") == result(tmp_path / "whole")
