"""Designs as subsets of a factorial: which runs they take, what they cost, and how well they predict."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from scaling.design import compare_designs as designs
from scaling.design.compare_designs import Outcome, cheapest, compare, split, trunk_flops
from scaling.errors import FitError
from scaling.fit.bootstrap import bootstrap
from scaling.fit.estimate import fit
from scaling.forecast.law_sections import HeldOutPrediction
from scaling.laws import LAWS
from scaling.tables.read import read_table
from scaling.tables.table import Table
from tests.helpers.scaling_tables import TABLES, table

ROOT = Path(__file__).parents[3]
LAW = {"E": 1.7, "A": 25.0, "B": 100.0, "alpha": 0.5, "beta": 0.5}
SIZES, BUDGETS = [1e3, 2e3, 4e3, 8e3, 16e3], [1e6, 2e6, 4e6, 8e6]
TARGETS = [(64e3, 2.4e7), (128e3, 1.2e7)]


def runs(noise: float = 1e-3) -> Table:
    """Every size at every budget, and two runs of twelve times the largest compute."""
    N, D = np.array([(n, d) for n in SIZES for d in BUDGETS] + TARGETS).T
    loss = LAWS["chinchilla"].evaluate(LAW, {"N": N, "D": D})
    loss = loss * np.exp(noise * np.random.default_rng(3).standard_normal(len(N)))
    return table({"N": N, "D": D, "C": 6 * N * D, "loss": loss})


def cells(chosen: Table) -> set[tuple[float, float]]:
    return set(zip(chosen.columns["N"].tolist(), chosen.columns["D"].tolist(), strict=True))


def test_no_design_sees_what_it_predicts():
    pool, targets = split(runs())
    assert cells(targets) == set(TARGETS)
    assert len(pool) == 20
    assert targets.columns["C"].min() >= 10 * pool.columns["C"].max()
    with pytest.raises(FitError, match="no run has 1e\\+06 times less compute than the largest"):
        split(runs(), reach=1e6)


def test_each_design_takes_its_runs():
    pool = split(runs())[0]
    corners = cells(pool.select(designs.corners(pool)))
    assert corners == {(n, d) for n in (1e3, 4e3, 16e3) for d in (1e6, 4e6, 8e6)}
    series = cells(pool.select(designs.single_variable(pool)))
    assert series == {(n, 8e6) for n in SIZES} | {(16e3, d) for d in BUDGETS}
    ratio = pool.select(designs.fixed_ratio(pool))
    assert len(ratio) == len(SIZES)
    assert np.ptp(np.log(ratio.columns["D"] / ratio.columns["N"])) < np.log(5)  # the grid has no lower and higher ones
    profiles = pool.select(designs.isoflop(pool))
    levels, sizes = np.unique(np.round(np.log2(profiles.columns["C"])), return_counts=True)
    assert len(levels) == 3
    assert sizes.min() >= 2
    assert designs.factorial(pool, 1 / 16).sum() == (pool.columns["C"] <= pool.columns["C"].max() / 16).sum()
    bought = designs.next_best(pool, {"N": 64e3, "D": 2.4e7}, LAWS["chinchilla"], {})
    assert bought[np.argsort(pool.columns["C"], kind="stable")[:6]].all()  # five coefficients take six runs
    assert bought.sum() > 6
    assert pool.columns["C"][bought].sum() <= pool.columns["C"].sum() / 4


def test_a_trunk_is_trained_once_and_each_branch_to_its_end():
    # One size of 1 FLOP a token at 10, 20 and 40 tokens: a trunk of 32, and branches of 2, 4 and 8.
    one = table({"N": np.full(3, 5.0), "D": np.array([10.0, 20.0, 40.0]), "loss": np.ones(3)})
    one = one.with_columns({**one.columns, "C": one.columns["D"]})
    assert trunk_flops(one, 0.2) == pytest.approx(32 + 2 + 4 + 8)


def test_designs_are_told_apart_by_cost_and_error():
    found = {o.name: o for o in compare(runs(), cooldown=0.2, draws=100)}
    spent = [o.flops for o in found.values()]
    assert spent == sorted(spent)
    whole = found["factorial"]
    assert whole.error < 0.005
    assert whole.runs == 20
    frontier = found["frontier, L(C) alone"]
    assert frontier.error > 5 * whole.error  # a law without E cannot bend
    assert frontier.flops == whole.flops  # which runs it needed is known when all are trained
    trunks = found["factorial as trunks with branches"]
    assert trunks.scored == whole.scored
    assert trunks.flops < 0.7 * whole.flops
    fixed = {o.name: o for o in compare(runs(), {"E": 1.7}, draws=100)}
    assert fixed["factorial"].width < whole.width


def test_the_cheapest_good_design_is_named():
    def outcome(name: str, flops: float, error: float, covered: bool = True) -> Outcome:
        scored = HeldOutPrediction(
            row=1,
            run="r",
            N=1e5,
            D=1e6,
            loss=2.0,
            predicted=2 * (1 + error),
            low=1.9,
            high=2.1,
            error=error,
            covered=covered,
        )
        return Outcome(name, "chinchilla", 9, flops, (scored,))

    found = [outcome("wrong", 1, 0.02), outcome("lucky", 2, 0.001, covered=False), outcome("good", 3, -0.009)]
    best = cheapest([*found, outcome("dear", 4, 0.0), Outcome("none", "chinchilla", 3, 0.5, (), "too few")])
    assert best is not None
    assert best.name == "good"
    assert cheapest(found, sure=True) is None  # its interval is 5 % to either side
    assert cheapest(found, within=0.06, sure=True) == found[0]
    assert cheapest(found[:2]) is None


def test_the_command_prints_and_writes(tmp_path, capsys):
    rows = runs()
    lines = [
        "N,D,C,loss",
        *(
            ",".join(map(repr, r))
            for r in zip(*(rows.columns[k].tolist() for k in ("N", "D", "C", "loss")), strict=True)
        ),
    ]
    (tmp_path / "runs.csv").write_text("\n".join(lines))
    main = runpy.run_path(str(ROOT / "scripts/studies/designs.py"), run_name="tested")["main"]
    assert main([str(tmp_path / "runs.csv"), "--draws=100", "--out", str(tmp_path / "out"), "--pin", "E=1.7"]) == 0
    printed = capsys.readouterr().out
    assert "cheapest design that predicts within 1 %" in printed
    written = json.loads((tmp_path / "out" / "designs.json").read_text())
    assert written["pinned"] == {"E": 1.7}
    assert len(written["designs"]) == 9
    assert (tmp_path / "out" / "designs.png").read_bytes().startswith(b"\x89PNG")
    assert main([str(tmp_path / "runs.csv"), "--reach=1"]) == 2
    assert "--reach must be above 1" in capsys.readouterr().err


def test_the_headline_repeats():
    """The designs of docs/known-entropy.md, from its table of 33 runs."""
    rows = read_table(TABLES / "known_entropy.csv")
    pool, targets = split(rows)
    assert (len(pool), len(targets)) == (31, 2)
    found = {o.name: o for o in compare(rows, draws=200)}
    best = cheapest(list(found.values()))
    assert best is not None
    assert best.name == "next best runs"
    assert 0.13 < best.flops / targets.columns["C"].max() < 0.16
    assert found["factorial"].error == pytest.approx(0.0111, abs=2e-4)
    assert found["3 x 3 corners"].error == pytest.approx(0.0059, abs=2e-4)
    assert found["frontier, L(C) alone"].error > 0.06
    true = rows.columns["entropy_rate"][0]
    known = {o.name: o for o in compare(rows, {"E": true}, draws=200)}
    assert all(known[name].error < 0.004 for name in ("factorial", "fixed ratio", "3 x 3 corners", "single variable"))
    fitted = fit(LAWS["chinchilla"], rows)
    low, high = bootstrap(fitted, rows.run, draws=500).intervals()["E"]
    assert fitted.params["E"] == pytest.approx(1.756, abs=1e-3)
    assert low < true < high < low + 0.1


def test_a_design_costs_what_its_runs_do_whatever_c_the_law_has():
    data = runs()
    data = data.with_columns({**data.columns, "C_exact": 1.2 * data.columns["C"]}).redefine()
    six = data.redefine(c="6nd")
    assert six.columns["C"].sum() == pytest.approx(data.columns["C"].sum() / 1.2)
    assert designs.price(six).tolist() == designs.price(data).tolist() == data.columns["C"].tolist()
    assert trunk_flops(six, 0.2) == trunk_flops(data, 0.2)
