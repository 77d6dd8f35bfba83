"""The laws: each one a small declaration of its formula, gradient, bounds, starts and source.

A law is fitted in *coordinates*, not in its published parameters. ``A`` and ``alpha`` of ``A / N^alpha`` are almost
collinear when N is far from 1, which is where published fits have stopped early. With ``N0`` the geometric mean of
the fitted N, the amplitude ``a = log(A / N0^alpha)`` is the (log) loss that the term contributes in the middle of the
data, nearly orthogonal to ``alpha``. ``encode`` and ``decode`` go between the two; coordinate i belongs to parameter
i. One implementation of each formula serves fitting (with its gradient) and prediction.

Shapes: B candidate parameter sets, p parameters, v variables, n points. ``theta`` is (B, p), ``x`` is (v, n) and holds
the centred natural logarithms of the variables (or the variables themselves where ``logarithmic`` is false).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# An exponent below this is a constant, above it a cliff; an amplitude of e^-30 nats is zero and e^30 is not a loss.
EXPONENT = (1e-4, 5.0)
AMPLITUDE = (-30.0, 30.0)
NONNEGATIVE = (0.0, np.inf)


@dataclass(frozen=True)
class Law:
    """One scaling law.

    ``model(theta, x)`` returns the prediction (B, n) and its derivative with respect to the coordinates (B, p, n).
    ``encode(params, centre)`` and ``decode(theta, centre)`` map arrays (..., p); ``centre`` is (v,).
    ``starts(x, y)`` returns the default grid of starting coordinates (S, p) for responses ``y`` (n,).
    ``distinct`` is the least number of different values of each variable that identifies the law.
    """

    name: str
    title: str
    formula: str
    paper: str
    variables: tuple[str, ...]
    parameters: tuple[str, ...]
    bounds: tuple[tuple[float, float], ...]
    model: Callable[[Array, Array], tuple[Array, Array]] = field(repr=False)
    encode: Callable[[Array, Array], Array] = field(repr=False)
    decode: Callable[[Array, Array], Array] = field(repr=False)
    starts: Callable[[Array, Array], Array] = field(repr=False)
    distinct: tuple[int, ...]
    response: str = "loss"
    logarithmic: bool = True
    # Parameters that must be pinned together with a parameter, because its coordinate mixes them.
    entangled: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    # A single-variable law describes runs that nothing else limits: it is fitted to the efficient frontier.
    frontier: bool = False
    # Variables whose centre is that of another one, because the formula compares the two directly.
    shares_centre: Mapping[str, str] = field(default_factory=dict)

    def features(self, columns: Mapping[str, Array]) -> Array:
        """Uncentred variables (v, n) of the given columns, as natural logarithms where the law is logarithmic.

        Raises KeyError for a missing variable.
        """
        values = np.stack(np.broadcast_arrays(*[np.asarray(columns[v], dtype=float) for v in self.variables]))
        return np.log(values) if self.logarithmic else values

    def centre(self, features: Array) -> Array:
        """The point (v,) about which a fit to ``features`` (v, n) is expressed: their mean."""
        centre = features.mean(axis=1)
        for variable, other in self.shares_centre.items():
            centre[self.variables.index(variable)] = centre[self.variables.index(other)]
        return centre

    def evaluate(self, params: Mapping[str, float | Array], columns: Mapping[str, Array]) -> Array:
        """Prediction (nats per token for a loss) at ``columns``.

        Scalars give the shape of the columns; parameters of shape (draws, 1) with columns (points,) give
        (draws, points). Columns: N in parameters, D in tokens, C in FLOPs, S in steps. Raises KeyError for a missing
        parameter or column.
        """
        values = np.stack(np.broadcast_arrays(*[np.asarray(params[k], dtype=float) for k in self.parameters]), axis=-1)
        features = self.features(columns)
        origin = np.zeros(len(self.variables))
        theta = self.encode(values.reshape(-1, len(self.parameters)), origin)
        prediction, _ = self.model(theta, features.reshape(len(self.variables), -1))
        if values.ndim == 1:
            return prediction[0].reshape(features.shape[1:])
        return prediction


LAWS: dict[str, Law] = {}


def law_named(name: str) -> Law:
    """The law of that name. Raises KeyError listing the known names."""
    if name not in LAWS:
        raise KeyError(f"unknown law {name!r}; the laws are {', '.join(LAWS)}")
    return LAWS[name]


def _add(law: Law) -> Law:
    LAWS[law.name] = law
    return law


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


CHINCHILLA = _add(
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
    return _add(
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
