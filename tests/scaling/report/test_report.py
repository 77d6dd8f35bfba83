"""The report: every section from real data, nothing loaded from outside, hostile names harmless."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from configs import formatting as text
from scaling.errors import TableError
from scaling.forecast.fitted_law import FittedLaw
from scaling.forecast.law_file import LawFile
from scaling.forecast.law_sections import Diagnostic, ForecastScores, ScoredForecast
from scaling.laws import LAWS
from scaling.report import plot_style as plots
from scaling.report import plots_law
from scaling.report.report import write_report
from scaling.study import FitOptions, fit_law
from scaling.tables import curves as traces
from scaling.tables.baselines import read_baselines
from scaling.tables.read import read_table
from scaling.tables.table import BITS, NATS, Excluded, Table
from tests.helpers.scaling_tables import TABLES, TRUTH, law_file, simulated, table

HOSTILE = "<script>alert(1)</script>"
LAW = LAWS["chinchilla"]


class Page(HTMLParser):
    """The parts of a page that the tests ask about."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids, self.images, self.tags, self.words = set(), [], set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.add(tag)
        self.ids.add(found.get("id"))
        if tag == "img":
            self.images.append(found)

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def runs_directory(directory: Path) -> Path:
    """18 runs of 6 sizes with curves, records, and one that has not finished."""
    for N in np.geomspace(3e3, 3e5, 6).round():
        for D in (500_000, 1_000_000, 2_000_000):
            final = 1.2 * float(LAW.evaluate(TRUTH, {"N": np.array([1e3 * N]), "D": np.array([1e3 * D])})[0])
            run = directory / f"n{N:.0f}-d{D}"
            run.mkdir(parents=True)
            steps = np.arange(1, D // 5000 + 1)
            lr = 1e-2 * (0.1 + 0.45 * (1 + np.cos(np.pi * steps / steps[-1])))
            loss = final + 3 * steps**-0.7 + 0.3 * (lr / 1e-2)
            rows = [
                {"step": int(s), "tokens": int(s) * 5000, "flops": 30000 * N * int(s), "loss": float(v), "lr": float(r)}
                for s, v, r in zip(steps, loss, lr, strict=True)
            ]
            rows[-1]["val_loss"] = final
            (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
            record = {"N": N, "D": D, "flops": 6 * N * D, "val_loss": final, "steps": len(steps), "complete": True}
            (run / "record.json").write_text(json.dumps(record))
    (directory / "unfinished").mkdir()
    torn = (run / "metrics.jsonl").read_text()[:900]
    (directory / "unfinished" / "metrics.jsonl").write_text(torn)
    return directory


@pytest.fixture(scope="module")
def ladder(tmp_path_factory):
    """A report of a runs directory with every section: the page, law.json and the directory."""
    out = tmp_path_factory.mktemp("ladder")
    data = read_table(runs_directory(out / "runs"))
    scored = ScoredForecast(
        file="a.json",
        date="2026-01-02T03:04:05",
        law="chinchilla",
        inputs={"N": 1e6, "D": 1e7},
        low=2.9,
        high=3.2,
        level=0.9,
        sha256="0" * 64,
        runs=["a"],
        predicted=3.1,
        loss=3.0,
        error=0.0333,
        covered=True,
    )
    scores = ForecastScores(scored=[scored], pending=1, covered=1, expected_coverage=0.9, rms_error=0.033)
    baseline = {"name": "5-gram", "loss": float(np.median(data.columns["loss"])), "bits_per_byte": 1.25}
    (out / "runs" / "baselines.json").write_text(json.dumps({"baselines": [baseline]}))
    options = FitOptions(draws=150, sensitivity=True, point={"N": 1e7, "D": 1e8})
    result = fit_law(data, options, scores, read_baselines(out / "runs", NATS))
    return write_report(result.law, data, result.draws, out / "runs", out), result.law, data


SECTIONS = {
    *("law", "holdout", "backtest", "coefficients", "profile", "residuals", "sensitivity", "laws", "allocation"),
    *("baselines", "extrapolation", "forecasts", "curves", "curve-law", "certificate", "excluded", "runs"),
}


def test_every_section_is_there_with_its_pictures(ladder):
    path = ladder[0]
    page = Page(path)
    assert page.ids >= SECTIONS
    assert len(page.images) >= 12
    assert all(i["src"].startswith("data:image/png;base64,") and i["alt"] for i in page.images)
    written = {p.stem for p in path.parent.glob("*.png")}
    assert {"law_n_d", "law_c", "holdout", "residuals", "curves", "allocation", "extrapolation"} <= written
    assert len(written) == len(page.images)
    assert path.stat().st_size < 5_000_000
    assert "does not apply" in page.text  # IsoFLOP profiles: no two sizes share a budget


def test_nothing_is_loaded_from_anywhere(ladder):
    content = ladder[0].read_text()
    assert not re.search(r"""(?:src|href|url|@import)\s*[=(]?\s*["']?(?:https?:)?//""", content)
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", content)
    assert not {"script", "iframe", "object", "embed"} & Page(ladder[0]).tags


def test_the_numbers_of_the_law_are_on_the_page(ladder):
    path, law, data = ladder
    text_of = Page(path).text
    for name, value in law.fit.params.items():
        assert f"{text.symbol(name)} = {text.significant(value)}" in text_of
    worst = max(abs(r.predicted / r.loss - 1) for r in law.checks.holdout)
    assert f"{100 * worst:.2f} % at most" in text_of
    assert "unfinished" in text_of
    assert law.data.table_sha256 in text_of
    assert all(run in text_of for run in data.run)
    assert "1 forecast registered before the run" in text_of
    assert f"{text.nats(law.data.baselines['5-gram'])}9 of 18 runs" in text_of.replace(" 9 of", "9 of")


def test_baselines_are_read_in_the_unit_of_the_fit(tmp_path):
    assert read_baselines(tmp_path, NATS) == {}
    rows = [{"name": "5-gram", "loss": 2.5, "bits_per_byte": 1.25}]
    (tmp_path / "baselines.json").write_text(json.dumps({"baselines": rows}))
    assert (read_baselines(tmp_path, NATS), read_baselines(tmp_path, BITS)) == ({"5-gram": 2.5}, {"5-gram": 1.25})
    (tmp_path / "baselines.json").write_text('{"baselines": [{"name": "5-gram"}]}')
    with pytest.raises(TableError, match="not a file of baselines"):
        read_baselines(tmp_path, NATS)


def hostile() -> tuple[LawFile, Table]:
    """A law whose every text is markup."""
    data = simulated(noise=0.003)
    run = [HOSTILE, *data.run[1:]]
    data = Table(
        data.columns, run, data.rows, [Excluded(HOSTILE, HOSTILE)], data.sha256, f"a/{HOSTILE}", "total", "6nd"
    )
    law = fit_law(data, FitOptions(draws=100, average=False)).law
    holdout = [replace(row, run=HOSTILE) for row in law.checks.holdout]
    checks = replace(law.checks, warnings=[Diagnostic(HOSTILE, HOSTILE, HOSTILE)], holdout=holdout)
    return replace(law, checks=checks), data


def test_markup_in_names_is_shown_as_text(tmp_path):
    law, data = hostile()
    page = write_report(law, data, {}, None, tmp_path)
    assert "<script" not in page.read_text()
    assert "&lt;script&gt;" in page.read_text()
    assert Page(page).text.count(HOSTILE) >= 5


@pytest.mark.parametrize("bare", [True, False])
def test_sections_without_data_are_left_out(tmp_path, bare):
    data = simulated(noise=0.003)
    law = fit_law(data, FitOptions(draws=100, holdout="none", average=False)).law
    if bare:
        law = law_file(law.fit.params)
    page = Page(write_report(law, data, {}, None, tmp_path))
    assert "No measurement was held out" in page.text
    assert not {"holdout", "backtest", "forecasts", "curves", "sensitivity"} & page.ids
    assert ({"residuals", "profile"} <= page.ids) == (not bare)
    assert {"law", "coefficients", "certificate", "runs"} <= page.ids


@pytest.mark.parametrize("name", ["kaplan_n", "kaplan_c", "kaplan_nd", "coupled"])
def test_any_law_can_be_reported(tmp_path, name):
    data = simulated(noise=0.003)
    result = fit_law(data, FitOptions(law=name, draws=100, holdout="none", average=False))
    page = Page(write_report(result.law, data, result.draws, None, tmp_path))
    assert ("allocation" in page.ids) == (len(LAWS[name].variables) == 2)
    assert text.symbol(LAWS[name].parameters[-1]).replace("_", "") in page.text
    used = len(result.law.data.rows)
    assert (used < len(data)) == LAWS[name].frontier  # and the page says so, in both places
    assert (f"the {used} on the lower envelope of {len(data)} measurements" in page.text) == LAWS[name].frontier
    assert ("every row of the table was used" in page.text) != LAWS[name].frontier


def test_a_task_score_is_reported_as_a_score(tmp_path):
    loss = np.linspace(2.0, 3.6, 12)
    score = 0.2 + 0.6 / (1 + np.exp(4 * (loss - 2.6)))
    data = table({"N": np.geomspace(1e9, 1e7, 12), "D": np.geomspace(2e10, 2e8, 12), "loss": loss, "score": score})
    result = fit_law(data, FitOptions(law="task_sigmoid", draws=100, holdout="none"))
    page = Page(write_report(result.law, data, result.draws, None, tmp_path))
    assert "12 measurements of the score" in page.text
    assert not {"allocation", "extrapolation"} & page.ids


def test_matplotlib_is_left_as_it_was(tmp_path):
    before = dict(matplotlib.rcParams)
    data = simulated()
    write_report(fit_law(data, FitOptions(draws=100, holdout="none", average=False)).law, data, {}, None, tmp_path)
    assert dict(matplotlib.rcParams) == before


def test_the_same_data_give_the_same_bytes(tmp_path):
    data = simulated(noise=0.003)
    result = fit_law(data, FitOptions(draws=100, holdout="none", average=False))
    pages = [write_report(result.law, data, result.draws, None, tmp_path / d) for d in "ab"]
    assert pages[0].read_bytes() == pages[1].read_bytes()


# --- What the pictures are made from --------------------------------------------------------------------------------


def test_flops_per_token_are_those_of_the_table_and_carried_on_beyond_it():
    data = simulated()
    per_token = {1e7: 8e7, 3e7: 2.1e8, 1e8: 6.5e8, 3e8: 1.9e9, 1e9: 6.2e9}
    columns = {**data.columns, "C": np.array([per_token[n] for n in data.columns["N"]]) * data.columns["D"]}
    data = table(columns)
    view = FittedLaw(law_file(compute=data.compute), data, {})
    np.testing.assert_allclose(view.compute.per_token(np.array(list(per_token))), list(per_token.values()), rtol=1e-9)
    np.testing.assert_allclose(view.compute.per_token(np.array([1e6, 1e11])), [8e6, 6.2e11], rtol=1e-9)


def test_the_least_loss_at_a_budget_is_that_of_the_optimum():
    view = FittedLaw(law_file(), simulated(), {})
    C = np.geomspace(1e17, 1e21, 5)
    from scaling.design.allocation import optimum
    from scaling.tables.compute import SIX_ND

    N, D = optimum(LAW, TRUTH, C, SIX_ND)
    np.testing.assert_allclose(view.best(C).middle, LAW.evaluate(TRUTH, {"N": N, "D": D}), rtol=1e-5)


def test_every_ringed_dot_and_the_line_through_them_are_inside_the_panel():
    data = simulated(noise=0.003)
    result = fit_law(data, FitOptions(draws=100, holdout="none", average=False))
    view = FittedLaw(result.law, data, result.draws)
    drawn = plots_law.slices(view, {k: plots.Scale(k, data.columns[k]) for k in "ND"})
    for axis, name in zip(drawn.axes, "ND", strict=True):
        (line,) = [x for x in axis.lines if x.get_label().startswith("Kaplan")]
        (low, high), (left, right) = axis.get_ylim(), axis.get_xlim()
        assert low < line.get_ydata().min() < line.get_ydata().max() < high
        assert left < line.get_xdata().min() < line.get_xdata().max() < right
        rows = np.isin(data.rows, result.law.others.fits[f"kaplan_{name.lower()}"].rows)
        assert line.get_xdata().max() == pytest.approx(data.columns[name][rows].max())


def test_bands_hold_the_share_of_draws_that_they_promise():
    rng = np.random.default_rng(0)
    draws = {k: v * np.exp(0.01 * rng.standard_normal(400)) for k, v in TRUTH.items()}
    view = FittedLaw(law_file(level=0.8), simulated(), draws)
    at = np.array([1e8]), np.array([1e10])
    band = view.at(*at)
    each = LAW.evaluate({k: v[:, None] for k, v in draws.items()}, {"N": at[0], "D": at[1]})[:, 0]
    assert np.mean((each >= band.low) & (each <= band.high)) == pytest.approx(0.8, abs=0.01)
    assert band.low < band.middle < band.high


def test_curves_are_binned_without_losing_their_mean(tmp_path):
    found = traces.read_curves(runs_directory(tmp_path))
    assert len(found) == 19
    assert sum(not c.complete for c in found) == 1
    x = np.arange(1.0, 5001)
    centre, mean = traces.binned(x, 2 * np.log(x), bins=50)
    assert len(centre) == len(mean) <= 50
    np.testing.assert_allclose(mean, 2 * np.log(centre), atol=1e-9)
    np.testing.assert_allclose(traces.smoothed(x, 7), x)


@pytest.mark.parametrize(("low", "high"), [(1.9, 2.1), (3.3, 8), (4e3, 7e5), (1e18, 1e25), (2.5e5, 1e6), (1.0, 1.001)])
def test_ticks_are_round_inside_and_apart(low, high):
    ticks = plots.log_ticks(low, high)
    assert 3 <= len(ticks) <= 7
    assert all(low <= t <= high for t in ticks)
    assert min(np.diff(np.log10(ticks))) > 0.04 * np.log10(high / low)


@pytest.mark.parametrize(
    ("value", "written"), [(999, "999"), (999.6, "1k"), (25088, "25.1k"), (7e9, "7B"), (1.4e12, "1.4T"), (12.5, "12.5")]
)
def test_counts_are_written_with_a_suffix(value, written):
    assert text.count(value) == written


def test_other_numbers_are_written_plainly():
    assert text.flops(9.996e20) == "1e21"
    assert text.flops(5.76e23) == "5.76e23"
    assert text.significant(1.78389) == "1.784"
    assert text.significant(8.8e13) == "8.800e13"
    assert text.percent(-0.0143) == "−1.43 %"
    assert str(text.formula("A/N^α < N_opt")) == "A/N<sup>α</sup> &lt; N<sub>opt</sub>"


def test_a_published_table_is_reported(tmp_path):
    data = read_table(TABLES / "kyo_takano.csv")
    result = fit_law(data, FitOptions(draws=100, average=False))
    path = write_report(result.law, data, result.draws, None, tmp_path)
    assert "agree within their intervals" in Page(path).text
    assert "Curves are drawn for 5 of the" in Page(path).text
    assert (path.parent / "isoflop.png").exists()
    assert path.stat().st_size < 5_000_000
