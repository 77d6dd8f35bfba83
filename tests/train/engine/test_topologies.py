"""Parallelism and precision change the time of a run and not its loss curve."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from configs.run_record import RECORD, RunRecord, read_record
from tests.conftest import ROOT, free_port, read_rows, run_ranks

# Largest difference of any logged loss or gradient norm from one process in fp32. fp32 differs by the order of sums;
# bf16 has 8 bits, so a loss near 5 rounds by up to .02 wherever an activation does, and averages out to less.
FP32, BF16 = 1e-5, 2e-2

TOPOLOGIES = [
    pytest.param(2, ["--parallel.zero_stage=2", "--train.micro_batch_size=4"], FP32, id="dp2-zero2"),
    pytest.param(2, ["--parallel.tensor_parallel=2"], FP32, id="tp2"),
    pytest.param(4, ["--parallel.pipeline_stages=2"], FP32, id="dp2-pp2"),
    pytest.param(2, ["--precision=bf16", "--parallel.pipeline_stages=2"], BF16, id="bf16-pp2"),
]
"""Through the command line, with validation; `test_parity.py` has every topology."""


@pytest.fixture(scope="module")
def reference(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], RunRecord]:
    """One process, fp32, accumulating over four micro-batches."""
    run_dir = tmp_path_factory.mktemp("reference") / "run"
    rows = run_ranks(1, small_run, run_dir)
    return rows, read_record(run_dir / RECORD)


def largest_difference(rows: list[dict[str, Any]], others: list[dict[str, Any]], key: str) -> float:
    assert [row["step"] for row in rows] == [row["step"] for row in others]
    return max(abs(a[key] - b[key]) for a, b in zip(rows, others, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("world_size", "overrides", "tolerance"), TOPOLOGIES)
def test_same_curve_on_every_topology(
    world_size: int,
    overrides: list[str],
    tolerance: float,
    small_run: Path,
    reference: tuple[list[dict[str, Any]], RunRecord],
    tmp_path: Path,
) -> None:
    rows = run_ranks(world_size, small_run, tmp_path / "run", *overrides)
    expected_rows, expected = reference[0], reference[1].result
    assert largest_difference(expected_rows, rows, "loss") < tolerance
    record = read_record(tmp_path / "run" / RECORD).result
    assert abs(record.val_loss - expected.val_loss) < tolerance
    # The windows' losses differ alike on every topology: their standard error hardly changes. It is about .01.
    assert expected.val_loss_stderr is not None
    assert record.val_loss_stderr == pytest.approx(expected.val_loss_stderr, rel=max(tolerance, 1e-4))
    assert rows[-1]["val_loss_stderr"] == record.val_loss_stderr
    # The first norm is that of the initial weights, before differences can grow.
    assert rows[0]["grad_norm"] == pytest.approx(expected_rows[0]["grad_norm"], rel=max(tolerance, 1e-5))


@pytest.mark.slow
def test_the_comparison_would_notice(
    small_run: Path, reference: tuple[list[dict[str, Any]], RunRecord], tmp_path: Path
) -> None:
    """Negative control: one part in a hundred of the learning rate is seen within 30 steps."""
    rows = run_ranks(1, small_run, tmp_path / "run", "--optimizer.lr=0.0101")
    assert largest_difference(reference[0], rows, "loss") > 10 * FP32


@pytest.mark.slow
def test_learning_happens(reference: tuple[list[dict[str, Any]], RunRecord]) -> None:
    rows, val_loss = reference[0], reference[1].result.val_loss
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.3
    assert val_loss == pytest.approx(rows[-1]["loss"], abs=0.2)


@pytest.mark.slow
def test_the_deepspeed_launcher_and_a_users_ds_json(
    small_run: Path, reference: tuple[list[dict[str, Any]], RunRecord], tmp_path: Path
) -> None:
    """The command of the README, on two ranks, with a configuration of the user's own."""
    (tmp_path / "ds.json").write_text(
        json.dumps({"train_batch_size": "auto", "zero_optimization": {"stage": 2, "reduce_bucket_size": 1000}})
    )
    launcher = Path(sys.executable).with_name("deepspeed")
    command = [launcher, "--num_accelerators", "2", "--master_port", str(free_port()), "scripts/pretrain.py"]
    arguments = ["--config", small_run, "--run-dir", tmp_path / "run", "--deepspeed_config", tmp_path / "ds.json"]
    done = subprocess.run(
        [str(part) for part in [*command, *arguments, "--parallel.zero_stage=2"]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert largest_difference(reference[0], read_rows(tmp_path / "run"), "loss") < FP32
    assert read_record(tmp_path / "run" / RECORD).compute.world_size == 2


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("compiled", ["true", "false"])
def test_same_curve_on_a_gpu(precision: str, compiled: str, small_run: Path, tmp_path: Path) -> None:
    expected = run_ranks(1, small_run, tmp_path / "fp32")
    rows = run_ranks(1, small_run, tmp_path / "run", f"--precision={precision}", f"--train.compile={compiled}")
    assert largest_difference(expected, rows, "loss") < BF16
