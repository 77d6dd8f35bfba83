"""What to train next: the best model for a budget, and the runs that would make a forecast sharper.

A forecast's uncertainty is that of the coefficients, which the bootstrap draws carry: over the draws, the predicted
log losses at a target and at possible runs have a covariance K. To first order K = J Σ Jᵀ, with J the Jacobian of the
law at those points and Σ the covariance of its coefficients. A run at x, measured with noise σ, leaves target t with

    Var(t | x) = K_tt - K_tx² / (K_xx + σ²)

which is the update of the Fisher information by one run (Chaloner & Verdinelli 1995, Bayesian Experimental Design: a
review, section 2; c-optimality with the target's gradient as c). Runs are chosen one after another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scaling.design.allocation import FLOPS_PER_PARAMETER_TOKEN, optimum
from scaling.errors import PlanError
from scaling.fit.bootstrap import interval
from scaling.laws import LAWS, Array, Law
from scaling.tables.cells import MAX_VALUE, MIN_VALUE

NEARLY = 0.95  # of the largest gain: the cheapest run that reaches it is taken


@dataclass(frozen=True)
class Quantity:
    """A value and its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Best:
    """Compute-optimal parameters N and tokens D for C FLOPs, with intervals; C = 6 N D."""

    C: Quantity
    N: Quantity
    D: Quantity


def best_for(law: Mapping[str, Any], draws: Mapping[str, Array], given: str, value: float) -> Best:
    """The compute-optimal model of which one thing is ``given``: C (FLOPs), N (parameters) or D (tokens).

    ``law`` is the content of law.json. Raises PlanError for a law that has no optimum.
    """
    declared = LAWS[law["law"]]
    if not (np.isfinite(value) and value > 0):
        raise PlanError(f"{given} must be a positive number, not {value}")
    if not MIN_VALUE <= value <= MAX_VALUE:
        raise PlanError(f"{given} = {value:g} is beyond any plausible value")
    point: dict[str, Array] = {k: np.array([[float(v)]]) for k, v in law["params"].items()}
    samples = {k: np.asarray(v, dtype=float).reshape(-1, 1) for k, v in draws.items()}
    middle, drawn = ({k: v[:, 0] for k, v in _solve(declared, p, given, value).items()} for p in (point, samples))
    level = law["level"]
    found = {k: Quantity(float(middle[k][0]), *interval(drawn[k], level)) for k in ("C", "N", "D")}
    return Best(**{**found, given: Quantity(value, value, value)})  # exactly as given


def _solve(law: Law, params: Mapping[str, Array], given: str, value: float) -> dict[str, Array]:
    """C, N and D (draws, 1) on the compute-optimal line where ``given`` has ``value``."""

    def at(log_C: Array) -> dict[str, Array]:
        try:
            N, D = _optimum_each(law, params, np.exp(log_C))
        except ValueError as error:
            raise PlanError(str(error)) from error
        return {"C": np.exp(log_C), "N": N, "D": D}

    size = max(np.size(v) for v in params.values())
    if given == "C":
        return at(np.full((size, 1), np.log(value)))
    # N and D rise with C along the line, so bisection finds the budget at which they reach the value.
    low, high = np.full((size, 1), np.log(6 * value)), np.full((size, 1), np.log(6 * value) + 120)
    for _ in range(60):
        middle = (low + high) / 2
        below = at(middle)[given] < value
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return at((low + high) / 2)


def _optimum_each(law: Law, params: Mapping[str, Array], C: Array) -> tuple[Array, Array]:
    """Best N and D (draws, 1) where every draw has a budget of its own, C (draws, 1)."""
    if law.name == "chinchilla":
        return optimum(law, params, C)
    each = [({k: float(v[i, 0]) for k, v in params.items()}, C[i]) for i in range(len(C))]
    found = [optimum(law, one, budget) for one, budget in each]
    return np.stack([N for N, _ in found]), np.stack([D for _, D in found])


# --- Runs that narrow a forecast ------------------------------------------------------------------------------------


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

    ``gain`` is the share of the forecast's present variance that the run removes, ``gain_per_flop`` that per FLOP.
    """

    candidate: int
    flops: float
    sigma: float
    gain: float
    gain_per_flop: float


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


def grid(law: Mapping[str, Any], target: Mapping[str, float], budget: float, steps_per_doubling: int = 1) -> Candidates:
    """Possible runs over the fitted range and up to 4 times beyond it, each within ``budget`` FLOPs (C = 6 N D)."""
    axes = []
    for name in ("N", "D"):
        low, high = law["fit_range"][name]
        high = min(4 * high, max(high, target[name]))
        axes.append(np.exp2(np.arange(np.log2(low), np.log2(high) + 1e-9, 1 / steps_per_doubling)))
    N, D = (m.ravel() for m in np.meshgrid(*axes, indexing="ij"))
    flops = FLOPS_PER_PARAMETER_TOKEN * N * D
    allowed = (flops <= budget) & ~((target["N"] <= N) & (target["D"] <= D))
    return Candidates({"N": N[allowed], "D": D[allowed], "U": D[allowed]}, flops[allowed])


def design(
    law: Mapping[str, Any],
    draws: Mapping[str, Array],
    target: Mapping[str, float],
    candidates: Candidates,
    budget: float,
    runs: int,
) -> Design:
    """The ``runs`` of the candidates, together within ``budget`` FLOPs, that narrow the forecast at ``target`` most.

    Two greedy orders are tried, by gain and by gain per FLOP, and the better end is kept (Leskovec et al. 2007,
    Cost-effective Outbreak Detection in Networks, section 3.2: within (1 - 1/e)/2 of the best for submodular gains).
    Raises PlanError where no candidate is within the budget.
    """
    declared = LAWS[law["law"]]
    if declared.response != "loss":
        raise PlanError(f"the law {declared.name} predicts {declared.response}, which this design does not handle")
    affordable = np.flatnonzero(candidates.flops <= budget)
    if not len(affordable):
        cheapest = f"; the cheapest costs {candidates.flops.min():.3g}" if len(candidates) else ""
        raise PlanError(f"no run that could be trained costs at most {budget:.3g} FLOPs{cheapest}")
    at = {k: np.append(target[k], candidates.columns[k][affordable]) for k in declared.variables}
    K = covariance(declared, draws, at)
    noise = np.full(len(at[declared.variables[0]]), law["residual_sigma"])
    if law["loss"]["scale"] != "log":
        noise = noise / declared.evaluate(law["params"], at)
    cost = candidates.flops[affordable]
    both = [_greedy(K, noise[1:] ** 2, cost, budget, runs, per_flop) for per_flop in (False, True)]
    best = min(both, key=lambda steps: (steps[-1].sigma, sum(s.flops for s in steps)))
    chosen = tuple(DesignStep(int(affordable[s.candidate]), s.flops, s.sigma, s.gain, s.gain_per_flop) for s in best)
    return Design(float(np.sqrt(K[0, 0])), chosen)


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
        share = float(gain[i] / first)
        steps.append(DesignStep(i, float(cost[i]), float(np.sqrt(max(K[0, 0], 0.0))), share, share / float(cost[i])))
    return steps


REACH = 4.0  # times beyond the measured tokens per parameter that a proposed run may go


def sensible(candidates: Candidates, N: Array, D: Array, tolerance: float = 0.02) -> NDArray[np.bool_]:
    """Which candidates (m,) are neither measured already nor far from all that was, given the measured N and D (k,).

    A design by variance alone runs to the corners: huge models on few tokens, and tiny ones on very many, where nothing
    says that the law holds. Tokens per parameter stay within REACH times those measured.
    """
    asked_N, asked_D = (np.log(candidates.columns[k]) for k in ("N", "D"))
    known_N, known_D = np.log(N), np.log(D)
    near = np.maximum(np.abs(asked_N[:, None] - known_N), np.abs(asked_D[:, None] - known_D)) < tolerance
    ratio, known = asked_D - asked_N, known_D - known_N
    return ~near.any(axis=1) & (ratio >= known.min() - np.log(REACH)) & (ratio <= known.max() + np.log(REACH))
