"""Tables of (N, D, loss), wherever they are: a runs directory, CSV, JSON lines or Parquet.

A user's table must be right: a cell that is not a positive number is an error that names it. A runs directory is
allowed to hold runs that are unfinished or spoilt; those are left out and listed with the reason. Nothing is ever
left out silently.
"""

from collections.abc import Mapping
from pathlib import Path

from scaling.errors import TableError
from scaling.tables.cells import OPTIONAL, REQUIRED, TEXT
from scaling.tables.files import read_file
from scaling.tables.runs import read_runs
from scaling.tables.table import Table


def read_table(path: str | Path, rename: Mapping[str, str] | None = None) -> Table:
    """Read a runs directory (DIR/*/record.json), one record.json, or a CSV, JSONL or Parquet file.

    ``rename`` maps a column name used here to the name it has in the file, as in {"loss": "loss_c4_val"}, or to a field
    of the records, as in {"loss": "val_loss_by_component.prose"}. Raises TableError; for a file, any cell of a needed
    column that is not a positive finite number is one.
    """
    path, rename = Path(path), dict(rename or {})
    for name, column in rename.items():
        if name not in (*REQUIRED, *OPTIONAL, *TEXT):
            known = ", ".join((*REQUIRED, *OPTIONAL, *TEXT))
            raise TableError(f"there is no column {name!r} to fill from {column!r}: the names are {known}")
    if path.is_dir():
        return read_runs(path, sorted(p for p in path.iterdir() if p.is_dir()), rename)
    if not path.exists():
        raise TableError(f"{path}: no such file or directory")
    if path.name == "record.json":
        return read_runs(path.parent, [path.parent], rename)
    return read_file(path, rename)
