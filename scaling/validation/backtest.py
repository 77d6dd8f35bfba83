"""Leave the largest runs out of a fit, predict them with an interval, and only then look at what they measured."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scaling.errors import FitError
from scaling.fit.bootstrap import DRAWS, LEVEL, METHODS, bootstrap, interval, predictive_draws
from scaling.fit.estimate import Fit, Loss, fit
from scaling.fit.folds import compute_folds
from scaling.forecast.law_sections import BacktestWindow, HeldOutPrediction
from scaling.laws import Array, Law
from scaling.tables.table import Table

HOLDOUT = "largest"
_CONDITION = re.compile(r"\s*(N|D|C)\s*(>=|>)\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*")
_COMPUTE = re.compile(r"\s*compute:\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)x\s*")


@dataclass(frozen=True)
class Backtest:
    """One split: the fit to the kept rows and the score of every held-out row."""

    holdout: str
    fit: Fit
    scored: list[HeldOutPrediction]


def held_out(table: Table, holdout: str = HOLDOUT) -> NDArray[np.bool_]:
    """Which rows (n,) a specification holds out.

    ``largest``: the rows with the most parameters; ``compute:10x``: the rows above a tenth of the largest compute
    (C); ``N>=1e9``, also with D or C and with >; ``none``. Raises FitError for
    anything else and for a split that holds out no row or every row.
    """
    C = table.columns["C"]
    if holdout == "none":
        return np.zeros(len(table), dtype=bool)
    if holdout == HOLDOUT:
        out = table.columns["N"] == table.columns["N"].max()
    elif (match := _COMPUTE.fullmatch(holdout)) and float(match[1]) >= 1:
        out = C.max() / float(match[1]) * (1 + 1e-12) < C
    elif match := _CONDITION.fullmatch(holdout):
        values, bound = table.columns[match[1]], float(match[3])
        out = values >= bound if match[2] == ">=" else values > bound
    else:
        raise FitError(
            f"holdout {holdout!r} is not understood; write largest, none, compute:10x or a condition such as N>=1e9"
        )
    if not out.any():
        raise FitError(f"holdout {holdout!r} holds out no row of {table.source}")
    if out.all():
        raise FitError(f"holdout {holdout!r} holds out every row of {table.source} and leaves none to fit")
    return np.asarray(out)


def backtest(
    law: Law,
    table: Table,
    holdout: str | NDArray[np.bool_] = HOLDOUT,
    loss: Loss | None = None,
    fixed: Mapping[str, float] | None = None,
    draws: int = DRAWS,
    level: float = LEVEL,
    method: str = METHODS[0],
    clustered: bool = True,
    seed: int = 0,
) -> Backtest:
    """Fit without the rows of ``holdout``, predict them, score them. Raises FitError where too little is left.

    ``holdout`` is a specification, see ``held_out``, or says of each row (n,) whether it is held out.
    """
    name, out = (holdout, held_out(table, holdout)) if isinstance(holdout, str) else ("rows", holdout)
    kept = table.select(~out)
    fitted = fit(law, kept, loss, fixed, seed=seed)
    boot = bootstrap(fitted, kept.cluster, method, clustered, draws, seed)
    return Backtest(name, fitted, score(fitted, boot.params, table.select(out), level, seed))


def expanding_windows(
    law: Law, table: Table, loss: Loss | None = None, fixed: Mapping[str, float] | None = None, **settings: Any
) -> list[BacktestWindow]:
    """Fit ever more compute and predict all that lies above; windows that cannot identify the law are passed over.

    ``settings`` are those of ``backtest``.
    """
    windows = []
    for out in compute_folds(table):
        try:
            scored = backtest(law, table, out, loss, fixed, **settings).scored
        except FitError:
            continue
        C, errors = table.columns["C"], np.array([s.error for s in scored])
        largest = float(C[~out].max())
        windows.append(
            BacktestWindow(
                largest_compute=largest,
                rows=int((~out).sum()),
                held_out=len(scored),
                reach=float(C[out].max()) / largest,
                rms_error=float(np.sqrt((errors**2).mean())),
                bias=float(errors.mean()),
                covered=sum(s.covered for s in scored),
                scored=scored,
            )
        )
    return windows


def score(
    fitted: Fit, draws: Mapping[str, Array], table: Table, level: float = LEVEL, seed: int = 0
) -> list[HeldOutPrediction]:
    """Predict every row of ``table`` from ``fitted`` and compare with what was measured."""
    inputs = {v: table.columns[v] for v in fitted.law.variables}
    predicted = fitted.predict(inputs)
    log = fitted.problem.loss.scale == "log"
    outcomes = predictive_draws(fitted.law, draws, inputs, fitted.residuals, fitted.problem.free, log, seed)
    low, high = np.array([interval(column, level) for column in outcomes.T]).T
    N, D, measured = (table.columns[k] for k in ("N", "D", fitted.law.response))
    covered, error = (low <= measured) & (measured <= high), predicted / measured - 1
    values = {"N": N, "D": D, "loss": measured, "predicted": predicted, "low": low, "high": high, "error": error}
    columns = {k: v.tolist() for k, v in (values | {"row": table.rows, "covered": covered}).items()}
    return [HeldOutPrediction(run=run, **{k: v[i] for k, v in columns.items()}) for i, run in enumerate(table.run)]
