"""Chinchilla's law of Hoffmann et al. 2022, with equal exponents, and coupled to Kaplan's."""

import numpy as np

from scaling.laws.law import AMPLITUDE, EXPONENT, NONNEGATIVE, Array, Law
from scaling.laws.power_sums import additive_decode, additive_encode, additive_model, additive_starts, log_sum

CHINCHILLA = Law(
    name="chinchilla",
    formula="L(N, D) = E + A/N^α + B/D^β",
    paper="Hoffmann et al. 2022, Training Compute-Optimal Large Language Models, arXiv:2203.15556, equation 2",
    variables=("N", "D"),
    parameters=("E", "A", "B", "alpha", "beta"),
    bounds=(NONNEGATIVE, AMPLITUDE, AMPLITUDE, EXPONENT, EXPONENT),
    model=additive_model,
    encode=additive_encode,
    decode=additive_decode,
    starts=additive_starts,
    distinct=(3, 3),
    entangled={"A": ("alpha",), "B": ("beta",)},
)


def _tied_model(theta: Array, x: Array) -> tuple[Array, Array]:
    prediction, gradient = additive_model(theta[:, [0, 1, 2, 3, 3]], x)
    gradient[:, 3] += gradient[:, 4]
    return prediction, gradient[:, :4]


def _tied_starts(x: Array, y: Array) -> Array:
    starts = additive_starts(x, y)
    return np.asarray(starts[starts[:, 3] == starts[:, 4], :4])


CHINCHILLA_TIED = Law(
    name="chinchilla_tied",
    formula="L(N, D) = E + A/N^α + B/D^α",
    paper="Gadre et al. 2024, Language models scale reliably with over-training, arXiv:2403.08540, equation 4, "
    "and Muennighoff et al. 2023, arXiv:2305.16264, appendix A",
    variables=("N", "D"),
    parameters=("E", "A", "B", "alpha"),
    bounds=(NONNEGATIVE, AMPLITUDE, AMPLITUDE, EXPONENT),
    model=_tied_model,
    encode=lambda p, c: additive_encode(p[..., [0, 1, 2, 3, 3]], c)[..., :4],
    decode=lambda t, c: additive_decode(t[..., [0, 1, 2, 3, 3]], c)[..., :4],
    starts=_tied_starts,
    distinct=(2, 2),
    entangled={"A": ("alpha",), "B": ("alpha",)},
)


def _coupled_model(theta: Array, x: Array) -> tuple[Array, Array]:
    """E + exp(γ log(exp((a − αx)/γ) + exp((b − βy)/γ))); coordinates E, a, b, α, β (both times γ), γ."""
    a, b, alpha, beta, gamma = (theta[:, i, None] for i in range(1, 6))
    p, q = (a - alpha * x[0]) / gamma, (b - beta * x[1]) / gamma
    total, share = log_sum(p, q)
    term = np.exp(gamma * total)
    other = 1 - share
    slopes = [share, other, -x[0] * share, -x[1] * other, total - share * p - other * q]
    gradient = np.stack([np.ones_like(term), *(term * s for s in slopes)], axis=1)
    return theta[:, :1] + term, gradient


def _coupled_encode(params: Array, centre: Array) -> Array:
    gamma = params[..., 5:]
    alphas = params[..., 3:5] * gamma
    amplitudes = gamma * np.log(params[..., 1:3]) - alphas * centre
    return np.concatenate([params[..., :1], amplitudes, alphas, gamma], axis=-1)


def _coupled_decode(theta: Array, centre: Array) -> Array:
    gamma = theta[..., 5:]
    with np.errstate(over="ignore"):
        amplitudes = np.exp((theta[..., 1:3] + theta[..., 3:5] * centre) / gamma)
    return np.concatenate([theta[..., :1], amplitudes, theta[..., 3:5] / gamma, gamma], axis=-1)


def _coupled_starts(x: Array, y: Array) -> Array:
    starts = additive_starts(x, y)
    return np.concatenate([np.column_stack([starts, np.full(len(starts), g)]) for g in (0.3, 1.0)])


COUPLED = Law(
    name="coupled",
    formula="L(N, D) = E + (A/N^α + B/D^β)^γ",
    paper="Busbridge et al. 2025, Distillation Scaling Laws, arXiv:2502.08606, the law of the supervised models. "
    "γ = 1 is Chinchilla's law; E = 0, β = 1, γ = α_D, α = α_N/α_D is Kaplan's L(N, D)",
    variables=("N", "D"),
    parameters=("E", "A", "B", "alpha", "beta", "gamma"),
    bounds=(NONNEGATIVE, AMPLITUDE, AMPLITUDE, EXPONENT, EXPONENT, (0.02, 5.0)),
    model=_coupled_model,
    encode=_coupled_encode,
    decode=_coupled_decode,
    starts=_coupled_starts,
    distinct=(3, 3),
    entangled={"A": ("alpha", "gamma"), "B": ("beta", "gamma"), "alpha": ("gamma",), "beta": ("gamma",)},
)
