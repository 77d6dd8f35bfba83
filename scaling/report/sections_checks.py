"""The sections of a report that test a law: held-out rows, backtests, profile of E, sensitivity, forecasts, curves."""

from collections.abc import Mapping
from contextlib import suppress

import numpy as np

from configs.formatting import count, flops, formula, nats, percent, quantity, significant, symbol
from scaling.errors import CurveError
from scaling.forecast.law_sections import HeldOutPrediction, ScoredForecast
from scaling.report import plots_checks
from scaling.report.page import Grid, ReportSource, Section, picture, pluralise
from scaling.report.plots_multi_power import predictions
from scaling.studies.multi_power import UNITS, LossCurve, fit_curves, make_curve, score
from scaling.tables.curves import read_curves, smoothed

SHOWN_SETTINGS = 400  # rows of the sensitivity table
SMOOTHED = 50  # parts of a run over which its training loss is averaged for a law of whole curves
CURVE_POINTS = 60  # logged steps that a law of whole curves needs, over the curves it is fitted to


def holdout(source: ReportSource) -> Section | None:
    """Rows that the fit did not see."""
    checks, view = source.law.checks, source.view
    rows = checks.holdout
    if not rows:
        return None
    kept = f" to the other {checks.holdout_fit.rows} rows" if checks.holdout_fit else ""
    rule = f" (rule: {checks.holdout_rule})" if checks.holdout_rule != "none" else ""
    text = [
        f"These measurements{rule} were left out, the law was fitted{kept}, and only then were they compared with its "
        "predictions. The coefficients on this page are of a fit to all rows."
    ]
    caption = (
        "Left: on the line, prediction equals measurement. Right: the relative error of each prediction; a bar that "
        f"crosses zero is a {source.level} interval that contains the measurement (round), one that does not is drawn "
        "grey and square."
    )
    head = ("run", "#N", "#D", "#measured", "#predicted", f"#{source.level} interval", "#error", "inside")
    grid = Grid(
        head,
        [[r.run, count(r.N), count(r.D), *_prediction_cells(r)] for r in rows],
        f"Measured and predicted: {view.unit}.",
        f"All {len(rows)} held-out measurements" if len(rows) > 30 else "",
    )
    N, D = np.array([(r.N, r.D) for r in rows]).T
    pictures = picture(
        "holdout", "Predicted and measured", caption, plots_checks.holdout(rows, N, D, view.level, view.unit)
    )
    return Section("holdout", "Held-out prediction", text, pictures, [grid])


def _prediction_cells(row: HeldOutPrediction | ScoredForecast) -> list[str]:
    """Measured, predicted, interval, error, and whether the interval held."""
    interval = f"{row.low:.4f} to {row.high:.4f}"
    return [f"{row.loss:.4f}", f"{row.predicted:.4f}", interval, percent(row.error), "yes" if row.covered else "no"]


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
            *(str(w.rows), str(w.held_out), f"{w.reach:.3g}x"),
            *(f"{100 * w.rms_error:.2f} %", percent(w.bias), f"{w.covered} of {w.held_out}"),
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
    low, high = (significant(v) if v is not None else "no limit" for v in found.interval)
    level = f"{100 * found.level:g} %"
    text = [f"Refitting everything else at each value of E gives a {level} interval from {low} to {high}."]
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
        text.append(f"The prediction is that of the loss at {_place(found.point)}.")
    text += [f"{axis} stays as it is: {why}." for axis, why in found.fixed_axes.items()]
    if found.failed:
        text.append(f"{pluralise(len(found.failed), 'combination')} could not be fitted.")
    caption = (
        "Each bar runs from the least to the largest value when only that choice changes, the dot is the "
        "median, and the orange line the fit reported here. The bottom bar changes all choices together. A conclusion "
        "that a bar crosses depends on the choice."
    )
    head = ("", "#least", "#median", "#largest")
    rows = [[formula(symbol(k)), *map(significant, ends)] for k, ends in found.spread.items()]
    pictures = picture("sensitivity", "What each choice moves", caption, plots_checks.tornado(source.law, found))
    first, shown = found.settings[0], found.settings[:SHOWN_SETTINGS]
    settings = [[*s.choices.values(), str(s.rows), *map(significant, s.params.values())] for s in shown]
    columns = (*first.choices, "#rows", *(f"#{symbol(k)}" for k in first.params))
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
    text, grids, pictures = [], [], []
    if scored := found.scored:
        expected = found.expected_coverage
        share = f", where {100 * expected:.0f} % were to be expected" if expected is not None else ""
        text.append(
            f"Of {pluralise(len(scored), 'forecast')} registered before the run, {found.covered} held the "
            f"measurement in the interval{share}; the root mean square error is {100 * found.rms_error:.2f} %."
        )
        head = ("registered", "for", "#measured", "#predicted", "#interval", "#error", "inside")
        rows = [[f.date[:10], _place(f.inputs), *_prediction_cells(f)] for f in scored]
        grids = [Grid(head, rows, "Losses in nats per token.")]
        if all({"N", "D"} <= f.inputs.keys() for f in scored):
            N, D = np.array([(f.inputs["N"], f.inputs["D"]) for f in scored]).T
            caption = "Left: on the line, forecast equals measurement. Right: a bar that crosses zero kept its promise."
            drawn = plots_checks.holdout(scored, N, D, source.view.level)
            pictures = picture("forecasts", "Forecasts and what came of them", caption, drawn)
    if found.pending:
        text.append(f"{pluralise(found.pending, 'forecast')} still {'waits' if found.pending == 1 else 'wait'}.")
    if found.changed:
        text.append(f"Changed after they were registered, and not counted: {', '.join(found.changed)}.")
    return Section("forecasts", "Forecasts", text, pictures, grids)


def _place(inputs: Mapping[str, float]) -> str:
    return ", ".join(f"{k} = {quantity(k, v)}" for k, v in inputs.items())


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
    drawn = predictions(law, [unseen, *fitted])
    pictures = picture("curve_law", "Curves under other schedules", caption, drawn)
    return Section("curve-law", "Whole loss curves", text, pictures, [Grid(("coefficient", "#value", "meaning"), rows)])


def _curves_of_one_size(source: ReportSource) -> tuple[float, list[LossCurve], LossCurve] | None:
    """The largest size with runs of different lengths: N, its shorter runs, and its longest one."""
    if source.runs_dir is None:
        return None
    sizes: dict[float, list[LossCurve]] = {}
    for trace in read_curves(source.runs_dir):
        if trace.complete and trace.N:
            kept = np.isfinite(trace.loss)
            loss = smoothed(trace.loss[kept], max(1, int(kept.sum()) // SMOOTHED))
            with suppress(CurveError):
                curve = make_curve(trace.name, trace.step[kept], trace.lr[kept], loss)
                sizes.setdefault(trace.N, []).append(curve)
    for N in sorted(sizes, reverse=True):
        *fitted, unseen = sorted(sizes[N], key=lambda c: c.step[-1])
        points = sum(len(c.step) - c.first for c in fitted)
        if points >= CURVE_POINTS and unseen.step[-1] > 1.2 * fitted[-1].step[-1]:
            return N, fitted, unseen
    return None


def baselines(source: ReportSource) -> Section | None:
    """The baselines in a table, with how many runs have a lower loss."""
    found, losses = source.view.baselines, source.view.table.columns["loss"]
    if not found:
        return None
    runs = pluralise(len(losses), "run")
    rows = [[name, nats(loss), f"{(losses < loss).sum()} of {runs}"] for name, loss in found.items()]
    text = [
        "Other models on the tokens that the runs were evaluated on. The n-gram models are interpolated Kneser-Ney "
        "with modified discounts (Chen & Goodman 1999), counted on all training tokens of the corpus; a run that has "
        "read fewer competes with less."
    ]
    head = ("model", "#loss", "#runs with a lower loss")
    return Section("baselines", "Baselines", text, [], [Grid(head, rows, f"Losses in {source.view.loss_unit}.")])
