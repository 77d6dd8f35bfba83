"""Sums of power laws: what Chinchilla's law, its variants and those built on it have in common.

See scaling/laws/law.py for the shapes, and for why a law is fitted in coordinates.
"""

import numpy as np

from scaling.laws.law import Array, combinations


def additive_model(theta: Array, x: Array) -> tuple[Array, Array]:
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


def additive_encode(params: Array, centre: Array) -> Array:
    """Coordinates (..., p) of E, A_1.., α_1..: a_v = log A_v − α_v times the centre of variable v."""
    theta, terms = params.astype(float), len(centre)
    with np.errstate(divide="ignore"):
        theta[..., 1 : 1 + terms] = np.log(params[..., 1 : 1 + terms]) - params[..., 1 + terms :] * centre
    return theta


def additive_decode(theta: Array, centre: Array) -> Array:
    """The parameters (..., p) at coordinates, the inverse of ``additive_encode``."""
    params, terms = theta.copy(), len(centre)
    with np.errstate(over="ignore"):
        params[..., 1 : 1 + terms] = np.exp(theta[..., 1 : 1 + terms] + theta[..., 1 + terms :] * centre)
    return params


def additive_starts(x: Array, y: Array) -> Array:
    """72 starts for two terms: E as a share of the least loss, both exponents, and who carries the remainder."""
    exponents = (0.1, 0.3, 0.6)
    grid = combinations((0.1, 0.4, 0.7, 0.9), exponents, exponents, (0.3, 0.7))
    E, alphas, share = grid[:, 0] * y.min(), grid[:, 1:3], grid[:, 3]
    rest = float(np.median(y)) - E
    return np.column_stack([E, np.log(share * rest), np.log((1 - share) * rest), alphas])


def log_sum(p: Array, q: Array) -> tuple[Array, Array]:
    """log(e^p + e^q) and the share of e^p in the sum."""
    total = np.logaddexp(p, q)
    return total, np.exp(p - total)
