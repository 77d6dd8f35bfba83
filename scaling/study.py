"""One study of one table: fit, intervals, backtest, and everything that law.json says about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import scipy

from scaling.errors import FitError
from scaling.fit.bootstrap import DRAWS, LEVEL, METHODS, Bootstrap, bootstrap, residual_sigma
from scaling.fit.estimate import Fit, Loss, fit, loss_named, rows_for
from scaling.fit.model_averaging import Average, average, candidates, summary
from scaling.fit.profile import profile
from scaling.fit.weights import weights_for
from scaling.forecast.law_file import SCHEMA
from scaling.laws import LAWS, Array, Law, law_named
from scaling.tables.table import Table
from scaling.validation.backtest import HOLDOUT, Backtest, backtest, expanding_windows, held_out
from scaling.validation.diagnostics import Diagnostic, diagnose
from scaling.validation.known_entropy import entropy_rate
from scaling.validation.lr_scans import Tuned
from scaling.validation.sensitivity import sensitivity

COMPANIONS = ("kaplan_n", "kaplan_d", "kaplan_c")


@dataclass(frozen=True)
class FitOptions:
    """What a study is asked for; the defaults are those of scripts/fit.py."""

    law: str = "chinchilla"
    holdout: str | None = None  # None: the largest size, if enough is left to fit
    loss: str | None = None  # None: the default of the law
    delta: float = 1e-3
    fixed: Mapping[str, float] = field(default_factory=dict)
    starts: str = "grid"
    method: str = METHODS[0]
    clustered: bool = True
    draws: int = DRAWS
    level: float = LEVEL
    seed: int = 0
    weights: str = "column"
    average: bool = True
    sensitivity: bool = False
    tuned: Sequence[Tuned] = ()  # the scans of learning rates that the table's rows are the best of
    point: Mapping[str, float] | None = None  # where sensitivity and averaging are asked for a prediction


@dataclass(frozen=True)
class FitResult:
    """The content of law.json, the draws kept beside it, and the fit itself."""

    law: dict[str, Any]
    draws: dict[str, Array]
    fit: Fit
    backtest: Backtest | None
    average: Average | None = None


def fit_law(table: Table, options: FitOptions | None = None) -> FitResult:
    """Fit the law asked for to every row, with intervals, and test it on held-out rows that another fit predicts.

    Raises FitError where the table is too small for the law, KeyError for an unknown law.
    """
    options = options or FitOptions()
    law = law_named(options.law)
    table = weights_for(table, options.weights)
    loss = _loss(law, options)
    rows = rows_for(law, table)
    fitted = fit(law, rows, loss, options.fixed, starts=options.starts, seed=options.seed)
    boot = bootstrap(fitted, rows.cluster, options.method, options.clustered, options.draws, options.seed)
    split, skipped = _split(law, table, options)
    averaged = _average(law, rows, options)
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
        "loss_unit": table.loss_unit,
        "source": table.source,
        "rows": rows.rows,
        "runs": len(set(rows.run)),
        "points": {k: rows.columns[k] for k in dict.fromkeys((*law.variables, "N", "D"))},
        "n_definition": table.n_definition,
        "c_definition": table.c_definition,
        "compute": {
            "definition": table.compute.definition,
            "sizes": list(table.compute.sizes),
            "flops_per_token": list(table.compute.flops_per_token),
        },
        "loss": {"name": loss.name, "scale": loss.scale, "delta": loss.delta},
        "weights": options.weights if "weight" in table.columns else "none",
        "pinned": dict(options.fixed),
        "fit_range": {
            k: [float(v.min()), float(v.max())] for k, v in rows.columns.items() if k in {"N", "D", "C", *law.variables}
        },
        "residuals": fitted.residuals,
        "residual_sigma": residual_sigma(fitted.residuals, fitted.problem.free),
        "free_parameters": fitted.problem.free,
        "entropy_rate": entropy_rate(rows),
        "bootstrap": _bootstrap_summary(boot),
        "profile_E": _profile(fitted, rows, options),
        "backtest": _windows(law, rows, options),
        "fits": _companions(table, options) if law.response == "loss" else {},
        "averaged": summary(averaged, options.level) if averaged else None,
        "sensitivity": _sensitivity(law, rows, options),
        "tuning": [tuned.as_dict() for tuned in options.tuned],
        "warnings": [w.as_dict() for w in (*skipped, *diagnose(rows, fitted, boot, options.tuned))],
    }
    return FitResult(content, boot.params, fitted, split, averaged)


def _loss(law: Law, options: FitOptions) -> Loss:
    return loss_named(options.loss or law.default_loss, options.delta)


def _profile(fitted: Fit, rows: Table, options: FitOptions) -> dict[str, Any] | None:
    """Profile of the irreducible loss, where the law has one that is free."""
    if "E" not in fitted.law.parameters or "E" in options.fixed:
        return None
    found = profile(fitted, rows.cluster, "E", options.level, options.clustered, seed=options.seed)
    return {
        "E": found.values,
        "objective": found.objective,
        "threshold": found.threshold,
        "interval": [found.low, found.high],
        "level": found.level,
    }


def _windows(law: Law, rows: Table, options: FitOptions) -> dict[str, Any] | None:
    """Expanding windows over compute and their pooled score."""
    if options.holdout == "none" or law.response != "loss":
        return None
    windows = expanding_windows(
        law,
        rows,
        _loss(law, options),
        options.fixed,
        min(options.draws, 500),
        options.level,
        options.method,
        options.clustered,
        options.seed,
    )
    count = sum(w.held_out for w in windows)
    return {
        "windows": [asdict(w) for w in windows],
        "predictions": count,
        "covered": sum(w.covered for w in windows),
        "rms_error": float(np.sqrt(sum(w.held_out * w.rms_error**2 for w in windows) / count)) if count else None,
    }


def _average(law: Law, rows: Table, options: FitOptions) -> Average | None:
    """Laws in N and D averaged, where the law asked for is one of them and enough rows are there."""
    if not options.average or law.variables != ("N", "D") or options.fixed:
        return None
    draws = min(options.draws, 1000)
    return average(rows, candidates(), _loss(law, options), options.method, options.clustered, draws, options.seed)


def _sensitivity(law: Law, rows: Table, options: FitOptions) -> dict[str, Any] | None:
    if not options.sensitivity:
        return None
    found = asdict(sensitivity(law, rows, options.point, options.fixed, options.seed))
    return {**found, "point": dict(options.point) if options.point else None}


def _split(law: Law, table: Table, options: FitOptions) -> tuple[Backtest | None, list[Diagnostic]]:
    """The backtest; a default one that leaves too little to fit is skipped with a warning, an explicit one fails."""
    rule = HOLDOUT if options.holdout is None else options.holdout
    if rule == "none":
        return None, []
    settings: dict[str, Any] = {
        "loss": _loss(law, options),
        "fixed": options.fixed,
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
        return None, [Diagnostic("no_backtest", text, "add runs of at least one more size")]


def _certificate(fitted: Fit, options: FitOptions) -> dict[str, Any]:
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


def _companions(table: Table, options: FitOptions) -> dict[str, Any]:
    """Kaplan's single-variable laws on the frontier of the same table, or why one could not be fitted."""
    found: dict[str, Any] = {}
    for name in COMPANIONS:
        if name == options.law:
            continue
        law = LAWS[name]
        rows = rows_for(law, table)
        try:
            fitted = fit(law, rows, _loss(law, options))
        except FitError as error:
            found[name] = {"formula": law.formula, "reason": str(error)}
            continue
        boot = bootstrap(fitted, rows.cluster, options.method, options.clustered, min(options.draws, 500), options.seed)
        found[name] = {
            **_summary(fitted),
            "formula": law.formula,
            "paper": law.paper,
            "intervals": boot.intervals(options.level),
            "rows": rows.rows,
        }
    return found
