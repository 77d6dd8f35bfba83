"""Pictures of how to spend compute: best N and D against budgets, and the IsoFLOP profiles behind them."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from configs.formatting import flops
from scaling.design.allocation import Approach, IsoFlopProfile
from scaling.forecast.fitted_law import Band, FittedLaw
from scaling.report.plot_style import LABELS, LAW, MUTED, SECOND, THIRD, draw_band, figure, log_axis, span

COLOURS = {"envelope": SECOND, "isoflop": THIRD, "parametric": LAW}


def budgets(approaches: Sequence[Approach], view: FittedLaw) -> Figure:
    """Best N and D against compute, by every approach that applies."""
    C, tokens = approaches[-1].budgets, view.compute.tokens
    with figure(4.6, 1, 2) as (drawn, axes):
        for approach in (a for a in approaches if a.applies):
            colour, (budget, seen) = COLOURS[approach.name], approach.seen
            alpha, lw, ls = (0.2, 2, "-") if approach.name == "parametric" else (0.12, 1.5, "--")
            sizes = Band(approach.N, approach.low, approach.high)
            data = Band(*(tokens(n, C) for n in (approach.N, approach.high, approach.low)))
            for axis, band, optima in zip(axes, (sizes, data), (seen, tokens(seen, budget)), strict=True):
                draw_band(axis, C, band, alpha, colour, lw=lw, ls=ls)
                axis.plot(budget, optima, "o", ms=4, color=colour, mec="white", mew=0.4)
            axes[0].plot([], [], color=colour, ls=ls, label=f"{approach.title}, a = {approach.a:.3f}")
        for axis, name in zip(axes, ("N", "D"), strict=True):
            axis.axvspan(view.table.columns["C"].max(), C[-1], color=MUTED, alpha=0.06, lw=0)
            axis.set_xlim(C[0], C[-1])
            log_axis(axis.xaxis, "C")
            log_axis(axis.yaxis, name, f"best {LABELS[name]}")
        drawn.legend(loc="outside upper left", ncols=3)
    return drawn


def profiles(found: Sequence[IsoFlopProfile]) -> Figure | None:
    """Loss against size at every budget with enough sizes, the cubic and its minimum."""
    if not found:
        return None
    colours = matplotlib.colormaps["cividis"](np.linspace(0, 0.85, len(found)))
    with figure(4.9) as (drawn, (axis,)):
        for profile, colour in zip(found, colours, strict=True):
            label = f"C = {flops(profile.C)}"
            axis.plot(profile.N, profile.loss, "o", ms=4.5, color=colour, mec="white", mew=0.5, label=label)
            sizes = np.geomspace(profile.N.min(), profile.N.max(), 80)
            best = profile.minimum
            axis.plot(sizes, profile.at(sizes), color=colour, lw=1.3, ls="-" if best else ":")
            if best:
                axis.plot(best, profile.at(np.array([best])), "D", ms=6, color=colour, mec="black", mew=0.8, zorder=4)
        axis.set_ylim(*span(np.concatenate([p.loss for p in found]), 0.05))
        log_axis(axis.xaxis, "N")
        log_axis(axis.yaxis, "loss")
        drawn.legend(loc="outside right upper", handletextpad=0.2)
    return drawn
