"""How the pictures look: one style, one colour per model size, log axes whose ticks can be read.

Matplotlib's global state is left alone: figures are made without pyplot, under a style that applies to them only.
"""

import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from configs.formatting import count, flops
from scaling.forecast.fitted_law import Band
from scaling.laws import Array

DPI = 144
WIDTH = 9.0  # inches, of every figure, so that their letters are of one size on the page
INK, MUTED, GRID = "#1c2430", "#667085", "#e4e7ec"
LAW, HELD_OUT, SECOND, THIRD = "#1f4e8c", "#c4421a", "#2f7d4f", "#8a5a9e"
STYLE = {
    **dict.fromkeys(("axes.labelcolor", "xtick.color", "ytick.color", "text.color"), INK),
    **dict.fromkeys(("font.size", "axes.labelsize"), 9.5),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize", "legend.title_fontsize"), 8.5),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 3),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    **dict.fromkeys(("axes.grid", "axes.axisbelow"), True),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor"), "white"),
    "font.family": "DejaVu Sans",
    "axes.edgecolor": MUTED,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.linewidth": 0.8,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.5,
}
LABELS = {
    "N": "parameters N",
    "D": "training tokens D",
    "C": "training compute C (FLOPs)",
    "U": "unique tokens U",
    "S": "steps S",
    "loss": "loss (nats per token)",
}
# How ticks are written; those of any other variable are counts.
WRITTEN: dict[str, Callable[[float], str]] = {"loss": "{:.4g}".format, "C": flops, "learning rate": "{:g}".format}


@contextmanager
def figure(height: float, rows: int = 1, columns: int = 1, **options: object) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of the house style, WIDTH by ``height`` inches, and its axes row by row."""
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        drawn = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasAgg(drawn)
        axes = drawn.subplots(rows, columns, squeeze=False, **options)  # type: ignore[call-overload]
        yield drawn, list(axes.flat)


def png(drawn: Figure) -> bytes:
    """The figure as a PNG file."""
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        buffer = io.BytesIO()
        # No date and no library version: the same data give the same bytes.
        drawn.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
        return buffer.getvalue()


# --- Colours ------------------------------------------------------------------------------------------------------

# The ends that are too pale for white paper are cut off.
COLOURS = {
    variable: LinearSegmentedColormap.from_list(variable, matplotlib.colormaps[name](np.linspace(0, end, 256)))
    for variable, name, end in (("N", "viridis", 0.86), ("D", "plasma", 0.84))
}


class Scale:
    """Colours for the values of N or D: the same value has the same colour in every picture."""

    def __init__(self, variable: str, values: Array) -> None:
        self.variable = variable
        self.values = np.unique(values)
        low, high = self.values[0], self.values[-1]
        self.norm = LogNorm(low, high if high > low else low * 10)
        self.colours = COLOURS[variable]

    def __call__(self, value: float | Array) -> Array:
        """RGBA (..., 4) of values (...)."""
        return np.asarray(self.colours(self.norm(value)))

    @property
    def few(self) -> bool:
        """Whether every value can have a line of its own in a legend."""
        return len(self.values) <= 10

    def shown(self) -> Array:
        """The values that get a curve and a line in the legend: all up to seven, else five evenly spread ones."""
        if len(self.values) <= 7:
            return self.values
        return np.asarray(np.quantile(self.values, np.linspace(0.02, 0.98, 5), method="nearest"))

    def key(self, drawn: Figure, axes: Sequence[Axes]) -> None:
        """A legend of the values where they are few, a colour bar where they are many."""
        if self.few:
            marks = [axes[0].plot([], [], "o", ms=5, color=self(v))[0] for v in self.values]
            labels = [f"{self.variable} = {count(v)}" for v in self.values]
            drawn.legend(marks, labels, loc="outside right upper", handletextpad=0.3, borderaxespad=0)
            return
        mappable = matplotlib.cm.ScalarMappable(self.norm, self.colours)
        bar = drawn.colorbar(mappable, ax=axes, pad=0.02, aspect=30, shrink=0.9, label=LABELS[self.variable])
        bar.outline.set_visible(False)
        ticks = log_ticks(self.values[0], self.values[-1])
        bar.set_ticks(ticks, labels=[count(t) for t in ticks])
        bar.ax.minorticks_off()


# --- Axes ---------------------------------------------------------------------------------------------------------


def log_ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Round numbers between ``low`` and ``high``, as many as an axis can carry without their touching."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    apart = math.log10(high / low) / (most + 3)
    for steps in ((1, 1.5, 2, 3, 4, 5, 6, 7, 8), (1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [m * 10.0**e for e in range(first, last + 1) for m in steps if low <= m * 10.0**e <= high]
        if len(ticks) <= most and all(np.diff(np.log10(ticks)) >= apart):
            break
    else:
        ticks = ticks[:: math.ceil(len(ticks) / most)]
    if len(ticks) >= 3:
        return ticks
    return [float(t) for t in MaxNLocator(5).tick_values(low, high) if low <= t <= high and t > 0]


def log_axis(axis: Axis, variable: str, label: str | None = None) -> None:
    """Make an axis logarithmic in a variable. Call it when everything is drawn: the ticks follow the limits."""
    axes = axis.axes
    which = "x" if axis is axes.xaxis else "y"
    axes.set(**{f"{which}scale": "log"})
    low, high = sorted(getattr(axes, f"get_{which}lim")())
    axes.set(**{f"{which}lim": (low, high)})
    write = WRITTEN.get(variable, count)
    axis.set(major_locator=FixedLocator(log_ticks(low, high)), minor_locator=NullLocator())
    axis.set(major_formatter=lambda value, _: write(value), label_text=label or LABELS.get(variable, variable))


def error_axis(axis: Axis) -> None:
    """Make an axis one of relative errors in per cent, with a line at zero."""
    axes = axis.axes
    (axes.axvline if axis is axes.xaxis else axes.axhline)(0, color=INK, lw=1)
    axis.set(major_formatter=signed_percent, label_text="error of the prediction")


def signed_percent(value: float, _: float) -> str:
    """A tick of such an axis."""
    return f"{value:+.3g} %".replace("-", "−") if value else "0 %"


def draw_band(
    axis: Axes, x: Array, band: Band, alpha: float = 0.2, color: Any = LAW, shaded: str | None = None, **line: Any
) -> None:
    """Draw a curve with its interval; ``shaded`` is the label of the interval, ``line`` the style of the curve."""
    axis.fill_between(x, band.low, band.high, color=color, alpha=alpha, lw=0, label=shaded)
    axis.plot(x, band.middle, color=color, **line)


def span(values: Array, margin: float = 0.06) -> tuple[float, float]:
    """Limits of a log axis that leave a margin around ``values``."""
    low, high = float(np.min(values)), float(np.max(values))
    room = (high / low) ** margin if high > low else 1.05
    return low / room, high * room
