"""The laws of Kaplan et al. 2020, arXiv:2001.08361: of size, data or compute alone, and of two of them."""

import numpy as np

from scaling.laws.law import AMPLITUDE, EXPONENT, Array, Law, combinations
from scaling.laws.power_sums import additive_model, log_sum


def _scales_encode(params: Array, centre: Array) -> Array:
    """Coordinates (..., p) of scales X_c and as many exponents α: α (log X_c − centre) and α."""
    scales, alphas = np.split(params, 2, axis=-1)
    return np.concatenate([alphas * (np.log(scales) - centre), alphas], axis=-1)


def _scales_decode(theta: Array, centre: Array) -> Array:
    u, alphas = np.split(theta, 2, axis=-1)
    with np.errstate(over="ignore"):
        return np.concatenate([np.exp(u / alphas + centre), alphas], axis=-1)


def _power_model(theta: Array, x: Array) -> tuple[Array, Array]:
    """exp(u − α x); coordinates u (log loss at the centre), α."""
    prediction = np.exp(theta[:, :1] - theta[:, 1:] * x[0])
    return prediction, np.stack([prediction, -prediction * x[0]], axis=1)


def _power_starts(x: Array, y: Array) -> Array:
    alphas = np.array([0.02, 0.05, 0.1, 0.2, 0.4, 0.8])
    return np.column_stack([np.full(len(alphas), np.log(np.median(y))), alphas])


def _kaplan_single(variable: str, equation: str) -> Law:
    return Law(
        name=f"kaplan_{variable.lower()}",
        formula=f"L({variable}) = ({variable}_c/{variable})^α",
        paper=f"Kaplan et al. 2020, Scaling Laws for Neural Language Models, arXiv:2001.08361, equation {equation}",
        variables=(variable,),
        parameters=(f"{variable}_c", "alpha"),
        bounds=(AMPLITUDE, EXPONENT),
        model=_power_model,
        encode=_scales_encode,
        decode=_scales_decode,
        starts=_power_starts,
        distinct=(2,),
        entangled={f"{variable}_c": ("alpha",)},
        frontier=True,
    )


KAPLAN_N = _kaplan_single("N", "1.1")
KAPLAN_D = _kaplan_single("D", "1.2")
KAPLAN_C = _kaplan_single("C", "1.3")


def _kaplan_ns_model(theta: Array, x: Array) -> tuple[Array, Array]:
    prediction, gradient = additive_model(np.pad(theta, ((0, 0), (1, 0))), x)  # without a constant E
    return prediction, gradient[:, 1:]


def _scales_starts(x: Array, y: Array) -> Array:
    grid = combinations((0.03, 0.08, 0.2, 0.5), (0.03, 0.08, 0.2, 0.5), (0.2, 0.5, 0.8))
    middle = float(np.median(y))
    return np.column_stack([np.log(grid[:, 2] * middle), np.log((1 - grid[:, 2]) * middle), grid[:, :2]])


KAPLAN_NS = Law(
    name="kaplan_ns",
    formula="L(N, S) = (N_c/N)^α_N + (S_c/S)^α_S",
    paper="Kaplan et al. 2020, arXiv:2001.08361, equation 1.6; S is S_min, the steps needed at a large batch",
    variables=("N", "S"),
    parameters=("N_c", "S_c", "alpha_N", "alpha_S"),
    bounds=(AMPLITUDE, AMPLITUDE, EXPONENT, EXPONENT),
    model=_kaplan_ns_model,
    encode=_scales_encode,
    decode=_scales_decode,
    starts=_scales_starts,
    distinct=(2, 2),
    entangled={"N_c": ("alpha_N",), "S_c": ("alpha_S",)},
)


def _kaplan_nd_model(theta: Array, x: Array) -> tuple[Array, Array]:
    """log L = α_D log(exp((u − α_N x)/α_D) + exp(v/α_D − y)); coordinates u, v, α_N, α_D."""
    u, v, alpha_n, alpha_d = (theta[:, i, None] for i in range(4))
    p, q = (u - alpha_n * x[0]) / alpha_d, v / alpha_d - x[1]
    total, share = log_sum(p, q)
    prediction = np.exp(alpha_d * total)
    d_alpha_d = total - share * p - (1 - share) * v / alpha_d
    slopes = np.stack([share, 1 - share, -x[0] * share, d_alpha_d], axis=1)
    return prediction, prediction[:, None] * slopes


KAPLAN_ND = Law(
    name="kaplan_nd",
    formula="L(N, D) = [(N_c/N)^(α_N/α_D) + D_c/D]^α_D",
    paper="Kaplan et al. 2020, arXiv:2001.08361, equation 1.5",
    variables=("N", "D"),
    parameters=("N_c", "D_c", "alpha_N", "alpha_D"),
    bounds=(AMPLITUDE, AMPLITUDE, EXPONENT, (1e-3, 5.0)),
    model=_kaplan_nd_model,
    encode=_scales_encode,
    decode=_scales_decode,
    starts=_scales_starts,
    distinct=(2, 2),
    entangled={"N_c": ("alpha_N",), "D_c": ("alpha_D",)},
)
