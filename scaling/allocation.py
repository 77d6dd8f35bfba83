"""How to spend a compute budget C = 6 N D on parameters N and tokens D, by three approaches (Hoffmann et al. 2022).

Approach 3 takes the minimum of the fitted law. For L = E + A/N^α + B/D^β, setting dL/dN = 0 along D = C/(6N) gives

    N_opt = G (C/6)^a,   D_opt = (C/6)^b / G,   G = (αA / βB)^(1/(α+β)),   a = β/(α+β),   b = α/(α+β)

(Hoffmann et al. 2022, arXiv:2203.15556, equation 4). Some surveys print a = α/(α+β), which is not the minimum.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .laws import Array, Law

FLOPS_PER_PARAMETER_TOKEN = 6.0
_GOLDEN = (np.sqrt(5) - 1) / 2


def exponents(params: Mapping[str, float | Array]) -> tuple[float | Array, float | Array]:
    """(a, b) of N_opt ∝ C^a and D_opt ∝ C^b for a law E + A/N^α + B/D^β."""
    alpha, beta = params["alpha"], params["beta"]
    return beta / (alpha + beta), alpha / (alpha + beta)


def optimum(law: Law, params: Mapping[str, float | Array], C: Array) -> tuple[Array, Array]:
    """Best N (parameters) and D (tokens) at each budget C (points,), in FLOPs with C = 6 N D.

    Parameters of shape (draws, 1) give (draws, points). Raises ValueError for a law that is not a loss over N and D.
    """
    if not {"N", "D"} <= set(law.variables) <= {"N", "D", "U"} or law.response != "loss":
        raise ValueError(f"the law {law.name} has no best N and D at a budget: it is not a loss over N and D")
    C = np.asarray(C, dtype=float)
    if law.name == "chinchilla":
        return _closed_form(params, C)
    return _search(law, params, C)


def _closed_form(params: Mapping[str, float | Array], C: Array) -> tuple[Array, Array]:
    alpha, beta = np.asarray(params["alpha"]), np.asarray(params["beta"])
    with np.errstate(divide="ignore"):
        log_G = (np.log(alpha * params["A"]) - np.log(beta * params["B"])) / (alpha + beta)
    log_budget = np.log(C / FLOPS_PER_PARAMETER_TOKEN)
    log_N = log_G + beta / (alpha + beta) * log_budget
    return np.exp(log_N), np.exp(log_budget - log_N)


def _search(law: Law, params: Mapping[str, float | Array], C: Array) -> tuple[Array, Array]:
    """Golden-section search over log N, for laws that have one minimum along a budget."""
    draws = max(np.size(v) for v in params.values())
    if any(np.ndim(v) > 0 for v in params.values()):
        each = [{k: float(np.ravel(v)[i if np.size(v) > 1 else 0]) for k, v in params.items()} for i in range(draws)]
        found = [_search(law, one, C) for one in each]
        return np.stack([N for N, _ in found]), np.stack([D for _, D in found])
    budget = C / FLOPS_PER_PARAMETER_TOKEN
    low, high = np.zeros_like(budget), np.log(budget)

    def value(log_N: Array) -> Array:
        D = budget / np.exp(log_N)
        return law.evaluate(params, {"N": np.exp(log_N), "D": D, "U": D})

    for _ in range(60):
        span = _GOLDEN * (high - low)
        falls = value(high - span) < value(low + span)
        high, low = np.where(falls, low + span, high), np.where(falls, low, high - span)
    N = np.exp((low + high) / 2)
    return N, budget / N
