"""band.json: what was written is read again, and what cannot be interpolated is told by file and key."""

import json
from pathlib import Path
from typing import Any

import pytest

from configs.curve_band import BAND, CurveBand, read_band
from configs.reader import ConfigError

CONTENT: dict[str, Any] = {
    "progress": [0.1, 0.5, 1.0],
    "low": [2.0, 1.5, 1.0],
    "centre": [2.5, 2.0, 1.5],
    "high": [3.0, 2.5, 2.0],
    "window": 0.1,
    "rungs": 6,
}


def test_a_band_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / BAND
    path.write_text(json.dumps(CONTENT | {"of_a_later_version": 1}))
    band = read_band(path)
    assert (band.low, band.window, band.rungs) == ((2.0, 1.5, 1.0), 0.1, 6)
    band.write(path)
    assert json.loads(path.read_text()) == CONTENT
    assert read_band(path) == band


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("low", None, "null is not a list"),
        ("high", [3.0, "x", 2.0], '"x" is not a number'),
        ("high", [3.0, 2.5], "must be positive numbers, as many as progress has"),
        ("centre", [2.5, -1.0, 1.5], "must be positive numbers, as many as progress has"),
        ("progress", [0.1, 0.1, 1.0], "must rise"),
        ("window", 0.0, "0.0 must be above 0 and at most 1"),
        ("window", [0.1], "[0.1] is not a number"),
    ],
)
def test_what_cannot_be_interpolated_is_told_by_file_and_key(
    tmp_path: Path, key: str, value: Any, problem: str
) -> None:
    path = tmp_path / BAND
    path.write_text(json.dumps(CONTENT | {key: value}))
    with pytest.raises(ConfigError) as caught:
        read_band(path)
    line = str(caught.value).splitlines()[0]
    assert line.startswith(f"{path}: {key}")
    assert line.endswith(problem)


def test_a_missing_key_is_missed(tmp_path: Path) -> None:
    (tmp_path / BAND).write_text(json.dumps({key: value for key, value in CONTENT.items() if key != "high"}))
    with pytest.raises(ConfigError, match=r"band.json: high: is required and missing"):
        read_band(tmp_path / BAND)


@pytest.mark.parametrize("noise", [b"", b"\xff\xfe", b"[]", b"3", b"[" * 100_000])
def test_noise_is_told_in_a_sentence(tmp_path: Path, noise: bytes) -> None:
    (tmp_path / BAND).write_bytes(noise)
    with pytest.raises(ConfigError, match=r"band.json: "):
        read_band(tmp_path / BAND)


def test_a_band_that_nothing_can_follow_is_not_made() -> None:
    band = CurveBand(progress=(1.0,), low=(float("nan"),), centre=(1.0,), high=(1.0,), window=0.1, rungs=6)
    assert [key for key, _ in band.problems()] == ["low"]
