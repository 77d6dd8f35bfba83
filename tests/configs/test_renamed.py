"""Names that keys had before version 0.2 are read wherever keys are written, and what is named after keys stays."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs import renamed
from configs.keys import flatten, nest
from configs.reader import ConfigError, as_tree, dump_yaml, parse_yaml
from data.config import DataConfig
from data.corpus.prepare import name_hash
from data.corpus.source import Source, Texts
from scaling.design import stopping
from tests.conftest import ROOT
from train.checkpoint.stored_config import changed_keys
from train.config import RunConfig, load_run, load_stored
from train.stability import spike_detector
from train.sweep.config import SweepConfig
from train.sweep.expand import load_sweep
from train.sweep.run import Sweep

BASE = {
    "name": "base",
    "model": {"size": "tiny-6k", "style": "modern"},
    "data": {"vocab_size": 320},
    "train": {"sequence_length": 32, "steps": 700, "global_batch_size": 16, "micro_batch_size": 8},
    "optimizer": {"lr": 0.01},
    "schedule": {"kind": "wsd"},
}
OTHER: dict[str, Any] = {
    "model.tied": False,
    "data.fraction": 0.25,
    "train.global_batch": 32,
    "train.micro_batch": 4,
    "schedule.warmup": 0.07,
    "schedule.cooldown": 0.3,
    "schedule.final": 0.05,
    "evaluate.every": 35,
    "evaluate.tokens": 6400,
    "checkpoint.every": 70,
    "spikes.grace": 32,
    "spikes.margin": 50,
    "watch.step_seconds": 30.0,
    "watch.slow_seconds": 600.0,
}
"""Old key -> a value that neither BASE nor a default gives."""


@pytest.fixture(autouse=True)
def _nothing_was_said() -> None:
    renamed._print_once.cache_clear()


def write(path: Path, tree: Any) -> Path:
    path.write_text(dump_yaml(tree))
    return path


def value_of(run: RunConfig, key: str) -> Any:
    return functools.reduce(getattr, key.split("."), run)


def sweep_of(folder: Path, keys: dict[str, Any], *overrides: str) -> Sweep:
    write(folder / "base.yaml", BASE)
    return load_sweep(write(folder / "sweep.yaml", {"name": "s", "base": "base.yaml", **keys}), list(overrides))


def without(key: str) -> dict[str, Any]:
    """BASE but for one key."""
    return nest({name: value for name, value in flatten(BASE).items() if name != key})


Place = Callable[[Path, str, Any], list[RunConfig]]
"""Writes one key of a run in some place and reads it: folder, dotted key, value -> the runs."""


def in_file(folder: Path, key: str, value: Any) -> list[RunConfig]:
    tree = flatten(without(renamed.KEYS.get(key, key))) | {key: value}
    return [load_run(write(folder / "run.yaml", nest(tree)))]


def under_extends(folder: Path, key: str, value: Any) -> list[RunConfig]:
    write(folder / "parent.yaml", BASE)
    write(folder / "middle.yaml", {"extends": "parent.yaml", **nest({key: value})})
    return [load_run(write(folder / "run.yaml", {"extends": "middle.yaml", "seed": 3}))]


def on_command_line(folder: Path, key: str, value: Any) -> list[RunConfig]:
    return [load_run(write(folder / "run.yaml", BASE), [f"--{key}={json.dumps(value)}"])]


def of_sweep(*overrides: str, **where: Any) -> Place:
    """A place in a sweep; KEY, VALUE and NESTED in it stand for the key, its value and the same as nested mappings."""

    def read(folder: Path, key: str, value: Any) -> list[RunConfig]:
        def fill(tree: Any) -> Any:
            if isinstance(tree, dict):
                return {key if k == "KEY" else k: fill(v) for k, v in tree.items()}
            if isinstance(tree, list):
                return [fill(v) for v in tree]
            return {"VALUE": value, "NESTED": nest({key: value}), "AXIS": nest({key: [value]})}.get(tree, tree)

        words = [word.replace("KEY", key).replace("VALUE", json.dumps(value)) for word in overrides]
        return [run.config for run in sweep_of(folder, fill(where), *words).runs]

    return read


PLACES: dict[str, Place] = {
    "file": in_file,
    "extends": under_extends,
    "command line": on_command_line,
    "run, dotted": of_sweep(run={"KEY": "VALUE"}),
    "run, nested": of_sweep(run="NESTED"),
    "axes, dotted": of_sweep(axes={"seed": [0, 1], "KEY": ["VALUE"]}),
    "axes, nested": of_sweep(axes="AXIS"),
    "grids": of_sweep(grids=[{"KEY": ["VALUE"]}, {"seed": [5], "KEY": ["VALUE"]}]),
    "points, dotted": of_sweep(points=[{"seed": 1}, {"seed": 2, "KEY": "VALUE"}]),
    "points, nested": of_sweep(points=["NESTED"]),
    "sweep's command line": of_sweep("--KEY=VALUE", axes={"seed": [0, 1]}),
    "axes on the command line": of_sweep("--axes.KEY=[VALUE]"),
    "run on the command line": of_sweep("--run.KEY=VALUE"),
    "points on the command line": of_sweep("--points=[{KEY: VALUE}]"),
}


def test_the_table_names_keys_that_are_there(tmp_path: Path) -> None:
    """Every new name is one, no old name is, and `OTHER` tries them all."""
    keys = set(flatten(parse_yaml(dump_yaml(load_run(ROOT / "configs/runs/tiny.yaml")))))
    assert set(renamed.KEYS.values()) <= keys
    assert not (renamed.KEYS.keys() | renamed.CONSTANTS.keys()) & keys
    assert OTHER.keys() == renamed.KEYS.keys()
    base = load_run(write(tmp_path / "base.yaml", BASE))
    assert not [old for old, value in OTHER.items() if value_of(base, renamed.KEYS[old]) == value]
    assert all(old.count(".") == new.count(".") for old, new in renamed.KEYS.items())


def test_the_documentation_has_the_table() -> None:
    page = (ROOT / "docs/configuration.md").read_text(encoding="utf-8").partition("## Keys that have been renamed")[2]
    rows = [[cell.strip().split(", ") for cell in line.strip("|").split("|")] for line in page.splitlines()]
    pairs = {
        (old, new) for olds, news in (row for row in rows if len(row) == 2) for old, new in zip(olds, news, strict=True)
    }
    assert {(f"`{old}`", f"`{new}`") for old, new in renamed.KEYS.items()} <= pairs
    assert {(f"`{key}: {old}`", f"`{key}: {new}`") for (key, old), new in renamed.VALUES.items()} <= pairs


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("old", OTHER)
def test_an_old_key_is_read_as_its_new_name_would_be(
    tmp_path: Path, old: str, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    new = renamed.KEYS[old]
    wanted = PLACES[place](tmp_path, new, OTHER[old])
    assert capsys.readouterr().err == ""
    found = PLACES[place](tmp_path, old, OTHER[old])
    assert found == wanted  # names of runs too
    assert any(value_of(run, new) == OTHER[old] for run in found)
    source = "command line" if "command line" in place else str(tmp_path / "sweep.yaml")
    source = {"file": str(tmp_path / "run.yaml"), "extends": str(tmp_path / "middle.yaml")}.get(place, source)
    line = f"{source}: {old} is now {new}; the old name is read until version 0.3\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("place", PLACES)
def test_an_old_value_is_read_as_its_new_name_would_be(tmp_path: Path, place: str) -> None:
    found = PLACES[place](tmp_path, "data.source", "pysource")
    assert found == PLACES[place](tmp_path, "data.source", "python_source")
    assert {run.data.source for run in found} == {"python_source"}


@pytest.mark.parametrize("place", [place for place in PLACES if place not in ("axes, nested", "points, nested")])
def test_components_of_a_mixture_are_read_in_old_names(tmp_path: Path, place: str) -> None:
    part = {"source": "pysource", "fraction": 0.5, "weight": 0.3}
    runs = PLACES[place](tmp_path, "data.mixture", {"code": part, "rest": {"source": "pysource"}})
    mixtures = [run.data.mixture for run in runs if run.data.mixture]
    assert mixtures
    for mixture in mixtures:
        assert {name: (c.source, c.subsample) for name, c in mixture.items()} == {
            "code": ("python_source", 0.5),
            "rest": ("python_source", 1.0),
        }


@pytest.mark.parametrize("old", OTHER)
def test_a_file_that_gives_both_names_is_refused(tmp_path: Path, old: str) -> None:
    new = renamed.KEYS[old]
    both = nest(flatten(BASE) | {old: OTHER[old], new: OTHER[old]})
    problems = {
        (str(tmp_path / "run.yaml"), old): lambda: load_run(write(tmp_path / "run.yaml", both)),
        ("command line", old): lambda: load_run(
            write(tmp_path / "base.yaml", BASE), [f"--{new}={OTHER[old]}", f"--{old}={OTHER[old]}"]
        ),
        (str(tmp_path / "sweep.yaml"), f"points.1.{old}"): lambda: sweep_of(
            tmp_path, {"points": [{"seed": 1}, {old: OTHER[old], **nest({new: OTHER[old]})}]}
        ),
        (str(tmp_path / "sweep.yaml"), f"axes.{old}"): lambda: sweep_of(
            tmp_path, {"axes": nest({old: [OTHER[old]]}) | {new: [OTHER[old]]}}
        ),
    }
    for (source, key), read in problems.items():
        with pytest.raises(ConfigError) as caught:
            read()
        (problem,) = caught.value.problems
        assert (problem.source, problem.key) == (source, key)
        assert f"is given beside {new}" in problem.message


def test_a_name_displaces_the_other_one_of_a_file_below(tmp_path: Path) -> None:
    write(tmp_path / "old.yaml", BASE | {"evaluate": {"every": 5, "tokens": 640}, "watch": {"step_seconds": 9.0}})
    path = write(tmp_path / "new.yaml", {"extends": "old.yaml", "eval": {"interval": 7}})
    run = load_run(path, ["--watch.step_seconds=11"])
    assert (run.eval.interval, run.eval.tokens, run.watchdog.step_timeout) == (7, 640, 11)
    both = write(tmp_path / "both.yaml", BASE | {"evaluate": {"every": 5}, "eval": {"tokens": 640}})
    assert (load_run(both).eval.interval, load_run(both).eval.tokens) == (5, 640)


def test_a_mistake_beside_an_old_key_is_said_of_the_key_of_today(tmp_path: Path) -> None:
    path = write(tmp_path / "run.yaml", BASE | {"evaluate": {"every": "often", "evry": 3}})
    with pytest.raises(ConfigError) as caught:
        load_run(path)
    assert [(p.source, p.key) for p in caught.value.problems] == [
        (str(path), "eval.evry"),
        (str(path), "eval.interval"),
    ]


def test_each_old_name_is_told_once_for_each_file_and_by_the_main_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = [{"seed": seed, "train.global_batch": batch} for seed in range(3) for batch in (4, 8)]
    keys = {"run": {"train": {"micro_batch": 2}}, "points": old}
    for _ in range(2):
        assert len(sweep_of(tmp_path, keys).runs) == 6
    said = capsys.readouterr()
    assert said.out == ""
    told = sorted(line.split(": ")[1].split(" is now ")[0] for line in said.err.splitlines())
    assert told == ["train.global_batch", "train.micro_batch"]
    for variable in ("SLURM_PROCID", "RANK"):
        renamed._print_once.cache_clear()
        monkeypatch.setenv(variable, "1")
        sweep_of(tmp_path, keys)
        assert capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "0")
    sweep_of(tmp_path, keys)
    assert len(capsys.readouterr().err.splitlines()) == 2


# ------------------------------------------------------------------------------------ keys that are constants


def test_constants_have_the_values_that_the_table_says() -> None:
    values = {
        **{f"spikes.{name.lower()}": value for name, value in vars(spike_detector).items() if name.isupper()},
        "spikes.calm_z": spike_detector.RECOVERY_Z,
        "stop.at_least": stopping.MIN_RUNS,
        "stop.level": stopping.LEVEL,
        "stop.negligible": stopping.NEGLIGIBLE,
    }
    assert {key: value for key, (value, _) in renamed.CONSTANTS.items()} == {
        key: values[key] for key in renamed.CONSTANTS
    }


def test_a_constant_with_its_value_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "run.yaml", BASE | {"spikes": {"window": 128, "calm_z": 3, "grace": 64}})
    assert load_run(path) == load_run(write(tmp_path / "base.yaml", BASE))
    first, second = capsys.readouterr().err.splitlines()
    assert "spikes.grace is now spikes.patience" in first
    assert second == (
        f"{path}: spikes.window, spikes.calm_z: constants today, with the values given here; leave them out"
    )


def test_a_constant_with_another_value_is_told_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "run.yaml", BASE | {"spikes": {"history": 32, "loss_z": 4.0}})
    assert load_run(path).spikes.loss_z == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{path}: spikes.history: 32 is not read any more, it is the constant 64: ")
    assert "score" in line
    stop = {"params": 1e6, "tokens": 1e7, "level": 0.5}
    assert isinstance(sweep_of(tmp_path, {"stop": stop}).config, SweepConfig)
    assert "stop.level: 0.5 is not read any more, it is the constant 0.9: " in capsys.readouterr().err


def test_runs_do_not_differ_in_a_constant(tmp_path: Path) -> None:
    """A scan over one would train the same run again and again."""
    with pytest.raises(ConfigError, match=r"axes\.spikes\.window: is no key any more but the constant 128"):
        sweep_of(tmp_path, {"axes": {"spikes.window": [64, 128]}})
    sweep = sweep_of(tmp_path, {"axes": {"spikes.window": [128], "seed": [0]}})
    (alone,) = sweep.runs
    (point,) = sweep_of(tmp_path, {"points": [{"spikes": {"window": 128}, "seed": 0}]}).runs
    assert "spikes" not in alone.name + point.name


# --------------------------------------------------------------------------------------- what keys have named


def test_directories_of_runs_are_named_after_the_first_names(tmp_path: Path) -> None:
    """As version 0.1 named them, whichever name the sweep gives."""
    axes = {
        "train.global_batch_size": [32],
        "schedule.warmup_fraction": [0.2],
        "data.subsample": [0.5],
        "model.tie_embeddings": [False],
        "data.source": ["python_source"],
    }
    (run,) = sweep_of(tmp_path, {"axes": axes, "run": {"data.source": "grammar"}}).runs
    assert run.name == "tiny-6k-716.8ktok-global_batch32-warmup0.2-fraction0.5-pysource-tied-false"


def test_corpora_are_named_after_the_first_names() -> None:
    """The hashes are version 0.1's; another one would prepare every corpus again."""
    source = Source("text", {"python": "3.11"}, {}, lambda position=None: Texts(iter(())), None)
    for config, wanted in (
        (DataConfig(), "7847859766ff"),
        (DataConfig(subsample=0.25, vocab_size=512), "e465ea3e480b"),
        (DataConfig(source="files", files=("a",), subsample=0.25, duplicate_threshold=0.7), "6ba68d7d163a"),
        (DataConfig(source="grammar", vocab_size=64), "919b03dcfc78"),
    ):
        assert name_hash(config, source) == wanted


def test_a_run_goes_on_from_a_configuration_that_was_stored_in_old_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = load_run(write(tmp_path / "run.yaml", nest(flatten(BASE) | {renamed.KEYS[k]: v for k, v in OTHER.items()})))
    old_names = {new: old for old, new in renamed.KEYS.items()}
    keys = {old_names.get(key, key): value for key, value in flatten(parse_yaml(dump_yaml(run))).items()}
    keys |= {key: value for key, (value, _) in renamed.CONSTANTS.items() if key.startswith("spikes.")}
    keys["data.source"] = "pysource"
    stored = write(tmp_path / "config.yaml", nest(keys))
    assert load_stored(stored) == run
    assert changed_keys(as_tree(run), stored) == []
    write(stored, nest(keys | {"schedule.final": 0.5}))
    assert changed_keys(as_tree(run), stored) == [("schedule.min_lr_ratio", 0.5, 0.05)]
    # A file that today's version refuses is compared as it stands.
    write(stored, nest(keys | {"schedule.final": 0.5, "spikes.grace": 0}))
    assert changed_keys(as_tree(run), stored) == [("schedule.min_lr_ratio", 0.5, 0.05), ("spikes.patience", 0, 32)]
    assert capsys.readouterr().err == ""  # the run writes it anew by itself
