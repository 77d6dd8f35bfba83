"""What a law is: a small declaration of its formula, gradient, bounds, starts and source.

A law is fitted in *coordinates*, not in its published parameters. ``A`` and ``alpha`` of ``A / N^alpha`` are almost
collinear when N is far from 1, which is where published fits have stopped early. With ``N0`` the geometric mean of
the fitted N, the amplitude ``a = log(A / N0^alpha)`` is the (log) loss that the term contributes in the middle of the
data, nearly orthogonal to ``alpha``. ``encode`` and ``decode`` go between the two; coordinate i belongs to parameter
i. One implementation of each formula serves fitting (with its gradient) and prediction.

Shapes: B candidate parameter sets, p parameters, v variables, n points. ``theta`` is (B, p), ``x`` is (v, n) and holds
the centred natural logarithms of the variables (or the variables themselves where ``logarithmic`` is false).
"""

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
    default_loss: str = "log-huber"
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
        centre: Array = features.mean(axis=1)
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
        # A draw at a bound may have a scale of 0 or infinity; its prediction is then a limit or not a number.
        with np.errstate(all="ignore"):
            theta = self.encode(values.reshape(-1, len(self.parameters)), origin)
            prediction, _ = self.model(theta, features.reshape(len(self.variables), -1))
        if values.ndim == 1:
            return np.asarray(prediction[0].reshape(features.shape[1:]))
        return prediction


def combinations(*axes: tuple[float, ...]) -> Array:
    """Every combination of the values of some axes, (combinations, axes): a grid of starts."""
    return np.stack([m.ravel() for m in np.meshgrid(*axes, indexing="ij")], axis=1)
