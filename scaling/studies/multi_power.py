"""A law for whole loss curves that knows the learning rate: the multi-power law of Luo et al. 2025.

    L(t) = L0 + A S(t)^-α - B Σ_k (η_{k-1} - η_k) G(η_k^-γ S_k(t)),     G(x) = 1 - (1 + C x)^-β

(arXiv:2503.12811, equations 2 to 4): S(t) is the sum of the learning rates up to step t, S_k(t) that since step k.
Each decay of the learning rate lowers the loss, and takes time to do so. As in the authors' code, both sums include
warm-up: its rises count as negative decays, so that L0 + A S^-α is the loss of a fully decayed run. Fitted to a few
curves under some schedules, the law predicts the curve under another one, so that a schedule can be judged, or a
mid-schedule loss annealed, before it is run.

The learning rate is integrated between logged steps by the trapezoid rule, so steps may be logged coarsely.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import OptimizeResult, least_squares

from configs.metrics_rows import METRICS, read_rows
from scaling.errors import CurveError
from scaling.laws import Array
from scaling.tables.curves import column

UNITS = {
    "L0": "nats per token, the floor at this size",
    "A": "nats per token at S = 1",
    "alpha": "exponent of S",
    "B": "nats per token and unit of learning rate",
    "C": "inverse of S, at a learning rate of 1",
    "beta": "exponent of the return on a decay",
    "gamma": "how much sooner a decay to a lower rate pays",
}
PARAMETERS = tuple(UNITS)
POINTS = 150  # of each curve that are fitted
THINNED, FINALISTS = 40, 4
DELTA = 1e-3  # of the log-Huber loss, as for the other laws
RISE = 32  # points of a warm-up that was not logged
MIN_POINTS = 20  # points of a curve after warm-up


@dataclass(frozen=True)
class LossCurve:
    """A loss curve: ``step``, learning rate ``lr``, ``loss`` (nats per token), all (points,), from step 0 on.

    ``first`` is the index of the first point after warm-up; losses before it are not used and may be NaN.
    """

    name: str
    step: Array
    lr: Array
    loss: Array
    first: int

    @property
    def S(self) -> Array:
        """Sum of the learning rates up to each step."""
        between = np.diff(self.step) * (self.lr[1:] + self.lr[:-1]) / 2
        return np.concatenate([[0.0], np.cumsum(between)])


def make_curve(name: str, step: Array, lr: Array, loss: Array) -> LossCurve:
    """Check a curve and find the end of its warm-up. Raises CurveError.

    Before the first row the learning rate is taken to have risen linearly from zero at step 0.
    """
    keep = np.isfinite(step) & np.isfinite(lr) & np.isfinite(loss)
    step, lr, loss = step[keep], lr[keep], loss[keep]
    if len(step) < MIN_POINTS:
        raise CurveError(f"{name}: {len(step)} rows with a step, a learning rate and a loss; {MIN_POINTS} are needed")
    if (np.diff(step) <= 0).any():
        at = int(np.flatnonzero(np.diff(step) <= 0)[0]) + 1
        raise CurveError(f"{name}: steps must rise, but step {step[at]:g} follows {step[at - 1]:g}")
    if (loss <= 0).any() or (lr < 0).any() or lr.max() <= 0:
        raise CurveError(f"{name}: losses must be positive and learning rates not negative")
    peak = int(np.flatnonzero(lr >= lr.max() * (1 - 1e-9))[0])
    if len(step) - peak < MIN_POINTS:
        raise CurveError(f"{name}: {len(step) - peak} rows after warm-up; {MIN_POINTS} are needed")
    rise = np.linspace(0.0, 1.0, RISE, endpoint=False) if step[0] > 0 else np.empty(0)
    unseen = np.full(len(rise), np.nan)
    return LossCurve(
        name,
        np.concatenate([rise * step[0], step]),
        np.concatenate([rise * lr[0], lr]),
        np.concatenate([unseen, loss]),
        len(rise) + peak,
    )


def read_curve(path: Path) -> LossCurve:
    """A curve from a CSV file with columns step, lr, loss, a metrics.jsonl, or a run's directory. Raises CurveError."""
    path = Path(path)
    source = path / METRICS if path.is_dir() else path
    keys = ("step", "lr", "loss")
    try:
        if source.suffix == ".csv":
            frame = pd.read_csv(source)
            found = {k: pd.to_numeric(frame[k], errors="coerce").to_numpy(float) for k in keys if k in frame.columns}
        else:
            source.stat()  # a missing file is an error here, not an empty curve
            rows = read_rows(source)
            found = {k: column(rows, k) for k in keys if any(k in row for row in rows)}
    except OSError as error:
        raise CurveError(f"{source}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CurveError(f"{source}: not a CSV file of steps: {str(error).splitlines()[0]}") from error
    missing = [k for k in keys if k not in found]
    if missing:
        raise CurveError(f"{source}: no column {' and '.join(missing)}; step, lr and loss are needed")
    return make_curve(path.stem if path.suffix == ".csv" else source.parent.name, *found.values())


@dataclass(frozen=True)
class _Work:
    """A curve prepared for evaluation at some of its points, in units of the peak rate and the largest S."""

    S: Array  # (n,)
    since: Array  # (n, m): S since each decay, 0 before it
    decay: Array  # (m,): fall of the learning rate
    log_rate: Array  # (m,): log learning rate after the decay
    target: Array  # (n,): log loss


def _prepare(curve: LossCurve, peak: float, total: float, points: int | None) -> _Work:
    S, rate = curve.S / total, curve.lr / peak
    kept = np.arange(curve.first, len(S))
    if points is not None and len(kept) > points:
        kept = np.unique(np.linspace(curve.first, len(S) - 1, points).round().astype(int))
    decay = rate[:-1] - rate[1:]
    moves = np.flatnonzero(np.abs(decay) > 1e-12)
    # A decay between two logged steps is placed in their middle, and what follows has the rate after it: a sudden drop
    # and a smooth decay are then both right.
    half = np.diff(curve.step)[moves] / 2 * rate[moves + 1] * (peak / total)
    since = np.where(kept[:, None] > moves, S[kept, None] - S[moves + 1] + half, 0.0)
    # A rate of zero would pay at once; a ten-thousandth of the peak is as good as zero.
    log_rate = np.log(np.maximum(rate[moves + 1], 1e-4))
    return _Work(S[kept], since, decay[moves], log_rate, np.log(curve.loss[kept]))


def _evaluate(theta: Array, work: _Work) -> tuple[Array, Array]:
    """Loss (n,) and its derivative (n, 7) by theta = (L0, log A, α, log B, log C, β, γ)."""
    L0, log_A, alpha, log_B, log_C, beta, gamma = theta
    power = np.exp(log_A - alpha * np.log(work.S))
    x = np.exp(log_C - gamma * work.log_rate) * work.since
    left = np.exp(-beta * np.log1p(x))
    B = np.exp(log_B)
    slope = beta * left * x / (1 + x)
    gain = B * ((1 - left) @ work.decay)
    gradient = np.column_stack(
        [
            np.ones_like(power),
            power,
            -power * np.log(work.S),
            -gain,
            -B * (slope @ work.decay),
            -B * ((left * np.log1p(x)) @ work.decay),
            B * (slope @ (work.decay * work.log_rate)),
        ]
    )
    return L0 + power - gain, gradient


_LOWER = np.array([0.0, -20.0, 0.01, -20.0, -10.0, 0.01, 0.0])
_UPPER = np.array([np.inf, 10.0, 3.0, 5.0, 15.0, 10.0, 3.0])


def _published(theta: Array, peak: float, total: float) -> dict[str, float]:
    """Parameters in the units of the paper, from coordinates in units of the peak rate and the largest S."""
    L0, log_A, alpha, log_B, log_C, beta, gamma = map(float, theta)
    A, B = np.exp(log_A + alpha * np.log(total)), np.exp(log_B) / peak
    C = np.exp(log_C + gamma * np.log(peak)) / total
    return dict(zip(PARAMETERS, (L0, float(A), alpha, float(B), float(C), beta, gamma), strict=True))


def _reduced(params: Mapping[str, float], peak: float, total: float) -> Array:
    """The inverse of ``_published``."""
    L0, A, alpha, B, C, beta, gamma = (params[k] for k in PARAMETERS)
    log_A, log_B = np.log(A) - alpha * np.log(total), np.log(B * peak)
    return np.array([L0, log_A, alpha, log_B, np.log(C * total) - gamma * np.log(peak), beta, gamma])


@dataclass(frozen=True)
class CurveLaw:
    """A fitted multi-power law; ``params`` in the units of the paper.

    ``objective`` is the sum of log-Huber. Of ``starts`` starting points the best ``finalists`` were followed to the
    end; ``finalists_agreeing`` reached the best objective to a thousandth. ``boundary`` names the parameters that ran
    into the limit of their range: the curves do not determine them.
    """

    params: dict[str, float]
    objective: float
    starts: int
    finalists: int
    finalists_agreeing: int
    fitted_to: tuple[str, ...]
    boundary: tuple[str, ...] = ()

    def predict(self, curve: LossCurve) -> Array:
        """Loss (points,) from the end of warm-up on; of ``curve`` only steps and learning rates are used."""
        peak, total = float(curve.lr.max()), float(curve.S[-1])
        return _evaluate(_reduced(self.params, peak, total), _prepare(curve, peak, total, None))[0]


def _solve(work: Sequence[_Work], start: Array, evaluations: int) -> OptimizeResult:
    """Minimise the log-Huber loss from a start: trust-region reflective steps with the analytic Jacobian."""

    last: dict[bytes, Array] = {}  # the Jacobian is asked for where the residual was

    def residual(theta: Array) -> Array:
        done = [_evaluate(theta, w) for w in work]
        loss = np.maximum(np.concatenate([p for p, _ in done]), 1e-3)
        last.clear()
        last[theta.tobytes()] = np.concatenate([g for _, g in done]) / loss[:, None]
        return np.asarray(np.log(loss) - target)

    def jacobian(theta: Array) -> Array:
        if theta.tobytes() not in last:
            residual(theta)
        return last[theta.tobytes()]

    target = np.concatenate([w.target for w in work])
    options: dict[str, Any] = {"loss": "huber", "f_scale": DELTA, "x_scale": "jac", "ftol": 1e-10, "xtol": 1e-10}
    inside = np.clip(start, _LOWER + 1e-9, _UPPER - 1e-9)
    return least_squares(residual, inside, jacobian, bounds=(_LOWER, _UPPER), max_nfev=evaluations, **options)


def fit_curves(curves: Sequence[LossCurve]) -> CurveLaw:
    """Fit to the curves of one size of model at one batch size. Raises CurveError where they cannot identify it."""
    if not curves:
        raise CurveError("no loss curve to fit")
    if all(np.ptp(c.lr[c.first :]) <= 1e-9 * c.lr.max() for c in curves):
        raise CurveError("every curve has a constant learning rate: at least one must decay")
    peak, total = max(float(c.lr.max()) for c in curves), max(float(c.S[-1]) for c in curves)
    work = [_prepare(c, peak, total, POINTS) for c in curves]
    target = np.concatenate([w.target for w in work])
    low = float(np.exp(target.min()))
    starts = [
        np.array([share * low, np.log((1 - share) * low), alpha, np.log(drop), np.log(speed), 0.5, 0.5])
        for share, alpha, drop, speed in itertools.product((0.5, 0.85), (0.3, 0.7), (0.05, 0.3), (3.0, 30.0))
    ]
    # Every start is followed on thinned curves; the best few are then taken to the optimum on all points.
    thin = [_prepare(c, peak, total, THINNED) for c in curves]
    followed = sorted((_solve(thin, start, 60) for start in starts), key=lambda r: r.cost)
    solutions = [_solve(work, r.x, 400) for r in followed[:FINALISTS]]
    best = min(solutions, key=lambda r: r.cost)
    agreeing = int(sum(r.cost <= best.cost * 1.001 for r in solutions))
    # At its bound is what lies within a hundredth of the limits of its range.
    room = 0.01 * np.where(np.isfinite(_UPPER), _UPPER - _LOWER, 1.0)
    at_bound = (best.x < _LOWER + room) | (best.x > _UPPER - room)
    boundary = tuple(k for k, hit in zip(PARAMETERS, at_bound, strict=True) if hit)
    names = tuple(c.name for c in curves)
    params = _published(best.x, peak, total)
    return CurveLaw(params, float(best.cost), len(starts), FINALISTS, agreeing, names, boundary)


@dataclass(frozen=True)
class Score:
    """How well a curve was predicted. ``mae``, ``worst`` and ``last`` in nats per token; ``last`` is signed."""

    name: str
    fitted: bool
    points: int
    r2: float
    mae: float
    worst: float
    last: float


def score(law: CurveLaw, curve: LossCurve) -> Score:
    """Compare the law with a curve. ``last`` is prediction minus measurement, over the last twentieth of the steps."""
    measured = curve.loss[curve.first :]
    error = law.predict(curve) - measured
    tail = max(1, len(error) // 20)
    return Score(
        curve.name,
        curve.name in law.fitted_to,
        len(error),
        float(1 - (error**2).sum() / ((measured - measured.mean()) ** 2).sum()),
        float(np.abs(error).mean()),
        float(np.abs(error).max()),
        float(error[-tail:].mean()),
    )
