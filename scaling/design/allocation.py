"""How to spend a compute budget C on parameters N and tokens D, by the three approaches of Hoffmann et al. 2022.

1. Envelope: at every budget, the size whose training curve is lowest there (arXiv:2203.15556, section 3.1).
2. IsoFLOP profiles: at every budget that several sizes were trained with, the minimum over sizes (section 3.2). A
   parabola's minimum is biased where the profile is lopsided, so the profile is a cubic, and it counts only where it
   is bracketed: its minimum lies between measured sizes, and the loss rises on either side.
3. Parametric: the minimum of the fitted law along the budget (section 3.3). For L = E + A/N^α + B/D^β and C = 6ND,

       N_opt = G (C/6)^a,   D_opt = (C/6)^b / G,   G = (αA / βB)^(1/(α+β)),   a = β/(α+β),   b = α/(α+β)

   (equation 4). Some surveys print a = α/(α+β), which is not the minimum. Where C counts exact FLOPs there is no such
   form, and the minimum is searched.

The first two see no formula, only runs; each ends in a power law N_opt ∝ C^a. Where the three disagree, the form of the
law, the schedule of the curves or the range of the sizes is at fault, and the report says so.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from configs.formatting import count, flops
from scaling.fit.bootstrap import cluster_index
from scaling.forecast.fitted_law import FittedLaw
from scaling.laws import Array, Law
from scaling.tables.compute import Compute
from scaling.tables.table import Table

DRAWS = 200  # bootstrap draws of an allocation
TOLERANCE = 0.1  # relative spread of C within one IsoFLOP profile
GRID = 400  # budgets at which the envelope is read off
SEARCHED = 400  # sizes tried at a budget, for every bootstrap draw
_GOLDEN = (np.sqrt(5) - 1) / 2


def exponents(params: Mapping[str, float | Array]) -> tuple[float | Array, float | Array]:
    """(a, b) of N_opt ∝ C^a and D_opt ∝ C^b for a law E + A/N^α + B/D^β with C = 6ND."""
    alpha, beta = params["alpha"], params["beta"]
    return beta / (alpha + beta), alpha / (alpha + beta)


def optimum(law: Law, params: Mapping[str, float | Array], C: Array, compute: Compute) -> tuple[Array, Array]:
    """Best N (parameters) and D (tokens) at each budget C (points,), in FLOPs as ``compute`` counts them.

    Parameters of shape (draws, 1) give (draws, points). Raises ValueError for a law that is not a loss over N and D.
    """
    if not {"N", "D"} <= set(law.variables) <= {"N", "D", "U"} or law.response != "loss":
        raise ValueError(f"the law {law.name} has no best N and D at a budget: it is not a loss over N and D")
    C = np.asarray(C, dtype=float)
    return _closed_form(params, C, compute) if has_closed_form(law, compute) else _search(law, params, C, compute)


def has_closed_form(law: Law, compute: Compute) -> bool:
    """Whether equation 4 of Hoffmann et al. 2022 gives the optimum."""
    return law.name == "chinchilla" and compute.definition == "6nd"


def _closed_form(params: Mapping[str, float | Array], C: Array, compute: Compute) -> tuple[Array, Array]:
    alpha, beta = np.asarray(params["alpha"]), np.asarray(params["beta"])
    ND = compute.tokens(1.0, C)
    with np.errstate(divide="ignore", over="ignore"):  # of a draw with no A or no B the limit is meant
        log_G = (np.log(alpha * params["A"]) - np.log(beta * params["B"])) / (alpha + beta)
        N = np.exp(log_G + beta / (alpha + beta) * np.log(ND))
        return N, compute.tokens(N, C)


def _search(law: Law, params: Mapping[str, float | Array], C: Array, compute: Compute) -> tuple[Array, Array]:
    """The least loss over a grid of log N; without draws, golden section between the neighbours of the lowest point."""

    def value(log_N: Array) -> Array:
        N = np.exp(log_N)
        columns = {"N": N.ravel(), "D": compute.tokens(N, C).ravel()}
        loss = law.evaluate(params, columns | {"U": columns["D"]})
        return loss.reshape(*loss.shape[:-1], *log_N.shape)

    grid = np.linspace(0, 1, SEARCHED)[:, None] * np.log(C)
    log_N = _grid_minimum(value, grid)
    if all(np.ndim(v) == 0 for v in params.values()):
        low, high = log_N - 2 * (grid[1] - grid[0]), log_N + 2 * (grid[1] - grid[0])
        for _ in range(60):
            span = _GOLDEN * (high - low)
            falls = value(high - span) < value(low + span)
            high, low = np.where(falls, low + span, high), np.where(falls, low, high - span)
        log_N = (low + high) / 2
    N = np.exp(log_N)
    return N, compute.tokens(N, C)


def _grid_minimum(value: Callable[[Array], Array], grid: Array) -> Array:
    """Minimum (draws, points) over ``grid`` (steps, points), on the parabola through its three lowest points."""
    loss = value(grid)
    lowest = np.clip(loss.argmin(axis=-2), 1, len(grid) - 2)[..., None, :]
    left, middle, right = (np.take_along_axis(loss, lowest + i, axis=-2)[..., 0, :] for i in (-1, 0, 1))
    curvature = left - 2 * middle + right
    shift = np.where(curvature > 0, 0.5 * (left - right) / np.where(curvature > 0, curvature, 1), 0.0)
    step = grid[1] - grid[0]
    return np.asarray((lowest[..., 0, :] + np.clip(shift, -1, 1)) * step)


TITLES = {
    "envelope": "1. envelope of training curves",
    "isoflop": "2. IsoFLOP profiles",
    "parametric": "3. minimum of the fitted law",
}


@dataclass(frozen=True)
class Approach:
    """What one approach says: N_opt ∝ C^a, N at ``budgets`` (points,) with its interval, or why it does not apply.

    ``seen`` holds the optima (C, N) that the power law was put through, where the approach reads them off runs.
    """

    name: str
    a: float = np.nan
    a_interval: tuple[float, float] = (np.nan, np.nan)
    budgets: Array = field(default_factory=lambda: np.empty(0))
    N: Array = field(default_factory=lambda: np.empty(0))
    low: Array = field(default_factory=lambda: np.empty(0))
    high: Array = field(default_factory=lambda: np.empty(0))
    seen: tuple[Array, Array] = field(default_factory=lambda: (np.empty(0), np.empty(0)))
    reason: str = ""
    notes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Number and name, for people."""
        return TITLES[self.name]

    @property
    def applies(self) -> bool:
        """Whether the data allow this approach."""
        return not self.reason


@dataclass(frozen=True)
class Trace:
    """Loss (nats per token) of one size of model along compute C (FLOPs), both (points,); C rises."""

    run: str
    N: float
    C: Array
    loss: Array


def allocate(view: FittedLaw, budgets: Array, traces: Sequence[Trace] | None = None) -> list[Approach]:
    """The three approaches at ``budgets`` (points,) in FLOPs, as the table counts them.

    ``traces`` are training curves; without them the envelope is that of finished runs, size by size.
    """
    table, level = view.table, view.level
    return [
        envelope(traces or finished(table), budgets, level, bool(traces)),
        isoflop(table, budgets, level),
        parametric(view, budgets),
    ]


def _power_law(
    name: str,
    C: Array,
    N: Array,
    samples: Sequence[tuple[Array, Array]],
    budgets: Array,
    level: float,
    seen: tuple[Array, Array],
    notes: Sequence[str],
) -> Approach:
    """The power law through optima (C, N), with intervals from ``samples`` of such optima."""
    middle = np.polyfit(np.log(C), np.log(N), 1)
    usable = [(c, n) for c, n in samples if len(np.unique(c)) > 1]
    lines = np.array([np.polyfit(np.log(c), np.log(n), 1) for c, n in usable] or [middle])
    drawn = np.exp(lines[:, :1] * np.log(budgets) + lines[:, 1:])
    tails = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(drawn, tails, axis=0)
    a_low, a_high = np.quantile(lines[:, 0], tails)
    best = np.exp(np.polyval(middle, np.log(budgets)))
    interval = (float(a_low), float(a_high))
    return Approach(name, float(middle[0]), interval, budgets, best, low, high, seen, notes=tuple(notes))


def finished(table: Table) -> list[Trace]:
    """For every size, its measurements as a trace: each point is a run whose schedule has finished there."""
    columns = table.columns
    traces = []
    for N in np.unique(columns["N"]):
        mine = np.flatnonzero(columns["N"] == N)
        C, index = np.unique(columns["C"][mine], return_inverse=True)
        if len(C) > 1:
            loss = np.bincount(index, columns["loss"][mine]) / np.bincount(index)
            traces.append(Trace(f"N = {count(N)}", float(N), C, loss))
    return traces


def envelope(traces: Sequence[Trace], budgets: Array, level: float = 0.9, mid_schedule: bool = True) -> Approach:
    """Approach 1: a power law through the size that is lowest at each of GRID budgets.

    A budget counts where smaller and larger sizes than the lowest one were measured at it too. Intervals: whole
    traces drawn with replacement.
    """
    sizes = np.array([t.N for t in traces])
    if len(np.unique(sizes)) < 3:
        reason = f"it needs curves of at least 3 sizes, each over a range of compute; there are {len(set(sizes))}"
        return Approach("envelope", reason=reason)
    grid = np.geomspace(min(t.C[0] for t in traces), max(t.C[-1] for t in traces), GRID)
    losses = np.stack([_along(t, grid) for t in traces])
    C, N = _lowest(grid, sizes, losses)
    if len(np.unique(N)) < 3:
        reason = (
            f"only {len(np.unique(N))} sizes are best at budgets where smaller and larger ones were measured too; it "
            "needs 3, so the curves of neighbouring sizes must overlap in compute"
        )
        return Approach("envelope", reason=reason)
    picks = np.random.default_rng(0).integers(len(traces), size=(DRAWS, len(traces)))
    samples = [_lowest(grid, sizes[p], losses[p]) for p in picks]
    notes = [f"{len(np.unique(N))} sizes are best at some budget"]
    if mid_schedule:
        notes.append("losses inside a run are those of an unfinished schedule, which favours runs that end near there")
    return _power_law("envelope", C, N, samples, budgets, level, _steps(C, N), notes)


def _along(trace: Trace, grid: Array) -> Array:
    """Loss of a trace at the budgets ``grid``, infinite where it was not measured."""
    inside = (grid >= trace.C[0]) & (grid <= trace.C[-1])
    loss = np.exp(np.interp(np.log(grid), np.log(trace.C), np.log(trace.loss)))
    return np.where(inside, loss, np.inf)


def _lowest(grid: Array, sizes: Array, losses: Array) -> tuple[Array, Array]:
    """Budgets and the size that is lowest there, where both smaller and larger sizes were measured."""
    best = sizes[losses.argmin(axis=0)]
    measured = np.isfinite(losses)
    keep = np.all([(measured & beyond(sizes[:, None], best)).any(axis=0) for beyond in (np.less, np.greater)], axis=0)
    return grid[keep], best[keep]


def _steps(C: Array, N: Array) -> tuple[Array, Array]:
    """The middle (in log C) of the budgets at which each size is best."""
    sizes = np.unique(N)
    return np.array([np.exp(np.log(C[n == N]).mean()) for n in sizes]), sizes


@dataclass(frozen=True)
class IsoFlopProfile:
    """Runs of several sizes at one budget, and the cubic through them (coefficients of log loss in log N - centre).

    ``loss`` (nats per token) is that at the budget C exactly.
    """

    C: float
    rows: NDArray[np.int64]
    N: Array
    loss: Array
    centre: float
    coefficients: Array

    def at(self, N: Array) -> Array:
        """The profile's loss at sizes N, nats per token."""
        return np.asarray(np.exp(np.polyval(self.coefficients, np.log(N) - self.centre)))

    @property
    def minimum(self) -> float | None:
        """Best size in parameters, or None where the minimum is not bracketed."""
        return self._minimum_of(self.coefficients)

    def refit(self, sign: Array) -> float | None:
        """The best size with residuals (rows,) of the given signs."""
        x = np.log(self.N) - self.centre
        fitted = np.polyval(self.coefficients, x)
        residual = np.sqrt(len(x) / max(len(x) - 4, 1)) * sign * (np.log(self.loss) - fitted)
        return self._minimum_of(np.polyfit(x, fitted + residual, 3))

    def _minimum_of(self, cubic: Array) -> float | None:
        best = _bracketed(cubic, np.log(self.N) - self.centre)
        return None if best is None else float(np.exp(best + self.centre))


def profiles(table: Table) -> list[IsoFlopProfile]:
    """Groups of runs whose C agree to TOLERANCE and that hold at least 5 sizes, by C.

    What is left of the spread of C is removed with one slope d log loss / d log C, estimated within all groups.
    """
    log_C, log_N = np.log(table.columns["C"]), np.log(table.columns["N"])
    log_loss = np.log(table.columns["loss"])
    groups = _groups(log_C, table.columns["N"], np.log1p(TOLERANCE))
    found = []
    slope = _slope(log_N, log_C, log_loss, groups)
    for rows in groups:
        centre, budget = float(log_N[rows].mean()), float(log_C[rows].mean())
        moved = log_loss[rows] - slope * (log_C[rows] - budget)
        cubic, N = np.polyfit(log_N[rows] - centre, moved, 3), table.columns["N"][rows]
        found.append(IsoFlopProfile(float(np.exp(budget)), rows, N, np.exp(moved), centre, cubic))
    return sorted(found, key=lambda p: p.C)


def _groups(log_C: Array, N: Array, width: float) -> list[NDArray[np.int64]]:
    """Rows within ``width`` in log C that hold at least 5 sizes; the groups with the most sizes come first."""
    free = np.ones(len(N), dtype=bool)
    groups = []
    while free.any():
        windows = [np.flatnonzero(free & (log_C >= c - 1e-9) & (log_C <= c + width)) for c in log_C[free]]
        rows = max(windows, key=lambda w: (len(np.unique(N[w])), -np.ptp(log_C[w])))
        if len(np.unique(N[rows])) < 5:
            break
        free[rows] = False
        groups.append(rows)
    return groups


def _slope(log_N: Array, log_C: Array, log_loss: Array, groups: Sequence[NDArray[np.int64]]) -> float:
    """d log loss / d log C at fixed N, from what a cubic in log N leaves of both within each group."""
    left = np.zeros(2)
    for rows in groups:
        x = log_N[rows] - log_N[rows].mean()
        rest = [y[rows] - np.polyval(np.polyfit(x, y[rows], 3), x) for y in (log_C, log_loss)]
        left += rest[0] @ rest[0], rest[0] @ rest[1]
    return float(left[1] / left[0]) if left[0] > 1e-10 else 0.0


def _bracketed(cubic: Array, x: Array) -> float | None:
    """The minimum of ``cubic``, where two sizes ``x`` or more lie on either side of it and it is below both ends."""
    turning = np.roots(np.polyder(cubic))
    minima = [r.real for r in turning if abs(r.imag) < 1e-12 and np.polyval(np.polyder(cubic, 2), r.real) > 0]
    sizes = np.unique(x)
    inside = [r for r in minima if sizes[1] <= r <= sizes[-2]]
    if not inside:
        return None
    best = inside[0]
    ends = np.polyval(cubic, sizes[[0, -1]])
    return float(best) if (ends > np.polyval(cubic, best)).all() else None


def isoflop(table: Table, budgets: Array, level: float = 0.9) -> Approach:
    """Approach 2: a power law through the minima of the bracketed IsoFLOP profiles.

    Intervals: wild bootstrap, the residuals of a run multiplied by +1 or -1 together.
    """
    found = profiles(table)
    best = [p.minimum for p in found]
    kept = [p for p, m in zip(found, best, strict=True) if m is not None]
    if len(kept) < 2:
        many = f"{len(found)} {'budget has' if len(found) == 1 else 'budgets have'}"
        reason = (
            f"it needs 2 budgets or more that 5 sizes were trained with, to {100 * TOLERANCE:g} % in C, and whose best "
            f"size lies between them; {many} 5 sizes, {len(kept)} of them bracketed"
        )
        return Approach("isoflop", reason=reason)
    C = np.array([p.C for p in kept])
    N = np.array([m for m in best if m is not None])
    rng = np.random.default_rng(0)
    cluster = cluster_index(table.cluster)
    samples = []
    for _ in range(DRAWS):
        sign = rng.choice([-1.0, 1.0], size=cluster.max() + 1)
        optima = [(p.C, n) for p in kept if (n := p.refit(sign[cluster[p.rows]])) is not None]
        usable = np.array(optima).reshape(-1, 2)
        samples.append((usable[:, 0], usable[:, 1]))
    notes = [f"{len(kept)} of {len(found)} profiles are bracketed"]
    return _power_law("isoflop", C, N, samples, budgets, level, (C, N), notes)


def parametric(view: FittedLaw, budgets: Array) -> Approach:
    """Approach 3: the minimum of the fitted law, with its bootstrap draws for the interval."""
    if not view.is_surface:
        return Approach("parametric", reason=f"the law {view.declared.name} is not a loss over N and D")
    ends = _measured(view)
    # The exponent is that between the ends of the measured compute; where equation 4 holds it is the same everywhere.
    C = np.concatenate([ends, budgets])
    N, _ = optimum(view.declared, view.law.fit.params, C, view.compute)
    draws = {k: v[:DRAWS] for k, v in view.thinned.items()}
    samples = optimum(view.declared, draws, C, view.compute)[0] if draws else N[None]
    low, high = view.bounds(samples)
    a_low, a_high = view.bounds(_slope_between(ends, samples[..., :2]))
    a = float(_slope_between(ends, N[:2]))
    return Approach("parametric", a, (float(a_low), float(a_high)), budgets, N[2:], low[2:], high[2:])


def measured_exponents(view: FittedLaw, params: Mapping[str, float | Array]) -> tuple[Array, Array]:
    """(a, b) of N_opt ∝ C^a and D_opt ∝ C^b of the law with ``params``, from the least to the largest C measured."""
    ends = _measured(view)
    N, D = optimum(view.declared, params, ends, view.compute)
    return _slope_between(ends, N), _slope_between(ends, D)


def _measured(view: FittedLaw) -> Array:
    C = view.table.columns["C"]
    return np.array([C.min(), C.max()])


def _slope_between(C: Array, values: Array) -> Array:
    """d log values / d log C between two budgets C (2,), for values (..., 2)."""
    return np.asarray(np.diff(np.log(values))[..., 0] / np.diff(np.log(C))[0])


def disagreements(approaches: Sequence[Approach], C: float) -> list[str]:
    """Sentences on which approaches contradict each other, in their exponent and in N at the budget nearest C."""
    said = []
    for first, second in itertools.combinations([x for x in approaches if x.applies], 2):
        at = int(np.abs(np.log(first.budgets / C)).argmin())
        pair = f"approaches {first.title[0]} and {second.title[0]}"
        if _apart(first.a_interval, second.a_interval):
            values = f"{first.a:.3f} and {second.a:.3f}"
            said.append(f"The exponents of {pair} differ by more than their intervals: {values}.")
        if _apart((first.low[at], first.high[at]), (second.low[at], second.high[at])):
            sizes = f"{count(first.N[at])} and {count(second.N[at])} parameters"
            where = f"At {flops(first.budgets[at])} FLOPs"
            said.append(f"{where} {pair} advise sizes that differ by more than their intervals: {sizes}.")
    return said


def _apart(first: tuple[float, float], second: tuple[float, float]) -> bool:
    return bool(first[1] < second[0] or second[1] < first[0])
