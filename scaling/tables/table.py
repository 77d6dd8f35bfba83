"""A table of (N, D, loss): one measurement a row, with its columns, runs and what was left out of it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scaling.errors import TableError
from scaling.laws import Array
from scaling.tables.cells import as_number
from scaling.tables.compute import C_DEFINITIONS, SIX_ND, Compute, Definition

NDefinition = Literal["total", "non-embedding", "with-head"]
# Which parameters N counts, and the columns that it is the sum of.
N_COLUMNS: dict[NDefinition, tuple[str, ...]] = {
    "total": (),
    "non-embedding": ("N_non_embedding",),
    "with-head": ("N_non_embedding", "N_head"),
}
N_DEFINITIONS = tuple(N_COLUMNS)
NATS, BITS = "nats per token", "bits per byte"


@dataclass(frozen=True)
class Excluded:
    """A row that was left out, by its number in the file (from 1) or the name of its run, and why."""

    row: int | str
    reason: str


@dataclass(frozen=True)
class Table:
    """Measurements, one per row.

    ``columns`` always has N (parameters), D (tokens) and loss (nats per token) and, where the source gives them, C
    (FLOPs), U (unique tokens), S (steps), weight, stderr (of the loss, nats per token), score, the entropy rate of the
    text (nats per token) where it is known, and the parameter groups. ``run`` names the training run of each row,
    ``cluster`` what it shares its noise with: by default the rows of its run, and for a branch of a trunk all that hang
    on it. ``rows`` are row numbers in the source, from 1. ``sha256`` is that of the source's bytes. ``loss_unit`` is
    the unit of the loss where it is another.
    """

    columns: dict[str, Array]
    run: list[str]
    rows: NDArray[np.int64]
    excluded: list[Excluded]
    sha256: str
    source: str
    n_definition: NDefinition = "total"
    c_definition: Definition = "exact"
    loss_unit: str = NATS
    cluster: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.cluster:
            object.__setattr__(self, "cluster", self.run)

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def compute(self) -> Compute:
        """How C follows from N and D in these rows."""
        return Compute.of_rows(self.c_definition, *(self.columns[k] for k in "NDC"))

    def select(self, keep: NDArray[np.bool_]) -> "Table":
        """The rows where ``keep`` (n,) is true."""
        return replace(
            self,
            columns={k: v[keep] for k, v in self.columns.items()},
            run=[r for r, k in zip(self.run, keep, strict=True) if k],
            cluster=[c for c, k in zip(self.cluster, keep, strict=True) if k],
            rows=self.rows[keep],
        )

    def with_columns(self, columns: dict[str, Array]) -> "Table":
        """The same rows with other columns."""
        return replace(self, columns=columns)

    def redefine(self, n: NDefinition = "total", c: Definition = "exact") -> "Table":
        """The same rows with another count of parameters N and of compute C.

        ``n``: total; non-embedding; with-head (non-embedding plus the output projection). ``c``: exact, the column C;
        6nd, 6ND with the N chosen, as in every table without C. Raises TableError where columns for it are missing.
        """
        if n not in N_DEFINITIONS:
            raise TableError(f"N definition {n!r} is not one of {', '.join(N_DEFINITIONS)}")
        if c not in C_DEFINITIONS:
            raise TableError(f"C definition {c!r} is not one of {', '.join(C_DEFINITIONS)}")
        columns = dict(self.columns)
        total = columns.setdefault("N_total", columns["N"])
        needed = N_COLUMNS[n]
        missing = [name for name in needed if name not in columns]
        if missing:
            raise TableError(f"{self.source}: N as {n} needs the column {' and '.join(missing)}, which is not there")
        columns["N"] = sum((columns[name] for name in needed), np.zeros_like(total)) if needed else total
        if "C" in columns:
            columns.setdefault("C_exact", columns["C"])
        if c == "6nd" or "C_exact" not in columns:
            columns["C"] = SIX_ND.flops(columns["N"], columns["D"])
            c = "6nd"
        else:
            columns["C"] = columns["C_exact"]
        return replace(self, columns=columns, n_definition=n, c_definition=c)


def frontier(table: Table, variable: str) -> NDArray[np.bool_]:
    """Rows (n,) that no row with as little of ``variable`` or less beats in loss.

    Kaplan's single-variable laws describe models that only N, only D or only C limits. In a table those are the rows
    on the lower envelope of loss against that variable.
    """
    values, loss = table.columns[variable], table.columns["loss"]
    order = np.lexsort((loss, values))
    best = np.concatenate([[np.inf], np.minimum.accumulate(loss[order])[:-1]])
    keep = np.zeros(len(table), dtype=bool)
    keep[order] = loss[order] < best
    return keep


def columns_of(records: list[dict[str, Any]], names: Iterable[str]) -> dict[str, Array]:
    """The columns ``names`` of checked ``records``, one a row."""
    return {name: np.array([as_number(r[name]) for r in records], dtype=float) for name in names}


def has_stderr(rename: Mapping[str, str]) -> bool:
    """Whether ``val_loss_stderr`` is the error of the loss that is read; for ``rename`` see read_table."""
    return rename.get("loss", "val_loss") in ("loss", "val_loss")


def unit_of_loss(rename: Mapping[str, str]) -> str:
    """The unit of the loss, by the name that its column has in the source; for ``rename`` see read_table."""
    return BITS if rename.get("loss", "").startswith("bits_per_byte") else NATS
