"""Faults injected into real runs: what the spike guard sees, and where training goes back to."""

import json
from pathlib import Path
from typing import Any

import pytest

from configs.metrics_rows import read_rows
from scaling.tables.curves import read_curves
from scaling.tables.read import read_table
from tests.conftest import Ranks, read_record

STEPS, AT, EARLY = 340, 250, 100
COMMON = [
    *(f"--train.steps={STEPS}", "--train.micro_batch_size=8"),
    *("--checkpoint.interval=20", "--checkpoint.keep=20", "--spikes.rollback_margin=30"),
]
FIVE = [AT + i for i in range(5)]

CASES: dict[str, dict[str, Any]] = {
    "clean": {},
    "random": {"fault": {"kind": "random_tokens", "steps": FIVE}},
    "one-batch": {"fault": {"kind": "random_tokens", "steps": [AT]}},
    "lr": {"fault": {"kind": "lr_x30", "steps": [EARLY + i for i in range(5)]}},
    "weights": {"fault": {"kind": "weights_x10", "steps": [AT]}},
    "always": {"fault": {"kind": "random_tokens", "steps": list(range(AT, 3000)), "once": False}},
}
NAN_AT = 60
NAN = {"kind": "nan_gradient", "steps": [NAN_AT], "rank": 1}
TWO_RANKS: dict[str, dict[str, Any]] = {
    "fp32": {"fault": NAN},
    "fp32-zero2": {"fault": NAN, "overrides": ["--parallel.zero_stage=2"]},
    "bf16": {"fault": NAN, "overrides": ["--precision=bf16"]},
    "pp2": {"fault": NAN, "overrides": ["--parallel.pipeline_stages=2"]},
    "three": {"fault": NAN | {"steps": [NAN_AT, NAN_AT + 1, NAN_AT + 2]}},
    "frozen": {
        "fault": {"kind": "frozen_block", "steps": list(range(25))},
        "overrides": ["--train.steps=25", "--parallel.zero_stage=2"],
    },
}


def launch(ranks: int, config: Path, folder: Path, cases: dict[str, dict[str, Any]]) -> int:
    """Train all cases in one launch; return its exit status."""
    folder.mkdir(exist_ok=True)
    content = {name: case | {"overrides": [*COMMON, *case.get("overrides", [])]} for name, case in cases.items()}
    (folder / "cases.json").write_text(json.dumps(content))
    arguments = [str(config), str(folder), str(folder / "cases.json")]
    status, output = Ranks(ranks, arguments, ("-m", "tests.helpers.fault_ranks")).finish()
    print(output)
    return status


@pytest.fixture(scope="module")
def runs(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case of one process."""
    folder = tmp_path_factory.mktemp("faults")
    assert launch(1, small_run, folder, CASES) == 0
    return folder


@pytest.fixture(scope="module")
def pairs(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case of two processes."""
    folder = tmp_path_factory.mktemp("pairs")
    short = ["--train.steps=100", "--train.micro_batch_size=4"]
    cases = {name: case | {"overrides": [*short, *case.get("overrides", [])]} for name, case in TWO_RANKS.items()}
    assert launch(2, small_run, folder, cases) == 0
    return folder


def events(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]


def kinds(run_dir: Path) -> list[str]:
    return [event["kind"] for event in events(run_dir)]


@pytest.mark.slow
def test_clean_run_is_silent_and_untainted(runs: Path) -> None:
    record = read_record(runs / "clean")
    assert record["tainted"] is False
    assert record["rollbacks"] == record["skipped_tokens"] == record["skipped_updates"] == 0
    assert not {"soft", "hard", "rollback"} & set(kinds(runs / "clean"))


@pytest.mark.slow
def test_random_batches_are_seen_within_five_steps(runs: Path) -> None:
    seen = [event for event in events(runs / "random") if event["kind"] in ("soft", "rollback")]
    assert AT < seen[0]["step"] <= AT + 5


@pytest.mark.slow
def test_one_bad_batch_changes_nothing(runs: Path) -> None:
    assert "rollback" not in kinds(runs / "one-batch")
    assert read_record(runs / "one-batch")["tainted"] is False


@pytest.mark.slow
def test_a_learning_rate_that_jumps_is_seen_within_five_steps(runs: Path) -> None:
    seen = [event for event in events(runs / "lr") if event["kind"] in ("soft", "rollback")]
    assert EARLY < seen[0]["step"] <= EARLY + 5


@pytest.mark.slow
def test_training_goes_back_leaves_the_batches_out_and_ends_as_well(runs: Path) -> None:
    record = read_record(runs / "weights")
    assert record["rollbacks"] == 1
    assert record["tainted"] is True
    assert record["skipped_tokens"] > 0
    assert record["val_loss"] == pytest.approx(read_record(runs / "clean")["val_loss"], rel=0.01)
    [back] = [event for event in events(runs / "weights") if event["kind"] == "rollback"]
    rows = read_rows(runs / "weights/metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    first_again = next(row["step"] for row in rows if row.get("attempt") == 2)
    assert first_again <= back["onset"] - 30
    assert all("attempt" not in row for row in rows if row["step"] < first_again)


@pytest.mark.slow
def test_the_log_keeps_what_was_undone_and_readers_leave_it_out(runs: Path) -> None:
    lines = (runs / "weights/metrics.jsonl").read_text().splitlines()
    assert len(lines) > STEPS
    [curve] = [curve for curve in read_curves(runs) if curve.name == "weights"]
    assert curve.step.tolist() == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_a_spike_that_always_returns_ends_the_run(runs: Path) -> None:
    assert (runs / "always/status.txt").read_text() == "3"
    assert kinds(runs / "always").count("rollback") <= 3
    assert kinds(runs / "always")[-1] == "diverged"
    assert not (runs / "always/record.json").exists()


@pytest.mark.slow
def test_altered_runs_stay_out_of_fits(runs: Path) -> None:
    table = read_table(runs)
    assert {"clean", "one-batch"} <= set(table.run)
    reasons = {row.row: row.reason for row in table.excluded}
    assert "tainted" in reasons["weights"]
    assert "not finished" in reasons["always"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, case in TWO_RANKS.items() if case["fault"] is NAN])
def test_a_gradient_that_is_no_number_on_one_rank_updates_nothing_on_any(pairs: Path, name: str) -> None:
    record = read_record(pairs / name)
    assert record["skipped_updates"] == 1
    assert record["rollbacks"] == 0
    assert record["tainted"] is True
    assert record["val_loss"] < 5
    assert [(e["step"], e["kind"]) for e in events(pairs / name) if e["kind"] == "hard"] == [(NAN_AT + 1, "hard")]
    assert "frozen" not in kinds(pairs / name)


@pytest.mark.slow
def test_a_block_that_gets_no_gradient_is_named(pairs: Path) -> None:
    [event] = events(pairs / "frozen")
    assert (event["kind"], event["step"]) == ("frozen", 20)
    assert "blocks.1." in event["reason"]
    assert "blocks.0." not in event["reason"]


@pytest.mark.slow
def test_three_in_a_row_go_back(pairs: Path) -> None:
    assert read_record(pairs / "three")["rollbacks"] == 1
    assert kinds(pairs / "three").count("rollback") == 1


@pytest.mark.slow
@pytest.mark.parametrize("place", ["saving", "gone back"])
def test_killed_while_it_goes_back_it_ends_the_same(place: str, runs: Path, small_run: Path, tmp_path: Path) -> None:
    fault = CASES["weights"]["fault"]
    assert launch(1, small_run, tmp_path, {"weights": {"fault": fault | {"at": place}}}) == 9
    # Once the rollback lasts the fault lies behind it; before, it is met again.
    again = {} if place == "gone back" else {"fault": fault}
    assert launch(1, small_run, tmp_path, {"weights": again}) == 0
    expected, found = (read_rows(folder / "weights/metrics.jsonl") for folder in (runs, tmp_path))
    assert [row["loss"] for row in found] == [row["loss"] for row in expected]
    assert read_record(tmp_path / "weights")["val_loss"] == read_record(runs / "weights")["val_loss"]
