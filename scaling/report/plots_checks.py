"""Pictures of how far to believe a law: held-out predictions, residuals, profile of E, backtests, sensitivity."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from configs.formatting import count, flops, symbol
from scaling.forecast.fitted_law import FittedLaw
from scaling.forecast.law_file import LawFile
from scaling.forecast.law_sections import BacktestWindow, HeldOutPrediction, ProfileSummary, ScoredForecast, Sensitivity
from scaling.laws import Array
from scaling.report import plot_style
from scaling.report.plot_style import HELD_OUT, INK, LABELS, LAW, MUTED, Scale, figure, log_axis, span

LISTED = 16  # held-out rows that are listed one by one; more are drawn as a cloud


def holdout(
    rows: Sequence[HeldOutPrediction | ScoredForecast], N: Array, D: Array, level: float, unit: str = LABELS["loss"]
) -> Figure:
    """Held-out measurements (rows,) against their predictions, and the relative errors with their intervals."""
    measured, predicted, low, high = np.array([(r.loss, r.predicted, r.low, r.high) for r in rows]).T
    error, below, above = (100 * (v / measured - 1) for v in (predicted, low, high))
    covered = (below <= 0) & (above >= 0)
    place = np.lexsort((D, N)).argsort()
    several, listed = len(rows) > 1, len(rows) <= LISTED
    height = (max(3.4, 1.6 + 0.27 * len(rows)) if listed else 4.4) if several else 1.5
    with figure(height, 1, 2 if several else 1) as (drawn, axes):
        for mask, shape, colour in ((covered, "o", HELD_OUT), (~covered, "s", MUTED)):
            style = dict[str, Any](fmt=shape, ms=5, color=colour, mec="white", mew=0.5, lw=1.2, capsize=2)
            if several:
                reach = np.clip([predicted - low, high - predicted], 0, None)[:, mask]
                axes[0].errorbar(measured[mask], predicted[mask], reach, **style)
            x, y, bar = (error, place, "xerr") if listed else (measured, error, "yerr")
            reach = np.clip([error - below, above - error], 0, None)[:, mask]
            axes[-1].errorbar(x[mask], y[mask], **{bar: reach}, **style)
        if several:  # the line on which both are equal
            ends = span(np.concatenate([measured, low, high]), 0.05)
            axes[0].plot(ends, ends, color=INK, lw=1, zorder=1)
            axes[0].set(xlim=ends, ylim=ends, box_aspect=1)
            log_axis(axes[0].xaxis, "loss", f"measured {unit}")
            log_axis(axes[0].yaxis, "loss", f"predicted {unit.split(' (')[0]}, {100 * level:g} % interval")
        plot_style.error_axis(axes[-1].xaxis if listed else axes[-1].yaxis)
        if listed:
            axes[-1].set_yticks(place, labels=[f"N {count(n)}, D {count(d)}" for n, d in zip(N, D, strict=True)])
            axes[-1].set_ylim(-0.6, len(rows) - 0.4)
        else:
            axes[-1].set_xlim(*span(measured, 0.05))
            log_axis(axes[-1].xaxis, "loss", f"measured {unit}")
    return drawn


def residuals(view: FittedLaw, scale: Scale) -> Figure | None:
    """Residuals of the fit against N and against D."""
    values = np.array(view.law.fit.residuals)
    rows = np.isin(view.table.rows, view.law.data.rows)
    if rows.sum() != len(values):
        return None
    logarithmic = view.law.fit.loss.scale == "log"
    values = 100 * np.expm1(values) if logarithmic else values
    columns = {k: v[rows] for k, v in view.table.columns.items()}
    held = np.isin(view.table.rows[rows], [r.row for r in view.law.checks.holdout])
    sigma = view.law.fit.residual_sigma
    with figure(3.9, 1, 2, sharey=True) as (drawn, axes):
        for axis, name in zip(axes, ("N", "D"), strict=True):
            axis.axhline(0, color=INK, lw=1)
            if sigma:
                width = 100 * sigma if logarithmic else sigma
                axis.axhspan(-width, width, color=MUTED, alpha=0.1, lw=0)
            axis.scatter(columns[name], values, s=20, c=scale(columns["N"]), ec="white", lw=0.5, zorder=3)
            if held.any():
                axis.scatter(columns[name][held], values[held], s=60, fc="none", ec=HELD_OUT, lw=1.2, zorder=4)
            axis.set_xlim(*span(columns[name]))
            log_axis(axis.xaxis, name)
            if logarithmic:
                axis.yaxis.set_major_formatter(plot_style.signed_percent)
        axes[0].set_ylabel("measured − fitted" + (", relative" if logarithmic else " (nats per token)"))
        scale.key(drawn, axes)
    return drawn


def profile(law: LawFile, found: ProfileSummary) -> Figure:
    """Objective against E, all else refitted: how well the data fix the irreducible loss."""
    E, objective = np.array(found.E), np.array(found.objective)
    least = law.checks.certificate.objective
    with figure(3.3) as (drawn, (axis,)):
        low, high = found.interval
        inside = (low if low is not None else E.min(), high if high is not None else E.max())
        axis.axvspan(*inside, color=LAW, alpha=0.12, lw=0, label=f"{100 * found.level:g} % interval by the profile")
        axis.plot(E, objective / least, color=LAW, lw=1.8)
        axis.axhline(found.threshold / least, color=MUTED, ls="--", lw=1.2, label="threshold of the interval")
        axis.plot(law.fit.params["E"], 1.0, "D", ms=7, color=HELD_OUT, mec="white", label="the fit")
        top = 1 + 3 * max(found.threshold / least - 1, 1e-3)
        axis.set_ylim(1 - 0.06 * (top - 1), top)
        shown = E[objective / least <= top]
        axis.set_xlim(*((shown.min(), shown.max()) if len(shown) > 1 else (E.min(), E.max())))
        axis.set(xlabel="E (nats per token), the other coefficients refitted", ylabel="objective / its minimum")
        drawn.legend(loc="outside upper left", ncols=3)
    return drawn


def ladder(windows: list[BacktestWindow], view: FittedLaw) -> Figure:
    """Errors of predictions against how far they reach, by the compute that each fit was allowed to see."""
    measured = dict(zip(view.table.rows.tolist(), view.table.columns["C"].tolist(), strict=True))
    colours = matplotlib.colormaps["cividis"](np.linspace(0, 0.85, len(windows)))
    with figure(4.0) as (drawn, (axis,)):
        plot_style.error_axis(axis.yaxis)
        reaches = []
        for window, colour in zip(windows, colours, strict=True):
            limit = window.largest_compute
            C = [measured.get(r.row, float(view.compute.flops(r.N, r.D))) for r in window.scored]
            x, y = np.array(C) / limit, np.array([100 * (r.predicted / r.loss - 1) for r in window.scored])
            covered = np.array([r.low <= r.loss <= r.high for r in window.scored])
            label = f"up to {flops(limit)} FLOPs, {window.rows} rows"
            axis.scatter(x[covered], y[covered], s=22, color=colour, lw=0, label=label)
            axis.scatter(x[~covered], y[~covered], s=22, fc="white", ec=[colour], lw=1.3)
            reaches.append(x)
        axis.set_xlim(*span(np.concatenate(reaches), 0.05))
        log_axis(axis.xaxis, "C", "compute of the predicted run / largest compute in the fit")
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
        drawn.legend(loc="outside right upper", title="fitted", handletextpad=0.2, alignment="left")
    return drawn


def tornado(law: LawFile, found: Sensitivity) -> Figure:
    """How far every debatable choice alone, and all of them together, move the coefficients and the prediction."""
    rows = {**found.by_axis, "all together": found.spread}
    names = [n for n in ("E", "alpha", "beta", "gamma", "prediction") if _moved(found.spread.get(n, []))]
    with figure(0.36 * len(rows) + 1.3, 1, len(names), sharey=True) as (drawn, axes):
        for axis, name in zip(axes, names, strict=True):
            for y, (row, spread) in enumerate(rows.items()):
                if _moved(ends := spread.get(name, [])):
                    colour = INK if row == "all together" else LAW
                    axis.plot(ends[::2], [y, y], color=colour, lw=5, solid_capstyle="butt", alpha=0.75)
                    axis.plot(ends[1], y, "o", color=colour, ms=6, mec="white", mew=1.0)
            if name in law.fit.params:
                axis.axvline(law.fit.params[name], color=HELD_OUT, lw=1.2)
            axis.set_xlabel("predicted loss" if name == "prediction" else symbol(name))
            axis.xaxis.set_major_locator(MaxNLocator(4))
        axes[0].set_yticks(range(len(rows)), labels=list(rows))
        axes[0].invert_yaxis()
    return drawn


def _moved(ends: list[float]) -> bool:
    """Whether there are three finite numbers: the least, the median, the largest."""
    return len(ends) == 3 and bool(np.isfinite(ends).all())
