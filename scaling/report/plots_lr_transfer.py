"""The picture of a transfer of learning rates over sizes, that of Yang et al. 2022 (arXiv 2203.03466), figure 1."""

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from scaling.report.plot_style import HELD_OUT, figure, log_axis
from scaling.studies.lr_transfer import SIZES, Scan


def picture(scans: list[Scan], size: str = "d_model") -> Figure:
    """Loss against learning rate: a panel for each parametrization, a line for each size, its optimum marked."""
    names = list(dict.fromkeys(scan.parametrization for scan in scans))
    sizes = sorted({scan.size for scan in scans})
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.86, len(sizes)))
    optima = [scan.loss.min() for scan in scans]
    with figure(3.9, 1, len(names), sharey=True) as (drawn, axes):
        for axis, name in zip(axes, names, strict=True):
            for scan in (scan for scan in scans if scan.parametrization == name):
                colour = colours[sizes.index(scan.size)]
                label = f"{SIZES[size]} {scan.size}" if axis is axes[0] else None
                axis.plot(scan.lr, scan.loss, "o-", ms=3.5, color=colour, label=label)
                axis.plot(
                    scan.lr[scan.best], scan.loss[scan.best], "*", ms=12, color=colour, mec=HELD_OUT, mew=0.8, zorder=4
                )
            axis.set_title(name)
            axis.set_ylim(min(optima) - 0.1, max(optima) + 0.8)  # what is far above is not worth the room
            log_axis(axis.xaxis, "learning rate")
        axes[0].set_ylabel("loss (nats per token)")
        drawn.legend(loc="outside right upper")
    return drawn
