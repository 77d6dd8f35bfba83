"""Learning rate, batch, warmup and decay of a sweep's runs follow the rules that it names, and say so in the plan."""

from pathlib import Path

import pytest

from configs.reader import ConfigError
from train.launch.devices import find_devices
from train.launch.plan import make_plan, plan_summary
from train.sweep.expand import load_sweep
from train.sweep.hparam_rules import LR, HparamRule
from train.sweep.run import Sweep

BASE = """
model: {size: gpt2, style: modern, context_length: 2048}
data: {source: python_source, vocab_size: 50257}
train: {sequence_length: 2048, global_batch_size: 8, micro_batch_size: 8, tokens: 1_000_000}
optimizer: {lr: 0.01}
"""
ONE_BILLION = "{model.n_layer: 24, model.d_model: 1792, model.n_head: 14, train.tokens: 20_000_000_000}"


def sweep(tmp_path: Path, text: str, *overrides: str) -> Sweep:
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "rules.yaml").write_text(f"name: rules\nbase: base.yaml\ndevice: cpu\n{text}\n")
    return load_sweep(tmp_path / "rules.yaml", list(overrides))


def test_published_values(tmp_path: Path) -> None:
    """By hand, for N = 925 million parameters in blocks and D = 20 billion tokens."""
    keys = "{lr: step_law, batch: step_law, warmup: porian, timescale: 0.2}"
    (run,) = sweep(tmp_path, f"rules: {keys}\npoints: [{ONE_BILLION}]").runs
    N, D = 925e6, 2e10
    assert run.config.optimizer.lr == pytest.approx(1.79 * N**-0.713 * D**0.307, rel=1e-2)  # about 1e-3
    assert run.config.train.global_batch_size * 2048 == pytest.approx(0.58 * D**0.571, rel=2e-2)  # about 440,000 tokens
    assert run.config.train.global_batch_size % 8 == 0
    assert run.config.schedule.warmup_length(run.config.steps) == pytest.approx(N / D * run.config.steps, rel=1e-2)
    forgets = 1 / (run.config.optimizer.lr * run.config.optimizer.weight_decay)
    assert forgets == pytest.approx(0.2 * run.config.steps, rel=1e-4)

    (run,) = sweep(tmp_path, f"rules: {{lr: deepseek, batch: deepseek, warmup: untuned}}\npoints: [{ONE_BILLION}]").runs
    C = (6 * N + 12 * 24 * 1792 * 2048) * D
    assert run.config.optimizer.lr == pytest.approx(0.3118 * C**-0.125, rel=1e-2)
    assert run.config.train.global_batch_size * 2048 == pytest.approx(0.292 * C**0.3271, rel=2e-2)
    assert run.config.schedule.warmup_steps == 40


def test_what_is_stated_wins(tmp_path: Path) -> None:
    text = "rules: {lr: step_law, batch: step_law}\npoints: [{model.size: gpt2, optimizer.lr: 0.5}, {model.size: gpt2}]"
    by_point, by_rule = sweep(tmp_path, text).runs
    assert by_point.config.optimizer.lr == 0.5
    assert by_rule.config.optimizer.lr != 0.5
    for run in sweep(tmp_path, text, "--train.global_batch_size=16").runs:
        assert run.config.train.global_batch_size == 16


def test_multiples_of_a_rule(tmp_path: Path) -> None:
    axes = "axes: {model.size: [gpt2, gpt2-medium], lr_multiple: [0.5, 1, 2]}"
    runs = sweep(tmp_path, f"{axes}\nlr: {{reference: 0.001, d_model: 768, power: -1}}").runs
    rates = [run.config.optimizer.lr for run in runs]
    assert rates == pytest.approx([0.0005, 0.001, 0.002, 0.000375, 0.00075, 0.0015])
    assert [run.name for run in runs[:3]] == [f"gpt2-1.0Mtok{end}" for end in ("-lr_multiple0.5", "", "-lr_multiple2")]


def test_the_plan_names_the_source_of_every_value(tmp_path: Path) -> None:
    rules = "{lr: step_law, batch: deepseek, warmup: porian}"
    found = sweep(tmp_path, f"rules: {rules}\naxes: {{model.size: [gpt2, gpt2-xl]}}")
    plan = make_plan(found, find_devices(found.config))
    lines = "\n".join(plan_summary(plan, {run.name: "pending" for run in found.runs}))
    for word in (
        "2503.04715",
        "2401.02954",
        "2406.19146",
        "optimizer.lr",
        "train.global_batch_size",
        "schedule.warmup_steps",
    ):
        assert word in lines
    assert "optimizer.lr is a guess where the rule was not fitted: D = 1.0e+06, 10^-3.3 from it" in lines


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rules: {lr: step_law}\nlr: {reference: 1, d_model: 8, power: 0}", "rules.lr: is given beside the rule `lr`"),
        ("rules: {lr: kaplan}", "rules.lr"),
        ("rules: {lr: deepsek}", "rules.lr: \"deepsek\" is not one of deepseek, step_law; nearest is 'deepseek'"),
        ("rules: {timescale: 0}", "rules.timescale: 0 must be above 0"),
        ("rules: {batch: step_law}\nrun: {train.steps: 10, train.tokens: null}", "needs train.tokens"),
        (
            "lr: {reference: 1, d_model: 8, power: -1}\nrun: {model.parametrization: mup}",
            "lr.power: -1: mup scales the learning rate with the size already; nearest is 0",
        ),
        (
            "rules: {lr: step_law}\nrun: {model.parametrization: mup}",
            "rules.lr: step_law: mup scales the learning rate",
        ),
        ("axes: {lr_multiple: [0]}", "lr_multiple: 0 is not a number above 0"),
    ],
)
def test_mistakes(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        sweep(tmp_path, text)
    assert message in str(caught.value)


def test_an_entry_of_a_table_is_all_that_a_new_rule_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LR, "flat", HparamRule("0.25", "nobody", lambda _: 0.25, {}))
    (run,) = sweep(tmp_path, f"rules: {{lr: flat}}\npoints: [{ONE_BILLION}]").runs
    assert run.config.optimizer.lr == 0.25
