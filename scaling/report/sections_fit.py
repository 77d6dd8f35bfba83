"""The sections of a report, each made from law.json, the table and the draws, or left out where they lack it."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from configs.formatting import count, flops, formula, percent, significant, symbol
from scaling.design.allocation import (
    Approach,
    Trace,
    allocate,
    disagreements,
    has_closed_form,
    measured_exponents,
    profiles,
)
from scaling.forecast.fitted_law import FittedLaw
from scaling.forecast.law_sections import CompanionFit
from scaling.report import plots_allocation, plots_checks, plots_law, sections_checks
from scaling.report.page import Grid, ReportSource, Section, picture, pluralise
from scaling.report.plot_style import Scale
from scaling.report.plots_law import FACTORS
from scaling.tables.curves import binned, read_curves
from scaling.validation.known_entropy import verdict

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


def _coefficients(source: ReportSource) -> Section:
    law = source.law
    boot = law.uncertainty.bootstrap
    rows = []
    for name, value in law.fit.params.items():
        label = formula(symbol(name) + (" (fixed)" if name in law.fit.pinned else ""))
        interval = " to ".join(map(significant, law.fit.intervals[name]))
        at_bound = f"{100 * boot.boundary[name]:.1f} %" if name in boot.boundary else "–"
        rows.append([label, significant(value, 6), interval, at_bound, formula(MEANING.get(name, ""))])
    unit = "whole runs" if boot.clustered else "single rows"
    note = (
        f"Intervals: {boot.draws:,} {boot.method} bootstrap draws of {unit} ({boot.clusters} of them). "
        "“At a bound” is the share of draws in which the coefficient ran into the limit of its range: there the data "
        "do not determine it."
    )
    head = ("coefficient", "#value", f"#{source.level} interval", "#at a bound", "meaning")
    text = [f"{law.fit.formula or law.fit.law}. {law.fit.paper}", *filter(None, [verdict(law)])]
    grids = [Grid(head, rows, note)]
    if law.others.fits:
        head = ("law in one variable", "#scale", "#α", f"#{source.level} interval of α", "fitted to")
        note = (
            "These describe models that only one thing limits, so they are fitted to the lower envelope of the "
            "measurements (Kaplan et al. 2020, arXiv:2001.08361)."
        )
        grids.append(Grid(head, [_companion_row(fit) for fit in law.others.fits.values()], note))
    pictures = picture(
        "pairs",
        "Which coefficients the data leave open",
        "Each dot is a refit to resampled runs, the diamond the fit itself. A tight round cloud means that the data "
        "pin both coefficients; a long tilted one that they can only be told together.",
        plots_law.parameter_pairs(source.view),
    )
    return Section("coefficients", "Coefficients", text, pictures, grids)


def _companion_row(fit: CompanionFit) -> list[str]:
    if fit.params is None:
        return [formula(fit.formula), "–", "–", "–", f"not fitted: {fit.reason or 'no reason given'}"]
    scale = next(v for k, v in fit.params.items() if k != "alpha")
    low, high = fit.intervals.get("alpha", (None, None))
    interval = f"{significant(low, 3)} to {significant(high, 3)}"
    rows = pluralise(len(fit.rows), "row") + " of the envelope"
    return [formula(fit.formula), significant(scale), significant(fit.params["alpha"]), interval, rows]


def _law_section(source: ReportSource) -> Section:
    view = source.view
    if not view.is_loss:
        caption = f"Dots are measurements, the line is the fitted law, the band its {source.level} interval."
        drawn = plots_law.response(view, source.scales["N"])
        return Section("law", "The law and its data", [], picture("law", "The law", caption, drawn))
    caption = (
        "Dots are measurements. Coloured lines are the fitted law with the other variable held at the value of that "
        f"colour, and the bands its {source.level} intervals. "
        "The dashed line is Kaplan's law in one variable, fitted to the ringed dots, which nothing at their left "
        "beats, and drawn over their range."
    )
    caption += _between_curves(source.scales)
    if "U" in view.declared.variables:
        caption += " The lines are for tokens that are never repeated; dots of repeated data lie above them."
    compute = (
        "Dots are measurements, and each thin line is one model size trained longer and longer. "
        "The thick line is the least loss that the law allows at a budget, over all sizes. "
        f"{view.compute.words}. Dots below the band would mean that the law is wrong."
    )
    slices, against_compute = plots_law.slices(view, source.scales), plots_law.compute(view, source.scales["N"])
    pictures = picture("law_n_d", "Loss against parameters and tokens", caption, slices)
    pictures += picture("law_c", "Loss against compute", compute, against_compute)
    return Section("law", "The law and its data", [], pictures)


def _between_curves(scales: Mapping[str, Scale]) -> str:
    """Says which dots have no curve of their own, where the values are too many for one each."""
    sizes = {name: (len(scale.shown()), len(scale.values)) for name, scale in scales.items()}
    parts = [f"{shown} of the {all_} values of {name}" for name, (shown, all_) in sizes.items() if shown < all_]
    drawn = " and ".join(parts)
    between = f" Curves are drawn for {drawn}; a dot whose value lies between two of them has a colour between theirs."
    return between if parts else ""


def _residuals(source: ReportSource) -> Section | None:
    sigma = source.law.fit.residual_sigma
    logarithmic = source.law.fit.loss.scale == "log"
    size = f"{100 * sigma:.2f} %" if logarithmic else f"{significant(sigma, 3)} {source.view.loss_unit}"
    text = [f"One standard deviation of the residuals is {size}."] if sigma else []
    caption = (
        "Each dot is one measurement: above zero the loss is higher than the fitted law. The grey band is one standard "
        "deviation. A good law leaves no pattern; a curve or a tilt means that its form is wrong somewhere. "
        "Ringed dots are those that the held-out test predicted."
    )
    drawn = plots_checks.residuals(source.view, source.scales["N"])
    pictures = picture("residuals", "Residuals by parameters and tokens", caption, drawn)
    return Section("residuals", "Residuals", text, pictures) if pictures else None


def _allocation(source: ReportSource) -> Section | None:
    view = source.view
    if not view.is_surface:
        return None
    C = view.table.columns["C"]
    top, marked = float(C.max()), C.max() * FACTORS
    budgets = np.unique(np.concatenate([np.geomspace(float(C.min()), marked[-1], 60), marked]))
    approaches = allocate(view, budgets, _traces(source))
    law = next(a for a in approaches if a.name == "parametric")
    text = [
        "Three ways to find the size that makes the best of a budget (Hoffmann et al. 2022, arXiv:2203.15556, "
        f"section 3). {view.compute.words}."
    ]
    if view.declared.name == "chinchilla":
        closed = has_closed_form(view.declared, view.compute)
        why = ("β/(α+β) = ", "α/(α+β) = ", "(equation 4)") if closed else ("", "", "over the measured compute")
        a, b = (f"{float(v):.3f}" for v in measured_exponents(view, source.law.fit.params))
        if view.thinned:
            ends = [map(float, view.bounds(draws)) for draws in measured_exponents(view, view.thinned)]
            a, b = (f"{value} ({low:.3f} to {high:.3f})" for value, (low, high) in zip((a, b), ends, strict=True))
        text.append(
            f"The fitted law gives N_opt ∝ C^a with a = {why[0]}{a} and D_opt ∝ C^b with b = {why[1]}{b} {why[2]}."
        )
    said = disagreements(approaches, top)
    applied = [a for a in approaches if a.applies]
    if len(applied) > 1:
        text += said or [f"The {len(applied)} approaches that apply agree within their intervals."]
    caption = (
        "The size and the number of tokens that give the least loss for a budget. "
        f"Bands are {source.level} intervals. Dots are the optima that an approach reads off the runs. The grey part "
        "lies beyond the compute of every measurement."
    )
    pictures = picture("allocation", "Best N and D at a budget", caption, plots_allocation.budgets(approaches, view))
    pictures += picture(
        "isoflop",
        "IsoFLOP profiles",
        "Runs of one budget, by size, with the cubic through them. The diamond is the best size; profiles without one "
        "are not bracketed by measured sizes and are not used.",
        plots_allocation.profiles(profiles(view.table)),
    )
    ways = [_approach_row(a, view, top) for a in approaches]
    head = ("approach", "#exponent a", f"#{source.level} interval", f"#best N at {flops(top)}", "#best D", "remarks")
    rows = []
    for factor, budget in zip(FACTORS, marked, strict=True):
        at = int(np.abs(budgets - budget).argmin())
        N, low, high = law.N[at], law.low[at], law.high[at]
        D, D_low, D_high = (float(view.compute.tokens(n, budgets[at])) for n in (N, high, low))
        cells = [f"{count(N)} ({count(low)} to {count(high)})", f"{count(D)} ({count(D_low)} to {count(D_high)})"]
        rows.append([flops(budgets[at]), f"{factor:.0f}x", *cells, f"{D / N:.3g}"])
    grids = [Grid(head, ways)]
    budget_head = ("#budget C (FLOPs)", "#of the largest", "#best N", "#best D", "#tokens per parameter")
    grids.append(Grid(budget_head, rows, "By approach 3."))
    return Section("allocation", "Compute-optimal allocation", text, pictures, grids)


def _traces(source: ReportSource) -> list[Trace]:
    """Training curves against compute, of the runs that are fitted."""
    if source.runs_dir is None or source.view.compute.definition == "6nd":
        return []
    sizes = dict(zip(source.view.table.run, source.view.table.columns["N"].tolist(), strict=True))
    found = [c for c in read_curves(source.runs_dir) if c.complete and c.N and c.name in sizes]
    traces = [Trace(c.name, sizes[c.name], *binned(c.flops, c.loss)) for c in found]
    return [t for t in traces if len(t.C) > 1]


def _approach_row(approach: Approach, view: FittedLaw, top: float) -> list[str]:
    if not approach.applies:
        return [approach.title, "–", "–", "–", "–", f"does not apply: {approach.reason}"]
    at = int(np.abs(np.log(approach.budgets / top)).argmin())
    N = approach.N[at]
    low, high = approach.a_interval
    cells = [f"{approach.a:.3f}", f"{low:.3f} to {high:.3f}", count(N), count(float(view.compute.tokens(N, top)))]
    return [approach.title, *cells, "; ".join(approach.notes)]


def _fan(source: ReportSource) -> Section | None:
    if not source.view.is_surface:
        return None
    rows = [
        [f"{factor:.0f}x", flops(C), f"{loss:.4f}", f"{low:.4f} to {high:.4f}", f"{high - low:.4f}"]
        for factor, C, loss, low, high in plots_law.extrapolated(source.view)
    ]
    caption = (
        "The least loss at a budget, carried on to a thousand times the largest compute measured (grey). "
        "The band is the uncertainty of the coefficients. It assumes that the law still holds out there: "
        "nothing measured here can show that."
    )
    head = ("compute", "#C (FLOPs)", "#loss", f"#{source.level} interval", "#width")
    drawn = plots_law.fan(source.view, source.scales["N"])
    pictures = picture("extrapolation", "Beyond the data", caption, drawn)
    grid = Grid(head, rows, f"Losses in {source.view.loss_unit}.")
    return Section("extrapolation", "Extrapolation", [], pictures, [grid])


def _curves(source: ReportSource) -> Section | None:
    if source.runs_dir is None:
        return None
    found = read_curves(source.runs_dir)
    sizes = [c.N for c in found if c.N] or [1.0]
    drawn = plots_law.curves(found, Scale("N", np.concatenate([source.scales["N"].values, sizes])))
    caption = (
        "Training loss of every run, averaged over the logged steps in bins of equal ratio; the dot is its last "
        "validation loss. Dotted runs have not finished and are not fitted. Curves of one size should lie on each "
        "other until their learning rates part."
    )
    pictures = picture("curves", "Loss curves", caption, drawn)
    return Section("curves", "Training runs", [], pictures) if pictures else None


def _certificate(source: ReportSource) -> Section:
    law = source.law
    report, loss = law.checks.certificate, law.fit.loss
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
    delta = f", δ = {loss.delta:g}" if loss.delta is not None and np.isfinite(loss.delta) else ""
    rows = [["loss that is minimised", f"{loss.name}{delta}"]]
    rows += [[label, _fact(getattr(report, key))] for key, label in names.items()]
    rows += [[f"version of {k}", v] for k, v in (report.versions or {}).items()]
    rows += [["table", law.data.source or "–"], ["SHA-256 of the table", law.data.table_sha256]]
    rows += [["N counts", law.data.n_definition], ["compute", source.view.compute.words]]
    text = [
        "The optimum was searched from many starting points. It can be believed when most of them agree, the gradient "
        "is close to zero and no coefficient is at a bound. A condition number above about 1e6 says that some "
        "coefficients can hardly be told apart."
    ]
    return Section("certificate", "Certificate of the fit", text, [], [Grid(("", ""), rows)])


def _fact(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(symbol, value)) or "none"
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _excluded(source: ReportSource) -> Section:
    rows = [[str(e.row), e.reason] for e in source.law.data.excluded]
    beside = len(source.view.table) - len(source.law.data.rows) if source.law.data.rows else 0
    text = [] if rows or beside else ["Nothing: every row of the table was used."]
    if beside:
        law = source.view.declared.name
        text.append(f"{pluralise(beside, 'row')} off the lower envelope of the table, which alone {law} describes.")
    return Section("excluded", "What was left out", text, grids=[Grid(("row or run", "why"), rows)] if rows else [])


def _runs(source: ReportSource) -> Section:
    view, table = source.view, source.view.table
    columns, response = table.columns, view.declared.response
    fitted = view.declared.evaluate(source.law.fit.params, columns)
    order = np.lexsort((columns["D"], columns["N"]))[:MOST_ROWS]
    rows = [
        [
            *(table.run[i], count(N), count(D), flops(C), f"{D / N:.3g}"),
            *(f"{measured:.4f}", f"{fitted[i]:.4f}", percent(measured / fitted[i] - 1)),
        ]
        for i in order
        for N, D, C, measured in [[columns[k][i] for k in ("N", "D", "C", response)]]
    ]
    cut = f" The first {MOST_ROWS} of {len(table)} rows." if len(table) > MOST_ROWS else ""
    head = ("run", "#N", "#D", "#C (FLOPs)", "#tokens per parameter", f"#{response}", "#fitted", "#residual")
    folded = f"All {len(table)} rows" if len(table) > 40 else ""
    grid = Grid(head, rows, f"Measured and fitted: {view.unit}.{cut}", folded)
    return Section("runs", "Every measurement", grids=[grid])


SECTIONS: tuple[Callable[[ReportSource], Section | None], ...] = (
    _law_section,
    sections_checks.holdout,
    sections_checks.backtest,
    _coefficients,
    sections_checks.profile_E,
    sections_checks.baselines,
    _residuals,
    sections_checks.sensitivity,
    sections_checks.averaged,
    _allocation,
    _fan,
    sections_checks.forecasts,
    _curves,
    sections_checks.whole_curves,
    _certificate,
    _excluded,
    _runs,
)
