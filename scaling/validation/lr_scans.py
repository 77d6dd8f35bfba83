"""Learning rates of a table: the best of each scan, and signs that a size was not trained at its best.

A law of the best reachable loss is bent by sizes that are further from their best learning rate than others (Porian et
al. 2024, arXiv 2406.19146). A scan is several learning rates for the same N and D.
"""

from dataclasses import asdict, dataclass

import numpy as np

from scaling.errors import FitError
from scaling.fit.estimate import Fit
from scaling.forecast.law_sections import LrScan
from scaling.tables.table import Table

_STICKS_OUT = 6.0  # robust standard deviations; of noise alone, 1 to 4 % of tables of 5 to 12 sizes have such a size
_SIZES = 5  # fewer say nothing about what is usual


@dataclass(frozen=True)
class Tuned:
    """The learning rates that were tried for one N and D."""

    N: float
    D: float
    lr: float
    """The best one: that of the lowest loss, the mean over seeds."""
    tried: list[float]
    losses: list[float]
    """Nats per token at each of `tried`."""

    @property
    def at_edge(self) -> bool:
        """Whether a better learning rate may lie beyond those that were tried."""
        return len(self.tried) > 1 and self.lr in (self.tried[0], self.tried[-1])

    def stored(self) -> LrScan:
        """For law.json."""
        return LrScan(**asdict(self), at_edge=self.at_edge)


def scans(table: Table) -> list[Tuned]:
    """What was tried for each N and D, in the order of N and D. Raises FitError where no learning rates are known."""
    if "lr" not in table.columns:
        raise FitError(f"{table.source}: the best learning rate of each size needs the column lr, which is not there")
    N, D, lr, loss = (table.columns[name] for name in ("N", "D", "lr", "loss"))
    found = []
    for n, d in sorted({*zip(N.tolist(), D.tolist(), strict=True)}):
        cell = (n == N) & (d == D)
        tried = np.unique(lr[cell])
        losses = [float(loss[cell & (lr == rate)].mean()) for rate in tried]
        found.append(Tuned(n, d, float(tried[np.argmin(losses)]), tried.tolist(), losses))
    return found


def at_best(table: Table, found: list[Tuned]) -> Table:
    """The rows at the best learning rate of their N and D, all seeds of it."""
    best = {(tuned.N, tuned.D): tuned.lr for tuned in found}
    cells = zip(*(table.columns[name].tolist() for name in ("N", "D", "lr")), strict=True)
    return table.select(np.array([best[n, d] == rate for n, d, rate in cells]))


def high_sizes(fit: Fit, table: Table) -> list[float]:
    """Sizes N whose losses all lie above the law, further on average than is usual among sizes."""
    N = table.columns["N"]
    sizes = np.unique(N)
    if len(sizes) < _SIZES:
        return []
    rows = [fit.residuals[size == N] for size in sizes]
    means = np.array([r.mean() for r in rows])
    away = means - np.median(means)
    far = away > _STICKS_OUT * 1.4826 * np.median(np.abs(away))
    return [float(n) for n, out, r in zip(sizes, far, rows, strict=True) if out and len(r) > 1 and (r > 0).all()]
