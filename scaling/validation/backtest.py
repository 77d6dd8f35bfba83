"""Leave the largest runs out of a fit, predict them with an interval, and only then look at what they measured."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

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
    holdout: str = HOLDOUT,
    loss: Loss | None = None,
    fixed: Mapping[str, float] | None = None,
    draws: int = DRAWS,
    level: float = LEVEL,
    method: str = METHODS[0],
    clustered: bool = True,
    seed: int = 0,
) -> Backtest:
    """Fit without the rows of ``holdout``, predict them, score them. Raises FitError where too little is left."""
    out = held_out(table, holdout)
    kept = table.select(~out)
    fitted = fit(law, kept, loss, fixed, seed=seed)
    boot = bootstrap(fitted, kept.cluster, method, clustered, draws, seed)
    return Backtest(holdout, fitted, score(fitted, boot.params, table.select(out), level, seed))


def expanding_windows(
    law: Law,
    table: Table,
    loss: Loss | None = None,
    fixed: Mapping[str, float] | None = None,
    draws: int = 500,
    level: float = LEVEL,
    method: str = METHODS[0],
    clustered: bool = True,
    seed: int = 0,
) -> list[BacktestWindow]:
    """Fit ever more compute and predict all that lies above; windows that cannot identify the law are passed over."""
    windows = []
    for out in compute_folds(table):
        kept, unseen = table.select(~out), table.select(out)
        try:
            fitted = fit(law, kept, loss, fixed, seed=seed)
        except FitError:
            continue
        boot = bootstrap(fitted, kept.cluster, method, clustered, draws, seed)
        scored = score(fitted, boot.params, unseen, level, seed)
        errors = np.array([s.error for s in scored])
        largest = float(kept.columns["C"].max())
        windows.append(
            BacktestWindow(
                largest_compute=largest,
                rows=len(kept),
                held_out=len(unseen),
                reach=float(unseen.columns["C"].max()) / largest,
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
    ends = np.array([interval(column, level) for column in outcomes.T])
    measured = table.columns[fitted.law.response]
    return [
        HeldOutPrediction(
            row=int(table.rows[i]),
            run=table.run[i],
            N=float(table.columns["N"][i]),
            D=float(table.columns["D"][i]),
            loss=float(measured[i]),
            predicted=float(predicted[i]),
            low=float(ends[i, 0]),
            high=float(ends[i, 1]),
            error=float(predicted[i] / measured[i] - 1),
            covered=bool(ends[i, 0] <= measured[i] <= ends[i, 1]),
        )
        for i in range(len(table))
    ]
