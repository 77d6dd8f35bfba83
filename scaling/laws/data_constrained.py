"""The law of repeated data, Muennighoff et al. 2023, arXiv:2305.16264."""

import numpy as np

from scaling.laws.law import AMPLITUDE, EXPONENT, NONNEGATIVE, Array, Law, combinations
from scaling.laws.power_sums import additive_decode, additive_encode, additive_starts


def _saturating(excess: Array, scale: Array) -> tuple[Array, Array, Array]:
    """log(1 + R(1 − exp(−r/R))) for excess r >= 0, and its derivatives with respect to r and to log R."""
    decay = np.exp(-excess / scale)
    worth = 1 + scale * (1 - decay)
    return np.log(worth), decay / worth, scale * (1 - decay - excess / scale * decay) / worth


def _repetition_model(theta: Array, x: Array) -> tuple[Array, Array]:
    """E + exp(a − α n') + exp(b − β d'); coordinates E, a, b, α, β, log R*_N, log R*_D; x = log N, D, U.

    U_N, the size for which U tokens are compute-optimal, is where α exp(a − α n) = β exp(b − β u).
    """
    a, b, alpha, beta, log_rn, log_rd = (theta[:, i, None] for i in range(1, 7))
    n, d = x[0], x[1]
    u = np.minimum(x[2], d)
    worth, _, d_log_rd = _saturating(np.expm1(d - u), np.exp(log_rd))
    d_effective = u + worth
    optimal = (np.log(alpha / beta) + a - b + beta * u) / alpha
    large = n > optimal
    base = np.where(large, optimal, n)
    excess = np.expm1(n - base)
    worth, slope, d_log_rn = _saturating(excess, np.exp(log_rn))
    n_effective = base + worth
    # How N' follows U_N: it sets the unit and eats into the excess. Zero where the model is smaller than U_N.
    follows = np.where(large, 1 - slope * (1 + excess), 0.0)
    term_n, term_d = np.exp(a - alpha * n_effective), np.exp(b - beta * d_effective)
    gradient = np.stack(
        [
            np.ones_like(term_n),
            term_n * (1 - follows),
            term_d + term_n * follows,
            -term_n * (n_effective + follows * (1 / alpha - optimal)),
            -term_d * d_effective - term_n * follows * (u - 1 / beta),
            -term_n * alpha * d_log_rn,
            -term_d * beta * d_log_rd,
        ],
        axis=1,
    )
    return theta[:, :1] + term_n + term_d, gradient


def _repetition_starts(x: Array, y: Array) -> Array:
    starts = additive_starts(x[:2], y)[::3]
    scales = combinations((np.log(2.0), np.log(15.0)), (np.log(4.0), np.log(20.0)))
    return np.concatenate([np.column_stack([starts, np.tile(s, (len(starts), 1))]) for s in scales])


DATA_CONSTRAINED = Law(
    name="data_constrained",
    formula="L = E + A/N'^α + B/D'^β,  D' = U + U R*_D (1 − exp(−(D/U − 1)/R*_D)),  N' likewise in U_N and R*_N",
    paper="Muennighoff et al. 2023, Scaling Data-Constrained Language Models, arXiv:2305.16264, "
    "section 3.1, equations 5 and 6",
    variables=("N", "D", "U"),
    parameters=("E", "A", "B", "alpha", "beta", "R_N", "R_D"),
    bounds=(NONNEGATIVE, AMPLITUDE, AMPLITUDE, EXPONENT, EXPONENT, (-7.0, 12.0), (-7.0, 12.0)),
    model=_repetition_model,
    encode=lambda p, c: np.concatenate([additive_encode(p[..., :5], c[:2]), np.log(p[..., 5:])], axis=-1),
    decode=lambda t, c: np.concatenate([additive_decode(t[..., :5], c[:2]), np.exp(t[..., 5:])], axis=-1),
    starts=_repetition_starts,
    distinct=(3, 3, 2),
    entangled={"A": ("alpha",), "B": ("beta",)},
    shares_centre={"U": "D"},
)
