"""The laws themselves: Chinchilla and its variants, Kaplan's, repeated data, and loss to task score.

See scaling/law.py for what the fields and the shapes mean.
"""

from __future__ import annotations

import numpy as np

from scaling.law import AMPLITUDE, EXPONENT, LAWS, NONNEGATIVE, Array, Law, add, law_named

__all__ = ["LAWS", "Array", "Law", "law_named"]


# --- Sums of power laws -------------------------------------------------------------------------------------------


def _additive_model(theta: Array, x: Array) -> tuple[Array, Array]:
    """E + Σ exp(a_v − α_v x_v); coordinates E, a_1.., α_1..."""
    terms = len(x)
    gradient = np.empty((*theta.shape, x.shape[1]))
    gradient[:, 0] = 1.0
    prediction = np.repeat(theta[:, :1], x.shape[1], axis=1)
    for v in range(terms):
        term = gradient[:, 1 + v]
        np.multiply(theta[:, 1 + terms + v, None], -x[v], out=term)
        term += theta[:, 1 + v, None]
        np.exp(term, out=term)
        prediction += term
        np.multiply(term, -x[v], out=gradient[:, 1 + terms + v])
    return prediction, gradient


def _additive_encode(params: Array, centre: Array) -> Array:
    theta, terms = params.astype(float), len(centre)
    with np.errstate(divide="ignore"):
        theta[..., 1 : 1 + terms] = np.log(params[..., 1 : 1 + terms]) - params[..., 1 + terms :] * centre
    return theta


def _additive_decode(theta: Array, centre: Array) -> Array:
    params, terms = theta.copy(), len(centre)
    with np.errstate(over="ignore"):
        params[..., 1 : 1 + terms] = np.exp(theta[..., 1 : 1 + terms] + theta[..., 1 + terms :] * centre)
    return params


def _grid(*axes: tuple[float, ...]) -> Array:
    return np.stack([m.ravel() for m in np.meshgrid(*axes, indexing="ij")], axis=1)


def _additive_starts(x: Array, y: Array) -> Array:
    """72 starts for two terms: E as a share of the least loss, both exponents, and who carries the remainder."""
    terms, middle = len(x), float(np.median(y))
    exponents = ((0.1, 0.3, 0.6),) * terms
    shares = ((0.3, 0.7),) if terms == 2 else ((1.0,),)
    grid = _grid((0.1, 0.4, 0.7, 0.9), *exponents, *shares)
    E, alphas, share = grid[:, 0] * y.min(), grid[:, 1 : 1 + terms], grid[:, -1]
    first = np.log(share * (middle - E))
    amplitudes = [first] if terms == 1 else [first, np.log((1 - share) * (middle - E))]
    return np.column_stack([E, *amplitudes, alphas])


CHINCHILLA = add(
    Law(
        name="chinchilla",
        title="Chinchilla L(N, D)",
        formula="L(N, D) = E + A/N^α + B/D^β",
        paper="Hoffmann et al. 2022, Training Compute-Optimal Large Language Models, arXiv:2203.15556, equation 2",
        variables=("N", "D"),
        parameters=("E", "A", "B", "alpha", "beta"),
        bounds=(NONNEGATIVE, AMPLITUDE, AMPLITUDE, EXPONENT, EXPONENT),
        model=_additive_model,
        encode=_additive_encode,
        decode=_additive_decode,
        starts=_additive_starts,
        distinct=(3, 3),
        entangled={"A": ("alpha",), "B": ("beta",)},
    )
)


# --- Kaplan's single-variable laws --------------------------------------------------------------------------------


def _power_model(theta: Array, x: Array) -> tuple[Array, Array]:
    """exp(u − α x); coordinates u (log loss at the centre), α."""
    prediction = np.exp(theta[:, :1] - theta[:, 1:] * x[0])
    return prediction, np.stack([prediction, -prediction * x[0]], axis=1)


def _power_encode(params: Array, centre: Array) -> Array:
    scale, alpha = params[..., 0], params[..., 1]
    return np.stack([alpha * (np.log(scale) - centre[0]), alpha], axis=-1)


def _power_decode(theta: Array, centre: Array) -> Array:
    u, alpha = theta[..., 0], theta[..., 1]
    with np.errstate(over="ignore"):
        return np.stack([np.exp(u / alpha + centre[0]), alpha], axis=-1)


def _power_starts(x: Array, y: Array) -> Array:
    alphas = np.array([0.02, 0.05, 0.1, 0.2, 0.4, 0.8])
    return np.column_stack([np.full(len(alphas), np.log(np.median(y))), alphas])


def _kaplan_single(variable: str, title: str, equation: str) -> Law:
    return add(
        Law(
            name=f"kaplan_{variable.lower()}",
            title=title,
            formula=f"L({variable}) = ({variable}_c/{variable})^α",
            paper=f"Kaplan et al. 2020, Scaling Laws for Neural Language Models, arXiv:2001.08361, equation {equation}",
            variables=(variable,),
            parameters=(f"{variable}_c", "alpha"),
            bounds=(AMPLITUDE, EXPONENT),
            model=_power_model,
            encode=_power_encode,
            decode=_power_decode,
            starts=_power_starts,
            distinct=(2,),
            entangled={f"{variable}_c": ("alpha",)},
            frontier=True,
        )
    )


KAPLAN_N = _kaplan_single("N", "Kaplan L(N), data not limiting", "1.1")
KAPLAN_D = _kaplan_single("D", "Kaplan L(D), size not limiting", "1.2")
KAPLAN_C = _kaplan_single("C", "Kaplan L(C), compute spent best", "1.3")


# --- Chinchilla with one exponent ---------------------------------------------------------------------------------


def _tied_model(theta: Array, x: Array) -> tuple[Array, Array]:
    prediction, gradient = _additive_model(theta[:, [0, 1, 2, 3, 3]], x)
    gradient[:, 3] += gradient[:, 4]
    return prediction, gradient[:, :4]


def _tied_starts(x: Array, y: Array) -> Array:
    starts = _additive_starts(x, y)
    return np.asarray(starts[starts[:, 3] == starts[:, 4], :4])


CHINCHILLA_TIED = add(
    Law(
        name="chinchilla_tied",
        title="Chinchilla L(N, D) with equal exponents",
        formula="L(N, D) = E + A/N^α + B/D^α",
        paper="Gadre et al. 2024, Language models scale reliably with over-training, arXiv:2403.08540, equation 4, "
        "and Muennighoff et al. 2023, arXiv:2305.16264, appendix A",
        variables=("N", "D"),
        parameters=("E", "A", "B", "alpha"),
        bounds=(NONNEGATIVE, AMPLITUDE, AMPLITUDE, EXPONENT),
        model=_tied_model,
        encode=lambda p, c: _additive_encode(p[..., [0, 1, 2, 3, 3]], c)[..., :4],
        decode=lambda t, c: _additive_decode(t[..., [0, 1, 2, 3, 3]], c)[..., :4],
        starts=_tied_starts,
        distinct=(2, 2),
        entangled={"A": ("alpha",), "B": ("alpha",)},
    )
)


# --- Kaplan L(N, S): a sum without a constant ---------------------------------------------------------------------


def _with_zero(theta: Array) -> Array:
    return np.concatenate([np.zeros((*theta.shape[:-1], 1)), theta], axis=-1)


def _kaplan_ns_model(theta: Array, x: Array) -> tuple[Array, Array]:
    prediction, gradient = _additive_model(_with_zero(theta), x)
    return prediction, gradient[:, 1:]


def _scales_encode(params: Array, centre: Array) -> Array:
    scales, alphas = params[..., :2], params[..., 2:]
    return np.concatenate([alphas * (np.log(scales) - centre), alphas], axis=-1)


def _scales_decode(theta: Array, centre: Array) -> Array:
    with np.errstate(over="ignore"):
        return np.concatenate([np.exp(theta[..., :2] / theta[..., 2:] + centre), theta[..., 2:]], axis=-1)


def _scales_starts(x: Array, y: Array) -> Array:
    grid = _grid((0.03, 0.08, 0.2, 0.5), (0.03, 0.08, 0.2, 0.5), (0.2, 0.5, 0.8))
    middle = float(np.median(y))
    return np.column_stack([np.log(grid[:, 2] * middle), np.log((1 - grid[:, 2]) * middle), grid[:, :2]])


KAPLAN_NS = add(
    Law(
        name="kaplan_ns",
        title="Kaplan L(N, S): size and optimizer steps",
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
)


# --- Coupled forms: a power of a sum of power laws ----------------------------------------------------------------


def _mixture(p: Array, q: Array) -> tuple[Array, Array]:
    """log(e^p + e^q) and the share of e^p in the sum."""
    total = np.logaddexp(p, q)
    return total, np.exp(p - total)


def _kaplan_nd_model(theta: Array, x: Array) -> tuple[Array, Array]:
    """log L = α_D log(exp((u − α_N x)/α_D) + exp(v/α_D − y)); coordinates u, v, α_N, α_D."""
    u, v, alpha_n, alpha_d = (theta[:, i, None] for i in range(4))
    p, q = (u - alpha_n * x[0]) / alpha_d, v / alpha_d - x[1]
    total, share = _mixture(p, q)
    prediction = np.exp(alpha_d * total)
    d_alpha_d = total - share * p - (1 - share) * v / alpha_d
    slopes = np.stack([share, 1 - share, -x[0] * share, d_alpha_d], axis=1)
    return prediction, prediction[:, None] * slopes


KAPLAN_ND = add(
    Law(
        name="kaplan_nd",
        title="Kaplan L(N, D)",
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
)


def _coupled_model(theta: Array, x: Array) -> tuple[Array, Array]:
    """E + exp(γ log(exp((a − αx)/γ) + exp((b − βy)/γ))); coordinates E, a, b, α, β (both times γ), γ."""
    a, b, alpha, beta, gamma = (theta[:, i, None] for i in range(1, 6))
    p, q = (a - alpha * x[0]) / gamma, (b - beta * x[1]) / gamma
    total, share = _mixture(p, q)
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
    starts = _additive_starts(x, y)
    return np.concatenate([np.column_stack([starts, np.full(len(starts), g)]) for g in (0.3, 1.0)])


COUPLED = add(
    Law(
        name="coupled",
        title="Coupled L(N, D), between Kaplan's and Chinchilla's",
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
)


# --- Repeated data ------------------------------------------------------------------------------------------------


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


def _repetition_encode(params: Array, centre: Array) -> Array:
    return np.concatenate([_additive_encode(params[..., :5], centre[:2]), np.log(params[..., 5:])], axis=-1)


def _repetition_decode(theta: Array, centre: Array) -> Array:
    return np.concatenate([_additive_decode(theta[..., :5], centre[:2]), np.exp(theta[..., 5:])], axis=-1)


def _repetition_starts(x: Array, y: Array) -> Array:
    starts = _additive_starts(x[:2], y)[::3]
    scales = _grid((np.log(2.0), np.log(15.0)), (np.log(4.0), np.log(20.0)))
    return np.concatenate([np.column_stack([starts, np.tile(s, (len(starts), 1))]) for s in scales])


DATA_CONSTRAINED = add(
    Law(
        name="data_constrained",
        title="Data-constrained L(N, D, U) with repetition",
        formula="L = E + A/N'^α + B/D'^β,  D' = U + U R*_D (1 − exp(−(D/U − 1)/R*_D)),  N' likewise in U_N and R*_N",
        paper="Muennighoff et al. 2023, Scaling Data-Constrained Language Models, arXiv:2305.16264, "
        "section 3.1, equations 5 and 6",
        variables=("N", "D", "U"),
        parameters=("E", "A", "B", "alpha", "beta", "R_N", "R_D"),
        bounds=(NONNEGATIVE, AMPLITUDE, AMPLITUDE, EXPONENT, EXPONENT, (-7.0, 12.0), (-7.0, 12.0)),
        model=_repetition_model,
        encode=_repetition_encode,
        decode=_repetition_decode,
        starts=_repetition_starts,
        distinct=(3, 3, 2),
        entangled={"A": ("alpha",), "B": ("beta",)},
        shares_centre={"U": "D"},
    )
)


# --- From loss to task score --------------------------------------------------------------------------------------


def _sigmoid_model(theta: Array, x: Array) -> tuple[Array, Array]:
    """b + a / (1 + exp(k (l − l0))); coordinates a, k, l0, b."""
    a, k, middle, b = (theta[:, i, None] for i in range(4))
    away = x[0] - middle
    s = 0.5 * (1 - np.tanh(0.5 * k * away))
    bell = a * s * (1 - s)
    return b + a * s, np.stack([s, -bell * away, bell * k, np.ones_like(s)], axis=1)


def _sigmoid_shift(values: Array, shift: float) -> Array:
    shifted = values.astype(float)
    shifted[..., 2] += shift
    return shifted


def _sigmoid_starts(x: Array, y: Array) -> Array:
    low, span = float(y.min()), max(float(np.ptp(y)), 1e-3)
    grid = _grid((1.0, 2.0), (1.0, 3.0, 10.0), (-1.0, 0.0, 1.0))
    width = max(float(np.ptp(x[0])), 1e-3)
    return np.column_stack(
        [grid[:, 0] * span, grid[:, 1] / width, grid[:, 2] * width / 2, np.full(len(grid), low)],
    )


TASK_SIGMOID = add(
    Law(
        name="task_sigmoid",
        title="Task score from loss",
        formula="score(L) = b + a/(1 + exp(k (L − L_0)))",
        paper="Bhagia et al. 2024, Establishing Task Scaling Laws via Compute-Efficient Model Ladders, "
        "arXiv:2412.04403, the second step (k there has the other sign)",
        variables=("loss",),
        parameters=("a", "k", "L_0", "b"),
        bounds=((0.0, np.inf), (0.0, 1e3), (-np.inf, np.inf), (-np.inf, np.inf)),
        model=_sigmoid_model,
        encode=lambda p, c: _sigmoid_shift(p, -c[0]),
        decode=lambda t, c: _sigmoid_shift(t, c[0]),
        starts=_sigmoid_starts,
        distinct=(4,),
        response="score",
        logarithmic=False,
        default_loss="mse",
    )
)
