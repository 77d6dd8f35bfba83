"""Pictures of how far to believe a law: held-out predictions and residuals."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from .laws import Array
from .plots import HELD_OUT, INK, LABELS, MUTED, Scale, figure, log_axis, span
from .text import count
from .view import View

LISTED = 16  # held-out rows that are listed one by one; more are drawn as a cloud


def _signed(value: float, _: int) -> str:
    return f"{value:+.3g} %".replace("-", "−") if value else "0 %"


def holdout(rows: list[dict[str, Any]], level: float) -> Figure:
    """Held-out losses against their predictions, and the relative errors with their intervals."""
    measured = np.array([r["loss"] for r in rows])
    predicted, low, high = (np.array([r[k] for r in rows]) for k in ("predicted", "low", "high"))
    order = np.lexsort(([r["D"] for r in rows], [r["N"] for r in rows]))
    listed = len(rows) <= LISTED
    error, below, above = (100 * (v / measured - 1) for v in (predicted, low, high))
    covered = (below <= 0) & (above >= 0)
    marks: list[tuple[Array, dict[str, Any]]] = [
        (mask, {"fmt": shape, "ms": 5, "color": colour, "mec": "white", "mew": 0.5, "lw": 1.2, "capsize": 2})
        for mask, shape, colour in ((covered, "o", HELD_OUT), (~covered, "s", MUTED))
    ]
    height = (max(3.4, 1.6 + 0.27 * len(rows)) if listed else 4.4) if len(rows) > 1 else 1.5
    with figure(height, 1, 2 if len(rows) > 1 else 1) as (drawn, axes):
        if len(rows) > 1:
            _on_the_line(axes[0], measured, predicted, low, high, marks)
            axes[0].set_ylabel(f"predicted loss, {100 * level:g} % interval")
        right = axes[-1]
        place = np.empty(len(rows))
        place[order] = np.arange(len(rows))
        for mask, style in marks:
            reach = np.clip([(error - below)[mask], (above - error)[mask]], 0, None)
            if listed:
                right.errorbar(error[mask], place[mask], xerr=reach, **style)
            else:
                right.errorbar(measured[mask], error[mask], yerr=reach, **style)
        if listed:
            right.axvline(0, color=INK, lw=1)
            right.set_yticks(place, labels=[f"N {count(r['N'])}, D {count(r['D'])}" for r in rows])
            right.set_ylim(-0.6, len(rows) - 0.4)
            right.xaxis.set_major_formatter(FuncFormatter(_signed))
            right.set_xlabel("error of the prediction")
        else:
            right.axhline(0, color=INK, lw=1)
            right.yaxis.set_major_formatter(FuncFormatter(_signed))
            right.set_ylabel("error of the prediction")
            right.set_xlim(*span(measured, 0.05))
            log_axis(right.xaxis, "loss")
            right.set_xlabel("measured loss (nats per token)")
    return drawn


def _on_the_line(
    axis: Axes, measured: Array, predicted: Array, low: Array, high: Array, marks: list[tuple[Array, dict[str, Any]]]
) -> None:
    """Predictions with their intervals against measurements, and the line on which both are equal."""
    for mask, style in marks:
        reach = np.clip([(predicted - low)[mask], (high - predicted)[mask]], 0, None)
        axis.errorbar(measured[mask], predicted[mask], reach, **style)
    ends = span(np.concatenate([measured, low, high]), 0.05)
    axis.plot(ends, ends, color=INK, lw=1, zorder=1)
    axis.set(xlim=ends, ylim=ends)
    log_axis(axis.xaxis, "loss")
    log_axis(axis.yaxis, "loss")
    axis.set_xlabel("measured loss (nats per token)")
    axis.set_box_aspect(1)


def residuals(view: View, scale: Scale) -> Figure | None:
    """Residuals of the fit against N and against D."""
    values = np.array(view.law.get("residuals", []), dtype=float)
    rows = np.isin(view.table.rows, view.law.get("rows", []))
    if len(values) == 0 or rows.sum() != len(values):
        return None
    logarithmic = view.law.get("loss", {}).get("scale", "log") == "log"
    values = 100 * np.expm1(values) if logarithmic else values
    columns = {k: v[rows] for k, v in view.table.columns.items()}
    held = np.isin(view.table.rows[rows], [r.get("row") for r in view.law.get("holdout", [])])
    sigma = view.law.get("residual_sigma")
    with figure(3.9, 1, 2, sharey=True) as (drawn, axes):
        for axis, name in zip(axes, ("N", "D"), strict=True):
            axis.axhline(0, color=INK, lw=1)
            if sigma:
                width = 100 * sigma if logarithmic else sigma
                axis.axhspan(-width, width, color=MUTED, alpha=0.1, lw=0)
            axis.scatter(columns[name], values, s=20, c=scale(columns["N"]), ec="white", lw=0.5, zorder=3)
            if held.any():
                axis.scatter(columns[name][held], values[held], s=60, fc="none", ec=HELD_OUT, lw=1.2, zorder=4)
            axis.set_xlim(*span(columns[name], 0.06))
            log_axis(axis.xaxis, name)
            axis.set_xlabel(LABELS[name])
            if logarithmic:
                axis.yaxis.set_major_formatter(FuncFormatter(_signed))
        axes[0].set_ylabel("measured − fitted" + (", relative" if logarithmic else " (nats per token)"))
        scale.key(drawn, axes)
    return drawn
