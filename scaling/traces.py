"""Training curves as the trainer logged them: RUNS_DIR/*/metrics.jsonl."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .laws import Array

BINS = 60  # points of a training curve


@dataclass(frozen=True)
class Curve:
    """A training run as it was logged: values (points,), with NaN where a step has none."""

    name: str
    N: float | None
    complete: bool
    tokens: Array
    flops: Array
    loss: Array
    val_loss: Array
    step: Array
    lr: Array


def read_curves(runs_dir: Path) -> list[Curve]:
    """The curves of RUNS_DIR/*/metrics.jsonl. A run without whole rows is passed over."""
    curves = []
    for path in sorted(runs_dir.glob("*/metrics.jsonl")):
        rows: list[dict[str, Any]] = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # a line that a crash tore
                continue
            if isinstance(row, dict) and isinstance(row.get("tokens"), int | float):
                while rows and rows[-1]["tokens"] >= row["tokens"]:  # a rollback has undone them
                    rows.pop()
                rows.append(row)
        if len(rows) < 2:
            continue
        record = _record(path.parent / "record.json")
        columns = {k: _column(rows, k) for k in ("tokens", "flops", "loss", "val_loss", "step", "lr")}
        N = record.get("N")
        curves.append(Curve(path.parent.name, float(N) if N else None, record.get("complete") is True, **columns))
    return curves


def _record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _column(rows: list[dict[str, Any]], name: str) -> Array:
    values = [row.get(name) for row in rows]
    return np.array([float(v) if isinstance(v, int | float) else np.nan for v in values])


def binned(x: Array, y: Array, bins: int = BINS) -> tuple[Array, Array]:
    """Means of ``y`` in bins of equal width in log x; both (points,), without NaN."""
    keep = np.isfinite(x) & np.isfinite(y) & (x > 0)
    x, y = x[keep], y[keep]
    if len(x) <= bins:
        return x, y
    edges = np.geomspace(x.min(), x.max(), bins + 1)
    index = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, bins - 1)
    size = np.bincount(index, minlength=bins)
    used = size > 0
    means = [np.bincount(index, v, minlength=bins)[used] / size[used] for v in (np.log(x), y)]
    return np.exp(means[0]), means[1]


def smoothed(values: Array, width: int) -> Array:
    """Running means over ``width`` neighbours, fewer at the ends; a width of one changes nothing."""
    half = width // 2
    total = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    reach = np.minimum(half, np.minimum(at, len(values) - 1 - at))
    return np.asarray((total[at + reach + 1] - total[at - reach]) / (2 * reach + 1))
