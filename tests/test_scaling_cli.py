import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scaling_tables import TABLES, TRUTH, simulated

ROOT = Path(__file__).parent.parent
BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "deepspeed", "transformers", "train", "model", "data"}:
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
import runpy
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(script, *args):
    """Run a command where torch and deepspeed cannot be imported."""
    command = [sys.executable, "-c", BLOCKED, f"scripts/{script}", *map(str, args)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """A table of 20 runs as CSV."""
    path = tmp_path_factory.mktemp("tables") / "noisy.csv"
    columns = simulated(noise=0.003).columns
    rows = zip(columns["N"], columns["D"], columns["loss"], strict=True)
    path.write_text("N,D,loss\n" + "".join(f"{n},{d},{l}\n" for n, d, l in rows))
    return path


@pytest.fixture(scope="module")
def fitted(noisy):
    """The directory of a finished fit."""
    out = noisy.parent / "out"
    done = run("fit.py", noisy, "--out", out, "--draws", 300)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_fit_works_without_torch_and_writes_the_stable_keys(fitted):
    out, printed = fitted
    law = json.loads((out / "law.json").read_text())
    assert law["schema"] == 1
    assert law["law"] == "chinchilla"
    assert law["params"].keys() == law["intervals"].keys() == TRUTH.keys()
    assert all(law["intervals"][k][0] < v < law["intervals"][k][1] for k, v in law["params"].items())
    assert law["level"] == 0.9
    assert {"N", "D", "loss", "predicted", "low", "high"} <= law["holdout"][0].keys()
    assert {row["N"] for row in law["holdout"]} == {1e9}
    assert {"objective", "gradient_norm", "starts", "starts_agreeing"} <= law["certificate"].keys()
    assert law["excluded"] == []
    assert len(law["table_sha256"]) == 64
    assert law["fits"]["kaplan_c"]["params"]["alpha"] > 0
    assert "held out" in printed
    assert "law.json" in printed


def test_predict_prints_a_loss_inside_its_interval(fitted):
    done = run("predict.py", fitted[0] / "law.json", "--params", 7e9, "--tokens", 140e9, "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["low"] < answer["loss"] < answer["high"]
    assert answer["level"] == 0.9
    assert answer["extrapolation_by"]["N"] == pytest.approx(7.0)
    assert answer["extrapolation"] == max(answer["extrapolation_by"].values())
    words = run("predict.py", fitted[0] / "law.json", "--params", 7e9, "--flops", 6 * 7e9 * 140e9).stdout
    assert f"loss {answer['loss']:.4f}" in words
    assert "outside the fitted range: N by 7x" in words


BAD = "N,D,loss\n"


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (BAD + "1e7,1e9,nan\n", [], "row 1, column loss"),
        (BAD + "1e7,1e9,3.5\n1e8,1e9,3.2\n", [], "2 rows are too few"),
        (BAD, [], "no rows"),
        (None, [], "no such file"),
        (BAD + "1,2,3\n", ["--pin", "E"], "write NAME=VALUE"),
        (BAD + "1,2,3\n", ["--pin", "E=x"], "is not a number"),
        (BAD + "1,2,3\n", ["--level", "90"], "between 0 and 1"),
        (BAD + "1,2,3\n", ["--delta", "-1"], "delta must be positive"),
        (BAD + "1,2,3\n", ["--n-definition", "non-embedding"], "N_non_embedding"),
    ],
)
def test_mistakes_end_in_one_sentence(tmp_path, content, options, message):
    path = tmp_path / "t.csv"
    if content is not None:
        path.write_text(content)
    done = run("fit.py", path, "--out", tmp_path / "out", *options)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_explicit_holdout_that_leaves_too_little_is_an_error(noisy, tmp_path):
    done = run("fit.py", noisy, "--out", tmp_path / "out", "--holdout", "N>=1e8")
    assert done.returncode == 1
    assert "too few" in done.stderr or "different values" in done.stderr


def test_predict_says_what_is_missing(fitted, tmp_path):
    assert "needs --tokens" in run("predict.py", fitted[0] / "law.json", "--params", 7e9).stderr
    (tmp_path / "law.json").write_text("{}")
    assert "missing" in run("predict.py", tmp_path / "law.json", "--params", 1, "--tokens", 1).stderr
    assert "no such" in run("predict.py", tmp_path / "no.json", "--params", 1, "--tokens", 1).stderr.lower()


@pytest.mark.parametrize("script", ["fit.py", "predict.py"])
def test_help_shows_units_and_an_example(script):
    text = run(script, "--help").stdout
    assert "nats per token" in text
    assert f"python scripts/{script}" in text


def test_published_table_from_the_command_line(tmp_path):
    done = run("fit.py", TABLES / "kyo_takano.csv", "--out", tmp_path, "--draws", 200)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "law.json").read_text())["certificate"]["objective"] <= 0.00084009313


def write_run(directory: Path, name: str, N: float, D: float, loss: float, **more: object) -> None:
    """The record of a finished run, as the trainer leaves it."""
    record = {"N": N, "N_non_embedding": 0.8 * N, "N_head": 0.1 * N, "D": D, "flops": 6.4 * N * D, "val_loss": loss}
    record |= {"steps": 100, "seed": 0, "complete": True, "tainted": False} | more
    (directory / name).mkdir(parents=True)
    (directory / name / "record.json").write_text(json.dumps(record))


def test_runs_directory_from_fit_to_scored_forecast(tmp_path):
    columns = simulated(noise=0.003).columns
    for i, (N, D, loss) in enumerate(zip(columns["N"], columns["D"], columns["loss"], strict=True)):
        write_run(tmp_path, f"run{i}", N, D, loss)
    write_run(tmp_path, "midway", 1e9, 1e9, 4.0, complete=False)
    done = run("fit.py", tmp_path, "--draws", 200)
    assert done.returncode == 0, done.stderr
    assert "excluded midway" in done.stdout
    law = json.loads((tmp_path / "law.json").read_text())
    assert [e["row"] for e in law["excluded"]] == ["midway"]
    assert law["c_definition"] == "exact"

    point = ["--params", 4e9, "--tokens", 8e10]
    done = run("predict.py", tmp_path / "law.json", *point, "--register", "--average", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["low"] < answer["loss"] < answer["high"]
    assert Path(answer["registered"]).exists()

    write_run(tmp_path, "large", 4e9, 8e10, answer["loss"] * 1.001)
    done = run("fit.py", tmp_path, "--draws", 200, "--no-average", "--n-definition", "non-embedding")
    assert done.returncode == 0, done.stderr
    assert "forecasts: 1 scored, 1 inside their interval, 0 pending" in done.stdout
    law = json.loads((tmp_path / "law.json").read_text())
    assert law["n_definition"] == "non-embedding"
    assert law["forecasts"]["scored"][0]["runs"] == ["large"]
    assert {row["run"] for row in law["holdout"]} == {"large"}
