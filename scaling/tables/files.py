"""A CSV, JSON lines or Parquet file as a table, checked cell by cell."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scaling.errors import TableError
from scaling.tables.cells import OPTIONAL, REQUIRED, cell_problem, first_line, unfit_reason
from scaling.tables.table import Excluded, Table, columns_of, has_stderr, unit_of_loss

_UNITS = "N is in parameters, D in tokens, loss in nats per token"


def read_file(path: Path, rename: Mapping[str, str]) -> Table:
    """Read a .csv, .jsonl or .parquet file; for ``rename`` see read_table.

    Raises TableError, also for any cell of a needed column that is not a positive finite number.
    """
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    if path.suffix.lower() not in readers:
        raise TableError(f"{path}: a table is a .csv, .jsonl or .parquet file, or a directory of runs")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TableError(f"{path}: cannot be read: {error.strerror}") from error
    if not content:
        raise TableError(f"{path}: the file is empty")
    records = readers[path.suffix.lower()](path)
    if has_stderr(rename) and any("val_loss_stderr" in r for r in records) and not any("stderr" in r for r in records):
        rename = {"stderr": "val_loss_stderr", **rename}
    for name, column in rename.items():
        if records and not any(column in record for record in records):
            raise TableError(f"{path}: there is no column {column!r} to read {name} from")
        records = [{**record, name: record.get(column)} for record in records]
    return _check(path, records, hashlib.sha256(content).hexdigest(), unit_of_loss(rename))


def _check(path: Path, records: list[dict[str, Any]], sha256: str, unit: str) -> Table:
    if not records:
        raise TableError(f"{path}: the table has no rows")
    missing = [c for c in REQUIRED if not any(c in r for r in records)]
    if missing:
        raise TableError(f"{path}: {_missing_columns(missing, list(records[0]))}")
    names = [*REQUIRED, *(c for c in OPTIONAL if any(c in r for r in records))]
    excluded, rows, kept = [], [], []
    for number, record in enumerate(records, 1):
        reason = unfit_reason(record)
        if reason:
            excluded.append(Excluded(number, reason))
            continue
        for name in names:
            problem = cell_problem(name, record.get(name))
            if problem:
                raise TableError(f"{path}: row {number}, column {name}: {problem}. {_UNITS}")
        rows.append(number)
        kept.append(record)
    if not kept:
        raise TableError(f"{path}: every row is marked incomplete or tainted, so there is nothing to fit")
    runs = [_run_name(record.get("run"), f"row {number}") for record, number in zip(kept, rows, strict=True)]
    clusters = [_run_name(record.get("cluster"), run) for record, run in zip(kept, runs, strict=True)]
    columns, numbers = columns_of(kept, names), np.array(rows, dtype=np.int64)
    return Table(columns, runs, numbers, excluded, sha256, str(path), loss_unit=unit, cluster=clusters).redefine()


def _missing_columns(missing: list[str], have: list[str]) -> str:
    """One sentence on columns that are not there, with the likely cause."""
    if len(have) == 1 and (found := next((c for c in ";\t|" if c in have[0]), None)):
        name = {"\t": "tabs"}.get(found, repr(found))
        return f"the columns are separated by {name}; a .csv file needs commas"
    plural = "s" if len(missing) > 1 else ""
    said = f"there is no column {missing[0]}" if not plural else f"there are no columns {', '.join(missing)}"
    said += f"; the columns are {', '.join(map(str, have[:12]))}{', ...' if len(have) > 12 else ''}"
    alike = {c: h for c in missing for h in have if c.lower() == h.strip().lower()}
    hint = " ".join(f"--column {c}={alike.get(c, 'NAME')}" for c in missing)
    return f"{said}. If the name{plural} differ{'' if plural else 's'}, say {hint}. {_UNITS}"


def _run_name(value: object, otherwise: str) -> str:
    """What a row names, or another name where it names nothing: a row that names no run is a run of its own."""
    return str(value) if value not in (None, "") and value == value else otherwise


def _read_csv(path: Path) -> list[dict[str, Any]]:
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True, index_col=False)
    except (ValueError, UnicodeError) as error:
        raise TableError(f"{path}: not a readable CSV file: {first_line(error)}") from error
    frame.columns = [str(c).strip() for c in frame.columns]
    return _frame_records(path, frame)


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    try:
        frame = pd.read_parquet(path)
    except Exception as error:  # pyarrow raises its own hierarchy and plain OSError alike
        raise TableError(f"{path}: not a readable Parquet file: {first_line(error)}") from error
    return _frame_records(path, frame)


def _frame_records(path: Path, frame: pd.DataFrame) -> list[dict[str, Any]]:
    names = [str(c) for c in frame.columns]
    repeated = sorted({c for c in names if names.count(c) > 1})
    if repeated:
        raise TableError(f"{path}: the column {repeated[0]!r} appears twice")
    return [dict(zip(names, row, strict=True)) for row in frame.itertuples(index=False, name=None)]


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    records = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise TableError(f"{path}: not UTF-8 text: {error.reason}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TableError(f"{path}: line {number} is not JSON: {first_line(error)}") from error
        if not isinstance(record, dict):
            raise TableError(f"{path}: line {number} is not a JSON object")
        records.append(record)
    return records
