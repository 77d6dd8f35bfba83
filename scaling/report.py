"""The report: one page that shows a law, the data behind it and the reasons to believe or doubt it.

The page is self-contained: pictures are data URIs, nothing is loaded from anywhere. The same pictures lie beside it
as PNG files. A section is there when law.json has what it needs.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.figure import Figure

from . import plots_checks, plots_law
from .allocation import exponents, optimum
from .artifact import write_atomically
from .laws import Array
from .plots import Scale, png
from .table import Table
from .text import count, flops, formula, percent, significant, symbol
from .view import View

TEMPLATES = Path(__file__).parent / "templates"
MOST_ROWS = 500  # of the table of runs

MEANING = {
    "E": "loss that no model and no data can remove, nats per token",
    "A": "loss from too few parameters: A/N^α nats per token",
    "B": "loss from too few tokens: B/D^β nats per token",
    "alpha": "how fast loss falls with parameters",
    "beta": "how fast loss falls with tokens",
    "N_c": "parameters at which the law gives a loss of 1",
    "D_c": "tokens at which the law gives a loss of 1",
    "C_c": "FLOPs at which the law gives a loss of 1",
}


@dataclass(frozen=True)
class Picture:
    """A figure, how to read it, and the name of its file."""

    name: str
    title: str
    caption: str
    image: bytes

    @property
    def uri(self) -> str:
        """The image as a data URI."""
        return "data:image/png;base64," + base64.b64encode(self.image).decode()


@dataclass(frozen=True)
class Grid:
    """A table of the page: column heads (a leading '#' marks numbers), rows, a note under it."""

    head: tuple[str, ...]
    rows: list[list[str]]
    note: str = ""
    folded: str = ""  # what is written on the fold that hides a long table


@dataclass(frozen=True)
class Section:
    """One heading of the page with its sentences, pictures and tables."""

    anchor: str
    title: str
    text: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)


@dataclass(frozen=True)
class Source:
    """Everything that a section is made from."""

    view: View
    runs_dir: Path | None
    scales: Mapping[str, Scale]

    @property
    def law(self) -> Mapping[str, Any]:
        """The content of law.json."""
        return self.view.law

    @property
    def level(self) -> str:
        """Level of the intervals, as text."""
        return f"{100 * self.view.level:g} %"


def write_report(
    law: Mapping[str, Any], table: Table, draws: Mapping[str, Array], runs_dir: Path | None, out: Path
) -> Path:
    """Write OUT/report/index.html and the PNGs beside it, and return the path of the page.

    ``law`` is the content of law.json; any section may be missing. ``draws`` are the bootstrap draws, parameter name
    -> (draws,), and may be empty: then there are no bands. ``runs_dir`` has the metrics.jsonl of the runs.
    """
    scales = {k: Scale(k, table.columns[k]) for k in ("N", "D")}
    source = Source(View(law, table, draws), Path(runs_dir) if runs_dir else None, scales)
    sections = [section for make in SECTIONS if (section := make(source))]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["formula"] = formula
    page = environment.get_template("report.html.j2").render(
        title=_title(source), summary=_summary(source), warnings=law.get("warnings", []), sections=sections, law=law
    )
    directory = Path(out) / "report"
    for section in sections:
        for picture in section.pictures:
            write_atomically(directory / f"{picture.name}.png", picture.image)
    write_atomically(directory / "index.html", page.encode())
    return directory / "index.html"


# --- The first paragraph ------------------------------------------------------------------------------------------


def _title(source: Source) -> str:
    name = Path(source.law.get("source", "")).name
    return f"Scaling law of {name}" if name else "Scaling law"


def _some(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _range(values: Array, write: Callable[[float], str]) -> str:
    low, high = write(float(values.min())), write(float(values.max()))
    return low if low == high else f"{low} to {high}"


def _summary(source: Source) -> list[str]:
    """What was fitted, whether it held, and what it says: a paragraph in plain words."""
    law, table = source.law, source.view.table
    columns = table.columns
    rows = _some(len(table), "measurement")
    runs = _some(len(set(table.run)), "training run")
    said = [
        f"{law.get('formula', law['law'])} was fitted to {rows} of the loss of {runs}: models of "
        f"{_range(columns['N'], count)} parameters, trained on {_range(columns['D'], count)} tokens with "
        f"{_range(columns['C'], flops)} FLOPs.",
        *_verdict(source),
        *_coefficients_in_words(source),
    ]
    if source.view.is_surface and {"alpha", "beta"} <= law["params"].keys():
        a, b = exponents(law["params"])
        said.append(
            f"By this law the best use of a budget C is N ∝ C^{significant(float(a), 3)} parameters and "
            f"D ∝ C^{significant(float(b), 3)} tokens."
        )
    excluded = len(law.get("excluded", []))
    if excluded:
        said.append(f"{_some(excluded, 'row')} {'was' if excluded == 1 else 'were'} left out; the reasons are below.")
    return said


def _verdict(source: Source) -> Iterator[str]:
    rows = source.law.get("holdout", [])
    if not rows:
        yield "No measurement was held out, so nothing here shows that the law predicts."
        return
    errors = np.array([r["predicted"] / r["loss"] - 1 for r in rows])
    covered = sum(r["low"] <= r["loss"] <= r["high"] for r in rows)
    worst = 100 * float(np.abs(errors).max())
    sizes = np.array([r["N"] for r in rows])
    what = f"the {_range(sizes, count)}-parameter model" if len(set(sizes)) == 1 else "the largest models"
    if len(rows) == 1:
        off = f"was off by {worst:.2f} %, and the measurement lies {'inside' if covered else 'outside'} its"
    else:
        mean = 100 * float(np.abs(errors).mean())
        off = f"were off by {mean:.2f} % on average and {worst:.2f} % at most, with {covered} of {len(rows)} inside the"
    predictions = "The prediction" if len(rows) == 1 else f"The {len(rows)} predictions"
    yield f"{predictions} for {what}, made without having seen them, {off} {source.level} interval."


def _coefficients_in_words(source: Source) -> Iterator[str]:
    intervals = source.law.get("intervals", {})
    parts = []
    for name, value in source.law["params"].items():
        if name in intervals:
            low, high = (significant(v, 3) for v in intervals[name])
            parts.append(f"{symbol(name)} = {significant(value)} ({low} to {high})")
        else:
            parts.append(f"{symbol(name)} = {significant(value)}")
    yield f"The fitted coefficients, with {source.level} intervals, are {', '.join(parts)}."


# --- Sections -----------------------------------------------------------------------------------------------------


def _picture(name: str, title: str, caption: str, drawn: Figure | None) -> list[Picture]:
    return [Picture(name, title, caption, png(drawn))] if drawn is not None else []


def _coefficients(source: Source) -> Section:
    law = source.law
    boundary = law.get("bootstrap", {}).get("boundary", {})
    rows = []
    for name, value in law["params"].items():
        low, high = law.get("intervals", {}).get(name, (None, None))
        at_bound = f"{100 * boundary[name]:.1f} %" if name in boundary else "–"
        fixed = " (fixed)" if name in law.get("pinned", {}) else ""
        rows.append(
            [
                symbol(name) + fixed,
                significant(value, 6),
                f"{significant(low)} to {significant(high)}",
                at_bound,
                MEANING.get(name, ""),
            ]
        )
    boot = law.get("bootstrap", {})
    note = ""
    if boot:
        unit = "whole runs" if boot.get("clustered") else "single rows"
        note = (
            f"Intervals: {boot.get('draws', 0):,} {boot.get('method', '')} bootstrap draws of {unit} "
            f"({boot.get('clusters', 0)} of them). “At a bound” is the share of draws in which the coefficient ran "
            "into the limit of its range: there the data do not determine it."
        )
    head = ("coefficient", "#value", f"#{source.level} interval", "#at a bound", "meaning")
    text = [f"{law.get('formula', law['law'])}. {law.get('paper', '')}"]
    grids = [Grid(head, rows, note)]
    others = [_companion_row(fit) for fit in law.get("fits", {}).values()]
    if others:
        grids.append(
            Grid(
                ("law in one variable", "#scale", "#α", f"#{source.level} interval of α", "fitted to"),
                others,
                "These describe models that only one thing limits, so they are fitted to the lower envelope of the "
                "measurements (Kaplan et al. 2020, arXiv:2001.08361).",
            )
        )
    pictures = _picture(
        "pairs",
        "Which coefficients the data leave open",
        "Each dot is a refit to resampled runs, the diamond the fit itself. A tight round cloud means that the data "
        "pin both coefficients; a long tilted one that they can only be told together.",
        plots_law.parameter_pairs(source.view),
    )
    return Section("coefficients", "Coefficients", text, pictures, grids)


def _companion_row(fit: Mapping[str, Any]) -> list[str]:
    if "params" not in fit:
        return [fit.get("formula", ""), "–", "–", "–", f"not fitted: {fit.get('reason', 'no reason given')}"]
    scale = next(v for k, v in fit["params"].items() if k != "alpha")
    low, high = fit.get("intervals", {}).get("alpha", (None, None))
    interval = f"{significant(low, 3)} to {significant(high, 3)}"
    rows = _some(len(fit.get("rows", [])), "row") + " of the envelope"
    return [fit["formula"], significant(scale), significant(fit["params"]["alpha"]), interval, rows]


def _law_section(source: Source) -> Section:
    caption = (
        "Dots are measurements. Coloured lines are the fitted law with the other variable held at the value of that "
        f"colour, and the bands its {source.level} intervals. "
        "The dashed line is Kaplan's law in one variable, fitted to the ringed dots, which nothing at their left beats."
    )
    compute = (
        "Dots are measurements, and each thin line is one model size trained longer and longer. "
        "The thick line is the least loss that the law allows at a budget, over all sizes. "
        f"C is {_c_words(source)}. Dots below the band would mean that the law is wrong."
    )
    pictures = [
        *_picture(
            "law_n_d", "Loss against parameters and tokens", caption, plots_law.slices(source.view, source.scales)
        ),
        *_picture("law_c", "Loss against compute", compute, plots_law.compute(source.view, source.scales["N"])),
    ]
    return Section("law", "The law and its data", [], pictures)


def _c_words(source: Source) -> str:
    definition = source.law.get("c_definition", source.view.table.c_definition)
    return "6ND" if definition == "6nd" else "the training compute as recorded with each run"


def _holdout(source: Source) -> Section | None:
    rows = source.law.get("holdout", [])
    if not rows:
        return None
    fit = source.law.get("holdout_fit") or {}
    kept = f" to the other {fit['rows']} rows" if "rows" in fit else ""
    rule = source.law.get("holdout_rule")
    rule = f" (rule: {rule})" if rule else ""
    text = [
        f"These measurements{rule} were left out, the law was fitted{kept}, and only then were they compared with its "
        "predictions. The coefficients above are of a fit to all rows."
    ]
    caption = (
        "Left: on the line, prediction equals measurement. Right: the relative error of each prediction; a bar that "
        f"crosses zero is a {source.level} interval that contains the measurement (round), one that does not is drawn "
        "grey and square."
    )
    grid = Grid(
        ("run", "#N", "#D", "#measured", "#predicted", f"#{source.level} interval", "#error", "inside"),
        [_holdout_row(r) for r in rows],
        "Losses in nats per token.",
        f"All {len(rows)} held-out measurements" if len(rows) > 30 else "",
    )
    drawn = plots_checks.holdout(rows, source.view.level)
    return Section(
        "holdout", "Held-out prediction", text, _picture("holdout", "Predicted and measured", caption, drawn), [grid]
    )


def _holdout_row(row: Mapping[str, Any]) -> list[str]:
    inside = "yes" if row["low"] <= row["loss"] <= row["high"] else "no"
    return [
        str(row.get("run", "")),
        count(row["N"]),
        count(row["D"]),
        f"{row['loss']:.4f}",
        f"{row['predicted']:.4f}",
        f"{row['low']:.4f} to {row['high']:.4f}",
        percent(row["predicted"] / row["loss"] - 1),
        inside,
    ]


def _residuals(source: Source) -> Section | None:
    drawn = plots_checks.residuals(source.view, source.scales["N"])
    if drawn is None:
        return None
    sigma = source.law.get("residual_sigma")
    logarithmic = source.law.get("loss", {}).get("scale", "log") == "log"
    size = f"{100 * sigma:.2f} %" if sigma and logarithmic else f"{significant(sigma, 3)} nats per token"
    text = [f"One standard deviation of the residuals is {size}."] if sigma else []
    caption = (
        "Each dot is one measurement: above zero the loss is higher than the fitted law. The grey band is one standard "
        "deviation. A good law leaves no pattern; a curve or a tilt means that its form is wrong somewhere. "
        "Ringed dots are those that the held-out test predicted."
    )
    pictures = _picture("residuals", "Residuals by parameters and tokens", caption, drawn)
    return Section("residuals", "Residuals", text, pictures)


def _allocation(source: Source) -> Section | None:
    view = source.view
    if not view.is_surface:
        return None
    top = float(view.table.columns["C"].max())
    budgets = np.geomspace(float(view.table.columns["C"].min()), 1000 * top, 120)
    N, D = optimum(view.declared, source.law["params"], budgets)
    bands = {"N": (N, N, N), "D": (D, D, D)}
    if view.thinned:
        samples = optimum(view.declared, view.thinned, budgets)
        bands = {k: (m, *view.bounds(s)) for k, m, s in zip("ND", (N, D), samples, strict=True)}
    caption = (
        "The size and the number of tokens that give the least loss for a budget, by the fitted law with C = 6ND; "
        f"bands are {source.level} intervals. The grey part lies beyond the compute of every measurement."
    )
    drawn = plots_law.allocation(budgets, bands, top)
    text = []
    if {"alpha", "beta"} <= source.law["params"].keys():
        a, b = exponents(source.law["params"])
        text.append(
            f"N_opt ∝ C^a with a = β/(α+β) = {float(a):.3f}{_spread(view, 0)}, D_opt ∝ C^b with b = α/(α+β) = "
            f"{float(b):.3f}{_spread(view, 1)} (Hoffmann et al. 2022, arXiv:2203.15556, equation 4)."
        )
    rows = []
    for factor in (1, 10, 100, 1000):
        at = int(np.abs(np.log(budgets / (factor * top))).argmin())
        cells = [f"{count(bands[k][0][at])} ({count(bands[k][1][at])} to {count(bands[k][2][at])})" for k in "ND"]
        rows.append([flops(budgets[at]), f"{factor}x", *cells, f"{D[at] / N[at]:.3g}"])
    head = ("#budget C (FLOPs)", "#of the largest", "#best N", "#best D", "#tokens per parameter")
    pictures = _picture("allocation", "Best N and D at a budget", caption, drawn)
    return Section("allocation", "Compute-optimal allocation", text, pictures, [Grid(head, rows)])


def _spread(view: View, which: int) -> str:
    if not view.thinned:
        return ""
    low, high = view.bounds(np.asarray(exponents(view.thinned)[which]))
    return f" ({float(low[0]):.3f} to {float(high[0]):.3f})"


def _fan(source: Source) -> Section | None:
    if not source.view.is_surface:
        return None
    steps = plots_law.extrapolated(source.view)
    rows = [
        [f"{s.factor:.0f}x", flops(s.C), f"{s.loss:.4f}", f"{s.low:.4f} to {s.high:.4f}", f"{s.high - s.low:.4f}"]
        for s in steps
    ]
    caption = (
        "The least loss at a budget, carried on to a thousand times the largest compute measured (grey). "
        "The band is the uncertainty of the coefficients. It assumes that the law still holds out there: "
        "nothing measured here can show that."
    )
    head = ("compute", "#C (FLOPs)", "#loss", f"#{source.level} interval", "#width")
    drawn = plots_law.fan(source.view, source.scales["N"])
    pictures = _picture("extrapolation", "Beyond the data", caption, drawn)
    return Section("extrapolation", "Extrapolation", [], pictures, [Grid(head, rows, "Losses in nats per token.")])


def _curves(source: Source) -> Section | None:
    if source.runs_dir is None:
        return None
    found = plots_law.read_curves(source.runs_dir)
    sizes = [c.N for c in found if c.N] or [1.0]
    drawn = plots_law.curves(found, Scale("N", np.concatenate([source.scales["N"].values, sizes])))
    caption = (
        "Training loss of every run, averaged over the logged steps in bins of equal ratio; the dot is its last "
        "validation loss. Dotted runs have not finished and are not fitted. Curves of one size should lie on each "
        "other until their learning rates part."
    )
    pictures = _picture("curves", "Loss curves", caption, drawn)
    return Section("curves", "Training runs", [], pictures) if pictures else None


def _certificate(source: Source) -> Section:
    law = source.law
    facts = law.get("certificate", {})
    loss = law.get("loss", {})
    names = {
        "objective": "objective at the optimum",
        "gradient_norm": "norm of its gradient",
        "starts": "starting points",
        "starts_agreeing": "starts that found the same optimum",
        "condition_number": "condition number",
        "distance_from_start": "distance from the start",
        "iterations": "iterations",
        "boundary": "coefficients at a bound",
        "seed": "seed",
    }
    rows = [[label, _fact(facts[key])] for key, label in names.items() if key in facts]
    if loss:
        delta = f", δ = {loss['delta']:g}" if loss.get("delta") not in (None, float("inf")) else ""
        rows.insert(0, ["loss that is minimised", f"{loss.get('name', '')}{delta}"])
    rows += [[f"version of {k}", str(v)] for k, v in facts.get("versions", {}).items()]
    rows += [["table", str(law.get("source", "–"))], ["SHA-256 of the table", str(law.get("table_sha256", "–"))]]
    rows += [["N counts", law.get("n_definition", "–")], ["C counts", _c_words(source)]]
    text = [
        "The optimum was searched from many starting points. It can be believed when most of them agree, the gradient "
        "is close to zero and no coefficient is at a bound. A condition number above about 1e6 says that some "
        "coefficients can hardly be told apart."
    ]
    return Section("certificate", "Certificate of the fit", text, [], [Grid(("", ""), rows)])


def _fact(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, list | tuple):
        return ", ".join(symbol(str(v)) for v in value) or "none"
    return str(value)


def _excluded(source: Source) -> Section:
    rows = [[str(e["row"]), str(e["reason"])] for e in source.law.get("excluded", [])]
    if not rows:
        return Section("excluded", "What was left out", ["Nothing: every row of the table was used."])
    return Section("excluded", "What was left out", [], [], [Grid(("row or run", "why"), rows)])


def _runs(source: Source) -> Section:
    view = source.view
    table, columns = view.table, view.table.columns
    needed = set(view.declared.variables) <= columns.keys()
    fitted = view.declared.evaluate(source.law["params"], columns) if needed else np.full(len(table), np.nan)
    order = np.lexsort((columns["D"], columns["N"]))[:MOST_ROWS]
    rows = [
        [
            table.run[i],
            count(columns["N"][i]),
            count(columns["D"][i]),
            flops(columns["C"][i]),
            f"{columns['D'][i] / columns['N'][i]:.3g}",
            f"{columns['loss'][i]:.4f}",
            f"{fitted[i]:.4f}",
            percent(columns["loss"][i] / fitted[i] - 1),
        ]
        for i in order
    ]
    cut = f"The first {MOST_ROWS} of {len(table)} rows." if len(table) > MOST_ROWS else ""
    head = ("run", "#N", "#D", "#C (FLOPs)", "#tokens per parameter", "#loss", "#fitted", "#residual")
    note = f"Losses in nats per token. {cut}".strip()
    folded = f"All {len(table)} rows" if len(table) > 40 else ""
    return Section("runs", "Every measurement", [], [], [Grid(head, rows, note, folded)])


SECTIONS: tuple[Callable[[Source], Section | None], ...] = (
    _law_section,
    _holdout,
    _coefficients,
    _residuals,
    _allocation,
    _fan,
    _curves,
    _certificate,
    _excluded,
    _runs,
)
