"""Picture of the multi-power law: every curve as measured and as predicted, with its learning rate."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from configs.formatting import count
from scaling.report.plot_style import HELD_OUT, LAW, MUTED, figure
from scaling.studies.multi_power import CurveLaw, LossCurve, score

MAX_CURVES = 9


def predictions(law: CurveLaw, curves: Sequence[LossCurve]) -> Figure:
    """One panel a curve, at most MAX_CURVES of them: those that were predicted first."""
    shown = sorted(curves, key=lambda c: c.name in law.fitted_to)[:MAX_CURVES]
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    with figure(2.5 * rows + 0.3, rows, columns) as (drawn, axes):
        for axis, curve in zip(axes, shown, strict=False):
            fitted = curve.name in law.fitted_to
            step, loss = curve.step[curve.first :], curve.loss[curve.first :]
            axis.plot(step, loss, ".", ms=2.5, color=MUTED, label="measured")
            axis.plot(step, law.predict(curve), color=LAW if fitted else HELD_OUT, lw=1.4, label="law")
            low, high = float(loss.min()), float(np.quantile(loss, 0.98))
            axis.set_ylim(low - 0.35 * (high - low), high + 0.08 * (high - low))
            axis.set_xlim(0, step[-1])
            rate = axis.twinx()
            rate.fill_between(curve.step, curve.lr / curve.lr.max(), color=MUTED, alpha=0.18, lw=0)
            rate.set(ylim=(0, 5), yticks=[])
            rate.spines[:].set_visible(False)
            rate.grid(False)
            axis.set_title(curve.name, fontsize=8.5)
            remark = f"{'fitted' if fitted else 'predicted'}, R² {score(law, curve).r2:.4f}"
            axis.text(0.97, 0.95, remark, transform=axis.transAxes, ha="right", va="top", fontsize=8.5)
            axis.xaxis.set_major_locator(MaxNLocator(4))
            axis.xaxis.set_major_formatter(lambda value, _: count(value, 2))
        for axis in axes[len(shown) :]:
            axis.set_visible(False)
        drawn.supxlabel("step", fontsize=9)
        drawn.supylabel("loss (nats per token)", fontsize=9)
    return drawn
