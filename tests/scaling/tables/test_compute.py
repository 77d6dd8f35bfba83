"""One meaning of compute: rows keep their own C, and N, D and C follow from each other as in the fit."""

import ast
import json
import runpy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.design.allocation import optimum, parametric
from scaling.forecast.fitted_law import FittedLaw
from scaling.forecast.law_file import parse_law, read_draws, read_law
from scaling.laws import LAWS
from scaling.study import FitOptions, fit_law
from scaling.tables.compute import SIX_ND
from scaling.tables.table import Table
from tests.conftest import ROOT
from tests.helpers.scaling_tables import TRUTH, grid, table

SIZES = np.array([25e3, 50e3, 100e3, 200e3, 400e3, 800e3])
RATIOS = np.array([1.6, 1.3, 1.34, 1.18, 1.2, 1.12])  # of exact FLOPs to 6ND: not monotone in N


def measured(definition: str = "exact", law: str = "chinchilla", **truth: float) -> Table:
    """24 runs of small models whose C is exact, or 6ND."""
    columns = grid(SIZES, np.array([10.0, 25.0, 50.0, 120.0]))
    columns["C"] = 6 * columns["N"] * columns["D"] * np.repeat(RATIOS, 4)
    loss = LAWS[law].evaluate(truth or {**TRUTH, "A": 60.0, "B": 60.0}, columns)
    noise = np.exp(0.002 * np.random.default_rng(0).standard_normal(len(loss)))
    return table({**columns, "loss": loss * noise}).redefine(c=definition)


@st.composite
def rows(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """N, D and C of a table in which every size has its own FLOPs per token."""
    sizes = draw(st.lists(st.floats(1e3, 1e12), min_size=1, max_size=8, unique_by=lambda n: round(np.log(n), 2)))
    ratios = draw(st.lists(st.floats(0.5, 3), min_size=len(sizes), max_size=len(sizes)))
    N, ratio = np.repeat(sizes, 3), np.repeat(ratios, 3)
    D = np.array(draw(st.lists(st.floats(1e3, 1e14), min_size=len(N), max_size=len(N))))
    return N, D, 6 * ratio * N * D


@given(rows(), st.sampled_from(["exact", "6nd"]))
@settings(max_examples=60, deadline=None)
def test_every_row_has_its_own_compute(drawn, definition):
    N, D, C = drawn
    data = table({"N": N, "D": D, "C": C, "loss": np.ones(len(N))}).redefine(c=definition)
    C, compute = data.columns["C"], data.compute
    np.testing.assert_allclose(compute.flops(N, D), C, rtol=1e-9)
    np.testing.assert_allclose(compute.tokens(N, C), D, rtol=1e-9)
    np.testing.assert_allclose(compute.flops(compute.params(D, C), D), C, rtol=1e-9)


def test_tokens_and_compute_give_the_size_of_a_row():
    for definition in ("exact", "6nd"):
        data = measured(definition)
        N, D, C = (data.columns[k] for k in "NDC")
        np.testing.assert_allclose(data.compute.params(D, C), N, rtol=1e-9)


def test_between_sizes_c_per_token_rises_and_beyond_them_the_ratio_is_kept():
    compute = measured().compute
    N = np.geomspace(1e2, 1e8, 500)
    assert (np.diff(compute.per_token(N)) > 0).all()
    np.testing.assert_allclose(compute.per_token(np.array([1e3, 1e9])), [6e3 * 1.6, 6e9 * 1.12], rtol=1e-12)
    assert not compute.beyond(SIZES)
    assert compute.beyond(2.4e4)
    assert compute.beyond(1e6)
    assert not SIX_ND.beyond(1e6)


def test_rows_of_one_size_that_differ_in_c_per_token_are_summarised():
    """As after a change of sequence length: the size has the geometric mean, and each row is off by the rest."""
    data = table({"N": np.full(2, 1e6), "D": np.full(2, 1e8), "loss": np.ones(2), "C": np.array([8e14, 7.2e14])})
    assert data.compute.flops_per_token == pytest.approx((np.sqrt(8e6 * 7.2e6),))
    np.testing.assert_allclose(data.compute.flops(1e6, 1e8) / data.columns["C"], [0.9**0.5, 0.9**-0.5], rtol=1e-9)


def test_a_column_of_6nd_is_6nd():
    columns = grid()
    C = 6 * columns["N"] * columns["D"] * (1 + 1e-8 * np.sin(np.arange(20)))
    assert table({**columns, "loss": np.ones(20), "C": C}).compute == SIX_ND


def command(name: str, capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What a command prints on success."""
    assert runpy.run_path(str(ROOT / f"scripts/{name}.py"))["main"]([str(w) for w in words]) == 0
    return capsys.readouterr().out


def saved(directory: Path, data: Table, law: str = "chinchilla") -> Path:
    """A fit with its draws."""
    result = fit_law(data, FitOptions(law=law, draws=100, holdout="none", average=False))
    return result.law.write(directory, result.draws)


@pytest.mark.parametrize("definition", ["exact", "6nd"])
def test_report_and_plan_give_one_optimum(tmp_path, capsys, definition):
    data = measured(definition)
    path = saved(tmp_path, data)
    C = 30 * float(data.columns["C"].max())
    reported = parametric(FittedLaw(read_law(path), data, read_draws(path)), np.array([C]))
    answer = json.loads(command("plan", capsys, path, "--flops", C, "--json"))
    assert answer["N"]["value"] == pytest.approx(reported.N[0], rel=1e-9)
    assert answer["D"]["value"] == pytest.approx(float(data.compute.tokens(reported.N[0], C)), rel=1e-9)
    assert answer["compute"] == data.compute.words
    assert bool(answer["cautions"]) == data.compute.beyond(reported.N[0])
    # The line is the same when it is entered by N or by D.
    for option, name in (("--params", "N"), ("--tokens", "D")):
        again = json.loads(command("plan", capsys, path, option, answer[name]["value"], "--json"))
        assert again["C"]["value"] == pytest.approx(C, rel=1e-4)
        assert again["C"]["low"] < C < again["C"]["high"]


def test_an_optimum_along_exact_compute_is_the_least_loss_of_its_budget():
    compute = measured().compute
    for law, params in (("chinchilla", TRUTH), ("coupled", {**TRUTH, "gamma": 0.9})):
        C = np.geomspace(1e11, 1e20, 9)
        N, D = optimum(LAWS[law], params, C, compute)
        best = LAWS[law].evaluate(params, {"N": N, "D": D})
        for factor in np.geomspace(0.1, 10, 41):
            other = {"N": factor * N, "D": compute.tokens(factor * N, C)}
            assert (LAWS[law].evaluate(params, other) >= best * (1 - 1e-12)).all()


def test_a_law_of_compute_gives_a_row_one_forecast_by_size_and_by_compute(tmp_path, capsys):
    """By 6ND, the first row would be 1.6 times outside of the fitted range."""
    data = measured(law="kaplan_c", C_c=1e22, alpha=0.04)
    path = saved(tmp_path, data, "kaplan_c")
    for i in range(len(data)):
        N, D, C = (float(data.columns[k][i]) for k in "NDC")
        by_size = json.loads(command("predict", capsys, path, "--params", N, "--tokens", D, "--json"))
        by_compute = json.loads(command("predict", capsys, path, "--flops", C, "--json"))
        assert by_size["loss"] == pytest.approx(by_compute["loss"], rel=1e-9)
        assert by_size["inputs"]["C"] == pytest.approx(C, rel=1e-9)
        assert by_size["extrapolation_by"]["C"] == pytest.approx(by_compute["extrapolation_by"]["C"], rel=1e-9)
        if np.isin(data.rows[i], read_law(path).data.rows):
            assert by_size["extrapolation_by"]["C"] == pytest.approx(1)
    assert "C exact, FLOPs per token from the fitted sizes" in command("predict", capsys, path, "--flops", 1e12)
    far = command("predict", capsys, path, "--params", 1e9, "--tokens", 1e10)
    assert "C is beyond the fitted sizes: C/(ND) is that of the nearest" in far


def test_files_of_schema_1_say_as_much_as_they_can(tmp_path):
    law = read_law(saved(tmp_path, measured(), "kaplan_c")).flat()
    old = {**{k: v for k, v in law.items() if k != "compute"}, "schema": 1}
    points = {k: np.array(v) for k, v in law["points"].items()}
    np.testing.assert_allclose(parse_law(old, "").compute.flops(points["N"], points["D"]), points["C"], rtol=1e-9)
    assert parse_law({**old, "c_definition": "6nd"}, "").compute == SIX_ND
    untold = parse_law({**old, "points": {k: law["points"][k] for k in "ND"}}, "").compute
    assert untold.flops(1e6, 1e8) == 6e14
    assert "fit again" in untold.words


# --- The number 6 ---------------------------------------------------------------------------------------------------

# Beside scaling/tables/compute.py, which has it as a constant.
KNOWS_SIX = {
    "train/telemetry/record.py": "flops_6nd of a record",
    "train/launch/plan.py": "a column of the plan",
    "train/sweep/hparam_rules.py": "a published rule with a compute of its own",
}


def sixes(source: str) -> Iterator[int]:
    """Lines that multiply or divide by 6, or by a tenth of it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult | ast.Div):
            for side in (node.left, node.right):
                if isinstance(side, ast.Constant) and side.value in (6, 0.6):
                    yield node.lineno


def test_one_file_knows_that_c_is_6nd():
    files = [p for folder in ("scaling", "scripts", "train", "evaluation") for p in (ROOT / folder).rglob("*.py")]
    found = {str(p.relative_to(ROOT)): list(sixes(p.read_text(encoding="utf-8"))) for p in files}
    assert {name for name, lines in found.items() if lines} == KNOWS_SIX.keys()


@pytest.mark.parametrize("text", ["C = 6 * N * D", "D = C / (6.0 * N)", "budget = 0.6 * N * D", "x = C / 6"])
def test_a_planted_six_is_found(text):
    assert list(sixes(text)) == [1]
    assert not list(sixes("C = compute.flops(N, D)"))
