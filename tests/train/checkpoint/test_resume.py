"""A run that is killed and started again ends where it would have ended."""

import json
import shutil
import signal
from pathlib import Path

import pytest

from tests.conftest import Ranks, read_record, read_rows, run_ranks, wait_for
from train.launch.run_state import last_row

CURVE = ("step", "tokens", "loss", "loss_mean", "grad_norm", "lr")


def curve(run_dir: Path) -> list[tuple[float, ...]]:
    return [tuple(row[key] for key in CURVE) for row in read_rows(run_dir)]


def kill_after(ranks: Ranks, run_dir: Path, step: int) -> None:
    """SIGKILL all ranks once `step` is logged."""
    wait_for(lambda: last_row(run_dir / "metrics.jsonl").get("step", 0) >= step)
    for process in ranks.processes:
        process.send_signal(signal.SIGKILL)
    ranks.finish()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world_size", "overrides"),
    [
        pytest.param(1, ["--precision=bf16"], id="bf16"),
        pytest.param(2, ["--parallel.pipeline_stages=2"], id="pp2"),
    ],
)
def test_killed_and_started_again_is_identical(
    world_size: int, overrides: list[str], small_run: Path, tmp_path: Path
) -> None:
    """Through the command line; `test_resharding.py` has every precision, stage and pipeline."""
    overrides = [*overrides, "--checkpoint.interval=10", "--train.steps=60", "--log_every=8"]
    run_ranks(world_size, small_run, tmp_path / "whole", *overrides)
    arguments = ["--config", str(small_run), "--run-dir", str(tmp_path / "killed"), *overrides]
    kill_after(Ranks(world_size, arguments), tmp_path / "killed", 24)
    assert not (tmp_path / "killed/record.json").exists()
    run_ranks(world_size, small_run, tmp_path / "killed", *overrides)
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")
    assert read_record(tmp_path / "killed")["val_loss"] == read_record(tmp_path / "whole")["val_loss"]
    at_kill = max(row["seconds"] for row in read_rows(tmp_path / "killed") if row["step"] <= 20)
    assert read_record(tmp_path / "killed")["seconds"] > at_kill  # time goes on from the checkpoint, not from zero


@pytest.fixture(scope="module")
def stopped(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A whole run, and a copy of it as it was after step 20 with checkpoints at 10 and 20."""
    folder = tmp_path_factory.mktemp("stopped")
    run_ranks(1, small_run, folder / "whole", "--checkpoint.interval=10", "--checkpoint.keep=3")
    shutil.copytree(folder / "whole", folder / "stopped")
    (folder / "stopped/record.json").unlink()
    shutil.rmtree(folder / "stopped/checkpoints/step-00000030")
    return folder / "whole", folder / "stopped"


@pytest.mark.slow
def test_damaged_checkpoint_is_named_and_passed_over(
    stopped: tuple[Path, Path], small_run: Path, tmp_path: Path
) -> None:
    whole, before = stopped
    run_dir = tmp_path / "run"
    shutil.copytree(before, run_dir)
    victim = next((run_dir / "checkpoints/step-00000020").glob("state-*.safetensors"))
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(bytes(content))
    (run_dir / "metrics.jsonl").unlink()
    status, output = Ranks(
        1, ["--config", str(small_run), "--run-dir", str(run_dir), "--checkpoint.interval=10"]
    ).finish()
    assert status == 0, output
    assert f"step-00000020: damaged ({victim.name} does not match its checksum)" in output
    assert [row["step"] for row in read_rows(run_dir)] == list(range(11, 31))
    assert curve(run_dir) == curve(whole)[10:]


@pytest.mark.slow
def test_no_intact_checkpoint_is_an_error_not_step_zero(
    stopped: tuple[Path, Path], small_run: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(stopped[1], run_dir)
    for manifest in run_dir.glob("checkpoints/*/manifest.json"):
        manifest.unlink()
    before = (run_dir / "metrics.jsonl").read_bytes()
    status, output = Ranks(
        1, ["--config", str(small_run), "--run-dir", str(run_dir), "--checkpoint.interval=10"]
    ).finish()
    assert status != 0
    assert "none of 2 checkpoint(s) is intact" in output
    assert "Traceback" not in output
    assert (run_dir / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_other_configuration_is_refused(stopped: tuple[Path, Path], small_run: Path) -> None:
    arguments = ["--config", str(small_run), "--run-dir", str(stopped[1]), "--checkpoint.interval=10"]
    status, output = Ranks(1, [*arguments, "--optimizer.lr=0.02", "--precision=bf16"]).finish()
    assert status == 2
    assert "optimizer.lr: this directory holds a run with 0.01, not 0.02" in output
    assert "precision: this directory holds a run with fp32, not bf16" in output


@pytest.mark.slow
def test_run_moves_between_topologies(stopped: tuple[Path, Path], small_run: Path, tmp_path: Path) -> None:
    """One process, two stages by two replicas, cut matrices, ZeRO-3, and one process again, five steps on each."""
    run_dir, whole = tmp_path / "run", stopped[0]
    shutil.copytree(stopped[1], run_dir)
    for done, world_size, overrides, said in [
        (10, 4, ["--parallel.pipeline_stages=2"], "4 processes, 2 pipeline stage(s), ZeRO-1"),
        (15, 2, ["--parallel.tensor_parallel=2"], "2 processes, 1 pipeline stage(s), matrices in 2 parts, ZeRO-1"),
        (20, 2, ["--parallel.zero_stage=3", "--train.micro_batch_size=4"], "2 processes, 1 pipeline stage(s), ZeRO-3"),
        (25, 1, [], "1 process, 1 pipeline stage(s), ZeRO-0"),
    ]:
        for later in (run_dir / "checkpoints").glob("step-*"):
            if int(later.name[5:]) > done:
                shutil.rmtree(later)
        (run_dir / "metrics.jsonl").unlink()
        arguments = ["--config", str(small_run), "--run-dir", str(run_dir), *overrides]
        status, output = Ranks(world_size, [*arguments, "--checkpoint.interval=5", "--checkpoint.keep=9"]).finish()
        assert status == 0, output
        assert f"step-{done:08d}: written on" in output
        assert f"continuing on {said}, fp32" in output
        for old, new in zip(curve(whole)[done:], curve(run_dir), strict=True):
            assert new == pytest.approx(old, rel=1e-5)
        record = read_record(run_dir)
        assert record["val_loss"] == pytest.approx(read_record(whole)["val_loss"], abs=1e-5)
        (run_dir / "record.json").unlink()


@pytest.mark.slow
def test_complete_run_is_left_alone(stopped: tuple[Path, Path], small_run: Path) -> None:
    whole, _ = stopped
    before = (whole / "record.json").read_bytes()
    status, output = Ranks(
        1, ["--config", str(small_run), "--run-dir", str(whole), "--checkpoint.interval=10"]
    ).finish()
    assert status == 0
    assert "complete already" in output
    assert (whole / "record.json").read_bytes() == before


@pytest.mark.slow
def test_record_equals_a_hand_count(stopped: tuple[Path, Path]) -> None:
    """2 blocks, d = 16, SwiGLU 48, V = 300, QK-norm of width 8, tied, no biases."""
    record = read_record(stopped[0])
    block = 4 * 16 * 16 + 3 * 16 * 48 + 2 * 16 + 2 * 8
    assert record["N_non_embedding"] == 2 * block + 16
    assert record["N"] == 2 * block + 16 + 300 * 16
    assert record["N_head"] == 300 * 16
    assert record["D"] == 30 * 8 * 32
    per_token = 3 * 2 * (2 * (4 * 16 * 16 + 3 * 16 * 48 + 2 * 32 * 16) + 300 * 16)
    assert record["flops"] == record["D"] * per_token
    assert record["flops_6nd"] == 6 * record["N"] * record["D"]
    assert record["complete"] is True
    assert record["validation_tokens"] == 46 * 32
    last = read_rows(stopped[0])[-1]
    assert (last["tokens"], last["flops"]) == (record["D"], record["flops"])
    assert last["val_loss"] == record["val_loss"]
    nats_per_byte = record["val_loss"] / record["validation_bytes_per_token"]
    assert record["bits_per_byte"] == pytest.approx(nats_per_byte / 0.6931471805599453)
    assert json.dumps(record, allow_nan=False)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_checkpoint_of_a_gpu_continues_identically(precision: str, small_run: Path, tmp_path: Path) -> None:
    overrides = [f"--precision={precision}", "--checkpoint.interval=10", "--checkpoint.keep=3"]
    run_ranks(1, small_run, tmp_path / "whole", *overrides)
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    for gone in ("record.json", "metrics.jsonl"):
        (tmp_path / "again" / gone).unlink()
    for later in (20, 30):
        shutil.rmtree(tmp_path / f"again/checkpoints/step-{later:08d}")
    run_ranks(1, small_run, tmp_path / "again", *overrides)
    assert curve(tmp_path / "again") == curve(tmp_path / "whole")[10:]
