"""From loss to the score of a task, the second step of Bhagia et al. 2024, arXiv:2412.04403."""

import numpy as np

from scaling.laws.law import Array, Law, combinations


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
    grid = combinations((1.0, 2.0), (1.0, 3.0, 10.0), (-1.0, 0.0, 1.0))
    width = max(float(np.ptp(x[0])), 1e-3)
    return np.column_stack([grid[:, 0] * span, grid[:, 1] / width, grid[:, 2] * width / 2, np.full(len(grid), low)])


TASK_SIGMOID = Law(
    name="task_sigmoid",
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
