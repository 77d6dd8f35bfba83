"""How far the answer depends on choices that nobody can settle: one grid of refits.

Objective and its delta, outliers in or out, what N counts, what C counts, and the smallest size kept are crossed with
each other; the result is the spread of every parameter and of a prediction.
"""

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np

from scaling.errors import FitError
from scaling.fit.estimate import fit, loss_named
from scaling.forecast.law_sections import Sensitivity, Variation
from scaling.laws import Array, Law
from scaling.tables.compute import C_DEFINITIONS, Definition
from scaling.tables.table import N_COLUMNS, NDefinition, Table

OBJECTIVES = (
    ("log-huber", 1e-4),
    ("log-huber", 1e-3),
    ("log-huber", 1e-2),
    ("log-mse", None),
    ("huber", 1e-3),
    ("mse", None),
)
OUTLIERS = ("all rows", "without the 5 % largest residuals")


def sensitivity(
    law: Law,
    table: Table,
    point: Mapping[str, float] | None = None,
    fixed: Mapping[str, float] | None = None,
    seed: int = 0,
) -> Sensitivity:
    """Refit ``law`` for every combination of choices. ``point`` is the prediction asked for.

    N of the point is in the table's own definition; it is carried to the others along the table's log-log line.
    Raises FitError where the base choice cannot be fitted.
    """
    base = fit(law, table, fixed=fixed, seed=seed)
    axes, unmoved = _axes(law, table, base.residuals)
    settings, failed = [], []
    for combination in product(*(choices.items() for choices in axes.values())):
        choices = {axis: label for axis, (label, _) in zip(axes, combination, strict=True)}
        (name, delta), keep, n, c, least = (value for _, value in combination)
        try:
            rows = table.redefine(n, c).select(keep & (table.columns["N"] >= least))
            fitted = fit(law, rows, loss_named(name, delta or 1e-3), fixed, seed=seed)
        except FitError as error:
            failed.append({**choices, "reason": str(error)})
            continue
        prediction = None
        if point is not None:
            there = _carried(table, point, n, c)
            prediction = float(fitted.predict({k: np.array([there[k]]) for k in law.variables})[0])
        settings.append(Variation(choices, len(rows), fitted.params, prediction))
    if not settings:
        raise FitError(f"no combination of choices could be fitted: {failed[0]['reason']}")
    first = {axis: next(iter(choices)) for axis, choices in axes.items()}
    first["objective"] = _label(*OBJECTIVES[1])
    by_axis = {
        axis: _spread([s for s in settings if all(s.choices[k] == v for k, v in first.items() if k != axis)])
        for axis, choices in axes.items()
        if len(choices) > 1
    }
    return Sensitivity(
        settings=settings,
        spread=_spread(settings),
        by_axis=by_axis,
        failed=failed,
        fixed_axes=unmoved,
        point=dict(point) if point else None,
    )


def _label(name: str, delta: float | None) -> str:
    return name if delta is None else f"{name} {delta:g}"


def _axes(law: Law, table: Table, residuals: Array) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Choices of every axis as label -> value, and the axes that cannot move."""
    trimmed = np.ones(len(table), dtype=bool)
    trimmed[np.argsort(np.abs(residuals))[-max(1, round(0.05 * len(residuals))) :]] = False
    counts = [n for n, needed in N_COLUMNS.items() if table.columns.keys() >= set(needed)]
    computes = [c for c in C_DEFINITIONS if c == "6nd" or "C_exact" in table.columns]
    unmoved = {f"{k} definition": f"the law {law.name} does not read {k}" for k in "NC" if k not in law.variables}
    if len(counts) == 1:
        unmoved.setdefault("N definition", "the table has one count of parameters")
    if len(computes) == 1:
        unmoved.setdefault("C definition", "the table has no exact C")
    moved_n, moved_c = counts if "N" in law.variables else [], computes if "C" in law.variables else []
    sizes = np.unique(table.columns["N"])
    least = {"all": 0.0}
    for q in (0.15, 0.3):
        size = float(sizes[int(q * len(sizes))])
        if size > sizes[0] and len(sizes) >= 4:
            least[f"N >= {size:.4g}"] = size
    return {
        "objective": {_label(*choice): choice for choice in OBJECTIVES},
        "outliers": dict(zip(OUTLIERS, (np.ones(len(table), dtype=bool), trimmed), strict=True)),
        "N definition": {n: n for n in (table.n_definition, *moved_n)},
        "C definition": {c: c for c in (table.c_definition, *moved_c)},
        "smallest size": least,
    }, unmoved


def _carried(table: Table, point: Mapping[str, float], n: NDefinition, c: Definition) -> dict[str, float]:
    """``point`` in another definition of N, along the line between the logarithms in the table, with the C of that."""
    other = table.redefine(n, c)
    moved = dict(point)
    here, there = table.columns["N"], other.columns["N"]
    if "N" in point and not np.array_equal(here, there):
        slope, intercept = np.polyfit(np.log(here), np.log(there), 1)
        moved["N"] = float(np.exp(intercept + slope * np.log(point["N"])))
    if {"N", "D"} <= moved.keys():
        moved["C"] = float(other.compute.flops(moved["N"], moved["D"]))
    return moved


def _spread(settings: list[Variation]) -> dict[str, list[float]]:
    if not settings:
        return {}
    values = {k: np.array([s.params[k] for s in settings]) for k in settings[0].params}
    predictions = [s.prediction for s in settings if s.prediction is not None]
    if predictions:
        values["prediction"] = np.array(predictions)
    return {k: [float(v.min()), float(np.median(v)), float(v.max())] for k, v in values.items()}
