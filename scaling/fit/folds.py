"""Which rows to hold out, by compute, when a law is asked to predict larger runs from smaller ones."""

import numpy as np
from numpy.typing import NDArray

from scaling.tables.table import Table

LEAST = 6


def compute_folds(table: Table) -> list[NDArray[np.bool_]]:
    """Expanding windows: masks (n,) of the rows held out, from the upper 60 % of the rows' compute to the upper 10 %.

    Each window keeps at least LEAST rows, holds out at least one, and never cuts between rows of equal compute.
    """
    C = np.sort(table.columns["C"])
    cuts = sorted({float(C[int(q * (len(C) - 1))]) for q in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)})
    folds = [np.asarray(table.columns["C"] > cut * (1 + 1e-12)) for cut in cuts]
    return [out for out in folds if out.any() and (~out).sum() >= LEAST]
