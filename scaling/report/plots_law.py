"""Pictures of a law and of what it was fitted to: training curves, slices against N, D and C, extrapolation."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from configs.formatting import count, symbol
from scaling.forecast.fitted_law import FittedLaw
from scaling.laws import LAWS, Array
from scaling.report.plot_style import (
    HELD_OUT,
    INK,
    LABELS,
    LAW,
    MUTED,
    SECOND,
    Scale,
    draw_band,
    figure,
    log_axis,
    span,
)
from scaling.tables.curves import Curve, binned


def curves(found: list[Curve], scale: Scale) -> Figure | None:
    """Training loss of every run against tokens and, where it was logged, against compute."""
    panels = [k for k in ("tokens", "flops") if any(np.isfinite(getattr(c, k)).any() for c in found)]
    if not panels:
        return None
    with figure(4.3, 1, len(panels), sharey=True) as (drawn, axes):
        for axis, name in zip(axes, panels, strict=True):
            lines = [binned(getattr(curve, name), curve.loss) for curve in found]
            for curve, line in zip(found, lines, strict=True):
                colour, last = scale(curve.N) if curve.N else MUTED, np.flatnonzero(np.isfinite(curve.val_loss))[-1:]
                axis.plot(*line, color=colour, lw=1.1, ls="-" if curve.complete else ":", alpha=0.9)
                end = getattr(curve, name)[last], curve.val_loss[last]
                axis.plot(*end, "o", ms=4, color=colour, mec="white", mew=0.5)
            axis.set_ylim(*span(np.concatenate([loss for _, loss in lines])))
            log_axis(axis.yaxis, "loss")
            variable, label = ("D", "tokens seen") if name == "tokens" else ("C", "compute spent (FLOPs)")
            log_axis(axis.xaxis, variable, label)
        for axis in axes[1:]:
            axis.set_ylabel("")
        scale.key(drawn, axes)
    return drawn


# --- The law against its data -------------------------------------------------------------------------------------


def _points(axis: Axes, view: FittedLaw, x: str, scale: Scale) -> None:
    columns = view.table.columns
    axis.scatter(columns[x], columns["loss"], s=20, c=scale(columns[scale.variable]), ec="white", lw=0.5, zorder=3)


def _frame(axis: Axes, view: FittedLaw, x: str, losses: Sequence[Array], margin: float) -> None:
    """The axes of losses against a variable, with room for all ``losses``."""
    axis.set_ylim(*span(np.concatenate(losses), margin))
    log_axis(axis.yaxis, "loss", view.unit)
    log_axis(axis.xaxis, x)


def _companion(axis: Axes, view: FittedLaw, name: str) -> Array:
    """Kaplan's law in one variable, over the rows that it was fitted to; returns the losses drawn (may be none)."""
    fit = view.law.others.fits.get(name)
    if fit is None or fit.params is None or not (rows := np.isin(view.table.rows, fit.rows)).any():
        return np.empty(0)
    law = LAWS[name]
    variable = law.variables[0]
    measured, loss = view.table.columns[variable][rows], view.table.columns["loss"][rows]
    x = np.geomspace(measured.min(), measured.max(), 100)
    y = law.evaluate(fit.params, {variable: x})
    label = f"Kaplan L({variable}), α = {fit.params['alpha']:.3f}"
    axis.plot(x, y, "--", color=INK, lw=1.3, zorder=4, label=label)
    axis.scatter(measured, loss, s=52, fc="none", ec=INK, lw=0.8, zorder=4)
    return y


def _baselines(axis: Axes, view: FittedLaw) -> None:
    """A line for every other model whose loss lies between those of the runs."""
    low, high = axis.get_ylim()
    for name, loss in view.baselines.items():
        if low < loss < high:
            axis.axhline(loss, color=MUTED, lw=1, ls=":", zorder=1)
            where = axis.get_yaxis_transform()
            axis.text(0.99, loss, name, transform=where, fontsize=8, color=MUTED, ha="right", va="bottom")


def _main_single(axis: Axes, view: FittedLaw, variable: str) -> None:
    """The law itself where it has ``variable`` only."""
    x = np.geomspace(*span(view.table.columns[variable], 0.3), 150)
    draw_band(axis, x, view.band({variable: x}), 0.18, label=view.declared.formula)


def slices(view: FittedLaw, scales: Mapping[str, Scale]) -> Figure:
    """Loss against N at several D, and against D at several N."""
    with figure(4.9, 1, 2, sharey=True) as (drawn, axes):
        visible = [view.table.columns["loss"]]
        for axis, x, other in ((axes[0], "N", "D"), (axes[1], "D", "N")):
            _points(axis, view, x, scales[other])
            grid = np.geomspace(*span(view.table.columns[x], 0.12), 120)
            if view.has_slices:
                for value in scales[other].shown():
                    fixed = np.full_like(grid, value)
                    band = view.at(grid, fixed) if x == "N" else view.at(fixed, grid)
                    draw_band(axis, grid, band, 0.16, scales[other](value), lw=1.3)
            elif view.declared.variables == (x,):
                _main_single(axis, view, x)
            visible.append(_companion(axis, view, f"kaplan_{x.lower()}"))
            for value in scales[other].shown():
                axis.plot([], [], "-o", ms=4, color=scales[other](value), label=f"{other} = {count(value)}")
            axis.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3, columnspacing=1.2, handlelength=1.6)
        for axis, x in zip(axes, "ND", strict=True):
            _frame(axis, view, x, visible, 0.12)
            _baselines(axis, view)
        axes[1].set_ylabel("")
    return drawn


def compute(view: FittedLaw, scale: Scale) -> Figure:
    """Loss against compute: every size, the least loss at a budget, and Kaplan's law in C."""
    with figure(4.9) as (drawn, (axis,)):
        _points(axis, view, "C", scale)
        columns = view.table.columns
        if view.is_surface:
            for value in scale.values if scale.few else []:
                mine = np.isclose(columns["N"], value, rtol=1e-9)
                tokens = np.geomspace(*span(columns["D"][mine] if mine.any() else columns["D"], 0.3), 80)
                C = view.compute.flops(value, tokens)
                axis.plot(C, view.at(np.full_like(tokens, value), tokens).middle, color=scale(value), lw=1, alpha=0.75)
            C = np.geomspace(*span(columns["C"], 0.12), 60)
            draw_band(axis, C, view.best(C), lw=2.2, label="least loss at a budget, by the law")
        elif view.declared.variables == ("C",):
            _main_single(axis, view, "C")
        axis.set_xlim(*span(columns["C"], 0.1))
        _frame(axis, view, "C", [columns["loss"], _companion(axis, view, "kaplan_c")], 0.12)
        _baselines(axis, view)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(loc="upper right")
        scale.key(drawn, [axis])
    return drawn


def response(view: FittedLaw, scale: Scale) -> Figure:
    """What a law predicts from one variable that is neither N, D nor C: the score of a task from the loss."""
    (variable,) = view.declared.variables
    columns = view.table.columns
    with figure(4.2) as (drawn, (axis,)):
        measured, colours = columns[view.declared.response], scale(columns["N"])
        axis.scatter(columns[variable], measured, s=24, c=colours, ec="white", lw=0.5)
        x = np.linspace(0.95 * columns[variable].min(), 1.05 * columns[variable].max(), 200)
        draw_band(axis, x, view.band({variable: x}), lw=2)
        axis.set(xlabel=LABELS.get(variable, variable), ylabel=view.unit)
        scale.key(drawn, [axis])
    return drawn


# --- Beyond the data ----------------------------------------------------------------------------------------------


FACTORS = np.array([1.0, 10.0, 100.0, 1000.0])


def extrapolated(view: FittedLaw) -> list[tuple[float, float, float, float, float]]:
    """FACTORS times the largest compute: (factor, C in FLOPs, least loss there, and the interval's low and high)."""
    C = FACTORS * view.table.columns["C"].max()
    band = view.best(C)
    return list(zip(FACTORS, C, band.middle, band.low, band.high, strict=True))


def fan(view: FittedLaw, scale: Scale) -> Figure:
    """The least loss at a budget, from the data to a thousand times their largest compute."""
    measured, loss = view.table.columns["C"], view.table.columns["loss"]
    with figure(4.6) as (drawn, (axis,)):
        _points(axis, view, "C", scale)
        C = np.geomspace(measured.min(), measured.max() * FACTORS[-1] * 1.6, 90)
        band = view.best(C)
        shaded = f"{100 * view.level:g} % interval"
        draw_band(axis, C, band, shaded=shaded, lw=2, label="least loss at a budget, by the law")
        floor = view.law.fit.params.get("E")
        if floor:
            axis.axhline(floor, color=SECOND, lw=1.2, ls="--", label=f"E = {floor:.3f}")
        axis.axvspan(measured.max(), C[-1], color=MUTED, alpha=0.06, lw=0)
        for factor, at, least, low, high in extrapolated(view)[1:]:
            error = [[least - low], [high - least]]
            axis.errorbar(at, least, error, fmt="o", ms=5, color=HELD_OUT, capsize=3, lw=1.3)
            label, place = f"{factor:.0f}x\n{least:.3f}", (at, high)
            axis.annotate(label, place, xytext=(0, 6), textcoords="offset points", ha="center", fontsize=8.5)
        axis.set_xlim(measured.min() / 1.5, C[-1])
        _frame(axis, view, "C", [loss, band.low[band.low > 0], np.array([floor] if floor and floor > 0 else [])], 0.05)
        axis.legend(loc="upper right")
        scale.key(drawn, [axis])
    return drawn


def parameter_pairs(view: FittedLaw) -> Figure | None:
    """Bootstrap draws of the exponents against E: which combinations the data leave open."""
    names = [k for k in view.declared.parameters if k in ("alpha", "beta", "gamma")]
    if "E" not in view.declared.parameters or not names or not view.thinned:
        return None
    with figure(3.4, 1, len(names)) as (drawn, axes):
        for axis, name in zip(axes, names, strict=True):
            axis.scatter(view.thinned["E"], view.thinned[name], s=9, color=LAW, alpha=0.4, lw=0)
            axis.plot(view.law.fit.params["E"], view.law.fit.params[name], "D", color=HELD_OUT, ms=6, mec="white")
            axis.set(xlabel=f"E ({view.loss_unit})", ylabel=symbol(name))
    return drawn
