import contextlib
import io
import json
import runpy
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers.scaling_tables import TABLES, TRUTH, simulated

ROOT = Path(__file__).parents[2]
BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "deepspeed", "transformers", "train", "model"}:
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
import runpy
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_without_torch(script, *args):
    """Run a command where torch and deepspeed cannot be imported."""
    command = [sys.executable, "-c", BLOCKED, f"scripts/{script}", *map(str, args)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@dataclass(frozen=True)
class Ended:
    """What a command left behind, under the names of subprocess.CompletedProcess."""

    returncode: int
    stdout: str
    stderr: str


MAINS = {
    name: runpy.run_path(str(ROOT / "scripts" / name), run_name="tested")["main"] for name in ("fit.py", "predict.py")
}


def run(script, *args):
    """Run a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            status = MAINS[script]([str(a) for a in args])
        except SystemExit as end:  # argparse
            status = end.code
    return Ended(status, out.getvalue(), err.getvalue())


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
    done = run_without_torch("fit.py", noisy, "--out", out, "--draws", 300)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_fit_works_without_torch_and_writes_the_stable_keys(fitted):
    out, printed = fitted
    law = json.loads((out / "law.json").read_text())
    assert law["schema"] == 2
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


def test_every_key_is_documented(fitted):
    told = (ROOT / "docs" / "law.md").read_text()
    law = json.loads((fitted[0] / "law.json").read_text())
    nested = [key for part in ("certificate", "bootstrap", "profile_E", "backtest", "forecasts") for key in law[part]]
    missing = [k for k in (*law, *nested, *law["holdout"][0]) if f"`{k}`" not in told and f".{k}`" not in told]
    assert missing == []


def test_predict_prints_a_loss_inside_its_interval(fitted):
    done = run_without_torch("predict.py", fitted[0] / "law.json", "--params", "7B", "--tokens", 140e9, "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["low"] < answer["loss"] < answer["high"]
    assert answer["level"] == 0.9
    assert answer["extrapolation_by"]["N"] == pytest.approx(7.0)
    assert answer["extrapolation"] == max(answer["extrapolation_by"].values())
    words = run("predict.py", fitted[0] / "law.json", "--params", 7e9, "--flops", 6 * 7e9 * 140e9).stdout
    assert f"loss {answer['loss']:.4f}" in words
    assert "outside the fitted range: N by 7x" in words


HEAD = "N,D,loss\n"
LOSSES = "".join(f"{n},{d},{{}}\n" for n in (1e7, 1e8, 1e9) for d in (1e9, 1e10, 1e11))


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (HEAD + "1e7,1e9,nan\n", [], "row 1, column loss"),
        (HEAD + "1e7,1e9,3.5\n1e8,1e9,3.2\n", [], "2 rows are too few"),
        (HEAD + LOSSES.replace("{}", "3"), [], "the losses do not vary"),
        (HEAD + "1e206,1e9,3\n", [], "row 1, column N: '1e206' is beyond any plausible value"),
        (HEAD + "1e7,1e9,1e300\n", [], "row 1, column loss: '1e300' is beyond any plausible value"),
        ((HEAD + "1e7,1e9,3\n").replace(",", ";"), [], "separated by ';'"),
        ("n,d,Loss\n1,2,3\n", [], "--column N=n --column D=d --column loss=Loss"),
        ("N,D,val\n1,2,3\n", [], "no column loss; the columns are N, D, val. If the name differs, say --column loss="),
        (HEAD, [], "no rows"),
        (None, [], "no such file"),
        (HEAD + "1,2,3\n", ["--pin", "E"], "write NAME=VALUE"),
        (HEAD + "1,2,3\n", ["--pin", "E=x"], "is not a number"),
        (HEAD + "1,2,3\n", ["--pin", "E=1", "--pin", "E=2"], "names E twice"),
        (HEAD + "1,2,3\n", ["--column", "size=N"], "no column 'size' to fill"),
        (HEAD + LOSSES.format(*range(2, 11)), ["--holdout", "compute:0x"], "holdout 'compute:0x'"),
        (HEAD + "1,2,3\n", ["--level", "90"], "between 0 and 1"),
        (HEAD + "1,2,3\n", ["--draws", "7"], "at least 100"),
        (HEAD + "1,2,3\n", ["--params", "7B"], "--params and --tokens go together"),
        (HEAD + "1,2,3\n", ["--params", "7B", "--tokens", "1T"], "--sensitivity"),
        (HEAD + "1,2,3\n", ["--delta", "-1"], "delta must be positive"),
        (HEAD + "1,2,3\n", ["--n-definition", "non-embedding"], "N_non_embedding"),
        (HEAD + "1,2,3\n", ["--law", "chinchila"], "; nearest is 'chinchilla'"),
    ],
)
def test_mistakes_end_in_one_sentence(tmp_path, content, options, message):
    path = tmp_path / "t.csv"
    if content is not None:
        path.write_text(content)
    done = run("fit.py", path, "--out", tmp_path / "out", *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_named_before_anything_is_computed(noisy, tmp_path, monkeypatch):
    monkeypatch.setitem(MAINS["fit.py"].__globals__, "study", lambda *_: pytest.fail("fitted first"))
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere")):
        done = run("fit.py", noisy, "--out", place)
        assert done.returncode == 2
        assert f"{place} cannot be written" in done.stderr


def test_explicit_holdout_that_leaves_too_little_is_an_error(noisy, tmp_path):
    done = run("fit.py", noisy, "--out", tmp_path / "out", "--holdout", "N>=1e8")
    assert done.returncode == 2
    assert "too few" in done.stderr or "different values" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--params", "7e9"], "needs --tokens"),
        ([], "needs --params and --tokens"),
        (["--params", "7B", "--tokens", "140B", "--flops", "1e21"], "give two of --params, --tokens and --flops"),
        (["--params", "7B", "--tokens", "140B", "--loss", "3"], "reads N and D: leave out --loss"),
        (["--params", "7B", "--tokens", "1T", "--steps", "9", "--unique-tokens", "1B"], "--unique-tokens"),
        (["--params", "-7e9", "--tokens", "1"], "--params: '-7e9' is not a positive finite number"),
        (["--params", "7e9x", "--tokens", "1"], "--params: '7e9x' is not a number such as"),
        (["--params", "1e206", "--tokens", "1e206"], "beyond any plausible value"),
        (["--parms", "1"], "--parms: is not understood; did you mean '--params'?"),
    ],
)
def test_predict_says_what_is_missing_or_has_no_say(fitted, options, message):
    done = run("predict.py", fitted[0] / "law.json", *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_files_that_are_no_laws_are_named(tmp_path):
    (tmp_path / "law.json").write_text("{}")
    for name, message in (("law.json", "missing"), ("no.json", "no such")):
        done = run("predict.py", tmp_path / name, "--params", 1, "--tokens", 1)
        assert done.returncode == 2
        assert message in done.stderr.lower()


def test_published_table_from_the_command_line(tmp_path):
    done = run(
        "fit.py", TABLES / "kyo_takano.csv", "--out", tmp_path, "--draws", 200, "--no-average", "--holdout", "none"
    )
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


def test_a_path_that_is_not_there_is_told_before_an_option_that_a_table_needs(tmp_path: Path, capsys) -> None:
    main = runpy.run_path(str(ROOT / "scripts" / "fit.py"), run_name="tested")["main"]
    assert main([str(tmp_path / "runs")]) == 2
    assert "there is no such file or directory" in capsys.readouterr().err
