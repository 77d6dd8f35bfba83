"""Fit a law: many starts at once, to a certified optimum.

The objective is the sum over rows of weight x rho(residual), by default the Huber loss with delta = 1e-3 of the
difference of log losses (Hoffmann et al. 2022, arXiv:2203.15556, section 3.3). It is minimised by Levenberg-Marquardt
steps, batched over starts (or bootstrap draws) in numpy, with analytic Jacobians. The curvature used is

    H(λ) = Jᵀ W (1[|r| < δ] + λ δ/max(|r|, δ)) J

For large λ this is a damped iteratively reweighted least squares step, which majorises the Huber loss and so always
descends; for λ -> 0 it is the Newton step on the points in the quadratic zone, which converges fast. λ adapts per
problem. Bounds are kept by projection.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc

from scaling.errors import FitError
from scaling.laws import Array, Law
from scaling.tables.cells import MAX_VALUE, MIN_VALUE
from scaling.tables.table import Table, frontier

CHUNK = 30_000  # problems times points solved together: their Jacobians stay in the cache
DAMPED = 1e7  # a step this much shorter than that of least squares and still no descent: nothing is left to gain
AGREEMENT = 1e-8  # relative difference of objectives within which two starts found the same optimum


@dataclass(frozen=True)
class Loss:
    """What is minimised: ``scale`` of the residual (log or raw) and ``delta`` of the Huber loss (infinite: squares).

    rho(r) = r²/2 for |r| < delta, else delta (|r| - delta/2). On the log scale r is log(predicted/measured); on the
    raw scale predicted - measured, in nats per token.
    """

    name: str
    scale: Literal["log", "raw"]
    delta: float

    def rho(self, residual: Array) -> Array:
        """The loss of each residual."""
        clipped = np.minimum(np.abs(residual), self.delta)
        return np.asarray(clipped * (np.abs(residual) - 0.5 * clipped))


LOSSES = ("log-huber", "log-mse", "huber", "mse")


def loss_named(name: str = "log-huber", delta: float = 1e-3) -> Loss:
    """One of LOSSES; ``delta`` counts for the Huber losses only. Raises FitError for an unknown name."""
    if name not in LOSSES:
        raise FitError(f"loss {name!r} is not one of {', '.join(LOSSES)}")
    if not delta > 0:
        raise FitError(f"delta must be positive, not {delta}")
    return Loss(name, "log" if name.startswith("log") else "raw", delta if name.endswith("huber") else np.inf)


@dataclass(frozen=True)
class FitProblem:
    """A law, the data it is fitted to in centred features ``x`` (v, n), and which coordinates are fixed."""

    law: Law
    loss: Loss
    x: Array
    centre: Array
    y: Array  # (n,) measured response
    weights: Array  # (n,)
    is_fixed: NDArray[np.bool_]  # (p,)
    fixed: Array  # (p,) values of the fixed coordinates

    @property
    def free(self) -> int:
        """Number of coordinates that are fitted."""
        return int((~self.is_fixed).sum())

    def residual(self, prediction: Array, y: Array) -> Array:
        """Residuals on the scale of the loss."""
        return np.log(prediction) - np.log(y) if self.loss.scale == "log" else prediction - y

    def restrict(self, theta: Array) -> Array:
        """Coordinates (B, p) moved to the pinned values and inside the bounds."""
        lower, upper = np.array(self.law.bounds).T
        return np.where(self.is_fixed, self.fixed, np.clip(theta, lower, upper))


@dataclass(frozen=True)
class Solution:
    """Minima of a batch: coordinates (B, p), objectives, norms of the projected gradient, iterations (B,)."""

    theta: Array
    objective: Array
    gradient_norm: Array
    iterations: NDArray[np.int64]


@dataclass(frozen=True)
class Certificate:
    """Why to believe that an optimum was reached, in coordinates centred on the data.

    ``gradient_norm`` is of the objective, bounds respected; ``starts_agreeing`` found the same objective to 1e-8;
    ``condition_number`` is of the Gauss-Newton matrix with unit diagonal; ``distance_from_start`` is between the
    optimum and the start that led to it; ``boundary`` names the parameters at a bound.
    """

    objective: float
    gradient_norm: float
    starts: int
    starts_agreeing: int
    condition_number: float
    distance_from_start: float
    iterations: int
    boundary: tuple[str, ...]


@dataclass(frozen=True)
class Fit:
    """A fitted law. ``params`` are the published parameters, ``theta`` (p,) the coordinates of ``problem``."""

    law: Law
    params: dict[str, float]
    theta: Array
    certificate: Certificate
    problem: FitProblem = field(repr=False)

    def predict(self, columns: Mapping[str, Array]) -> Array:
        """Prediction at ``columns``; see Law.evaluate."""
        return self.law.evaluate(self.params, columns)

    @property
    def residuals(self) -> Array:
        """log(measured / predicted) of each row where the loss is on the log scale, else measured - predicted."""
        prediction, _ = self.law.model(self.theta[None], self.problem.x)
        return -self.problem.residual(prediction[0], self.problem.y)


def make_problem(
    law: Law, table: Table, loss: Loss | None = None, fixed: Mapping[str, float] | None = None
) -> FitProblem:
    """Check that ``table`` can identify ``law`` and centre it.

    ``fixed`` fixes parameters by value. Rows weigh what the column ``weight`` says, else 1. Raises FitError.
    """
    loss, fixed = loss or loss_named(), dict(fixed or {})
    missing = [v for v in (*law.variables, law.response) if v not in table.columns]
    if missing:
        raise FitError(f"{table.source}: the law {law.name} needs the column {', '.join(missing)}")
    is_fixed = _fixed(law, fixed)
    y = table.columns[law.response]
    weights = table.columns.get("weight", np.ones(len(table)))
    used = weights > 0
    _check_enough(law, table, int((~is_fixed).sum()), fixed, used)
    if loss.scale == "log" and y.min() <= 0:
        raise FitError(f"{table.source}: {law.response} must be positive for a loss on the log scale")
    for name in (*law.variables, law.response):
        values = np.abs(table.columns[name])
        if not ((values >= MIN_VALUE) & (values <= MAX_VALUE) | ((values == 0) & (name == law.response))).all():
            raise FitError(f"{table.source}: the column {name} has values that are not numbers of a plausible size")
    features = law.features(table.columns)
    centre = law.centre(features)
    values = np.array([fixed.get(k, 1.0) for k in law.parameters])
    coordinates = np.where(is_fixed, law.encode(values, centre), 0.0)
    lower, upper = np.array(law.bounds).T
    outside = is_fixed & ((coordinates < lower) | (coordinates > upper) | ~np.isfinite(coordinates))
    if outside.any():
        name = law.parameters[int(outside.argmax())]
        raise FitError(f"{name} cannot be pinned to {fixed[name]!r}: it is outside the range of the law {law.name}")
    return FitProblem(law, loss, features - centre[:, None], centre, y, weights, is_fixed, coordinates)


def _fixed(law: Law, fixed: Mapping[str, float]) -> NDArray[np.bool_]:
    for name in fixed:
        if name not in law.parameters:
            raise FitError(f"the law {law.name} has no parameter {name!r}; it has {', '.join(law.parameters)}")
        others = [k for k in law.entangled.get(name, ()) if k not in fixed]
        if others:
            raise FitError(f"to pin {name} of the law {law.name}, pin {', '.join(others)} as well")
    return np.array([k in fixed for k in law.parameters])


def _check_enough(law: Law, table: Table, free: int, fixed: Mapping[str, float], used: NDArray[np.bool_]) -> None:
    if free == 0:
        raise FitError(f"every parameter of the law {law.name} is pinned: there is nothing to fit")
    rows = int(used.sum())
    if rows <= free:
        raise FitError(
            f"{table.source}: {rows} rows are too few for the {free} parameters of the law {law.name}; "
            f"it needs at least {free + 1}"
        )
    if np.ptp(table.columns[law.response][used]) == 0:
        what = "losses do" if law.response == "loss" else f"{law.response}s do"
        raise FitError(f"{table.source}: the {what} not vary, so there is nothing that a law could explain")
    slack = 1 if "E" in fixed else 0
    for variable, least in zip(law.variables, law.distinct, strict=True):
        values = len(np.unique(table.columns[variable][used]))
        if values < least - slack:
            raise FitError(
                f"{table.source}: the {rows} rows have {values} different values of {variable}; "
                f"the law {law.name} needs at least {least - slack}"
            )


def fit(
    law: Law,
    table: Table,
    loss: Loss | None = None,
    fixed: Mapping[str, float] | None = None,
    starts: str = "grid",
    seed: int = 0,
) -> Fit:
    """Fit ``law`` to ``table`` from every start of a set (see ``starting_points``) and certify the best optimum.

    Raises FitError where the table cannot identify the law or no start leads to a finite objective.
    """
    problem = make_problem(law, table, loss, fixed)
    return fit_problem(problem, starting_points(problem, starts, seed))


def rows_for(law: Law, table: Table) -> Table:
    """The rows that ``law`` describes: all, or the frontier for a single-variable law."""
    return table.select(frontier(table, law.variables[0])) if law.frontier else table


def starting_points(problem: FitProblem, kind: str = "grid", seed: int = 0) -> Array:
    """Starting coordinates (S, p): ``grid``, the law's own; ``random``, 256 scrambled Sobol points of its hull."""
    grid = problem.law.starts(problem.x, problem.y)
    if kind == "grid":
        return problem.restrict(grid)
    if kind == "random":
        low, high = grid.min(axis=0), grid.max(axis=0)
        unit = qmc.Sobol(len(low), seed=seed).random(256)
        return problem.restrict(low + unit * (high - low))
    raise FitError(f"starts {kind!r} are not one of grid, random")


def fit_problem(problem: FitProblem, starts: Array) -> Fit:
    """Solve from ``starts`` (S, p) and certify. Raises FitError where nothing finite is found."""
    solution = minimise(problem, starts)
    if not np.isfinite(solution.objective).any():
        raise FitError(f"the law {problem.law.name} could not be fitted: no start gives a finite objective")
    best = int(np.nanargmin(solution.objective))
    # The best start is taken on until the objective no longer changes in double precision.
    final = minimise(problem, solution.theta[best : best + 1], tolerance=0.0, iterations=1000)
    theta, objective = final.theta[0], float(final.objective[0])
    agreeing = solution.objective <= objective * (1 + AGREEMENT) + 1e-20
    lower, upper = np.array(problem.law.bounds).T
    at_bound = ~problem.is_fixed & ((theta <= lower) | (theta >= upper))
    certificate = Certificate(
        objective=objective,
        gradient_norm=float(final.gradient_norm[0]),
        starts=len(starts),
        starts_agreeing=int(agreeing.sum()),
        condition_number=condition_number(problem, theta),
        distance_from_start=float(np.linalg.norm(theta - starts[best])),
        iterations=int(solution.iterations[best] + final.iterations[0]),
        boundary=tuple(k for k, hit in zip(problem.law.parameters, at_bound, strict=True) if hit),
    )
    values = problem.law.decode(theta, problem.centre)
    params = {k: float(v) for k, v in zip(problem.law.parameters, values, strict=True)}
    return Fit(problem.law, params, theta, certificate, problem)


def jacobian(problem: FitProblem, theta: Array) -> Array:
    """Derivative (n, free) of the residuals with respect to the coordinates that are free and inside their bounds."""
    prediction, gradient = problem.law.model(theta[None], problem.x)
    J = gradient[0].T
    if problem.loss.scale == "log":
        J = J / prediction[0][:, None]
    lower, upper = np.array(problem.law.bounds).T
    return np.asarray(J[:, ~problem.is_fixed & (theta > lower) & (theta < upper)])


def condition_number(problem: FitProblem, theta: Array) -> float:
    """Condition number of the weighted Gauss-Newton matrix, scaled to unit diagonal."""
    J = jacobian(problem, theta) * np.sqrt(problem.weights)[:, None]
    norms = np.linalg.norm(J, axis=0)
    if J.shape[1] == 0 or not norms.all():
        return float("inf")
    return float(np.linalg.cond(J / norms) ** 2)


def minimise(
    problem: FitProblem,
    starts: Array,
    weights: Array | None = None,
    y: Array | None = None,
    tolerance: float = 1e-10,
    iterations: int = 200,
) -> Solution:
    """Minimise from ``starts`` (B, p), each with its own ``weights`` and responses ``y`` where given as (B, n).

    Stops when the objective falls by less than ``tolerance`` (relative) three times running.
    """
    B, n = len(starts), problem.x.shape[1]
    size = max(1, CHUNK // n)
    weights = np.broadcast_to(problem.weights if weights is None else weights, (B, n))
    y = np.broadcast_to(problem.y if y is None else y, (B, n))
    parts = [
        _minimise(problem, starts[i : i + size], weights[i : i + size], y[i : i + size], tolerance, iterations)
        for i in range(0, B, size)
    ]
    return Solution(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _minimise(
    problem: FitProblem, starts: Array, weights: Array, y: Array, tolerance: float, iterations: int
) -> tuple[Array, Array, Array, NDArray[np.int64]]:
    law, delta, log = problem.law, problem.loss.delta, problem.loss.scale == "log"
    lower, upper = np.array(law.bounds).T
    with np.errstate(divide="ignore", invalid="ignore"):
        target = np.log(y) if log else y

    def evaluate(theta: Array, rows: NDArray[np.int64]) -> tuple[Array, Array, Array]:
        prediction, J = law.model(theta, problem.x)
        if log:
            J /= prediction[:, None]
            prediction = np.log(prediction)
        residual = prediction - target[rows]
        objective = (weights[rows] * problem.loss.rho(residual)).sum(axis=1)
        return residual, J, np.where(np.isnan(objective), np.inf, objective)

    B = len(starts)
    theta, damping, stalled = starts.copy(), np.ones(B), np.zeros(B, dtype=np.int64)
    best, objectives, norms = starts.copy(), np.empty(B), np.empty(B)
    counts = np.zeros(B, dtype=np.int64)
    live = np.arange(B)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        residual, J, objective = evaluate(theta, live)
        for iteration in range(1, iterations + 1):
            size = np.abs(residual)
            irls = np.ones_like(size) if np.isinf(delta) else delta / np.maximum(size, delta)
            W = weights[live]
            gradient = np.matmul(J, (W * irls * residual)[:, :, None])[:, :, 0]
            held = problem.is_fixed | ((theta <= lower) & (gradient > 0)) | ((theta >= upper) & (gradient < 0))
            gradient[held] = 0.0
            curvature = W * ((size < delta) + damping[:, None] * irls)
            step = _solve(np.matmul(J * curvature[:, None], J.swapaxes(1, 2)), gradient, damping, held)
            moved = np.where(problem.is_fixed, theta, np.clip(theta - step, lower, upper))
            new_residual, new_J, new_objective = evaluate(moved, live)
            better = new_objective < objective
            small = better & (objective - new_objective <= tolerance * objective)
            stalled = np.where(better & ~small, 0, stalled + small)
            theta[better], residual[better], J[better] = moved[better], new_residual[better], new_J[better]
            objective[better] = new_objective[better]
            damping = np.where(better, np.maximum(damping / 4, 1e-10), damping * 5)
            done = (stalled >= 3) | (damping > DAMPED) | (objective == 0) | (iteration == iterations)
            if done.any():
                rows = live[done]
                best[rows], objectives[rows], counts[rows] = theta[done], objective[done], iteration
                norms[rows] = _gradient_norm(problem, theta[done], residual[done], J[done], weights[rows])
                keep = ~done
                live, theta, damping, stalled = live[keep], theta[keep], damping[keep], stalled[keep]
                residual, J, objective = residual[keep], J[keep], objective[keep]
            if not len(live):
                break
    return best, objectives, norms, counts


def _solve(H: Array, gradient: Array, damping: Array, held: NDArray[np.bool_]) -> Array:
    """Damped step (B, p) of H step = gradient, zero in the coordinates that are held."""
    diagonal = np.einsum("bii->bi", H)
    diagonal *= 1 + 0.1 * damping[:, None] + 1e-12
    diagonal += 1e-30
    H = np.where(held[:, :, None] | held[:, None, :], 0.0, H)
    np.einsum("bii->bi", H)[held] = 1.0
    # A start whose prediction overflows has no step; it is left where it is and stops.
    broken = ~np.isfinite(H).all(axis=(1, 2)) | ~np.isfinite(gradient).all(axis=1)
    H[broken], gradient[broken] = np.eye(H.shape[1]), 0.0
    try:
        return np.asarray(np.linalg.solve(H, gradient[:, :, None])[:, :, 0])
    except np.linalg.LinAlgError:
        return np.stack([np.linalg.lstsq(h, g, rcond=None)[0] for h, g in zip(H, gradient, strict=True)])


def _gradient_norm(problem: FitProblem, theta: Array, residual: Array, J: Array, weights: Array) -> Array:
    """Norm (B,) of the gradient without the components that push against a bound or belong to pinned coordinates."""
    lower, upper = np.array(problem.law.bounds).T
    psi = np.clip(residual, -problem.loss.delta, problem.loss.delta)
    gradient = np.matmul(J, (weights * psi)[:, :, None])[:, :, 0]
    held = problem.is_fixed | ((theta <= lower) & (gradient > 0)) | ((theta >= upper) & (gradient < 0))
    return np.asarray(np.linalg.norm(np.where(held, 0.0, gradient), axis=1))
