"""The picture of a mixing law of two components."""

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from matplotlib.figure import Figure

from configs.formatting import count
from scaling.errors import MixingError
from scaling.forecast.fitted_law import Band
from scaling.report.plot_style import HELD_OUT, LAW, MUTED, Scale, draw_band, figure
from scaling.studies.data_mixing import MixtureForecast, Mixtures, fit_mixing


def mixing(
    small: Mixtures, checks: Mixtures, prediction: MixtureForecast, draws: Sequence[MixtureForecast], level: float
) -> Figure:
    """Loss on both texts against the share of the first, by size; and the target loss at the large size."""
    scale = Scale("N", np.concatenate([small.N, checks.N]))
    share = np.linspace(0, 1, 101)
    grid = np.stack([share, 1 - share], axis=1)
    shown = slice(*np.searchsorted(share, [small.shares[:, 0].min() - 0.02, small.shares[:, 0].max() + 0.02]))
    with figure(4.2, 1, 3) as (drawn, axes):
        for i, axis in enumerate(axes[:2]):
            for N in np.unique(small.N):
                here = small.select(small.N == N)
                axis.plot(here.shares[:, 0], here.losses[:, i], "o", ms=4, color=scale(N))
                with suppress(MixingError):
                    law = fit_mixing(here.shares, here.losses[:, i])
                    axis.plot(share[shown], law(grid[shown]), color=scale(N), lw=1.1)
            axis.plot(share[shown], prediction.laws[i](grid[shown]), color=LAW, lw=2)
            axis.plot(checks.shares[:, 0], checks.losses[:, i], "D", ms=5, color=HELD_OUT, mec="white")
            axis.set_title(f"loss on {small.names[i]}")
        axis = axes[-1]
        low, high = np.quantile([draw.target_loss(grid) for draw in draws], [(1 - level) / 2, (1 + level) / 2], axis=0)
        band = Band(*(v[shown] for v in (prediction.target_loss(grid), low, high)))
        draw_band(axis, share[shown], band, label=f"predicted, N = {count(prediction.N)}")
        if checks.runs:
            measured = checks.losses @ prediction.target
            axis.plot(
                checks.shares[:, 0], measured, "D", ms=6, color=HELD_OUT, mec="white", label="measured, not fitted"
            )
        axis.axvline(prediction.best[0], color=MUTED, lw=1, ls="--", label=f"best: {prediction.best[0]:.2f}")
        axis.set_title("target loss")
        axis.legend(loc="upper center")
        for axis in axes:
            axis.set_xlabel(f"share of {small.names[0]} in training")
        axes[0].set_ylabel("loss (nats per token)")
        scale.key(drawn, axes)
    return drawn
