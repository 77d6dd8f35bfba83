"""From a sweep file to its runs."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.formatting import short_count
from configs.reader import ConfigError, dump_yaml
from model.counts import count_parameters
from train.sweep.expand import load_sweep
from train.sweep.run import Sweep

BASE = """\
name: base
model: {size: tiny-25k}
data: {vocab_size: 512}
train: {sequence_length: 32, global_batch_size: 8, micro_batch_size: 4, steps: 50}
optimizer: {lr: 0.01}
"""


def sweep_of(folder: Path, text: str, *overrides: str) -> Sweep:
    (folder / "run.yaml").write_text(BASE)
    (folder / "sweep.yaml").write_text("name: ladder\nbase: run.yaml\n" + text)
    return load_sweep(folder / "sweep.yaml", list(overrides))


def names(sweep: Sweep) -> list[str]:
    return [run.name for run in sweep.runs]


def problems(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        sweep_of(folder, text, *overrides)
    return str(error.value)


def test_factorial_then_points(tmp_path):
    sweep = sweep_of(
        tmp_path,
        """
axes:
  model.size: [tiny-1k, tiny-6k]
  train: {tokens: [10_000, 1_000_000]}
  seed: [0, 7]
points:
  - {model.size: tiny-98k, train: {tokens: 20_000}, name: last}
""",
    )
    assert names(sweep) == [
        *("tiny-1k-10ktok", "tiny-1k-10ktok-seed7", "tiny-1k-1.0Mtok", "tiny-1k-1.0Mtok-seed7"),
        *("tiny-6k-10ktok", "tiny-6k-10ktok-seed7", "tiny-6k-1.0Mtok", "tiny-6k-1.0Mtok-seed7"),
        "last",
    ]
    run = sweep.runs[1]
    assert (run.config.model.size, run.config.seed, run.config.train.steps) == ("tiny-1k", 7, None)
    assert run.config.tokens == 40 * 8 * 32  # 10,000 rounded up to whole steps
    assert run.directory == Path("runs/ladder/tiny-1k-10ktok-seed7")
    assert (run.data_parallel, run.config.train.micro_batches(run.data_parallel)) == (1, 2)


def test_another_axis_keeps_the_names_there_were(tmp_path):
    before = names(sweep_of(tmp_path, "axes: {model.size: [tiny-1k, tiny-3k]}"))
    after = names(
        sweep_of(tmp_path, "axes: {model.size: [tiny-1k, tiny-3k], seed: [0, 1], optimizer.lr: [0.01, 0.03]}")
    )
    assert set(before) < set(after)
    assert len(set(after)) == 8


def test_overrides_narrow_an_axis_and_otherwise_hold_for_all_runs(tmp_path):
    text = "axes: {model.size: [tiny-1k, tiny-3k], train.tokens: [10_000, 20_000], seed: [0, 1]}"
    sweep = sweep_of(tmp_path, text, "--seed=1", "--train.tokens=5000", "--precision=bf16", "--name=other")
    assert names(sweep) == ["tiny-1k-5.0ktok-seed1", "tiny-3k-5.0ktok-seed1"]
    assert {run.config.precision for run in sweep.runs} == {"bf16"}
    assert {run.config.wandb.group for run in sweep.runs} == {"other"}
    assert len(sweep_of(tmp_path, text, "--axes.seed=[4,5,6]", "--axes.model.size=[tiny-25k]").runs) == 6
    assert names(sweep_of(tmp_path, text, "--axes=null")) == ["tiny-25k-12.8ktok"]
    # A budget in steps replaces the axis of tokens.
    assert [run.config.steps for run in sweep_of(tmp_path, text, "--train.steps=3").runs] == [3] * 4


def test_overrides_reach_points(tmp_path):
    sweep = sweep_of(tmp_path, "points: [{seed: 3}, {seed: 4}]", "--optimizer.lr=0.5")
    assert [(run.config.seed, run.config.optimizer.lr) for run in sweep.runs] == [(3, 0.5), (4, 0.5)]


def test_lr_rule_and_what_overrides_it(tmp_path):
    text = "axes: {model.size: [tiny-1k, tiny-98k]}\nlr: {reference: 0.01, d_model: 32, power: -0.5}\n"
    assert [run.config.optimizer.lr for run in sweep_of(tmp_path, text).runs] == [0.02, 0.00707107]
    assert {run.config.optimizer.lr for run in sweep_of(tmp_path, text, "--optimizer.lr=0.3").runs} == {0.3}
    axis = sweep_of(tmp_path, text, "--axes.optimizer.lr=[0.1,0.2]")
    assert {run.config.optimizer.lr for run in axis.runs} == {0.1, 0.2}
    assert "tiny-1k-12.8ktok-lr0.1" in names(axis)
    assert "run.optimizer.lr: is given beside the rule" in problems(tmp_path, text + "run: {optimizer.lr: 0.1}")


def test_budgets_by_ratio_and_by_flops(tmp_path):
    ratio = sweep_of(tmp_path, "axes: {model.size: [tiny-1k, tiny-98k], tokens_per_parameter: [20]}").runs
    for run in ratio:
        wanted = 20 * count_parameters(run.config.model).total
        assert wanted <= run.config.tokens < wanted + run.config.tokens_per_step
    flops = sweep_of(tmp_path, "axes: {model.size: [tiny-1k, tiny-98k], flops: [1e11]}").runs
    assert [run.name for run in flops] == ["tiny-1k-1e11flop", "tiny-98k-1e11flop"]
    for run in flops:
        spent = run.config.tokens * run.config.flops_per_token
        assert 1e11 <= spent < 1e11 + run.config.tokens_per_step * run.config.flops_per_token * 1.01
    assert "tokens_per_parameter: -1 is not a number above 0" in problems(
        tmp_path, "axes: {tokens_per_parameter: [-1]}"
    )


def test_shapes_without_a_name(tmp_path):
    sweep = sweep_of(
        tmp_path,
        """
run: {model.size: null}
axes:
  model: [{n_layer: 1, d_model: 16, n_head: 2}, {n_layer: 2, d_model: 16, n_head: 2}]
""",
    )
    assert names(sweep) == ["L1-d16-h2-12.8ktok", "L2-d16-h2-12.8ktok"]


def test_devices_can_vary(tmp_path):
    sweep = sweep_of(tmp_path, "points: [{seed: 1}, {seed: 2, devices_per_run: 4, train.micro_batch_size: 2}]")
    assert [
        (run.devices, run.data_parallel, run.config.train.micro_batches(run.data_parallel)) for run in sweep.runs
    ] == [(1, 1, 2), (4, 4, 1)]
    assert names(sweep) == ["tiny-25k-12.8ktok-seed1", "tiny-25k-12.8ktok-seed2"]


def test_base_and_extends_are_relative_to_the_file_that_names_them(tmp_path):
    (tmp_path / "deep").mkdir()
    sweep_of(tmp_path, "axes: {seed: [0, 1]}")
    (tmp_path / "deep" / "child.yaml").write_text("extends: ../sweep.yaml\nname: child\nrun: {log_every: 3}\n")
    child = load_sweep(tmp_path / "deep" / "child.yaml")
    assert child.config.name == "child"
    assert [run.config.log_every for run in child.runs] == [3, 3]


def test_printed_configuration_gives_the_same_runs(tmp_path):
    sweep = sweep_of(
        tmp_path, "axes: {model.size: [tiny-1k], train: {tokens: [10_000]}}", "--seed=5", "--axes.seed=[1,2]"
    )
    (tmp_path / "printed.yaml").write_text(dump_yaml(sweep.config))
    assert load_sweep(tmp_path / "printed.yaml", [f"--base={tmp_path / 'run.yaml'}", "--seed=5"]).runs == sweep.runs


# ------------------------------------------------------------------------------------------- what is refused


def test_all_problems_of_all_runs_at_once(tmp_path):
    told = problems(tmp_path, "axes: {model.size: [tiny-1k, tiny-26k], train.micro_batch_size: [4, 3]}")
    assert "model.size: 'tiny-26k' is not a known size; nearest is 'tiny-6k'" in told
    assert "train.micro_batch_size: 3 does not divide global_batch_size=8; nearest is 2" in told
    assert str(tmp_path / "sweep.yaml") in told
    assert "in 2 of 4 runs" in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        ("axes: {modle.size: [tiny-1k]}", [], "sweep.yaml: modle: unknown key; did you mean 'model'?"),
        ("axes: {seed: 3}", [], "axes.seed: 3 is not a list of values; write [3]"),
        ("axes: {seed: []}", [], "axes.seed: is an empty list"),
        ("", ["--axes.seed=null"], "command line: axes.seed: null is not a list of values; write one"),
        ("points: [{seed: 3}]", ["--axes.seed=[1, 1]"], "command line: axes.seed: 1 is given twice"),
        ("axes: {seed: [1], seed: [2]}", [], "the key 'seed' is given twice"),
        ("axes: {train.steps: [1], train: {steps: [2]}}", [], "axes.train.steps: is given twice"),
        ("run: {train.steps: 1, train: {steps: 2}}", [], "run.train.steps: is given twice, dotted and nested"),
        ("axes: [1]", [], "axes: must be a mapping"),
        ("points: [3]", [], "points.0: 3 is not a mapping"),
        ("axis: {seed: [1]}", [], "axis: unknown key; did you mean 'axes'?"),
        ("points: [{seed: 1}, {seed: 1}]", [], "points: 2 runs would be named 'tiny-25k-12.8ktok-seed1'"),
        ("points: [{name: ../x}]", [], "name: '../x' is not a safe name"),
        ("points: [{name: 3}]", [], "name: 3 is not text"),
        ("axes: {seed: [1]}", ["--name=../x"], "command line: name: '../x' is not a safe name"),
        ("axes: {seed: [1]}", ["--sead=2"], "command line: sead: unknown key; did you mean 'seed'?"),
        ("axes: {seed: [1]}", ["--model.n_head=3"], "model.n_head: 3 does not divide d_model=32; nearest is 2"),
        (
            "devices_per_run: 3",
            [],
            "train.global_batch_size: 8 does not divide over 3 data-parallel ranks; nearest is 9",
        ),
        ("devices_per_run: 3", ["--parallel.pipeline_stages=2"], "3 does not divide into replicas of 2 devices"),
        ("points: [{devices_per_run: two}]", [], "devices_per_run: 'two' is not a whole number above 0"),
        ("retries: -1", [], "retries: -1 must be at least 0"),
        ("lr: {reference: 1}", [], "lr.d_model: is required and missing"),
        ("lr: {reference: 1.0, d_model: 8, power: 999.0}", [], "lr.power: 999 must be at most 10"),
        ("", ["--base=absent.yaml"], "absent.yaml: cannot be read: no such file"),
        ("", ["--optimizer=3"], "optimizer: 3 is not a mapping"),
        ("", ["--wandb=3"], "wandb: 3 is not a mapping"),
        ("run: {train: {tokens: 5, steps: 5}}", [], "give exactly one of train.steps and train.tokens"),
        ("run: {tokens_per_parameter: 5, flops: 5}", [], "flops: is given beside tokens_per_parameter"),
        ("points: [{flops: 1e9, train.tokens: 5}]", [], "train.tokens: is given beside flops; leave one out"),
        ("grids: [{tokens_per_parameter: [5], train.steps: [5]}]", [], "train.steps: is given beside tokens_per_par"),
        ("remote: slurm", [], "remote: slurm needs a hostfile"),
        ("launcher_args: [--launcher, slurm]", [], "nearest is 'remote: slurm'"),
    ],
)
def test_refusals_name_the_key_and_what_would_work(tmp_path, text, overrides, words):
    assert words in problems(tmp_path, text, *overrides)


KEYS = st.sampled_from(["model", "size", "model.size", "model.style", "seed", "train.steps", "x"])
SCALARS = st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-2, 2) | st.text("ab.-/\0", max_size=4)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=2),
    max_leaves=6,
)


@given(key=st.sampled_from(["run", "axes", "points", "lr", "runs_dir", "extends", "hostfile"]), value=TREES)
def test_any_content_gives_runs_or_a_configuration_error(tmp_path_factory, key, value):
    try:
        sweep = sweep_of(tmp_path_factory.mktemp("any"), dump_yaml({key: value}))
    except ConfigError:
        return
    assert sweep.runs


@given(st.integers(1, 10**14))
def test_short_count_keeps_four_digits(count):
    word = short_count(count)
    scale = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}.get(word[-1], 1)
    assert float(word.rstrip("kMBT")) * scale == pytest.approx(count, rel=5.1e-4)
