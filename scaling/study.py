"""One study of one table: fit, intervals, backtest, and everything that law.json says about them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import scipy

from scaling.errors import FitError
from scaling.fit.bootstrap import DRAWS, LEVEL, MAX_DRAW, METHODS, bootstrap, interval, residual_sigma
from scaling.fit.estimate import Certificate, Fit, Loss, fit, loss_named, rows_for
from scaling.fit.model_averaging import Average, average, candidates
from scaling.fit.profile import profile
from scaling.fit.weights import weights_for
from scaling.forecast.law_file import LawFile
from scaling.forecast.law_sections import (
    AveragedLaw,
    AveragedLaws,
    BacktestSummary,
    BootstrapSummary,
    ChecksSection,
    CompanionFit,
    ConvergenceReport,
    DataSection,
    Diagnostic,
    FitSection,
    ForecastScores,
    HeldOutFit,
    Objective,
    OthersSection,
    ProfileSummary,
    UncertaintySection,
)
from scaling.laws import LAWS, Array, Law, law_named
from scaling.tables.table import Table
from scaling.validation.backtest import HOLDOUT, Backtest, backtest, expanding_windows, held_out
from scaling.validation.diagnostics import diagnose
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

    def resampling(self, most: int | None = None) -> dict[str, Any]:
        """The arguments of every bootstrap, of at most so many draws."""
        draws = self.draws if most is None else min(self.draws, most)
        return {"method": self.method, "clustered": self.clustered, "draws": draws, "seed": self.seed}


@dataclass(frozen=True)
class FitResult:
    """The content of law.json, the draws kept beside it, and the fit itself."""

    law: LawFile
    draws: dict[str, Array]
    fit: Fit
    backtest: Backtest | None
    average: Average | None = None


def fit_law(
    table: Table,
    options: FitOptions | None = None,
    forecasts: ForecastScores | None = None,
    baselines: Mapping[str, float] | None = None,
) -> FitResult:
    """Fit the law asked for to every row, with intervals, and test it on held-out rows that another fit predicts.

    ``forecasts`` that the table scores and ``baselines``, losses of other models by name, are kept beside the law.
    Raises FitError where the table is too small for the law, KeyError for an unknown law.
    """
    options = options or FitOptions()
    law = law_named(options.law)
    table = weights_for(table, options.weights)
    loss = _loss(law, options)
    rows = rows_for(law, table)
    fitted = fit(law, rows, loss, options.fixed, starts=options.starts, seed=options.seed)
    boot = bootstrap(fitted, rows.cluster, **options.resampling())
    summary = BootstrapSummary(**{f.name: getattr(boot, f.name) for f in fields(BootstrapSummary)})
    split, skipped = _split(law, table, options)
    averaged = _average(law, rows, options)
    content = LawFile(
        fit=FitSection(
            law=law.name,
            formula=law.formula,
            paper=law.paper,
            params=_finite(fitted.params),
            intervals=boot.intervals(options.level),
            level=options.level,
            pinned=dict(options.fixed),
            loss=Objective(**asdict(loss)),
            weights=options.weights if "weight" in table.columns else "none",
            free_parameters=fitted.problem.free,
            residuals=fitted.residuals.tolist(),
            residual_sigma=residual_sigma(fitted.residuals, fitted.problem.free),
        ),
        data=DataSection(
            source=table.source,
            table_sha256=table.sha256,
            rows=rows.rows.tolist(),
            runs=len(set(rows.run)),
            points={k: rows.columns[k].tolist() for k in dict.fromkeys((*law.variables, "N", "D"))},
            fit_range={
                k: (float(v.min()), float(v.max()))
                for k, v in rows.columns.items()
                if k in {"N", "D", "C", *law.variables}
            },
            excluded=table.excluded,
            loss_unit=table.loss_unit,
            n_definition=table.n_definition,
            c_definition=table.c_definition,
            entropy_rate=entropy_rate(rows),
            baselines=dict(baselines or {}),
        ),
        compute=table.compute,
        uncertainty=UncertaintySection(bootstrap=summary, profile_E=_profile(fitted, rows, options)),
        checks=ChecksSection(
            certificate=_report(fitted.certificate, options),
            holdout=split.scored if split else [],
            holdout_rule=split.holdout if split else "none",
            holdout_fit=_held_out_fit(split.fit) if split else None,
            backtest=_windows(law, rows, options),
            sensitivity=sensitivity(law, rows, options.point, options.fixed, options.seed)
            if options.sensitivity
            else None,
            tuning=[tuned.stored() for tuned in options.tuned],
            warnings=[*skipped, *diagnose(rows, fitted, boot, options.tuned)],
        ),
        others=OthersSection(
            fits=_companions(table, options) if law.response == "loss" else {},
            averaged=_summary(averaged, options.level) if averaged else None,
            forecasts=forecasts or ForecastScores(),
        ),
    )
    return FitResult(content, boot.params, fitted, split, averaged)


def _finite(params: Mapping[str, float]) -> dict[str, float]:
    """Parameters as their draws and intervals are kept: an amplitude beyond the range of floats at its end."""
    return {k: float(np.clip(v, -MAX_DRAW, MAX_DRAW)) for k, v in params.items()}


def _loss(law: Law, options: FitOptions) -> Loss:
    return loss_named(options.loss or law.default_loss, options.delta)


def _profile(fitted: Fit, rows: Table, options: FitOptions) -> ProfileSummary | None:
    """Profile of the irreducible loss, where the law has one that is free."""
    if "E" not in fitted.law.parameters or "E" in options.fixed:
        return None
    found = profile(fitted, rows.cluster, "E", options.level, options.clustered, options.seed)
    return ProfileSummary(
        E=found.values.tolist(),
        objective=found.objective.tolist(),
        threshold=found.threshold,
        interval=(found.low, found.high if np.isfinite(found.high) else None),
        level=options.level,
    )


def _windows(law: Law, rows: Table, options: FitOptions) -> BacktestSummary | None:
    """Expanding windows over compute and their pooled score."""
    if options.holdout == "none" or law.response != "loss":
        return None
    settings = options.resampling(500)
    windows = expanding_windows(law, rows, _loss(law, options), options.fixed, level=options.level, **settings)
    count = sum(w.held_out for w in windows)
    return BacktestSummary(
        windows=windows,
        predictions=count,
        covered=sum(w.covered for w in windows),
        rms_error=float(np.sqrt(sum(w.held_out * w.rms_error**2 for w in windows) / count)) if count else np.nan,
    )


def _average(law: Law, rows: Table, options: FitOptions) -> Average | None:
    """Laws in N and D averaged, where the law asked for is one of them and enough rows are there."""
    if not options.average or law.variables != ("N", "D") or options.fixed:
        return None
    return average(rows, candidates(), _loss(law, options), **options.resampling(1000))


def _split(law: Law, table: Table, options: FitOptions) -> tuple[Backtest | None, list[Diagnostic]]:
    """The backtest; a default one that leaves too little to fit is skipped with a warning, an explicit one fails."""
    rule = HOLDOUT if options.holdout is None else options.holdout
    if rule == "none":
        return None, []
    settings = {"fixed": options.fixed, "level": options.level, **options.resampling()}
    try:
        held_out(table, rule)
        return backtest(law, rows_for(law, table), rule, _loss(law, options), **settings), []
    except FitError as error:
        if options.holdout is not None:
            raise
        text = f"nothing was held out: without the largest size, {error}"
        return None, [Diagnostic("no_backtest", text, "add runs of at least one more size")]


def _report(certificate: Certificate, options: FitOptions | None = None) -> ConvergenceReport:
    """How the optimum was reached; of the fit to all rows, with what it takes to repeat it."""
    asked: dict[str, Any] = {}
    if options is not None:
        asked = {
            "moved_from_start": certificate.distance_from_start > 1e-6,
            "start_set": options.starts,
            "seed": options.seed,
            "versions": {"scaling": _version(), "numpy": np.__version__, "scipy": scipy.__version__},
        }
    return ConvergenceReport(**asdict(certificate), **asked)


def _version() -> str:
    try:
        return version("scaling-testbed")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "uninstalled"


def _held_out_fit(fitted: Fit) -> HeldOutFit:
    return HeldOutFit(
        params=_finite(fitted.params),
        certificate=_report(fitted.certificate),
        rows=len(fitted.problem.y),
        residual_sigma=residual_sigma(fitted.residuals, fitted.problem.free),
    )


def _summary(average: Average, level: float) -> AveragedLaws:
    members = [
        AveragedLaw(
            label=m.label,
            law=m.law.name,
            pinned=m.fixed,
            params=_finite(m.params),
            intervals={k: interval(v, level) for k, v in m.draws.items()},
            error=m.error,
            weight=m.weight,
            residuals=m.residuals.tolist(),
            free=m.free,
            log=m.log,
        )
        for m in average.members
    ]
    return AveragedLaws(members=members, failed=average.failed)


def _companions(table: Table, options: FitOptions) -> dict[str, CompanionFit]:
    """Kaplan's single-variable laws on the frontier of the same table, or why one could not be fitted."""
    found = {}
    for name in COMPANIONS:
        if name == options.law:
            continue
        law = LAWS[name]
        rows = rows_for(law, table)
        try:
            fitted = fit(law, rows, _loss(law, options))
        except FitError as error:
            found[name] = CompanionFit(formula=law.formula, paper=law.paper, reason=str(error))
            continue
        boot = bootstrap(fitted, rows.cluster, **options.resampling(500))
        found[name] = CompanionFit(
            formula=law.formula,
            paper=law.paper,
            params=_finite(fitted.params),
            intervals=boot.intervals(options.level),
            certificate=_report(fitted.certificate),
            rows=rows.rows.tolist(),
            residual_sigma=residual_sigma(fitted.residuals, fitted.problem.free),
        )
    return found
