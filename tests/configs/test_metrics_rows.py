"""metrics.jsonl: rows of a run as it stands, whatever was damaged, repeated or rolled back."""

import json
from pathlib import Path
from typing import Any

import pytest

from configs.metrics_rows import METRICS, parse_row, read_rows


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / METRICS
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_that_a_rollback_has_undone_are_left_out(tmp_path: Path) -> None:
    before = [{"step": step, "tokens": 8.0 * step, "loss": 1.0} for step in range(1, 7)]
    after = [{"step": step, "tokens": 8.0 * step, "loss": 2.0, "attempt": 2} for step in (4, 5)]
    path = write(tmp_path, [*before, *after])
    expected = [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0)]
    assert [(row["step"], row["loss"]) for row in read_rows(path)] == expected
    assert read_rows(path, by="tokens") == read_rows(path)


def test_a_curve_over_tokens_has_the_rows_that_know_them(tmp_path: Path) -> None:
    path = write(
        tmp_path, [{"step": 1, "tokens": 8}, {"step": 2}, {"step": 3, "tokens": None}, {"step": 4, "tokens": 32}]
    )
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3, 4]
    assert [row["step"] for row in read_rows(path, by="tokens")] == [1, 4]


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 3, "lo',
        "[3]",
        '{"loss": 3.0}',
        '{"step": 3.0}',
        '{"step": -1}',
        '{"step": true}',
        '{"step": 3, "attempt": "two"}',
        '{"step": 3, "loss": "3.0"}',
        '{"step": 3, "val_loss": NaN}',
        '{"step": 3, "lr": []}',
        f'{{"step": 3, "tokens": {"9" * 400}}}',
    ],
)
def test_a_damaged_line_is_no_row(tmp_path: Path, line: str) -> None:
    assert parse_row(line) is None
    path = tmp_path / METRICS
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 9, "loss": null, "of_a_later_version": "x"}}')
    assert [row["step"] for row in read_rows(path)] == [1, 9]


def test_a_missing_file_has_no_rows(tmp_path: Path) -> None:
    assert read_rows(tmp_path / METRICS) == []
