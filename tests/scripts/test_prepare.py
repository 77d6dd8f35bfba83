"""scripts/prepare.py and scripts/bench/bench_data.py as a user meets them."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run_file(tmp_path, monkeypatch):
    """A run file whose text lies beside it, seen from its directory."""
    monkeypatch.chdir(tmp_path)
    rows = [{"text": f"Document {i} says that {i * i} is the square of {i}."} for i in range(100)]
    Path("text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("run.yaml").write_text(
        "seed: 0\ndata:\n  source: files\n  files: [text.jsonl]\n  vocab_size: 290\n  validation_fraction: 0.2\n"
    )
    return "run.yaml"


def test_prepares_prints_the_figures_and_finds_it_again(run_file, capsys):
    prepare = script("prepare")
    assert prepare.main([run_file]) == 0
    out = capsys.readouterr().out
    (directory,) = Path("corpora").glob("files-text-*")
    manifest = json.loads((directory / "manifest.json").read_text())
    assert f"corpus      {directory}\n" in out
    assert f"{manifest['train']['tokens']:,} tokens" in out
    assert prepare.main([run_file]) == 0
    captured = capsys.readouterr()
    assert captured.out == out
    assert captured.err == ""


def test_overrides_and_print_config(run_file, capsys):
    assert script("prepare").main([run_file, "--data.vocab_size=280", "--print-config"]) == 0
    out = capsys.readouterr().out
    assert "vocab_size: 280" in out
    assert "source: files" in out
    assert not Path("corpora").exists()


def test_a_sweep_prepares_every_corpus_of_its_runs(capsys):
    sweep = str(ROOT / "configs" / "sweeps" / "quickstart.yaml")
    assert script("prepare").main([sweep, "--axes.data.vocab_size=[512, 1024]", "--points=[]", "--print-config"]) == 0
    out = capsys.readouterr().out
    assert out.count("source: python_source") == 2
    assert "vocab_size: 512" in out
    assert "vocab_size: 1024" in out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["none.yaml"], "none.yaml: cannot be read: no such file"),
        (["empty.yaml"], "empty.yaml: data: there is no such section"),
        (["run.yaml", "--data=3"], "data: 3 is not a mapping"),
        (["run.yaml", "--data.vocab_sze=3"], "command line: vocab_sze: unknown key; did you mean 'vocab_size'?"),
        (["run.yaml", "--data.files=[txt.jsonl]"], "data.files: no file matches 'txt.jsonl'; nearest is 'text.jsonl'"),
        (["run.yaml", "--data.text_field=body"], "has no field 'body' in row 1, only 'text'"),
        (["run.yaml", "vocab"], "is not understood; overrides look like"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(run_file, capsys, monkeypatch, arguments, sentence):
    monkeypatch.setattr(sys, "argv", ["scripts/prepare.py"])
    Path("empty.yaml").write_text("seed: 0\n")
    assert script("prepare").main(arguments) == 2
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if not line.startswith("preparing ")]
    assert line.startswith("prepare.py: ")
    assert sentence in line
    assert captured.out == ""


@pytest.mark.parametrize("name", ["prepare", "bench/bench_data"])
def test_help_shows_an_example(name):
    command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert f"python scripts/{name}.py" in done.stdout
