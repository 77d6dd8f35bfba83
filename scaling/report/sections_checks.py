"""The sections of a report that test a law: backtests, profile of E, sensitivity, other laws, forecasts, curves."""

import numpy as np

from configs.formatting import count, flops, formula, nats, percent, quantity, significant, symbol
from scaling.errors import CurveError
from scaling.forecast.law_sections import HeldOutPrediction, ScoredForecast
from scaling.report import plots_checks
from scaling.report import plots_multi_power as plots_curves
from scaling.report.page import Grid, ReportSource, Section, picture, pluralise
from scaling.studies.multi_power import UNITS, LossCurve, fit_curves, make_curve, score
from scaling.tables.curves import read_curves, smoothed

SHOWN_SETTINGS = 400  # rows of the sensitivity table
SMOOTHED = 50  # parts of a run over which its training loss is averaged for a law of whole curves
CURVE_POINTS = 60  # logged steps that a law of whole curves needs, over the curves it is fitted to


def backtest(source: ReportSource) -> Section | None:
    """Expanding windows: small runs predict larger ones."""
    found = source.law.checks.backtest
    windows = [w for w in found.windows if w.scored] if found else []
    if found is None or not windows:
        return None
    total, covered = found.predictions, found.covered
    text = [
        f"The law was fitted to the runs below a compute limit and predicted those above it, with {len(windows)} "
        f"limits: {pluralise(total, 'prediction')}, with a root mean square error of "
        f"{100 * found.rms_error:.2f} %, of which {covered} ({100 * covered / total:.0f} %) lie inside their "
        f"{source.level} interval."
    ]
    caption = (
        "Each dot is one run, predicted by a fit that saw only runs of less compute; filled where the measurement lies "
        "inside the interval, hollow where it does not. Errors that grow or lean to one side as the reach grows say "
        "how far this law can be trusted."
    )
    rows = [
        [
            flops(w.largest_compute),
            str(w.rows),
            str(w.held_out),
            f"{w.reach:.3g}x",
            f"{100 * w.rms_error:.2f} %",
            percent(w.bias),
            f"{w.covered} of {w.held_out}",
        ]
        for w in windows
    ]
    head = ("#fitted up to C (FLOPs)", "#rows", "#predicted", "#reach", "#rms error", "#mean error", "#inside")
    pictures = picture("backtest", "Backtest ladder", caption, plots_checks.ladder(windows, source.view))
    return Section("backtest", "Backtests", text, pictures, [Grid(head, rows)])


def profile_E(source: ReportSource) -> Section | None:
    """How well the data fix E."""
    found = source.law.uncertainty.profile_E
    if found is None:
        return None
    low, high = found.interval
    ends = [significant(v) if v is not None else "no limit" for v in (low, high)]
    level = f"{100 * found.level:g} %"
    text = [f"Refitting everything else at each value of E gives a {level} interval from {ends[0]} to {ends[1]}."]
    caption = (
        "The deeper the valley, the better the data fix the loss that remains. Where the curve stays below the "
        "threshold down to zero, the data cannot tell whether there is an irreducible loss at all, and any "
        "extrapolation rests on the form of the law."
    )
    pictures = picture("profile_E", "Objective against E", caption, plots_checks.profile(source.law, found))
    return Section("profile", "Profile of E", text, pictures)


def sensitivity(source: ReportSource) -> Section | None:
    """What the debatable choices do."""
    found = source.law.checks.sensitivity
    if found is None or not found.settings:
        return None
    text = [
        f"The law was refitted under {pluralise(len(found.settings), 'combination')} of choices that analysts "
        "differ in."
    ]
    if found.point:
        at = ", ".join(f"{k} = {quantity(k, v)}" for k, v in found.point.items())
        text.append(f"The prediction is that of the loss at {at}.")
    text += [f"{axis} stays as it is: {why}." for axis, why in found.fixed_axes.items()]
    failed = len(found.failed)
    if failed:
        text.append(f"{pluralise(failed, 'combination')} could not be fitted.")
    caption = (
        "Each bar runs from the least to the largest value when only that choice changes, the dot is the "
        "median, and the orange line the fit reported here. The bottom bar changes all choices together. A conclusion "
        "that a bar crosses depends on the choice."
    )
    head = ("", "#least", "#median", "#largest")
    spread = found.spread.items()
    rows = [[formula(symbol(k)), *(significant(v) for v in ends)] for k, ends in spread]
    pictures = picture("sensitivity", "What each choice moves", caption, plots_checks.tornado(source.law, found))
    every = list(found.settings[0].choices)
    names = list(found.settings[0].params)
    settings = [
        [*(s.choices[k] for k in every), str(s.rows), *(significant(s.params[k]) for k in names)]
        for s in found.settings[:SHOWN_SETTINGS]
    ]
    columns = (*every, "#rows", *(f"#{symbol(k)}" for k in names))
    grids = [Grid(head, rows), Grid(columns, settings, folded=f"All {len(found.settings)} refits")]
    return Section("sensitivity", "Sensitivity", text, pictures, grids)


def averaged(source: ReportSource) -> Section | None:
    """Other laws in the same variables, and how they did."""
    found = source.law.others.averaged
    if found is None or not found.members:
        return None
    text = [
        "Other laws in the same variables, fitted to the same rows. Each is weighted by how well it predicted larger "
        "runs from smaller ones; predict.py --average mixes them, so that its interval includes their disagreement."
    ]
    rows = [
        [
            m.label,
            f"{m.weight:.2f}",
            f"{100 * m.error:.2f} %" if m.error and np.isfinite(m.error) else "–",
            formula(", ".join(f"{symbol(k)} = {significant(v)}" for k, v in m.params.items())),
        ]
        for m in found.members
    ]
    rows += [[label, "–", "–", f"not fitted: {why}"] for label, why in found.failed.items()]
    return Section("laws", "Other laws", text, [], [Grid(("law", "#weight", "#backtest error", "coefficients"), rows)])


def forecasts(source: ReportSource) -> Section | None:
    """Forecasts registered before their runs."""
    found = source.law.others.forecasts
    if not (found.scored or found.pending or found.changed):
        return None
    text = []
    scored = found.scored
    if scored:
        expected = found.expected_coverage
        share = f", where {100 * expected:.0f} % were to be expected" if expected is not None else ""
        text.append(
            f"Of {pluralise(len(scored), 'forecast')} registered before the run, {found.covered} held the "
            f"measurement in the interval{share}; the root mean square error is {100 * found.rms_error:.2f} %."
        )
    if found.pending:
        text.append(f"{pluralise(found.pending, 'forecast')} still {'waits' if found.pending == 1 else 'wait'}.")
    if found.changed:
        text.append(f"Changed after they were registered, and not counted: {', '.join(found.changed)}.")
    grids, pictures = [], []
    if scored:
        grids.append(
            Grid(
                ("registered", "for", "#measured", "#predicted", "#interval", "#error", "inside"),
                [_forecast_row(f) for f in scored],
                "Losses in nats per token.",
            )
        )
        drawn = [_as_held_out(f) for f in scored if {"N", "D"} <= f.inputs.keys()]
        if len(drawn) == len(scored):
            caption = "Left: on the line, forecast equals measurement. Right: a bar that crosses zero kept its promise."
            figure = plots_checks.holdout(drawn, source.view.level)
            pictures = picture("forecasts", "Forecasts and what came of them", caption, figure)
    return Section("forecasts", "Forecasts", text, pictures, grids)


def _as_held_out(forecast: ScoredForecast) -> HeldOutPrediction:
    """A forecast as a prediction of one row, which has no number in the table."""
    shared = {k: getattr(forecast, k) for k in ("loss", "predicted", "low", "high", "error", "covered")}
    return HeldOutPrediction(row=0, run=forecast.file, N=forecast.inputs["N"], D=forecast.inputs["D"], **shared)


def _forecast_row(row: ScoredForecast) -> list[str]:
    return [
        row.date[:10],
        ", ".join(f"{k} = {quantity(k, v)}" for k, v in row.inputs.items()),
        f"{row.loss:.4f}",
        f"{row.predicted:.4f}",
        f"{row.low:.4f} to {row.high:.4f}",
        percent(row.error),
        "yes" if row.covered else "no",
    ]


def whole_curves(source: ReportSource) -> Section | None:
    """The multi-power law: the longest run of one size, predicted from the shorter ones of that size."""
    chosen = _curves_of_one_size(source)
    if chosen is None:
        return None
    size, fitted, unseen = chosen
    try:
        law = fit_curves(fitted)
    except CurveError:
        return None
    result = score(law, unseen)
    text = [
        f"A law of the whole loss curve, which knows the learning rate (multi-power law, Luo et al. 2025, "
        f"arXiv:2503.12811, equations 2 to 4), was fitted to {pluralise(len(fitted), 'run')} of N = {count(size)} and "
        f"predicted the longest, {unseen.name}: R² = {result.r2:.4f}, mean error {result.mae:.4f} nats per token, "
        f"predicted minus measured {result.last:+.4f} at its end.".replace("-0.", "−0.")
    ]
    if law.boundary:
        names = ", ".join(symbol(k) for k in law.boundary)
        text.append(f"At the limit of their range, so not determined by these curves: {names}.")
    caption = (
        f"Dots are training losses, averaged over a {SMOOTHED}th of the run because single batches are noisy. The blue "
        "curves were fitted, the orange one was predicted from its learning rates alone, which the grey shapes show."
    )
    rows = [[formula(symbol(k)), significant(v), UNITS[k]] for k, v in law.params.items()]
    pictures = picture(
        "curve_law", "Curves under other schedules", caption, plots_curves.predictions(law, [unseen, *fitted])
    )
    return Section("curve-law", "Whole loss curves", text, pictures, [Grid(("coefficient", "#value", "meaning"), rows)])


def _curves_of_one_size(source: ReportSource) -> tuple[float, list[LossCurve], LossCurve] | None:
    """The largest size with runs of different lengths: N, its shorter runs, and its longest one."""
    if source.runs_dir is None:
        return None
    sizes: dict[float, list[LossCurve]] = {}
    for trace in read_curves(source.runs_dir):
        if trace.complete and trace.N:
            try:
                kept = np.isfinite(trace.loss)
                loss = smoothed(trace.loss[kept], max(1, int(kept.sum()) // SMOOTHED))
                curve = make_curve(trace.name, trace.step[kept], trace.lr[kept], loss)
                sizes.setdefault(trace.N, []).append(curve)
            except CurveError:
                continue
    best = None
    for N, curves in sizes.items():
        ordered = sorted(curves, key=lambda c: c.step[-1])
        fitted, unseen = ordered[:-1], ordered[-1]
        points = sum(len(c.step) - c.first for c in fitted)
        differs = fitted and unseen.step[-1] > 1.2 * fitted[-1].step[-1]
        if differs and points >= CURVE_POINTS and (best is None or best[0] < N):
            best = (N, fitted, unseen)
    return best


def baselines(source: ReportSource) -> Section | None:
    """The baselines in a table, with how many runs have a lower loss."""
    if not source.view.baselines:
        return None
    losses = source.view.table.columns["loss"]
    rows = [
        [name, nats(loss), f"{int((losses < loss).sum())} of {pluralise(len(losses), 'run')}"]
        for name, loss in source.view.baselines.items()
    ]
    text = [
        "Other models on the tokens that the runs were evaluated on. The n-gram models are interpolated Kneser-Ney "
        "with modified discounts (Chen & Goodman 1999), counted on all training tokens of the corpus; a run that has "
        "read fewer competes with less."
    ]
    head = ("model", "#loss", "#runs with a lower loss")
    return Section("baselines", "Baselines", text, [], [Grid(head, rows, f"Losses in {source.view.loss_unit}.")])
