"""Predict a model that nobody has trained, from a law.json and the draws beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scaling.errors import ForecastError
from scaling.fit import model_averaging as averaging
from scaling.fit.bootstrap import interval, predictive_draws
from scaling.forecast.law_file import LawFile, read_draws
from scaling.forecast.law_sections import AveragedLaws
from scaling.laws import LAWS, Array, Law
from scaling.tables.cells import MAX_VALUE, MIN_VALUE
from scaling.tables.compute import Compute


@dataclass(frozen=True)
class Forecast:
    """Predicted loss (nats per token) and its interval for one new run.

    ``extrapolation`` is the largest factor by which an input lies outside the fitted range, 1 inside it;
    ``extrapolation_by`` gives the factor of every input, ``cautions`` says where C was carried on
    beyond the fitted sizes.
    """

    loss: float
    low: float
    high: float
    level: float
    extrapolation: float
    extrapolation_by: dict[str, float]
    inputs: dict[str, float]
    cautions: tuple[str, ...] = ()
    averaged: dict[str, Any] | None = None


def inputs_for(law: Law, compute: Compute, given: Mapping[str, float | None]) -> dict[str, float]:
    """The inputs of ``law`` from those given; of N, D and C, two give the third.

    Raises ForecastError for a number that is not positive, an input that is missing and one that would have no say.
    """
    inputs = {k: float(v) for k, v in given.items() if v is not None}
    for name, value in inputs.items():
        if not (np.isfinite(value) and value > 0):
            raise ForecastError(f"{OPTIONS[name]} must be a positive number, not {value:g}")
    _refuse_implausible(inputs)
    _refuse_surplus(law, compute, inputs)
    if {"N", "D"} <= inputs.keys():
        inputs["C"] = float(compute.flops(inputs["N"], inputs["D"]))
    elif {"N", "C"} <= inputs.keys():
        inputs["D"] = float(compute.tokens(inputs["N"], inputs["C"]))
    elif {"D", "C"} <= inputs.keys():
        inputs["N"] = float(compute.params(inputs["D"], inputs["C"]))
    if "U" in law.variables and "D" in inputs:
        inputs.setdefault("U", inputs["D"])
    missing = [OPTIONS[v] for v in law.variables if v not in inputs]
    if missing:
        raise ForecastError(f"the law {law.name} reads {_listed(law.variables)}: it still needs {_listed(missing)}")
    _refuse_implausible(inputs)
    return inputs


def _refuse_implausible(inputs: Mapping[str, float]) -> None:
    for name, value in inputs.items():
        if not MIN_VALUE <= value <= MAX_VALUE**2:
            raise ForecastError(f"{name} = {value:g} is beyond any plausible value")


def _refuse_surplus(law: Law, compute: Compute, inputs: Mapping[str, float]) -> None:
    """Raise ForecastError for an input that the law does not read and that gives none that it reads."""
    trio = [k for k in ("N", "D", "C") if k in inputs]
    if len(trio) == 3:
        raise ForecastError(f"give two of --params, --tokens and --flops: the third follows ({compute.words})")
    read = {k for k in ("N", "D", "C") if k in law.variables}
    useful = read if read <= set(trio) or not read else set(trio)
    surplus = [OPTIONS[k] for k in inputs if k not in (useful if k in trio else law.variables)]
    if surplus:
        raise ForecastError(f"the law {law.name} reads {_listed(law.variables)}: leave out {_listed(surplus)}")


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


OPTIONS = {
    "N": "--params",
    "D": "--tokens",
    "C": "--flops",
    "U": "--unique-tokens",
    "S": "--steps",
    "loss": "--loss",
}


def outside(value: float, fitted: tuple[float, float]) -> float:
    """Factor by which ``value`` lies outside a range, at least 1."""
    low, high = fitted
    return max(1.0, value / high, low / value)


def forecast(path: str | Path, law: LawFile, given: Mapping[str, float | None], average: bool = False) -> Forecast:
    """Predict from the law of ``path``. The interval holds a new measurement: parameters and residual noise.

    With ``average`` the prediction is that of all the laws that were fitted, each by its weight, and the interval
    includes how much they differ. Raises ForecastError for missing inputs, ArtifactError where the draws are missing.
    """
    declared, compute = law.declared, law.compute
    inputs = inputs_for(declared, compute, given)
    columns: dict[str, Array] = {k: np.array([inputs[k]]) for k in declared.variables}
    loss = float(declared.evaluate(law.fit.params, columns)[0])
    level, seed = law.fit.level, law.uncertainty.bootstrap.seed
    outcomes = predictive_draws(
        declared,
        read_draws(path, declared.parameters),
        columns,
        np.array(law.fit.residuals),
        law.fit.free_parameters,
        law.fit.loss.scale == "log",
        seed,
    )
    low, high = interval(outcomes[:, 0], level)
    comparable = [k for k in law.data.fit_range if k in inputs and not (k == "C" and compute.assumed)]
    factors = {k: outside(inputs[k], law.data.fit_range[k]) for k in comparable}
    cautions = tuple(compute.caution(inputs["N"])) if "N" in inputs and "C" in inputs else ()
    mixed = None
    if average:
        if law.others.averaged is None:
            raise ForecastError("this law.json holds no average over laws; fit.py makes one for a law in N and D")
        members = _restore(law.others.averaged, path)
        mixed = averaging.predict(members, columns, level, seed)
        loss, low, high = mixed["loss"], mixed["low"], mixed["high"]
    farthest = max(factors.values(), default=1.0)
    return Forecast(loss, low, high, level, farthest, factors, inputs, cautions, mixed)


def _restore(averaged: AveragedLaws, path: str | Path) -> averaging.Average:
    """The average over laws as it was fitted, from its section and the draws in average.npz."""
    names = [f"{i}/{k}" for i, m in enumerate(averaged.members) for k in LAWS[m.law].parameters]
    draws = read_draws(path, names, "average.npz")
    members = [
        averaging.Member(
            label=m.label,
            law=LAWS[m.law],
            fixed=m.pinned,
            params=m.params,
            draws={k: draws[f"{i}/{k}"] for k in LAWS[m.law].parameters},
            residuals=np.array(m.residuals),
            free=m.free,
            log=m.log,
            error=m.error,
            weight=m.weight,
        )
        for i, m in enumerate(averaged.members)
    ]
    return averaging.Average(members, averaged.failed)


def task_score(
    path: str | Path,
    law: LawFile,
    task_path: str | Path,
    task: LawFile,
    given: Mapping[str, float | None],
) -> dict[str, float]:
    """Two-step prediction: a loss from ``law``, then the score from ``task``, a law whose variable is the loss.

    The uncertainty of the loss's parameters is carried through the sigmoid and joined by that of the second step and
    its residual noise (Bhagia et al. 2024). Raises ForecastError where ``task`` does not read a loss.
    """
    first, second, level = law.declared, task.declared, law.fit.level
    if second.variables != ("loss",):
        raise ForecastError(f"{task_path}: the law {second.name} does not predict a score from a loss")
    inputs = inputs_for(first, law.compute, given)
    columns = {k: np.array([inputs[k]]) for k in first.variables}
    losses = first.evaluate({k: v[:, None] for k, v in read_draws(path, first.parameters).items()}, columns)[:, 0]
    steps = read_draws(task_path, second.parameters)
    rng = np.random.default_rng(law.uncertainty.bootstrap.seed)
    rows = rng.integers(0, len(next(iter(steps.values()))), len(losses))
    # Each draw of the loss meets one draw of the second step: the diagonal of what evaluate gives for all pairs.
    scores = np.array(
        [
            float(second.evaluate({k: v[r] for k, v in steps.items()}, {"loss": loss}))
            for r, loss in zip(rows, losses, strict=True)
        ]
    )
    residuals = np.array(task.fit.residuals)
    inflation = np.sqrt(len(residuals) / max(len(residuals) - task.fit.free_parameters, 1))
    scores = scores + rng.choice(residuals, len(scores)) * inflation
    point = first.evaluate(law.fit.params, columns)
    low, high = interval(scores, level)
    return {"score": float(second.evaluate(task.fit.params, {"loss": point})[0]), "score_low": low, "score_high": high}
