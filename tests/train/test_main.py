"""One run as it is typed: mistakes and the resolved configuration."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from train.config import load_run

TINY = ROOT / "configs/runs/tiny.yaml"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "configs/runs/tinny.yaml"], "nearest is 'configs/runs/tiny.yaml'"),
        (["--config", "configs/runs/tiny.yaml", "--train.stepz=3"], "did you mean 'steps'?"),
        (["--config", "configs/runs/tiny.yaml", "--data.source=files"], "data.files"),
        (["--config", "configs/runs/tiny.yaml", "--data.source=files", "--data.files=[no/such.txt]"], "no/such.txt"),
        (["--config", "configs/runs/tiny.yaml", "--parallel.pipeline_stages=2"], "--num_accelerators 2"),
        (["--config", "configs/runs/tiny.yaml", "--deepspeed_config", "none.json"], "none.json"),
        (["--config", "configs/runs/tiny.yaml", "steps=3"], "overrides look like --train.steps=100"),
    ],
)
def test_mistakes_end_in_a_sentence(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "scripts/pretrain.py", *arguments, "--run-dir", str(tmp_path / "run")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_print_config_is_a_config(tmp_path: Path) -> None:
    command = [sys.executable, "scripts/pretrain.py", "--config", str(TINY), "--print-config", "--seed=5"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    (tmp_path / "printed.yaml").write_text(printed)
    assert load_run(tmp_path / "printed.yaml") == load_run(TINY, ["--seed=5"])
