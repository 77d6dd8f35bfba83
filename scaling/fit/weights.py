"""Weights from what is known about the noise: replicate seeds and the standard error of each evaluation."""

import numpy as np

from scaling.errors import FitError
from scaling.laws import Array
from scaling.tables.table import Table

WEIGHTS = ("column", "noise", "none")


def replicate_sigma(table: Table) -> tuple[float, int]:
    """Pooled standard deviation of log loss between rows with equal inputs, and the number of such cells.

    Inputs are N, D and, where the table has them, U and C. (0, 0) without replicates.
    """
    inputs = np.column_stack([table.columns[k] for k in ("N", "D", "U") if k in table.columns])
    _, cell = np.unique(inputs, axis=0, return_inverse=True)
    log = np.log(table.columns["loss"])
    counts = np.bincount(cell)
    means = np.bincount(cell, log) / counts
    freedom = int((counts - 1).sum())
    squares = float(((log - means[cell]) ** 2).sum())
    return (float(np.sqrt(squares / freedom)), int((counts > 1).sum())) if freedom else (0.0, 0)


def noise_weights(table: Table) -> Array:
    """Inverse-variance weights (n,), mean 1: the variance between seeds plus that of the evaluation, on the log scale.

    The column ``stderr`` (nats per token) is the standard error of the evaluated loss, ``val_loss_stderr`` of a record.
    Runs that are evaluated on the same text share part of that error, so that the weights are no more than relative.
    Raises FitError where the table has neither replicates nor that column.
    """
    sigma, cells = replicate_sigma(table)
    if not cells and "stderr" not in table.columns:
        raise FitError(
            f"{table.source}: weights from noise need replicates (rows with the same N and D) or a column stderr"
        )
    evaluation = table.columns.get("stderr", np.zeros(len(table))) / table.columns["loss"]
    variance = sigma**2 + evaluation**2
    if not (variance > 0).all():
        raise FitError(f"{table.source}: weights from noise need a positive stderr in every row")
    weights = 1 / variance
    return np.asarray(weights / weights.mean())


def weights_for(table: Table, kind: str) -> Table:
    """The table with its column ``weight`` as asked: the given one, one from the noise, or none at all."""
    if kind not in WEIGHTS:
        raise FitError(f"weights {kind!r} are not one of {', '.join(WEIGHTS)}")
    if kind == "column":
        return table
    columns = {k: v for k, v in table.columns.items() if k != "weight"}
    if kind == "noise":
        columns["weight"] = noise_weights(table)
    return table.with_columns(columns)
