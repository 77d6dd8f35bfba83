"""A ladder ends when its forecast is narrow enough, and leaves out runs that would not narrow it."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from scaling.design.optimal_design import Candidates
from scaling.design.stopping import StoppingRule, _sigma, reasons, should_stop, skippable
from scaling.errors import FitError
from scaling.laws import LAWS
from scaling.tables.table import Table
from tests.helpers.scaling_tables import table
from tests.train.sweep.test_trunk import go, ladder, save
from train.launch.events import read_events
from train.sweep.expand import load_sweep

ROOT = Path(__file__).parents[3]
LAW = {"E": 1.7, "A": 25.0, "B": 100.0, "alpha": 0.4, "beta": 0.4}
SIZES, BUDGETS = [1e3, 2e3, 4e3, 8e3, 16e3], [1e6, 2e6, 4e6, 8e6]
RULE = StoppingRule(N=1e6, D=1e9, width=0.02)


def measured(noise: float) -> Table:
    """Every size at every budget."""
    N, D = np.array([(n, d) for n in SIZES for d in BUDGETS]).T
    loss = LAWS["chinchilla"].evaluate(LAW, {"N": N, "D": D})
    return table({"N": N, "D": D, "loss": loss * np.exp(noise * np.random.default_rng(3).standard_normal(len(N)))})


def left(*points: tuple[float, float]) -> Candidates:
    """Runs at (N, D)."""
    N, D = np.array(points).T
    return Candidates({"N": N, "D": D}, 6 * N * D)


def test_narrow_interval_ends_the_ladder_but_for_the_target_itself() -> None:
    runs = left((64e3, 16e6), (1.01e6, 1e9))
    verdict = should_stop(measured(noise=1e-5), RULE, runs)
    assert (verdict.enough, list(verdict.unneeded)) == (True, [True, False])
    assert verdict.width < RULE.width
    assert reasons(RULE, verdict, ["next", "target"]).keys() == {"next"}
    wide = should_stop(measured(noise=3e-3), RULE, runs)
    assert (wide.enough, wide.width > RULE.width) == (False, True)
    assert not wide.unneeded[1]


def test_run_that_tells_nothing_new_is_left_out_and_a_telling_one_is_not() -> None:
    verdict = should_stop(measured(noise=3e-3), RULE, left((4e3, 2e6), (2e3, 4e6), (256e3, 64e6), (512e3, 128e6)))
    assert list(verdict.unneeded[:2]) == [True, True]
    assert not verdict.unneeded[2:].all()
    assert "hardly narrow" in reasons(RULE, verdict, list("abcd"))["a"]


def test_a_table_that_determines_no_law_ends_nothing() -> None:
    with pytest.raises(FitError):
        should_stop(measured(1e-3).select(np.arange(20) < 4), RULE, left((64e3, 16e6)))


@pytest.mark.parametrize("tolerance", [0.0, 0.02, 0.3])
def test_what_is_left_out_together_stays_within_the_tolerance(tolerance: float) -> None:
    """Of ten copies of one run most can go, although each alone would matter little."""
    rng = np.random.default_rng(0)
    J = rng.standard_normal((21, 4))
    J[11:] = J[1]
    K, every = J @ J.T, np.ones(20, dtype=bool)
    gone = skippable(K, 0.5, rng.uniform(1, 100, 20), tolerance)
    assert _sigma(K, 0.5, ~gone) <= (1 + tolerance) * _sigma(K, 0.5, every) * (1 + 1e-9)
    assert gone.any() == (tolerance > 0)


def test_runs_that_are_not_needed_are_not_started_unless_a_branch_waits_for_them(tmp_path: Path) -> None:
    sweep = ladder(tmp_path)
    short, middle, trunk = (run.name for run in sweep.runs)
    outcome = go(sweep, unneeded=lambda: {trunk: "enough", middle: "enough"})
    assert {name: state.state for name, state in outcome.states.items()} == {
        short: "complete",
        middle: "not needed",
        trunk: "complete",
    }
    assert [e["reason"] for e in read_events(sweep.config.directory) if e["event"] == "not needed"] == ["enough"]
    assert not outcome.failures
    save(sweep.config.directory / trunk, 24)
    assert go(sweep).states[middle].state == "complete"


def test_status_says_which_runs_are_not_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the command: the law of the records that are there decides, and only where the rule is given."""
    sizes, budgets = "[tiny-1k, tiny-3k, tiny-6k, tiny-14k, tiny-25k]", "[100_000, 200_000, 400_000]"
    (tmp_path / "run.yaml").write_text((ROOT / "configs/runs/tiny.yaml").read_text())
    (tmp_path / "sweep.yaml").write_text(
        f"name: ladder\nbase: run.yaml\nruns_dir: {tmp_path / 'runs'}\n"
        f"axes: {{model.size: {sizes}, train.tokens: {budgets}}}\n"
        "points: [{model.size: tiny-98k, train.tokens: 400_000}]\n"
        "stop: {params: 1.0e+6, tokens: 1.0e+7, width: 0.05}\n"
    )
    runs = load_sweep(tmp_path / "sweep.yaml").runs
    for run in runs[:-1]:
        N = 3_000 + 2 * len(run.name) * run.config.model.d_model**2
        loss = float(LAWS["chinchilla"].evaluate(LAW, {"N": np.array(N), "D": np.array(run.config.tokens)}))
        run.directory.mkdir(parents=True)
        record = {"complete": True, "N": N, "D": run.config.tokens, "val_loss": loss}
        (run.directory / "record.json").write_text(json.dumps(record))
    main = runpy.run_path(str(ROOT / "scripts/sweep.py"))["main"]
    for more, state in (([], "not needed"), (["--stop=null"], "pending")):
        assert main([str(tmp_path / "sweep.yaml"), "--status", *more]) == 0
        (line,) = (row for row in capsys.readouterr().out.splitlines() if "tiny-98k" in row)
        assert f" {state} " in f"{line} "
    assert main([str(tmp_path / "sweep.yaml")]) == 0
    assert "not needed" in capsys.readouterr().out
    assert not runs[-1].directory.exists()
