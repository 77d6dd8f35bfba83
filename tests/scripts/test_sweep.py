"""scripts/sweep.py as it is typed; what starts nothing, in this process."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from model.counts import count_parameters
from scripts.sweep import main
from train.sweep.expand import load_sweep

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "configs" / "sweeps").glob("**/*.yaml"))


def sweep(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "sweep.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


@pytest.fixture
def plan(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The same in this process, which has imported what it needs."""
    monkeypatch.chdir(ROOT)

    def result(*arguments: str) -> subprocess.CompletedProcess[str]:
        try:
            status: int | str | None = main(list(arguments))
        except SystemExit as end:
            status = end.code
        return subprocess.CompletedProcess(arguments, status, *capsys.readouterr())

    return result


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_sweeps_plan(path, tmp_path, plan):
    result = plan(str(path), "--dry-run", f"--runs_dir={tmp_path / 'runs'}", "--price_per_device_hour=2")
    assert result.returncode == 0, result.stderr
    runs = load_sweep(path).runs
    rows = {words[0]: words for words in map(str.split, result.stdout.splitlines()) if words}
    for run in runs:
        cells = rows[run.name]
        tokens = run.config.tokens
        accumulated = run.config.train.micro_batches(run.data_parallel)
        assert cells[6] == f"{run.config.train.micro_batch_size}×{accumulated}×{run.data_parallel}"
        assert cells[8] == f"{run.config.steps:,}"
        assert float(cells[9]) == pytest.approx(tokens * run.config.flops_per_token, rel=0.01)
        assert float(cells[10]) == pytest.approx(6 * count_parameters(run.config.model).total * tokens, rel=0.01)
    assert re.search(r"^time +about .* from .*FLOP/s", result.stdout, re.MULTILINE)
    assert re.search(r"^cost ", result.stdout, re.MULTILINE)
    assert not (tmp_path / "runs").exists()


def test_quickstart_spans_what_a_law_needs():
    runs = load_sweep(ROOT / "configs" / "sweeps" / "quickstart.yaml").runs
    sizes = {count_parameters(run.config.model).non_embedding for run in runs}
    assert len(sizes) >= 6
    assert max(sizes) >= 100 * min(sizes)
    assert len({run.config.tokens for run in runs}) >= 3


def test_planning_imports_neither_torch_nor_deepspeed():
    code = (
        "import sys; sys.path.insert(0, 'scripts'); import sweep;"
        "code = sweep.main(['configs/sweeps/gpt2.yaml', '--dry-run']);"
        "sys.exit(code or bool({'torch', 'deepspeed', 'wandb', 'datasets'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0


def test_status_of_nothing(tmp_path, plan):
    result = plan(str(SHIPPED[-1]), "--status", f"--runs_dir={tmp_path / 'runs'}")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("pending") == len(load_sweep(SHIPPED[-1]).runs)
    assert not (tmp_path / "runs").exists()


def test_print_config_shows_every_key(plan):
    result = plan(str(SHIPPED[-1]), "--print-config", "--retries=4")
    assert "retries: 4" in result.stdout
    assert "threads_per_run:" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["absent.yaml"], "absent.yaml: cannot be read: no such file"),
        (["configs/sweeps/quickstart.yaml", "--dryrun"], "--dryrun: is not understood; did you mean '--dry-run'?"),
        (["configs/sweeps/quickstart.yaml", "--train.tockens=5"], "command line: train.tockens: unknown key"),
        (["configs/sweeps/quickstart.yaml", "--device=gpu"], "GPUs are needed, and there are none on this machine"),
        (["configs/sweeps/quickstart.yaml", "extra"], "command line: extra: is not understood"),
    ],
)
def test_mistakes_end_in_a_sentence(tmp_path, plan, arguments, words, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    result = plan(*arguments, f"--runs_dir={tmp_path / 'runs'}")
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "runs").exists()


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    result = sweep("configs/sweeps/quickstart.yaml", f"--runs_dir={tmp_path / 'file'}")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert str(tmp_path / "file") in result.stderr


@pytest.mark.slow
def test_a_real_ladder_of_two(tmp_path):
    """Two runs through the deepspeed launcher, then again: complete, and nothing is launched."""
    arguments = [
        "configs/sweeps/quickstart.yaml",
        "--device=cpu",
        "--parallel_runs=1",
        "--axes.model.size=[tiny-1k,tiny-3k]",
        "--train.tokens=8192",
        "--eval.tokens=2048",
        "--points=[]",
        "--data.max_bytes=2_000_000",
        f"--data.directory={tmp_path / 'corpora'}",
        "--wandb.mode=disabled",
        f"--runs_dir={tmp_path / 'runs'}",
    ]
    first = sweep(*arguments)
    assert first.returncode == 0, first.stdout + first.stderr
    table = first.stdout[first.stdout.rindex("bits/byte") :]
    assert len(re.findall(r"tiny-\dk-8.192ktok +\S+ +\S+ +\d\.\d{4} +\d\.\d{4}", table)) == 2
    assert first.stdout.count("started") == 2
    again = sweep(*arguments)
    assert again.returncode == 0
    assert "started" not in again.stdout
    assert table.split("\n", 1)[1] in again.stdout


def test_corpus_that_runs_cannot_train_on_is_told_before_they_start(tmp_path):
    (tmp_path / "text").mkdir()
    for i in range(40):
        (tmp_path / "text" / f"{i}.txt").write_text(f"document {i} " * 40)
    arguments = [
        "configs/sweeps/quickstart.yaml",
        "--device=cpu",
        "--data.source=files",
        f"--data.files=[{tmp_path / 'text' / '*.txt'}]",
        "--data.validation_fraction=0.2",
        f"--data.directory={tmp_path / 'corpora'}",
        f"--runs_dir={tmp_path / 'runs'}",
    ]
    short = sweep(*arguments, "--data.vocab_size=257", "--train.sequence_length=100_000")
    assert short.returncode == 2
    assert "too few for one window of 100,000" in short.stderr
    missing = sweep(*arguments, f"--data.files=[{tmp_path / 'nowhere'}]")
    assert missing.returncode == 2
    assert "nowhere" in missing.stderr
    assert not list((tmp_path / "runs").glob("tiny-*"))
    assert "Traceback" not in short.stderr + missing.stderr
