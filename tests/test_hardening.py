"""Files that somebody else wrote or that were damaged: they are read, or refused, and never end a run."""

import json
from pathlib import Path
from typing import Any

import pytest

from configs.reader import ConfigError
from scaling.table import read_table
from train.config import load_run
from train.monitor import Monitor


@pytest.mark.parametrize("noise", [b"", b"\xff\xfe", b"[]", b"3", b"[" * 100_000])
def test_noise_is_no_band(tmp_path: Path, noise: bytes) -> None:
    (tmp_path / "band.json").write_bytes(noise)
    assert Monitor(tmp_path / "band.json", 10).follow(5, 3.0) == ({}, None)


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "<script>", "a b", ".hidden", "-x", "", "x\n", "é", "a" * 101])
def test_names_that_leave_their_directory_or_a_page_are_refused(name: str) -> None:
    tiny = Path(__file__).parent.parent / "configs/runs/tiny.yaml"
    with pytest.raises(ConfigError, match="is not a safe name"):
        load_run(tiny, [f"--name={json.dumps(name)}"])


def test_spoilt_runs_are_listed_and_leave_the_table_as_it_was(tmp_path: Path) -> None:
    def record(name: str, **changed: Any) -> None:
        (tmp_path / name).mkdir()
        content = {"complete": True, "tainted": False, "N": 1e6, "D": 1e7, "val_loss": 3.0} | changed
        (tmp_path / name / "record.json").write_text(json.dumps(content))

    for index in range(3):
        record(f"good-{index}", N=1e6 * (index + 1), val_loss=3.0 - index / 10)
    clean = read_table(tmp_path)
    record("altered", tainted=True, val_loss=9.0)
    record("half", complete=False)
    record("nan", val_loss=None)
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "record.json").write_text('{"complete": tr')
    mixed = read_table(tmp_path)
    assert {str(row.row) for row in mixed.excluded} == {"altered", "half", "nan", "torn"}
    assert mixed.run == clean.run
    assert all((mixed.columns[name] == clean.columns[name]).all() for name in clean.columns)
