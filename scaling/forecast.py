"""Predict a model that nobody has trained, from a law.json and the draws beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .artifact import read_draws
from .laws import LAWS, Array
from .uncertainty import interval, predictive_draws


class ForecastError(ValueError):
    """A forecast that cannot be made; the message says which input is missing."""


@dataclass(frozen=True)
class Forecast:
    """Predicted loss (nats per token) and its interval for one new run.

    ``extrapolation`` is the largest factor by which an input lies outside the fitted range, 1 inside it;
    ``extrapolation_by`` gives the factor of every input.
    """

    loss: float
    low: float
    high: float
    level: float
    extrapolation: float
    extrapolation_by: dict[str, float]
    inputs: dict[str, float]


def inputs_for(
    variables: tuple[str, ...], given: Mapping[str, float | None], c_definition: str = "6nd"
) -> dict[str, float]:
    """The inputs of a law from those given; of N, D and C = 6ND, two give the third. Raises ForecastError."""
    inputs = {k: float(v) for k, v in given.items() if v is not None}
    for name, value in inputs.items():
        if not (np.isfinite(value) and value > 0):
            raise ForecastError(f"{OPTIONS[name]} must be a positive number, not {value}")
    if "C" not in inputs and {"N", "D"} <= inputs.keys():
        inputs["C"] = 6 * inputs["N"] * inputs["D"]
    elif "C" in inputs and "N" in inputs:
        inputs.setdefault("D", inputs["C"] / (6 * inputs["N"]))
    elif "C" in inputs and "D" in inputs:
        inputs["N"] = inputs["C"] / (6 * inputs["D"])
    if "U" in variables and "D" in inputs:
        inputs.setdefault("U", inputs["D"])
    missing = [OPTIONS.get(v, v) for v in variables if v not in inputs]
    if missing:
        raise ForecastError(f"this law also needs {' and '.join(missing)}")
    return inputs


OPTIONS = {"N": "--params", "D": "--tokens", "C": "--flops", "U": "--unique-tokens", "S": "--steps"}


def outside(value: float, fitted: tuple[float, float]) -> float:
    """Factor by which ``value`` lies outside a range, at least 1."""
    low, high = fitted
    return max(1.0, value / high, low / value)


def forecast(path: str | Path, law: Mapping[str, Any], given: Mapping[str, float | None]) -> Forecast:
    """Predict from the law of ``path``. The interval holds a new measurement: parameters and residual noise.

    Raises ForecastError for missing inputs, ArtifactError where the draws are missing.
    """
    declared = LAWS[law["law"]]
    inputs = inputs_for(declared.variables, given)
    columns: dict[str, Array] = {k: np.array([inputs[k]]) for k in declared.variables}
    loss = float(declared.evaluate(law["params"], columns)[0])
    outcomes = predictive_draws(
        declared,
        read_draws(path),
        columns,
        np.array(law["residuals"]),
        law["free_parameters"],
        law["loss"]["scale"] == "log",
        law["bootstrap"]["seed"],
    )
    low, high = interval(outcomes[:, 0], law["level"])
    factors = {k: outside(inputs[k], tuple(r)) for k, r in law["fit_range"].items() if k in inputs}
    return Forecast(loss, low, high, law["level"], max(factors.values()), factors, inputs)
