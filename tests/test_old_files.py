"""What version 0.1 wrote is still read: laws, records, curves, checkpoints, sweeps, YAML files and command lines.

`tests/old_files/README.md` says how the files were made, at commit bbae9b4.
"""

import contextlib
import functools
import io
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from configs import metrics_rows
from configs.reader import ConfigError
from model.counts import count_parameters
from scaling.forecast.law_file import read_law
from scaling.tables.curves import read_curves
from scaling.tables.read import read_table
from tests.conftest import ROOT, read_record, read_rows
from train.config import load_run
from train.stability.band_monitor import Monitor
from train.sweep.expand import load_sweep

OLD = ROOT / "tests/old_files"
LADDER, MIXTURE, SWEEP = OLD / "runs/ladder", OLD / "runs/mixture", OLD / "ladder.yaml"
STOPPED, BRANCH, EXPORTED = "L1-d16-h2-30.72ktok", "L1-d16-h2-19.2ktok", "L1-d8-h2-30.72ktok"
EXPECTED: dict[str, Any] = json.loads((OLD / "expected.json").read_text())

# ------------------------------------------------------------- what has another name since: old -> new

MOVED = {
    "scripts/band.py": "scripts/study.py curve_bands",
    "scripts/curves.py": "scripts/study.py multi_power",
    "scripts/designs.py": "scripts/study.py designs",
    "scripts/known_entropy.py": "scripts/study.py known_entropy",
    "scripts/lr_transfer.py": "scripts/study.py lr_transfer",
    "scripts/mix.py": "scripts/study.py data_mixing",
    "scripts/ngram.py": "scripts/study.py ngram",
    **{f"scripts/bench_{name}.py": f"scripts/bench/bench_{name}.py" for name in ("coverage", "data", "fit", "monitor")},
    **{f"scripts/bench_{name}.py": f"scripts/bench/bench_{name}.py" for name in ("spikes", "sweep", "train")},
    "scripts/soak.py": "scripts/bench/soak.py",
    **{f"scripts/{name}.sbatch": f"scripts/slurm/{name}.sbatch" for name in ("slurm", "slurm_sweep")},
    **{
        f"configs/sweeps/{name}.yaml": f"configs/sweeps/studies/{name}.yaml"
        for name in ("known_entropy", "lr_transfer", "mixture", "repeat", "soak")
    },
    **{
        f"configs/sweeps/designs/{name}.yaml": f"configs/sweeps/studies/designs/{name}.yaml"
        for name in ("fixed-ratio", "isoflop", "single-variable")
    },
}
"""Files of the repository; one that is still where it was needs no entry."""

KEYS = {
    "watch.step_seconds": "watchdog.step_timeout",
    "watch.slow_seconds": "watchdog.startup_timeout",
    "evaluate.every": "eval.interval",
    "evaluate.tokens": "eval.tokens",
    "checkpoint.every": "checkpoint.interval",
    "schedule.warmup": "schedule.warmup_fraction",
    "schedule.cooldown": "schedule.cooldown_fraction",
    "schedule.final": "schedule.min_lr_ratio",
    "train.global_batch": "train.global_batch_size",
    "train.micro_batch": "train.micro_batch_size",
    "model.tied": "model.tie_embeddings",
    "data.fraction": "data.subsample",
    "spikes.grace": "spikes.patience",
    "spikes.margin": "spikes.rollback_margin",
    "spikes.calm_z": "spikes.recovery_z",
}
VALUES = {"pysource": "python_source"}
CONSTANT = {
    *(f"spikes.{key}" for key in ("window", "history", "span", "loss_rise", "loss_count", "norm_count", "drift_span")),
    *(f"spikes.{key}" for key in ("drift_z", "calm_z", "severe_rise", "non_finite", "rollback_window")),
    *("data.part", "data.streaming", "data.duplicate_threshold"),
}
"""Keys that a file may still give and that no longer change anything."""


def now(word: str) -> str:
    """Where a file of version 0.1 is today; any other word as it is."""
    return word if (ROOT / word).exists() else MOVED.get(word, word)


def setting(config: Any, key: str) -> Any:
    """The value of a dotted key of version 0.1; None for one that has become a constant."""
    for name in (key, KEYS.get(key, key)):
        with contextlib.suppress(AttributeError):
            return functools.reduce(getattr, name.split("."), config)
    assert key in CONSTANT, f"{key} is no key any more, and this test knows no other name of it"
    return None


def require(config: Any, values: Mapping[str, Any]) -> None:
    """Check the values of dotted keys of version 0.1."""
    for key, value in values.items():
        found = setting(config, key)
        assert found in (value, VALUES.get(value, value) if isinstance(value, str) else value) or (
            found is None and key in CONSTANT
        ), f"{key} is {found!r}"


def leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def command(script: str, *words: object) -> tuple[int, str, str]:
    """Run a command of version 0.1 in this process; return its exit status, stdout and stderr."""
    file, *before = now(script).split()
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", [str(ROOT / file), *before, *map(str, words)])
        try:
            runpy.run_path(str(ROOT / file), run_name="__main__")
            status: Any = 0
        except SystemExit as error:
            status = error.code
    return int(status or 0), out.getvalue(), err.getvalue()


# ---------------------------------------------------------------------------------------------- laws


@pytest.mark.parametrize(
    ("folder", "law", "definition", "held_out"),
    [
        ("runs/ladder", "chinchilla", "exact", 3),
        ("laws/by_compute", "kaplan_c", "exact", 2),
        ("laws/by_size", "chinchilla", "6nd", 2),
    ],
)
def test_law_files_keep_what_the_readme_documents(folder: str, law: str, definition: str, held_out: int) -> None:
    """The documented keys stay at the top level of the file; the reader takes it whole."""
    content = json.loads((OLD / folder / "law.json").read_text())
    assert (content["law"], content["c_definition"], len(content["holdout"])) == (law, definition, held_out)
    read_law(OLD / folder / "law.json")
    read_law(OLD / folder)


@pytest.mark.parametrize(
    "case", EXPECTED["answers"], ids=lambda case: f"{case['script']} {Path(case['law']).name} {case['options']}"
)
def test_old_laws_give_the_answers_that_they_gave(case: dict[str, Any]) -> None:
    """`same` names the parts of the answer that may not change.

    Where C is exact, what plan.py and the extrapolation in C say now follows another rule, that C is what was fitted;
    there and for kaplan_c by --params and --tokens a command only has to answer.
    """
    law = OLD / case["law"] / "law.json"
    status, out, err = command(f"scripts/{case['script']}.py", law, *case["options"].split(), "--json")
    assert status == 0, err
    answer = json.loads(out.splitlines()[-1])
    assert case["answer"].keys() <= answer.keys()
    for key in case["same"]:
        same(answer[key], case["answer"][key])


def same(found: Any, wanted: Any) -> None:
    """Check that all that an answer held is in it, numbers to 1e-9."""
    if isinstance(wanted, dict):
        for key, value in wanted.items():
            same(found[key], value)
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for pair in zip(found, wanted, strict=True):
            same(*pair)
    else:
        assert found == (pytest.approx(wanted, rel=1e-9) if isinstance(wanted, float) else wanted)


def test_a_law_of_compute_takes_a_size_and_has_no_best_one() -> None:
    law = OLD / "laws/by_compute"
    status, out, err = command("scripts/predict.py", law, "--params", "200k", "--tokens", "10M", "--json")
    assert status == 0, err
    assert 2 < json.loads(out.splitlines()[-1])["loss"] < 2.3
    status, _, err = command("scripts/plan.py", law, "--flops", "1e14")
    assert status == 2
    assert "no best N and D" in err


def test_next_runs_are_planned_in_the_style_of_an_old_sweep(tmp_path: Path) -> None:
    words = ["--target-params", "1e4", "--target-tokens", "1e5", "--runs", "2", "--like", SWEEP]
    status, _, err = command("scripts/plan.py", LADDER / "law.json", *words, "--write", tmp_path / "next.yaml")
    assert status == 0, err
    proposed = load_sweep(tmp_path / "next.yaml").runs
    assert 1 <= len(proposed) <= 2
    assert {run.config.schedule.kind for run in proposed} == {"wsd"}


# ----------------------------------------------------------------------------------- records and curves


def test_records_become_a_table() -> None:
    """Every number of it is the record's; what is unfinished or altered is named."""
    table = read_table(LADDER)
    assert len(table) == 12
    assert {e.row for e in table.excluded} == {STOPPED, "rolled-back"}
    fields = {"N": "N", "D": "D", "loss": "val_loss", "C": "flops", "S": "steps", "U": "unique_tokens"}
    fields |= {key: key for key in ("N_non_embedding", "N_head", "seed", "lr", "entropy_rate")}
    for i, run in enumerate(table.run):
        record = read_record(LADDER / run)
        assert {k: table.columns[k][i] for k in fields} == {k: record[name] for k, name in fields.items()}
        assert table.cluster[i] == (record["branch_of"] or run)


def test_a_record_of_a_mixture_gives_the_loss_on_each_text() -> None:
    record = read_record(MIXTURE)
    for name, loss in record["val_loss_by_component"].items():
        table = read_table(MIXTURE / "record.json", {"loss": f"val_loss_by_component.{name}"})
        assert table.columns["loss"].tolist() == [loss]


def test_old_records_are_fitted(tmp_path: Path) -> None:
    """With the same result: the table, what is left out, the optimum and the rows held out."""
    status, out, err = command("scripts/fit.py", LADDER, "--draws", "100", "--no-average", "--out", tmp_path)
    assert status == 0, out + err
    law, old = (json.loads((folder / "law.json").read_text()) for folder in (tmp_path, LADDER))
    assert law["points"]["N"] == old["points"]["N"]
    assert law["table_sha256"] == old["table_sha256"]
    assert law["baselines"] == old["baselines"]
    assert law["excluded"] == old["excluded"]
    assert law["certificate"]["objective"] == pytest.approx(old["certificate"]["objective"], rel=1e-6)
    assert law["params"] == pytest.approx(old["params"], rel=1e-2)  # a flat optimum
    for key, tolerance in (("N", 0), ("D", 0), ("loss", 0), ("predicted", 1e-3)):
        assert [row[key] for row in law["holdout"]] == pytest.approx([r[key] for r in old["holdout"]], rel=tolerance)


def test_rows_that_a_rollback_undid_are_left_out() -> None:
    rows = metrics_rows.read_rows(LADDER / "rolled-back/metrics.jsonl")
    assert len(read_rows(LADDER / "rolled-back")) > len(rows)
    steps = [row["step"] for row in rows]
    assert steps == sorted(set(steps))
    assert steps[-1] == 120
    assert max(row["loss"] for row in rows) < 5  # the weights were ten times as large in between
    [curve] = [curve for curve in read_curves(LADDER) if curve.name == "rolled-back"]
    assert curve.step.tolist() == steps
    assert curve.loss.tolist() == [row["loss"] for row in rows]
    assert curve.val_loss[-1] == read_record(LADDER / "rolled-back")["val_loss"]


def test_a_band_is_followed() -> None:
    watched = Monitor(LADDER / STOPPED / "band.json", steps=160)
    for row in metrics_rows.read_rows(LADDER / STOPPED / "metrics.jsonl"):
        shown, alert = watched.follow(row["step"], row.get("loss_mean", row["loss"]))
        assert alert is None
    assert shown["band_low"] < shown["loss_smooth"] < shown["band_high"]


# ---------------------------------------------------------------------------------- YAML files and sweeps


def test_stored_configurations_are_the_runs_of_their_records() -> None:
    records = sorted((OLD / "runs").glob("**/record.json"))
    assert len(records) == 14
    for path in records:
        run, record = load_run(path.parent / "config.yaml"), read_record(path.parent)
        found = (count_parameters(run.model).total, run.tokens, run.flops, run.flops_spent, run.steps)
        assert found == tuple(record[key] for key in ("N", "D", "flops", "flops_spent", "steps"))
        warmup = run.schedule.warmup_length(run.steps)
        assert (warmup, run.optimizer.lr) == (record["warmup_steps"], record["lr"])


def test_old_keys_of_a_run_are_read() -> None:
    path = OLD / "all_keys_run.yaml"
    keys = leaves(yaml.safe_load(path.read_text()))
    assert KEYS.keys() <= keys.keys()
    run = load_run(path)
    require(run, keys)
    mixture = leaves(yaml.safe_load((OLD / "mixture.yaml").read_text()))
    components = load_run(OLD / "mixture.yaml").data.mixture
    for key, value in mixture.items():
        if key.startswith("data.mixture."):
            name, rest = key.removeprefix("data.mixture.").split(".")
            source = type("Run", (), {"data": components[name]})
            require(source, {f"data.{rest}": value})


def test_old_keys_win_on_the_command_line() -> None:
    """An override in the old name displaces what a file says in the old name."""
    words = ["--watch.step_seconds=77.0", "--evaluate.every=11", "--schedule.final=0.3", "--train.micro_batch=4"]
    run = load_run(OLD / "all_keys_run.yaml", [*words, "--model.tied=true", "--data.fraction=0.125"])
    require(run, {"watch.step_seconds": 77.0, "evaluate.every": 11, "schedule.final": 0.3, "train.micro_batch": 4})
    require(run, {"model.tied": True, "data.fraction": 0.125})


def test_old_keys_of_a_sweep_are_read_and_its_runs_keep_their_names() -> None:
    """A run of another name would be trained again: directories are found by it."""
    base = leaves(yaml.safe_load((OLD / "all_keys_run.yaml").read_text()))
    base.pop("name")
    sweep = load_sweep(OLD / "all_keys_sweep.yaml")
    assert [run.name for run in sweep.runs] == [run["name"] for run in EXPECTED["all_keys_sweep"]]
    for run, expected in zip(sweep.runs, EXPECTED["all_keys_sweep"], strict=True):
        require(run.config, base | expected["changed"])


def overrides(folder: Path) -> list[str]:
    """Where a copy of the ladder and its corpus lie; both may change between a run and its continuation."""
    return [f"--runs_dir={folder / 'ladder'}", f"--data.directory={folder / 'corpora'}"]


def test_old_sweep_shows_how_far_it_is_and_plans_the_rest(tmp_path: Path) -> None:
    shutil.copytree(LADDER, tmp_path / "ladder")
    status, out, err = command("scripts/sweep.py", SWEEP, *overrides(tmp_path), "--status")
    assert status == 0, err
    lines = {line.split()[0]: line for line in out.splitlines() if " L1-" in f" {line}"}
    assert len(lines) == 14
    assert sum(" complete " in line for line in lines.values()) == 12
    assert "resumable" in lines[STOPPED]
    assert "continues from step 81" in lines[STOPPED]
    assert "pending" in lines[BRANCH]
    status, out, err = command("scripts/sweep.py", SWEEP, *overrides(tmp_path), "--dry-run")
    assert status == 0, err
    assert "12 of 14 complete" in out


def test_a_changed_key_of_an_old_run_is_still_refused(tmp_path: Path) -> None:
    shutil.copytree(LADDER, tmp_path / "ladder")
    status, _, err = command("scripts/sweep.py", SWEEP, *overrides(tmp_path), "--dry-run", "--optimizer.lr=0.03")
    assert status == 2
    assert "optimizer.lr" in err


@pytest.mark.slow
def test_old_sweep_is_continued_to_the_end_of_an_undisturbed_one(tmp_path: Path) -> None:
    """From the old checkpoints: the stopped trunk, and the branch that begins at one of them."""
    shutil.copytree(LADDER, ladder := tmp_path / "ladder")
    checkpoints = ladder / STOPPED / "checkpoints"
    shutil.copytree(checkpoints / "step-00000081", checkpoints / "tombstone-00000120")  # as a rollback left it
    words = [sys.executable, "scripts/sweep.py", str(SWEEP), *overrides(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    for name, loss in EXPECTED["undisturbed_val_loss"].items():
        assert read_record(ladder / name)["val_loss"] == pytest.approx(loss, rel=1e-5)
    rows = read_rows(ladder / STOPPED)
    assert [row["step"] for row in rows] == [1, *range(10, 161, 10)]
    assert rows[: len(old := read_rows(LADDER / STOPPED))] == old
    assert all("band_low" in row for row in rows[len(old) :])
    assert not (checkpoints / "tombstone-00000120").exists()
    branch = read_rows(ladder / BRANCH)
    assert [row["step"] for row in branch] == [1, *range(10, 101, 10)]
    assert [row["loss"] for row in branch[:9]] == [row["loss"] for row in rows[:9]]  # until step 80, those of its trunk
    assert read_record(ladder / BRANCH)["branch_step"] == 80
    for path in LADDER.glob("L1-*/record.json"):
        assert (ladder / path.relative_to(LADDER)).read_bytes() == path.read_bytes()
    status, out, err = command("scripts/fit.py", ladder, "--draws", "100", "--no-average", "--out", tmp_path / "fit")
    assert status == 0, out + err
    [scored] = json.loads((tmp_path / "fit/law.json").read_text())["forecasts"]["scored"]
    assert scored["runs"] == [STOPPED]
    assert scored["covered"]


# -------------------------------------------------------------------------------------------- checkpoints


def test_old_checkpoint_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.numpy import load_file

    monkeypatch.chdir(tmp_path)  # where there is no corpus, so that the tokenizer is left out and said to be
    status, out, err = command("scripts/export.py", LADDER / EXPORTED, "--out", tmp_path / "model")
    assert status == 1, out + err
    assert "no tokenizer" in err
    assert "step 160, 1,592 parameters" in out
    weights = load_file(tmp_path / "model/plain/model.safetensors")
    assert {k: list(v.shape) for k, v in weights.items()} == {k: v["shape"] for k, v in EXPECTED["exported"].items()}
    sums = {name: float(np.abs(weight.astype(np.float64)).sum()) for name, weight in weights.items()}
    assert sums == pytest.approx({k: v["abs_sum"] for k, v in EXPECTED["exported"].items()}, rel=1e-12)
    assert (tmp_path / "model/model.safetensors").exists()
    load_run(tmp_path / "model/plain/config.yaml")


# ------------------------------------------------------------------------------------------ command lines

COMMANDS = [line for line in (OLD / "commands.txt").read_text().splitlines() if line and not line.startswith("#")]
RUN, SWEEP_OR_RUN = (load_run,), (load_sweep, load_run)
READERS: dict[str, tuple[Callable[..., Any], ...]] = {
    "scripts/pretrain.py": RUN,
    "scripts/slurm.sbatch": RUN,
    "scripts/plan_cluster.py": RUN,
    "scripts/prepare.py": SWEEP_OR_RUN,
    "scripts/sweep.py": (load_sweep,),
    "scripts/slurm_sweep.sbatch": (load_sweep,),
    "scripts/bench_sweep.py": (load_sweep,),
    "scripts/soak.py": (load_sweep,),
}
"""The commands whose other options are keys of a configuration, and what reads it."""
BEHIND = {"scripts/slurm.sbatch": "scripts/pretrain.py", "scripts/slurm_sweep.sbatch": "scripts/sweep.py"}


@functools.cache
def options_of(script: str) -> set[str]:
    """The options that --help lists, aliases among them; what stands in its examples does not count."""
    status, out, err = command(script, "--help")
    assert status == 0, err
    usage, _, rest = out.partition("\n\n")
    listed = re.findall(r"^  -.*", rest, re.MULTILINE)
    return set(re.findall(r"(?<!\S)[\[(]?(--[\w-]+)", "\n".join([usage, *listed])))


@pytest.mark.parametrize("line", COMMANDS)
def test_documented_command_lines_are_still_understood(line: str) -> None:
    """Its files are there; each option is one that --help names, or a key and a value that the configuration takes."""
    words = shlex.split(line)
    while "=" in words[0]:  # variables of the environment
        del words[0]
    if words[:3] == ["deepspeed", "--module", "train"]:
        words[1:3] = ["scripts/pretrain.py"]
    place = next(i for i, word in enumerate(words) if word.startswith("scripts/"))
    script, words = words[place], [now(word) for word in words[place + 1 :]]
    assert (ROOT / now(script).split()[0]).exists(), f"{script} is not there"
    missing = [w for w in words if w.startswith(("configs/", "tests/", "scripts/")) and not (ROOT / w).exists()]
    assert not missing
    if script.endswith(".sh"):
        return
    listed = options_of(BEHIND.get(script, script))
    keys = [word for word in words if word.startswith("--") and word.partition("=")[0] not in listed]
    if not keys:
        return
    assert script in READERS, f"{' '.join(keys)}: {script} --help knows nothing of it"
    file = next(word for word in words if word.endswith(".yaml"))
    if (ROOT / file).exists():
        read_by_any(READERS[script], ROOT / file, keys)


def read_by_any(readers: tuple[Callable[..., Any], ...], file: Path, keys: list[str]) -> None:
    """Read a configuration with overrides by the first reader that takes it."""
    for i, reader in enumerate(readers):
        try:
            reader(file, keys)
            return
        except ConfigError:
            if i == len(readers) - 1:
                raise
