"""Designs of a sweep, compared by what they cost and how well they predict a run of at least ten times their compute.

A dense factorial of finished runs, every size at every token budget, holds many smaller designs as subsets: a single
ratio of tokens to parameters, IsoFLOP profiles, Kaplan's two series. Each subset is fitted by itself and predicts the
same runs, which no design may contain, so that designs are compared on the same losses at no further training.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from scaling.design.optimal_design import Candidates, DesignBasis, design
from scaling.errors import FitError, PlanError
from scaling.fit.bootstrap import DRAWS, LEVEL, bootstrap, residual_sigma
from scaling.fit.estimate import fit
from scaling.forecast.law_sections import HeldOutPrediction
from scaling.laws import LAWS, Array, Law
from scaling.tables.table import Table, frontier
from scaling.validation.backtest import score

REACH = 10.0  # times the largest fitted compute, at least, of every predicted run
ENOUGH = 0.01  # relative error of a prediction that is called good
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Outcome:
    """A design, what it cost, and how it did: ``scored`` predictions, or the ``reason`` why it could not be fitted."""

    name: str
    law: str
    runs: int
    flops: float
    scored: tuple[HeldOutPrediction, ...]
    reason: str = ""

    @property
    def error(self) -> float:
        """The largest relative error of its predictions; infinite without any."""
        return max((abs(s.error) for s in self.scored), default=np.inf)

    @property
    def width(self) -> float:
        """The widest half-interval of its predictions, relative to what was measured; infinite without any."""
        return max(((s.high - s.low) / 2 / s.loss for s in self.scored), default=np.inf)

    @property
    def covered(self) -> bool:
        """Whether all intervals hold what was measured."""
        return bool(self.scored) and all(s.covered for s in self.scored)


def price(table: Table) -> Array:
    """FLOPs (n,) that each row costs: exact where the table knows them, whatever C the law is fitted to."""
    return table.columns.get("C_exact", table.columns["C"])


def factorial(table: Table, share: float = 1.0) -> Mask:
    """Rows (n,) of at most ``share`` of the largest compute."""
    C = table.columns["C"]
    return np.asarray(share * C.max() * (1 + 1e-9) >= C)


def corners(table: Table) -> Mask:
    """The least, the middle and the largest size, at the least, the middle and the largest budget of each."""
    N, D = table.columns["N"], table.columns["D"]
    keep = np.zeros(len(table), dtype=bool)
    for size in _ends_and_middle(np.unique(N)):
        keep |= (size == N) & np.isin(D, _ends_and_middle(np.unique(D[size == N])))
    return keep


def _ends_and_middle(values: Array) -> Array:
    return values[[0, len(values) // 2, -1]]


def fixed_ratio(table: Table) -> Mask:
    """For each size the budget nearest to one number of tokens per parameter, the median of the table."""
    N, ratio = table.columns["N"], np.log(table.columns["D"] / table.columns["N"])
    return _nearest_of_each(N, ratio, float(np.median(ratio)), np.inf)


def isoflop(table: Table, profiles: int = 3) -> Mask:
    """Profiles at evenly spaced budgets of compute: for each size the nearest run, where one is within a factor √2."""
    N, C = table.columns["N"], np.log(table.columns["C"])
    # The outermost levels are those that several sizes reach.
    low, high = np.quantile(C, [0.25, 0.9])
    keep = np.zeros(len(table), dtype=bool)
    for level in np.linspace(low, high, profiles):
        keep |= _nearest_of_each(N, C, float(level), np.log(2) / 2)
    return keep


def single_variable(table: Table) -> Mask:
    """Kaplan's two series: every size at its largest budget, and every budget at its largest size."""
    N, D = table.columns["N"], table.columns["D"]
    return np.array([d == D[n == N].max() or n == N[d == D].max() for n, d in zip(N, D, strict=True)])


def _nearest_of_each(group: Array, value: Array, wanted: float, within: float) -> Mask:
    """In each group the row whose value is the nearest to ``wanted`` and ``within`` reach, with its replicates."""
    keep = np.zeros(len(group), dtype=bool)
    for one in np.unique(group):
        members = np.flatnonzero(group == one)
        nearest = value[members[np.abs(value[members] - wanted).argmin()]]
        if abs(nearest - wanted) <= within:
            keep[members[np.abs(value[members] - nearest) < 1e-9]] = True
    return keep


def next_best(table: Table, target: Mapping[str, float], law: Law, fixed: Mapping[str, float], seed: int = 0) -> Mask:
    """Begin with the cheapest runs that can be fitted, and buy those that `planning.design` asks for, one by one.

    What may be spent in all is a quarter of the factorial's FLOPs; every choice is by a fit to the runs bought so far.
    Raises FitError where no number of runs can be fitted.
    """
    C = price(table)
    bought = np.zeros(len(table), dtype=bool)
    fitted = None
    for i in np.argsort(C, kind="stable"):
        bought[i] = True
        with suppress(FitError):
            fitted = fit(law, table.select(bought), fixed=fixed, seed=seed)
            break
    while fitted is not None and (left := 0.25 * C.sum() - C[bought].sum()) > 0 and (~bought).any():
        kept = table.select(bought)
        draws = bootstrap(fitted, kept.run, draws=400, seed=seed).params
        sigma = residual_sigma(fitted.residuals, fitted.problem.free)
        basis = DesignBasis(law, fitted.params, draws, sigma, fitted.problem.loss.scale)
        unbought = np.flatnonzero(~bought)
        offered = Candidates({k: table.columns[k][unbought] for k in law.variables}, C[unbought])
        try:
            step = design(basis, target, offered, left, 1).steps[0]
        except PlanError:  # nothing that is left can be paid
            break
        bought[unbought[step.candidate]] = True
        fitted = fit(law, table.select(bought), fixed=fixed, seed=seed)
    return bought


def split(table: Table, reach: float = REACH) -> tuple[Table, Table]:
    """The runs that designs choose from, and those they predict: all of ``reach`` times the compute of the former.

    Runs between the two are in neither. Raises FitError where one of them would be empty.
    """
    C = table.columns["C"]
    pool = C.max() / reach * (1 + 1e-9) >= C
    if not pool.any():
        raise FitError(f"{table.source}: no run has {reach:g} times less compute than the largest")
    return table.select(pool), table.select(reach * C[pool].max() <= C * (1 + 1e-9))


def trunk_flops(table: Table, cooldown: float) -> float:
    """FLOPs of one trunk a size with a cooldown branch for every budget, for the runs of ``table``.

    A branch of D tokens leaves the trunk at (1 - cooldown) D, so the trunk ends where the longest branch leaves it.
    Each seed has a trunk of its own.
    """
    N, D, C = table.columns["N"], table.columns["D"], price(table)
    seed = table.columns.get("seed", np.zeros(len(table)))
    total = 0.0
    for one in np.unique(np.column_stack([N, seed]), axis=0):
        members = (one[0] == N) & (one[1] == seed)
        per_token = C[members] / D[members]
        total += cooldown * C[members].sum() + (1 - cooldown) * D[members].max() * per_token.mean()
    return float(total)


def compare(
    table: Table,
    fixed: Mapping[str, float] | None = None,
    reach: float = REACH,
    cooldown: float | None = None,
    draws: int = DRAWS,
    level: float = LEVEL,
    seed: int = 0,
) -> list[Outcome]:
    """Fit every design to its runs and predict the largest ones; ordered by FLOPs.

    ``fixed`` fixes parameters of the laws that have them, as E where it is known. With ``cooldown``, the part of a run
    in which its learning rate falls, the factorial is also priced as trunks with branches, supposing that a branch
    ends at the loss of a run of its own. Raises FitError where the table has no runs to predict or to fit.
    """
    pool, targets = split(table, reach)
    surface, pins = LAWS["chinchilla"], dict(fixed or {})
    target = {k: float(targets.columns[k][targets.columns["C"].argmax()]) for k in ("N", "D")}
    designs: dict[str, Callable[[Table], Mask]] = {
        "factorial": factorial,
        "factorial, compute up to 1/4": lambda t: factorial(t, 1 / 4),
        "factorial, compute up to 1/16": lambda t: factorial(t, 1 / 16),
        "3 x 3 corners": corners,
        "IsoFLOP profiles": isoflop,
        "single variable": single_variable,
        "next best runs": lambda t: next_best(t, target, surface, pins, seed),
    }

    def outcome(name: str, choose: Callable[[Table], Mask], law: Law) -> Outcome:
        chosen, cost = pool, float(price(pool).sum())
        try:
            chosen = pool.select(choose(pool))
            if not law.frontier:  # which runs a frontier has is known when all have been trained
                cost = float(price(chosen).sum())
            known = {name: value for name, value in pins.items() if name in law.parameters}
            fitted = fit(law, chosen, fixed=known, seed=seed)
            boot = bootstrap(fitted, chosen.run, draws=draws, seed=seed)
        except FitError as error:
            return Outcome(name, law.name, len(chosen), cost, (), str(error))
        return Outcome(name, law.name, len(chosen), cost, tuple(score(fitted, boot.params, targets, level, seed)))

    found = [outcome(name, choose, surface) for name, choose in designs.items()]
    # Along D = k N only the sum of the two terms is determined, and one exponent describes it.
    found.append(outcome("fixed ratio", fixed_ratio, LAWS["chinchilla_tied"]))
    found.append(outcome("frontier, L(C) alone", lambda t: frontier(t, "C"), LAWS["kaplan_c"]))
    if cooldown is not None:
        whole, cost = found[0], trunk_flops(pool, cooldown)
        found.append(replace(whole, name="factorial as trunks with branches", flops=cost))
    return sorted(found, key=lambda o: o.flops)


def cheapest(outcomes: list[Outcome], within: float = ENOUGH, sure: bool = False) -> Outcome | None:
    """The design of fewest FLOPs whose predictions all err at most ``within`` and lie inside their intervals, or None.

    Without ``sure`` it may have been lucky; with it, the intervals themselves promise no more than ``within``.
    """
    good = [o for o in outcomes if o.error <= within and o.covered and (o.width <= within or not sure)]
    return min(good, key=lambda o: o.flops) if good else None
