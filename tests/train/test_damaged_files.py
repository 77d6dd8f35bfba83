"""Files that somebody else wrote or that were damaged: they are read, or refused, and never end a run."""

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.metrics_rows import read_rows
from configs.reader import ConfigError
from scaling.errors import CurveError
from scaling.studies.multi_power import read_curve
from scaling.tables.curves import read_curves
from scaling.tables.read import read_table
from train.checkpoint.manifest import MANIFEST, damage, write_manifest
from train.config import load_run
from train.launch.run_state import last_row
from train.stability.band_monitor import Monitor
from train.telemetry.metrics import MetricsLog

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from([10**400, 1e999]) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from(["step", "attempt", "tokens", "loss", "lr", "seconds", "tokens_per_second"])
LINES = st.binary(max_size=20) | (JSON | st.dictionaries(KEYS, st.integers(0, 99) | JSON)).map(
    lambda row: json.dumps(row).encode()
)
over_one_file = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("noise", [b"", b"\xff\xfe", b"[]", b"3", b"[" * 100_000])
def test_noise_is_no_band(tmp_path: Path, noise: bytes) -> None:
    (tmp_path / "band.json").write_bytes(noise)
    assert Monitor(tmp_path / "band.json", 10).follow(5, 3.0) == ({}, None)


@given(lines=st.lists(LINES, max_size=6))
@over_one_file
def test_any_lines_are_rows_of_rising_steps_or_passed_over(tmp_path: Path, lines: list[bytes]) -> None:
    (tmp_path / "run").mkdir(exist_ok=True)
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    steps = [row["step"] for row in read_rows(path)]
    assert steps == sorted(set(steps))
    assert bool(last_row(path)) == bool(steps)
    for curve in read_curves(tmp_path):
        assert (curve.tokens[1:] > curve.tokens[:-1]).all()
    with contextlib.suppress(CurveError):
        read_curve(path)
    log = MetricsLog(path)
    log.write({"step": 100, "loss": 1.0})
    log.close()
    assert last_row(path)


def test_a_damaged_row_and_those_that_a_rollback_undid_are_in_no_curve(tmp_path: Path) -> None:
    steps = [*range(1, 41), *range(21, 61)]  # a rollback to step 20
    rows = [{"step": s, "tokens": 8 * s, "loss": 9.0 - i / 10, "lr": 1e-3} for i, s in enumerate(steps)]
    lines = [json.dumps(row | ({"attempt": 2} if i >= 40 else {})) for i, row in enumerate(rows)]
    lines[50] = lines[50][:9] + "\0" + lines[50][12:]  # still ends like a row
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_text("\n".join([*lines, '{"step": 61, "lo']))
    whole = [s for s in range(1, 61) if s != 31]
    loss = [rows[s - 1 if s <= 20 else s + 19]["loss"] for s in whole]
    [curve] = read_curves(tmp_path)
    pairs = [(row["step"], row["loss"]) for row in read_rows(path)]
    assert (
        pairs == list(zip(curve.step.tolist(), curve.loss.tolist(), strict=True)) == list(zip(whole, loss, strict=True))
    )
    law = read_curve(tmp_path / "run")
    assert law.step[law.first :].tolist() == whole
    assert law.loss[law.first :].tolist() == loss


@given(data=st.data())
@over_one_file
def test_a_manifest_of_a_checkpoint_is_sound_or_damage_whatever_it_says(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "step-00000003"
    path.mkdir(exist_ok=True)
    (path / "a.json").write_text("{}")
    files = {"a.json": {"bytes": 2, "sha256": hashlib.sha256(b"{}").hexdigest()}}
    write_manifest(path, 3, "1 process", files)
    assert damage(path) is None
    content = json.loads((path / MANIFEST).read_text())
    node, key = content, data.draw(st.sampled_from(sorted(content)))
    while isinstance(node[key], dict) and data.draw(st.booleans()):
        node = node[key]
        key = data.draw(st.sampled_from(sorted(node)))
    change = data.draw(st.sampled_from(["remove", "rename", "replace"]))
    old = node.pop(key)
    if change != "remove":
        new = data.draw(JSON if change == "replace" else st.text(max_size=5) | st.just("../a.json"))
        node |= {new: old} if change == "rename" else {key: new}
    if data.draw(st.booleans()):  # as if this program had written it so
        signed = {k: v for k, v in content.items() if k != "sha256"}
        content["sha256"] = hashlib.sha256(json.dumps(signed, sort_keys=True).encode()).hexdigest()
    (path / MANIFEST).write_text(json.dumps(content))
    fault = damage(path)
    assert fault is None or "\n" not in fault


@pytest.mark.parametrize("noise", [b"", b"\xff\xfe", b"[]", b"3", b'"text"', b"[" * 100_000])
def test_noise_is_no_manifest_of_a_checkpoint(tmp_path: Path, noise: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(noise)
    assert "missing or unreadable" in str(damage(tmp_path))


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "<script>", "a b", ".hidden", "-x", "", "x\n", "é", "a" * 101])
def test_names_that_leave_their_directory_or_a_page_are_refused(name: str) -> None:
    tiny = Path(__file__).parents[2] / "configs/runs/tiny.yaml"
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
    (tmp_path / "folder" / "record.json").mkdir(parents=True)
    mixed = read_table(tmp_path)
    assert {str(row.row) for row in mixed.excluded} == {"altered", "half", "nan", "torn", "folder"}
    assert mixed.run == clean.run
    assert all((mixed.columns[name] == clean.columns[name]).all() for name in clean.columns)
