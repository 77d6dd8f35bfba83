"""What to train next: the best model for a budget, and the runs that would make a forecast sharper.

A forecast's uncertainty is that of the coefficients, which the bootstrap draws carry: over the draws, the predicted
log losses at a target and at possible runs have a covariance K. To first order K = J Σ Jᵀ, with J the Jacobian of the
law at those points and Σ the covariance of its coefficients. A run at x, measured with noise σ, leaves target t with

    Var(t | x) = K_tt - K_tx² / (K_xx + σ²)

which is the update of the Fisher information by one run (Chaloner & Verdinelli 1995, Bayesian Experimental Design: a
review, section 2; c-optimality with the target's gradient as c). Runs are chosen one after another.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from scaling.design.allocation import exponents, has_closed_form, optimum
from scaling.errors import PlanError
from scaling.fit.bootstrap import interval
from scaling.forecast.law_file import LawFile
from scaling.laws import Array, Law
from scaling.tables.cells import MAX_VALUE, MIN_VALUE
from scaling.tables.compute import Compute

_NUDGE = 1e-3  # of log N, by which the slope along a budget is measured
NEARLY = 0.95  # of the largest gain: the cheapest run that reaches it is taken


@dataclass(frozen=True)
class Quantity:
    """A value and its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Best:
    """Compute-optimal parameters N and tokens D for C FLOPs, with intervals."""

    C: Quantity
    N: Quantity
    D: Quantity


def best_for(law: LawFile, draws: Mapping[str, Array], given: str, value: float) -> Best:
    """The compute-optimal model of which one thing is ``given``: C (FLOPs), N (parameters) or D (tokens).

    Raises PlanError for a law that has no optimum.
    """
    if not (np.isfinite(value) and value > 0):
        raise PlanError(f"{given} must be a positive number, not {value}")
    if not MIN_VALUE <= value <= MAX_VALUE:
        raise PlanError(f"{given} = {value:g} is beyond any plausible value")
    point: dict[str, float | Array] = {k: float(v) for k, v in law.fit.params.items()}
    samples: dict[str, float | Array] = {k: np.asarray(v, dtype=float).reshape(-1, 1) for k, v in draws.items()}
    try:
        middle, drawn = (_solve(law.declared, p, law.compute, given, value) for p in (point, samples))
    except ValueError as error:
        raise PlanError(str(error)) from error
    found = {k: Quantity(float(middle[k][0]), *interval(drawn[k], law.fit.level)) for k in ("C", "N", "D")}
    return Best(**{**found, given: Quantity(value, value, value)})  # exactly as given


def _solve(
    law: Law, params: Mapping[str, float | Array], compute: Compute, given: str, value: float
) -> dict[str, Array]:
    """C, N and D (draws,) on the compute-optimal line where ``given`` has ``value``. Raises ValueError as optimum."""
    size = max(np.size(v) for v in params.values())
    fixed = np.full(size, value)
    at_value = dict(zip("ND", optimum(law, params, np.array([value]), compute), strict=True))
    if given == "C":
        return {"C": fixed, **{k: np.ravel(v) for k, v in at_value.items()}}
    if has_closed_form(law, compute):
        # Equation 4 is a power law through the optimum at any budget, here at C = value.
        exponent = dict(zip("ND", exponents(params), strict=True))[given]
        with np.errstate(all="ignore"):  # of a draw at a bound the limit is meant
            C = value * np.exp(np.log(value / np.ravel(at_value[given])) / np.ravel(exponent))
        other = compute.tokens(fixed, C) if given == "N" else compute.params(fixed, C)
    else:
        other = _balanced(law, params, compute, given, value)
    N, D = (fixed, other) if given == "N" else (other, fixed)
    return {"C": compute.flops(N, D), "N": N, "D": D}


def _balanced(law: Law, params: Mapping[str, float | Array], compute: Compute, given: str, value: float) -> Array:
    """The other of N and D (draws,) with which neither is worth more than what it costs.

    Along a budget C the loss is least where one per cent more parameters removes as much as the tokens that it takes.
    As D rises at a fixed N, or N falls at a fixed D, tokens lose that race: the change of sign is looked for.
    """

    def surplus(other: Array) -> Array:
        """log of what a little more N removes over what the tokens of as many FLOPs remove, (draws, points)."""
        N, D = np.broadcast_arrays(*((value, other) if given == "N" else (other, value)))
        below, above = N * np.exp(-_NUDGE), N * np.exp(_NUDGE)
        price = np.sqrt(compute.per_token(above) / compute.per_token(below))

        def loss(N: Array, D: Array) -> Array:
            return np.atleast_2d(law.evaluate(params, {"N": N, "D": D, "U": D}))

        with np.errstate(all="ignore"):
            by_size, by_tokens = loss(below, D) - loss(above, D), loss(N, D / price) - loss(N, D * price)
            return np.asarray(np.log(np.maximum(by_size, 0)) - np.log(np.maximum(by_tokens, 0)))

    sign = 1.0 if given == "N" else -1.0

    def crossing(log_other: Array) -> Array:
        """Where the surplus changes sign on a grid (points,), for every draw."""
        values = sign * surplus(np.exp(log_other))
        reached = values >= 0
        after = np.where(reached.any(axis=1), np.maximum(reached.argmax(axis=1), 1), len(log_other) - 1)
        left, right = (np.take_along_axis(values, i[:, None], axis=1)[:, 0] for i in (after - 1, after))
        with np.errstate(all="ignore"):
            share = np.nan_to_num(left / (left - right), nan=0.5)
        return np.asarray(log_other[after - 1] + np.clip(share, 0, 1) * (log_other[after] - log_other[after - 1]))

    found = crossing(np.linspace(0, 120, 961))
    if len(found) == 1:
        for width in (0.13, 0.001):
            found = crossing(found + np.linspace(-width, width, 201))
    return np.exp(found)


@dataclass(frozen=True)
class Candidates:
    """Runs that could be trained: ``columns`` of the law's variables (m,), and FLOPs each costs (m,)."""

    columns: Mapping[str, Array]
    flops: Array

    def __len__(self) -> int:
        return len(self.flops)


@dataclass(frozen=True)
class DesignStep:
    """One run chosen: its index among the candidates, and the relative standard deviation of the forecast after it.

    ``gain`` is the share of the forecast's present variance that the run removes.
    """

    candidate: int
    flops: float
    sigma: float
    gain: float

    @property
    def gain_per_flop(self) -> float:
        """That share per FLOP."""
        return self.gain / self.flops


@dataclass(frozen=True)
class Design:
    """Runs in the order of choice. ``sigma`` is the relative standard deviation of the target's expected loss now."""

    sigma: float
    steps: tuple[DesignStep, ...]

    @property
    def flops(self) -> float:
        """Cost of all runs."""
        return float(sum(s.flops for s in self.steps))


def covariance(law: Law, draws: Mapping[str, Array], columns: Mapping[str, Array]) -> Array:
    """Covariance (points, points) of the log losses predicted at ``columns`` (points,), over the draws."""
    samples = {k: np.asarray(v, dtype=float).reshape(-1, 1) for k, v in draws.items()}
    predicted = np.log(law.evaluate(samples, columns))
    return np.atleast_2d(np.cov(predicted, rowvar=False))


def grid(law: LawFile, target: Mapping[str, float], budget: float) -> Candidates:
    """Runs at doublings of N and D, over the fitted range and up to 4 times beyond it, each within ``budget`` FLOPs."""
    axes = []
    for name in ("N", "D"):
        low, high = law.data.fit_range[name]
        high = min(4 * high, max(high, target[name]))
        axes.append(np.exp2(np.arange(np.log2(low), np.log2(high) + 1e-9)))
    N, D = (m.ravel() for m in np.meshgrid(*axes, indexing="ij"))
    flops = law.compute.flops(N, D)
    allowed = (flops <= budget) & ~((target["N"] <= N) & (target["D"] <= D))
    return Candidates({k: v[allowed] for k, v in (("N", N), ("D", D), ("U", D), ("C", flops))}, flops[allowed])


@dataclass(frozen=True)
class DesignBasis:
    """What a design is made from: a law, its parameters and draws (draws,), and the noise of a measurement.

    ``residual_sigma`` is a standard deviation, relative where the ``scale`` of the losses is log.
    """

    law: Law
    params: Mapping[str, float]
    draws: Mapping[str, Array]
    residual_sigma: float
    scale: str

    @classmethod
    def of(cls, law: LawFile, draws: Mapping[str, Array]) -> "DesignBasis":
        """That of a law.json."""
        return cls(law.declared, law.fit.params, draws, law.fit.residual_sigma, law.fit.loss.scale)


def design(
    basis: DesignBasis,
    target: Mapping[str, float],
    candidates: Candidates,
    budget: float,
    runs: int,
) -> Design:
    """The ``runs`` of the candidates, together within ``budget`` FLOPs, that narrow the forecast at ``target`` most.

    Two greedy orders are tried, by gain and by gain per FLOP, and the better end is kept (Leskovec et al. 2007,
    Cost-effective Outbreak Detection in Networks, section 3.2: within (1 - 1/e)/2 of the best for submodular gains).
    Raises PlanError where no candidate is within the budget, or the law reads what candidates do not say.
    """
    declared = basis.law
    if declared.response != "loss":
        raise PlanError(f"the law {declared.name} predicts {declared.response}, which this design does not handle")
    unknown = [k for k in declared.variables if k not in candidates.columns]
    if unknown:
        raise PlanError(f"the law {declared.name} reads {unknown[0]}, which a plan in N and D does not say")
    affordable = np.flatnonzero(candidates.flops <= budget)
    if not len(affordable):
        cheapest = f"; the cheapest costs {candidates.flops.min():.3g}" if len(candidates) else ""
        raise PlanError(f"no run that could be trained costs at most {budget:.3g} FLOPs{cheapest}")
    at = {k: np.append(target[k], candidates.columns[k][affordable]) for k in declared.variables}
    K = covariance(declared, basis.draws, at)
    noise = np.full(len(at[declared.variables[0]]), basis.residual_sigma)
    if basis.scale != "log":
        noise = noise / declared.evaluate(basis.params, at)
    cost = candidates.flops[affordable]
    both = [_greedy(K, noise[1:] ** 2, cost, budget, runs, per_flop) for per_flop in (False, True)]
    best = min(both, key=lambda steps: (steps[-1].sigma, sum(s.flops for s in steps)))
    chosen = (replace(step, candidate=int(affordable[step.candidate])) for step in best)
    return Design(float(np.sqrt(K[0, 0])), tuple(chosen))


def _greedy(K: Array, noise: Array, cost: Array, budget: float, runs: int, per_flop: bool) -> list[DesignStep]:
    """Choose runs one after another. ``K`` has the target first; ``noise`` holds variances."""
    K, first = K.copy(), K[0, 0]
    left: NDArray[np.bool_] = np.ones(len(cost), dtype=bool)
    steps: list[DesignStep] = []
    for _ in range(runs):
        allowed = left & (cost <= budget)
        if not allowed.any():
            break
        gain = np.where(allowed, K[0, 1:] ** 2 / (np.diag(K)[1:] + noise), -1.0)
        if per_flop:
            i = int((gain / cost).argmax())
        else:
            i = int(min(np.flatnonzero(gain >= NEARLY * gain.max()), key=lambda j: cost[j]))
        row = K[:, i + 1].copy()
        K -= np.outer(row, row) / (row[i + 1] + noise[i])
        left[i] = False
        budget -= cost[i]
        steps.append(DesignStep(i, float(cost[i]), float(np.sqrt(max(K[0, 0], 0.0))), float(gain[i] / first)))
    return steps


SAME = 0.02  # runs within this of each other in log N and log D measure the same
REACH = 4.0  # times beyond the measured tokens per parameter that a proposed run may go


def sensible(candidates: Candidates, N: Array, D: Array) -> NDArray[np.bool_]:
    """Which candidates (m,) are neither measured already nor far from all that was, given the measured N and D (k,).

    A design by variance alone runs to the corners: huge models on few tokens, and tiny ones on very many, where nothing
    says that the law holds. Tokens per parameter stay within REACH times those measured.
    """
    asked_N, asked_D = (np.log(candidates.columns[k]) for k in ("N", "D"))
    known_N, known_D = np.log(N), np.log(D)
    near = np.maximum(np.abs(asked_N[:, None] - known_N), np.abs(asked_D[:, None] - known_D)) < SAME
    ratio, known = asked_D - asked_N, known_D - known_N
    low, high = known.min() - np.log(REACH), known.max() + np.log(REACH)
    return np.asarray(~near.any(axis=1) & (ratio >= low) & (ratio <= high))
