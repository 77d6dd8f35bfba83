"""A sweep that is killed, starved and damaged at random ends like one that nothing disturbed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from train.sweep.expand import load_sweep

sys.path.insert(0, str(ROOT / "scripts" / "bench"))
from soak import differences

SWEEP = """\
name: ladder
base: {base}
axes: {{seed: [0, 1]}}
run: {{train: {{steps: 80}}, checkpoint: {{every: 20}}, watchdog: {{step_timeout: 10, startup_timeout: 60}}}}
threads_per_run: 1
parallel_runs: 1
retries: 1
grace_seconds: 20
"""


@pytest.mark.slow
def test_a_disturbed_sweep_ends_like_an_undisturbed_one(small_run: Path, tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(SWEEP.format(base=small_run))
    out = tmp_path / "out"
    soak = [sys.executable, str(ROOT / "scripts/bench/soak.py"), str(tmp_path / "sweep.yaml"), "--out", str(out)]
    options = ["--minutes", "0", "--faults", "3", "--pause", "3", "--seed", "4"]
    result = subprocess.run([*soak, *options], capture_output=True, text=True, cwd=ROOT, timeout=400)
    assert result.returncode == 0, result.stdout + result.stderr
    figures = json.loads((out / "soak.json").read_text())
    assert sum(fault["times"] for fault in figures["faults"].values()) >= 3
    assert figures["failures"] == []
    again = subprocess.run(soak, capture_output=True, text=True, cwd=ROOT)
    assert (again.returncode, "is not empty" in again.stderr) == (2, True)

    one, other = (load_sweep(tmp_path / "sweep.yaml", [f"--runs_dir={out / n}"]) for n in ("undisturbed", "round-1"))
    assert not differences(one, other)
    metrics = other.runs[0].directory / "metrics.jsonl"
    *rows, last = metrics.read_text().splitlines()
    metrics.write_text("\n".join([*rows, json.dumps(json.loads(last) | {"loss": 1.0})]) + "\n")
    (other.runs[1].directory / "record.json").unlink()
    assert differences(one, other) == [
        f"{metrics.parent}: metrics.jsonl differs",
        f"{other.runs[1].directory}: record.json differs",
    ]
