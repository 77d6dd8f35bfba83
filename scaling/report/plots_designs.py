"""The picture of designs: what each cost, and where it put the runs that it had to predict."""

from matplotlib.figure import Figure

from configs.formatting import flops
from scaling.design.compare_designs import ENOUGH, Outcome
from scaling.report.plot_style import GRID, HELD_OUT, MUTED, error_axis, figure

MAX_PERCENT = 10.0  # per cent beyond which an interval is cut off


def designs(outcomes: list[Outcome]) -> Figure:
    """For each design, by cost, the relative errors of its predictions with their intervals, in per cent."""
    drawn_ones = [o for o in outcomes if o.scored]
    with figure(1.3 + 0.42 * len(drawn_ones)) as (drawn, (axes,)):
        axes.axvspan(-100 * ENOUGH, 100 * ENOUGH, color=GRID, lw=0)
        error_axis(axes.xaxis)
        for place, outcome in enumerate(reversed(drawn_ones)):
            for i, s in enumerate(outcome.scored):
                middle, low, high = (100 * (v / s.loss - 1) for v in (s.predicted, s.low, s.high))
                at = place + 0.22 * (i - (len(outcome.scored) - 1) / 2)
                ends = [max(low, -MAX_PERCENT), min(high, MAX_PERCENT)]
                axes.plot(ends, [at, at], color=MUTED, lw=1.4, solid_capstyle="butt")
                axes.plot(middle, at, "o" if s.covered else "s", ms=5, color=HELD_OUT if s.covered else MUTED)
        labels = [f"{o.name}, {o.runs} runs, {flops(o.flops, 2)} FLOPs" for o in reversed(drawn_ones)]
        axes.set_yticks(range(len(drawn_ones)), labels=labels)
        axes.set_xlim(-MAX_PERCENT, MAX_PERCENT)
        axes.set_xlabel("error of the prediction, with its interval")
        axes.grid(visible=False, axis="y")
    return drawn
