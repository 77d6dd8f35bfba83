"""What stands in a law.json, section by section; docs/law.md says what each key means.

A `Number` may be infinite or not a number, which JSON has no word for: it is written as null and read as nan.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from configs.reader import config
from scaling.laws import LAWS
from scaling.tables.compute import Definition
from scaling.tables.table import NATS, Excluded, NDefinition

Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
Intervals = dict[str, tuple[Number, Number]]


# --- fit: the law and its parameters --------------------------------------------------------------------------------


@config
class Objective:
    """What was minimised; ``delta`` is the turning point of the Huber loss, null for squares."""

    name: str = "log-huber"
    scale: Literal["log", "raw"]
    delta: float | None = None


@config
class FitSection:
    """The law, its parameters from a fit to all rows, and what is left of the measurements."""

    law: str
    formula: str = ""
    paper: str = ""
    params: dict[str, float]
    intervals: Intervals
    level: float
    pinned: dict[str, float] = field(default_factory=dict)
    loss: Objective
    weights: str = "none"
    free_parameters: int
    residuals: list[float]
    residual_sigma: float

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (key, message) for what no prediction can be made from."""
        if self.law not in LAWS:
            yield "law", f"unknown law {self.law!r}; the laws are {', '.join(LAWS)}"
            return
        for name in LAWS[self.law].parameters:
            if name not in self.params:
                yield f"params.{name}", "is required and missing"
            if name not in self.intervals:
                yield f"intervals.{name}", "is required and missing"
        if not 0 < self.level < 1:
            yield "level", f"{self.level:g} does not lie between 0 and 1"
        if not self.residuals:
            yield "residuals", "are those of no row"
        if self.residual_sigma < 0:
            yield "residual_sigma", f"{self.residual_sigma:g} must not be negative"


# --- data: what was fitted ------------------------------------------------------------------------------------------


@config
class DataSection:
    """The table, the rows of it that were fitted, and how its columns count."""

    source: str = ""
    table_sha256: str
    rows: list[int] = field(default_factory=list)
    runs: int = 0
    points: dict[str, list[float]] = field(default_factory=dict)
    fit_range: dict[str, tuple[float, float]]
    excluded: list[Excluded]
    loss_unit: str = NATS
    n_definition: NDefinition = "total"
    c_definition: Definition = "exact"
    entropy_rate: float | None = None
    baselines: dict[str, float] = field(default_factory=dict)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (key, message) for points and ranges that belong to no rows."""
        if len({len(values) for values in self.points.values()}) > 1:
            yield "points", "has lists of different lengths"
        if any(value <= 0 for values in self.points.values() for value in values):
            yield "points", "has values that are not positive"
        for name in ("N", "D"):
            if name not in self.fit_range:
                yield f"fit_range.{name}", "is required and missing"
        for name, (low, high) in self.fit_range.items():
            if not 0 < low <= high:
                yield f"fit_range.{name}", "is not a range of positive numbers"


# --- uncertainty ----------------------------------------------------------------------------------------------------


@config
class BootstrapSummary:
    """How the draws beside the file were made; ``boundary`` is the share of draws with a parameter at a limit."""

    method: str = ""
    clustered: bool = True
    clusters: int = 0
    draws: int = 0
    boundary: dict[str, Number] = field(default_factory=dict)
    seed: int

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (key, message) for a seed that is none."""
        if self.seed < 0:
            yield "seed", f"{self.seed} must not be negative"


@config
class ProfileSummary:
    """Least objective with E held at each value; an end of the interval that is null is open."""

    E: list[float]
    objective: list[Number]
    threshold: Number
    interval: tuple[float | None, float | None]
    level: float


@config
class UncertaintySection:
    """How far the parameters can be trusted."""

    bootstrap: BootstrapSummary
    profile_E: ProfileSummary | None = None


# --- checks: reasons to believe or doubt ----------------------------------------------------------------------------


@config
class ConvergenceReport:
    """Why to believe that the optimum was reached; see scaling.fit.estimate.Certificate."""

    objective: Number
    gradient_norm: Number
    starts: int
    starts_agreeing: int
    condition_number: Number = math.nan
    distance_from_start: Number = math.nan
    iterations: int = 0
    boundary: tuple[str, ...] = ()
    moved_from_start: bool | None = None
    start_set: str | None = None
    seed: int | None = None
    versions: dict[str, str] | None = None


@config
class HeldOutPrediction:
    """A row that was predicted without having been fitted. Losses in nats per token; ``error`` is relative."""

    row: int
    run: str
    N: float
    D: float
    loss: float
    predicted: Number
    low: Number
    high: Number
    error: Number
    covered: bool


@config
class HeldOutFit:
    """The fit that predicted the held-out rows, to so many others."""

    params: dict[str, Number]
    certificate: ConvergenceReport
    rows: int
    residual_sigma: Number


@config
class BacktestWindow:
    """One expanding window: what it was fitted on (FLOPs) and how it did on the rows above.

    ``reach`` is the largest factor in compute from the fitted rows to the scored ones; errors are relative.
    """

    largest_compute: float
    rows: int
    held_out: int
    reach: Number
    rms_error: Number
    bias: Number
    covered: int
    scored: list[HeldOutPrediction]


@config
class BacktestSummary:
    """Expanding windows over compute and their pooled score."""

    windows: list[BacktestWindow]
    predictions: int
    covered: int
    rms_error: Number


@dataclass(frozen=True)
class Variation:
    """One refit: the choice on every axis, and the parameters and prediction that follow from it."""

    choices: dict[str, str]
    rows: int
    params: dict[str, Number]
    prediction: float | None


@config
class Sensitivity:
    """All refits. ``spread`` maps parameters and ``prediction`` to (least, median, largest).

    ``by_axis`` maps an axis to the spread of each quantity when that axis alone moves from the base choice.
    ``failed`` lists combinations that could not be fitted, ``fixed_axes`` axes with one choice and why.
    """

    settings: list[Variation]
    spread: dict[str, list[Number]]
    by_axis: dict[str, dict[str, list[Number]]]
    failed: list[dict[str, str]]
    fixed_axes: dict[str, str]
    point: dict[str, float] | None = None


@config
class LrScan:
    """The learning rates that were tried for one N and D, their losses (nats per token), and the best."""

    N: float
    D: float
    lr: float
    tried: list[float]
    losses: list[float]
    at_edge: bool


@dataclass(frozen=True)
class Diagnostic:
    """A named warning: what was seen and what to do."""

    name: str
    message: str
    advice: str


@config
class ChecksSection:
    """What was tried to refute the fit."""

    certificate: ConvergenceReport
    holdout: list[HeldOutPrediction]
    holdout_rule: str = "none"
    holdout_fit: HeldOutFit | None = None
    backtest: BacktestSummary | None = None
    sensitivity: Sensitivity | None = None
    tuning: list[LrScan] = field(default_factory=list)
    warnings: list[Diagnostic] = field(default_factory=list)


# --- others: laws beside this one, and its forecasts ----------------------------------------------------------------


@config
class CompanionFit:
    """Kaplan's law in one variable on the frontier of the same table, or the ``reason`` why it was not fitted."""

    formula: str = ""
    paper: str = ""
    reason: str | None = None
    params: dict[str, Number] | None = None
    intervals: Intervals = field(default_factory=dict)
    certificate: ConvergenceReport | None = None
    rows: list[int] = field(default_factory=list)
    residual_sigma: Number = math.nan


@config
class AveragedLaw:
    """A member of the average over laws; see scaling.fit.model_averaging.Member."""

    label: str
    law: str
    pinned: dict[str, float]
    params: dict[str, float]
    intervals: Intervals
    error: Number
    weight: float
    residuals: list[float]
    free: int
    log: bool

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (key, message) for a law that is none."""
        if self.law not in LAWS:
            yield "law", f"unknown law {self.law!r}"
        elif missing := [name for name in LAWS[self.law].parameters if name not in self.params]:
            yield f"params.{missing[0]}", "is required and missing"
        if not self.residuals:
            yield "residuals", "are those of no row"


@config
class AveragedLaws:
    """Laws by their weight, and those that could not be fitted, with the reason."""

    members: list[AveragedLaw]
    failed: dict[str, str]

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (key, message) for what cannot be averaged."""
        for i, member in enumerate(self.members):
            yield from ((f"members.{i}.{key}", message) for key, message in member.problems())
        weights = [member.weight for member in self.members]
        if abs(sum(weights) - 1) > 1e-6 or min(weights) < 0:
            yield "members", "have weights that no average can be made with"


@config
class ScoredForecast:
    """A forecast that was registered before its run, and what was then measured (nats per token)."""

    file: str
    date: str
    law: str
    inputs: dict[str, float]
    low: Number
    high: Number
    level: float
    sha256: str
    runs: list[str]
    predicted: Number
    loss: float
    error: Number
    covered: bool


@config
class ForecastScores:
    """Registered forecasts: those whose runs have landed, how many wait, and files that were ``changed`` since."""

    scored: list[ScoredForecast] = field(default_factory=list)
    pending: int = 0
    covered: int = 0
    expected_coverage: float | None = None
    rms_error: Number = math.nan
    changed: list[str] = field(default_factory=list)


@config
class OthersSection:
    """What else is known of the same table."""

    fits: dict[str, CompanionFit] = field(default_factory=dict)
    averaged: AveragedLaws | None = None
    forecasts: ForecastScores = field(default_factory=ForecastScores)


SECTIONS: dict[str, Any] = {
    "fit": FitSection,
    "data": DataSection,
    "uncertainty": UncertaintySection,
    "checks": ChecksSection,
    "others": OthersSection,
}
