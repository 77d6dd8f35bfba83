"""The known-entropy ladder in small: no loss below the truth, and every step up brings it nearer."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, read_record

WIDTHS, TOKENS = (8, 16, 32), (100_000, 300_000)
# L - E of the smallest and the largest run, nats per token. Another seed moves them by .02, a wrong target by far more.
EXPECTED = {(8, 100_000): 0.95, (32, 300_000): 0.36}


@pytest.fixture(scope="module")
def excess(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], float]:
    """L - E of every run of the sweep's recipe at three widths and two budgets, trained here."""
    folder = tmp_path_factory.mktemp("known")
    sweep = yaml.safe_load((ROOT / "configs/sweeps/studies/known_entropy.yaml").read_text())
    sweep |= {"base": str(ROOT / "configs/runs/tiny.yaml"), "runs_dir": str(folder / "runs"), "points": []}
    sweep["axes"] = {"model.d_model": list(WIDTHS), "train.tokens": list(TOKENS)}
    sweep["run"]["data"]["directory"] = str(folder / "corpora")
    sweep["run"]["data"]["grammar"]["tokens"] = 400_000
    sweep["run"]["eval"]["tokens"] = 294_912  # three blocks
    sweep |= {"device": "cpu", "parallel_runs": 1}
    (folder / "small.yaml").write_text(yaml.safe_dump(sweep))
    command = [sys.executable, str(ROOT / "scripts/sweep.py"), str(folder / "small.yaml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    records = [read_record(path.parent) for path in Path(folder / "runs").glob("*/record.json")]
    assert [r["entropy_rate"] for r in records] == pytest.approx([1.76696] * len(records), abs=5e-6)
    budgets = {r["D"]: max(tokens for tokens in TOKENS if tokens <= r["D"]) for r in records}  # D in whole steps
    return {(r["d_model"], budgets[r["D"]]): r["val_loss"] - r["entropy_rate"] for r in records}


@pytest.mark.slow
def test_losses_fall_towards_the_entropy_and_not_below(excess: dict[tuple[int, int], float]) -> None:
    assert len(excess) == len(WIDTHS) * len(TOKENS)
    assert min(excess.values()) > 0.1
    for tokens in TOKENS:
        at = [excess[width, tokens] for width in WIDTHS]
        assert at == sorted(at, reverse=True)
    for width in WIDTHS:
        few, many = (excess[width, tokens] for tokens in TOKENS)
        assert many < 0.9 * few
    assert {key: excess[key] for key in EXPECTED} == pytest.approx(EXPECTED, abs=0.08)
