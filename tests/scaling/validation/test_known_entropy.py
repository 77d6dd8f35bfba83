"""The fitted E beside the entropy rate of the text: in law.json, on the console and in the report."""

import io
import json
import runpy

import numpy as np
import pytest
from rich.console import Console

from data.config import GrammarConfig
from data.corpus.grammar import excess_of_speller, make_grammar
from scaling.laws import LAWS
from scaling.report.console import show
from scaling.report.report import write_report
from scaling.study import FitOptions, FitResult, fit_law
from scaling.tables.read import read_table
from scaling.validation.known_entropy import entropy_rate, verdict
from tests.conftest import ROOT
from tests.helpers.scaling_tables import TRUTH, grid, table


def known(rate: float | None, noise: float = 1e-4, **fixed: float) -> FitResult:
    """The study of 20 runs with a little noise, on text of a stated entropy rate."""
    columns = grid()
    exact = LAWS["chinchilla"].evaluate(TRUTH, columns)
    columns["loss"] = exact * np.exp(noise * np.random.default_rng(0).standard_normal(len(exact)))
    if rate is not None:
        columns["entropy_rate"] = np.full(len(exact), rate)
    return fit_law(table(columns), FitOptions(draws=200, average=False, fixed=fixed))


def test_the_verdict_follows_the_interval(tmp_path):
    found = known(TRUTH["E"])
    assert found.law.data.entropy_rate == TRUTH["E"]
    sentence = verdict(found.law)
    assert sentence is not None
    assert "is 1.6900 nats per token" in sentence
    assert sentence.endswith(", covers the truth.")
    missed = verdict(known(TRUTH["E"] + 0.2).law)
    assert missed is not None
    assert missed.endswith(", does not cover the truth.")

    shown = io.StringIO()
    show(found.law, Console(file=shown, width=400))
    assert sentence in shown.getvalue()
    page = write_report(found.law, table(grid() | {"loss": np.linspace(2, 3, 20)}), found.draws, None, tmp_path)
    assert sentence in page.read_text(encoding="utf-8")


def test_without_a_known_truth_nothing_is_said():
    assert verdict(known(None).law) is None
    assert verdict(known(1.69, E=1.69).law) is None  # pinned: nothing was estimated


def test_exponents_stand_beside_those_of_the_lexicon(tmp_path, capsys):
    language = make_grammar(GrammarConfig(), 64)
    known = np.array([100.0, 200.0, 400.0])
    rows = [
        f"{10 * k},{D},{language.entropy_rate + x},{language.entropy_rate}"
        for D in (10**6, 2 * 10**6)
        for k, x in zip(known, excess_of_speller(language, known), strict=True)
    ]
    (tmp_path / "runs.csv").write_text("\n".join(["N,D,loss,entropy_rate", *rows]))
    main = runpy.run_path(str(ROOT / "scripts/studies/known_entropy.py"), run_name="tested")["main"]
    source, sweep = str(tmp_path / "runs.csv"), str(ROOT / "configs/sweeps/studies/known_entropy.yaml")
    assert main([source, "--config", sweep, "--out", str(tmp_path / "known.png")]) == 0
    printed = capsys.readouterr().out
    # Spellers of N/10 words have the exponents of a speller; more tokens do not help them.
    assert "mean exponent in N: measured 0.45, predicted 0.45" in printed
    assert "mean exponent in D: measured 0.00" in printed
    assert (tmp_path / "known.png").stat().st_size > 10_000
    (tmp_path / "runs.csv").write_text("\n".join(["N,D,loss,entropy_rate", "1,1,1.5,1.6"]))
    assert main([source, "--config", sweep]) == 2
    assert "its entropy rate is 1.6" in capsys.readouterr().err


def test_records_and_tables_carry_the_rate(tmp_path):
    for i, rate in enumerate((1.5, 1.5, 1.6)):
        (tmp_path / f"r{i}").mkdir()
        record = {"N": 1e6, "D": 1e7, "val_loss": 3.0, "complete": True, "entropy_rate": rate}
        (tmp_path / f"r{i}" / "record.json").write_text(json.dumps(record))
    mixed = read_table(tmp_path)
    assert mixed.columns["entropy_rate"].tolist() == [1.5, 1.5, 1.6]
    assert entropy_rate(mixed) is None  # runs on different texts share no truth
    assert entropy_rate(mixed.select(mixed.columns["entropy_rate"] == 1.5)) == pytest.approx(1.5)
