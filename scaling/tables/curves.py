"""Training curves as the trainer logged them: RUNS_DIR/*/metrics.jsonl."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs.metrics_rows import METRICS, read_rows
from configs.run_record import RECORD, RecordError, read_record
from scaling.laws import Array

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
    loss_mean: Array
    """Of the steps since the point before; ``loss`` where the log does not say."""
    val_loss: Array
    step: Array
    lr: Array


def read_curves(runs_dir: Path) -> list[Curve]:
    """The curves of RUNS_DIR/*/metrics.jsonl. A run without whole rows is passed over."""
    curves = []
    for path in sorted(runs_dir.glob(f"*/{METRICS}")):
        rows = read_rows(path, by="tokens")
        if len(rows) < 2:
            continue
        record = None
        with suppress(OSError, RecordError):
            record = read_record(path.parent / RECORD)
        keys = ("tokens", "flops", "loss", "loss_mean", "val_loss", "step", "lr")
        columns = {k: column(rows, k) for k in keys}
        columns["loss_mean"] = np.where(np.isnan(columns["loss_mean"]), columns["loss"], columns["loss_mean"])
        N = None if record is None or not 0 < record.size.N < math.inf else record.size.N
        curves.append(Curve(path.parent.name, N, record is not None and record.identity.complete, **columns))
    return curves


def column(rows: Sequence[Mapping[str, object]], name: str) -> Array:
    """The values of one key (rows,), with NaN where a row does not have it."""
    return np.array([np.nan if row.get(name) is None else row[name] for row in rows], dtype=float)


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
