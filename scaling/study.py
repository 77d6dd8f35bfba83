"""One study of one table: fit, intervals, backtest, and everything that law.json says about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from .artifact import SCHEMA
from .backtest import HOLDOUT, Backtest, backtest, held_out
from .estimate import Fit, FitError, fit, loss_named
from .laws import LAWS, Array, Law, law_named
from .table import Table
from .uncertainty import DRAWS, LEVEL, METHODS, Bootstrap, bootstrap, residual_sigma

COMPANIONS = ("kaplan_n", "kaplan_d", "kaplan_c")


@dataclass(frozen=True)
class Options:
    """What a study is asked for; the defaults are those of scripts/fit.py."""

    law: str = "chinchilla"
    holdout: str | None = None  # None: the largest size, if enough is left to fit
    loss: str = "log-huber"
    delta: float = 1e-3
    pinned: Mapping[str, float] = field(default_factory=dict)
    starts: str = "grid"
    method: str = METHODS[0]
    clustered: bool = True
    draws: int = DRAWS
    level: float = LEVEL
    seed: int = 0


@dataclass(frozen=True)
class Study:
    """The content of law.json, the draws kept beside it, and the fit itself."""

    law: dict[str, Any]
    draws: dict[str, Array]
    fit: Fit
    backtest: Backtest | None


def frontier(table: Table, variable: str) -> NDArray[np.bool_]:
    """Rows (n,) that no row with as little of ``variable`` or less beats in loss.

    Kaplan's single-variable laws describe models that only N, only D or only C limits. In a table those are the rows
    on the lower envelope of loss against that variable.
    """
    values, loss = table.columns[variable], table.columns["loss"]
    order = np.lexsort((loss, values))
    best = np.concatenate([[np.inf], np.minimum.accumulate(loss[order])[:-1]])
    keep = np.zeros(len(table), dtype=bool)
    keep[order] = loss[order] < best
    return keep


def rows_for(law: Law, table: Table) -> Table:
    """The rows that ``law`` describes: all, or the frontier for a single-variable law."""
    return table.select(frontier(table, law.variables[0])) if law.frontier else table


def study(table: Table, options: Options | None = None) -> Study:
    """Fit the law asked for to every row, with intervals, and test it on held-out rows that another fit predicts.

    Raises FitError where the table is too small for the law, KeyError for an unknown law.
    """
    options = options or Options()
    law = law_named(options.law)
    loss = loss_named(options.loss, options.delta)
    rows = rows_for(law, table)
    fitted = fit(law, rows, loss, options.pinned, starts=options.starts, seed=options.seed)
    boot = bootstrap(fitted, rows.run, options.method, options.clustered, options.draws, options.seed)
    split, warnings = _split(law, table, options)
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "law": law.name,
        "formula": law.formula,
        "paper": law.paper,
        "params": fitted.params,
        "intervals": boot.intervals(options.level),
        "level": options.level,
        "holdout": [s.as_dict() for s in split.scored] if split else [],
        "holdout_rule": split.holdout if split else "none",
        "holdout_fit": _summary(split.fit) if split else None,
        "certificate": _certificate(fitted, options),
        "excluded": [asdict(e) for e in table.excluded],
        "table_sha256": table.sha256,
        "source": table.source,
        "rows": rows.rows,
        "runs": len(set(rows.run)),
        "n_definition": table.n_definition,
        "c_definition": table.c_definition,
        "loss": {"name": loss.name, "scale": loss.scale, "delta": loss.delta},
        "pinned": dict(options.pinned),
        "fit_range": {
            k: [float(v.min()), float(v.max())] for k, v in rows.columns.items() if k in {"N", "D", "C", *law.variables}
        },
        "residuals": fitted.residuals,
        "residual_sigma": residual_sigma(fitted.residuals, fitted.problem.free),
        "free_parameters": fitted.problem.free,
        "bootstrap": _bootstrap_summary(boot),
        "fits": _companions(table, options),
        "warnings": warnings,
    }
    return Study(content, boot.params, fitted, split)


def _split(law: Law, table: Table, options: Options) -> tuple[Backtest | None, list[dict[str, str]]]:
    """The backtest; a default one that leaves too little to fit is skipped with a warning, an explicit one fails."""
    rule = HOLDOUT if options.holdout is None else options.holdout
    if rule == "none":
        return None, []
    settings: dict[str, Any] = {
        "loss": loss_named(options.loss, options.delta),
        "pinned": options.pinned,
        "draws": options.draws,
        "level": options.level,
        "method": options.method,
        "clustered": options.clustered,
        "seed": options.seed,
    }
    try:
        held_out(table, rule)
        return backtest(law, rows_for(law, table), rule, **settings), []
    except FitError as error:
        if options.holdout is not None:
            raise
        text = f"nothing was held out: without the largest size, {error}"
        return None, [{"name": "no_backtest", "message": text, "advice": "add runs of at least one more size"}]


def _certificate(fitted: Fit, options: Options) -> dict[str, Any]:
    return {
        **asdict(fitted.certificate),
        "moved_from_start": fitted.certificate.distance_from_start > 1e-6,
        "start_set": options.starts,
        "seed": options.seed,
        "versions": {"scaling": _version(), "numpy": np.__version__, "scipy": scipy.__version__},
    }


def _version() -> str:
    try:
        return version("scaling-testbed")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "uninstalled"


def _summary(fitted: Fit) -> dict[str, Any]:
    return {
        "params": fitted.params,
        "certificate": asdict(fitted.certificate),
        "rows": len(fitted.problem.y),
        "residual_sigma": residual_sigma(fitted.residuals, fitted.problem.free),
    }


def _bootstrap_summary(boot: Bootstrap) -> dict[str, Any]:
    return {
        "method": boot.method,
        "clustered": boot.clustered,
        "clusters": boot.clusters,
        "draws": len(next(iter(boot.params.values()))),
        "boundary": boot.boundary,
        "seed": boot.seed,
    }


def _companions(table: Table, options: Options) -> dict[str, Any]:
    """Kaplan's single-variable laws on the frontier of the same table, or why one could not be fitted."""
    found: dict[str, Any] = {}
    for name in COMPANIONS:
        if name == options.law:
            continue
        law = LAWS[name]
        rows = rows_for(law, table)
        try:
            fitted = fit(law, rows, loss_named(options.loss, options.delta))
        except FitError as error:
            found[name] = {"formula": law.formula, "reason": str(error)}
            continue
        boot = bootstrap(fitted, rows.run, options.method, options.clustered, min(options.draws, 500), options.seed)
        found[name] = {
            **_summary(fitted),
            "formula": law.formula,
            "paper": law.paper,
            "intervals": boot.intervals(options.level),
            "rows": rows.rows,
        }
    return found
