"""Tables of (N, D, loss): read from a runs directory, CSV, JSON lines or Parquet, checked cell by cell.

A user's table must be right: a cell that is not a positive number is an error that names it. A runs directory is
allowed to hold runs that are unfinished or spoilt; those are left out and listed with the reason. Nothing is ever
left out silently.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scaling.errors import TableError

Array = NDArray[np.float64]

REQUIRED = ("N", "D", "loss")
# Columns that some law, weight or switch reads; other columns of a table are ignored.
OPTIONAL = (
    *("C", "U", "S", "weight", "stderr", "score", "N_non_embedding", "N_head", "warmup", "seed", "lr"),
    "entropy_rate",
)
TEXT = ("run", "cluster", "complete", "tainted")
MAY_BE_ZERO = ("weight", "score", "warmup", "seed", "stderr", "N_head")
LEAST, MOST = 1e-30, 1e40  # of any number in a table; products and powers of these stay finite
# Field of a training record -> column. `flops` is exact: attention and head included, embedding look-up not.
RECORD_FIELDS = {
    "N": "N",
    "D": "D",
    "val_loss": "loss",
    "flops": "C",
    "steps": "S",
    "unique_tokens": "U",
    "val_loss_stderr": "stderr",
    "N_non_embedding": "N_non_embedding",
    "N_head": "N_head",
    "seed": "seed",
    "lr": "lr",
    "entropy_rate": "entropy_rate",
}
N_DEFINITIONS = ("total", "non-embedding", "with-head")
C_DEFINITIONS = ("exact", "6nd")


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
    n_definition: str = "total"
    c_definition: str = "exact"
    loss_unit: str = NATS
    cluster: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.cluster:
            object.__setattr__(self, "cluster", self.run)

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, keep: NDArray[np.bool_]) -> Table:
        """The rows where ``keep`` (n,) is true."""
        return replace(
            self,
            columns={k: v[keep] for k, v in self.columns.items()},
            run=[r for r, k in zip(self.run, keep, strict=True) if k],
            cluster=[c for c, k in zip(self.cluster, keep, strict=True) if k],
            rows=self.rows[keep],
        )

    def with_columns(self, columns: dict[str, Array]) -> Table:
        """The same rows with other columns."""
        return replace(self, columns=columns)

    def redefine(self, n: str = "total", c: str = "exact") -> Table:
        """The same rows with another count of parameters N and of compute C.

        ``n``: total; non-embedding; with-head (non-embedding plus the output projection). ``c``: exact, the column C;
        6nd, six times N times D with the N chosen. Raises TableError where the table lacks the columns for it.
        """
        if n not in N_DEFINITIONS:
            raise TableError(f"N definition {n!r} is not one of {', '.join(N_DEFINITIONS)}")
        if c not in C_DEFINITIONS:
            raise TableError(f"C definition {c!r} is not one of {', '.join(C_DEFINITIONS)}")
        columns = dict(self.columns)
        total = columns.setdefault("N_total", columns["N"])
        needed = {"total": (), "non-embedding": ("N_non_embedding",), "with-head": ("N_non_embedding", "N_head")}[n]
        missing = [name for name in needed if name not in columns]
        if missing:
            raise TableError(f"{self.source}: N as {n} needs the column {' and '.join(missing)}, which is not there")
        columns["N"] = sum((columns[name] for name in needed), np.zeros_like(total)) if needed else total
        if "C" in columns:
            columns.setdefault("C_exact", columns["C"])
        if c == "6nd" or "C_exact" not in columns:
            columns["C"] = 6 * columns["N"] * columns["D"]
            c = "6nd"
        else:
            columns["C"] = columns["C_exact"]
        return replace(self, columns=columns, n_definition=n, c_definition=c)


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
        return _read_runs(path, sorted(p for p in path.iterdir() if p.is_dir()), rename)
    if not path.exists():
        raise TableError(f"{path}: no such file or directory")
    if path.name == "record.json":
        return _read_runs(path.parent, [path.parent], rename)
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
    for name, column in rename.items():
        if records and not any(column in record for record in records):
            raise TableError(f"{path}: there is no column {column!r} to read {name} from")
        records = [{**record, name: record.get(column)} for record in records]
    return replace(_check(path, records, hashlib.sha256(content).hexdigest()), loss_unit=_loss_unit(rename))


def _loss_unit(rename: Mapping[str, str]) -> str:
    return BITS if rename.get("loss", "").startswith("bits_per_byte") else NATS


def _read_csv(path: Path) -> list[dict[str, Any]]:
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True, index_col=False)
    except (ValueError, UnicodeError) as error:
        raise TableError(f"{path}: not a readable CSV file: {_first_line(error)}") from error
    frame.columns = [str(c).strip() for c in frame.columns]
    return _frame_records(path, frame)


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    try:
        frame = pd.read_parquet(path)
    except Exception as error:  # pyarrow raises its own hierarchy and plain OSError alike
        raise TableError(f"{path}: not a readable Parquet file: {_first_line(error)}") from error
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
            raise TableError(f"{path}: line {number} is not JSON: {_first_line(error)}") from error
        if not isinstance(record, dict):
            raise TableError(f"{path}: line {number} is not a JSON object")
        records.append(record)
    return records


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _number(value: object) -> float | None:
    """The number in a cell, or None. Text such as "7e9" or "1_000_000" counts; "7B", true and null do not."""
    if isinstance(value, bool | np.bool_) or value is None:
        return None
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None


def _problem(name: str, value: object) -> str | None:
    """What is wrong with a cell of column ``name``, or None."""
    number = _number(value)
    if number is None:
        return f"{value!r} is not a number" if value not in (None, "") else "it is empty"
    if not math.isfinite(number):
        return f"{value!r} is not a finite number"
    if number < 0 or (number == 0 and name not in MAY_BE_ZERO):
        return f"{value!r} is not positive"
    if number and not LEAST <= number <= MOST:
        return f"{value!r} is beyond any plausible value"
    return None


def _flag(record: Mapping[str, Any], name: str) -> bool | None:
    """The yes/no field of a record or a table's row; None where it is absent or empty."""
    value = record.get(name)
    if isinstance(value, str):
        value = {"true": True, "1": True, "false": False, "0": False}.get(value.strip().lower())
    return None if value is None or value != value else bool(value)


def _unfit(record: Mapping[str, Any]) -> str | None:
    """Why a measured run must not be fitted although its numbers are readable."""
    if _flag(record, "complete") is False:
        return "the schedule has not finished (complete is false): its loss is that of another schedule"
    if _flag(record, "tainted"):
        return "tainted: the run had a loss spike or skipped steps"
    return None


def _check(path: Path, records: list[dict[str, Any]], sha256: str) -> Table:
    if not records:
        raise TableError(f"{path}: the table has no rows")
    missing = [c for c in REQUIRED if not any(c in r for r in records)]
    if missing:
        raise TableError(f"{path}: {_missing_columns(missing, list(records[0]))}")
    names = [*REQUIRED, *(c for c in OPTIONAL if any(c in r for r in records))]
    excluded, rows, kept = [], [], []
    for number, record in enumerate(records, 1):
        reason = _unfit(record)
        if reason:
            excluded.append(Excluded(number, reason))
            continue
        for name in names:
            problem = _problem(name, record.get(name))
            if problem:
                raise TableError(f"{path}: row {number}, column {name}: {problem}. {_UNITS}")
        rows.append(number)
        kept.append(record)
    if not kept:
        raise TableError(f"{path}: every row is marked incomplete or tainted, so there is nothing to fit")
    runs = [_run_name(record.get("run"), f"row {number}") for record, number in zip(kept, rows, strict=True)]
    clusters = [_run_name(record.get("cluster"), run) for record, run in zip(kept, runs, strict=True)]
    return _table(names, kept, runs, clusters, rows, excluded, sha256, str(path))


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


_UNITS = "N is in parameters, D in tokens, loss in nats per token"


def _run_name(value: object, otherwise: str) -> str:
    """What a row names, or another name where it names nothing: a row that names no run is a run of its own."""
    return str(value) if value not in (None, "") and value == value else otherwise


def _table(
    names: Iterable[str],
    records: list[dict[str, Any]],
    runs: list[str],
    clusters: list[str],
    rows: list[int],
    excluded: list[Excluded],
    sha256: str,
    source: str,
) -> Table:
    columns = {name: np.array([_number(r[name]) for r in records], dtype=float) for name in names}
    table = Table(columns, runs, np.array(rows, dtype=np.int64), excluded, sha256, source, cluster=clusters)
    return table.redefine()


def _read_runs(directory: Path, run_dirs: list[Path], rename: Mapping[str, str]) -> Table:
    fields = {column: name for name, column in RECORD_FIELDS.items()} | dict(rename)
    digest = hashlib.sha256()
    excluded: list[Excluded] = []
    kept: list[dict[str, Any]] = []
    rows: list[int] = []
    runs: list[str] = []
    trunks: dict[str, str] = {}
    seen = 0
    for run_dir in run_dirs:
        path = run_dir / "record.json"
        if not path.exists():
            if (run_dir / "metrics.jsonl").exists():
                excluded.append(Excluded(run_dir.name, "no record.json: the run has not finished"))
            continue
        seen += 1
        content = path.read_bytes()
        digest.update(content)
        record, reason = _record(content, fields)
        if record.get("branch_of"):
            trunks[run_dir.name] = str(record["branch_of"])
        if reason:
            excluded.append(Excluded(run_dir.name, reason))
            continue
        rows.append(seen)
        runs.append(run_dir.name)
        kept.append(record)
    if not seen:
        raise TableError(f"{directory}: no finished runs in it (looked for */record.json)")
    if not kept:
        raise TableError(f"{directory}: no run can be fitted; {excluded[0].row}: {excluded[0].reason}")
    # A field that only some trainers write is usable only if every run has it.
    optional = [c for c in OPTIONAL if all(_problem(c, r.get(c)) is None for r in kept)]
    clusters = [_root(run, trunks) for run in runs]
    table = _table([*REQUIRED, *optional], kept, runs, clusters, rows, excluded, digest.hexdigest(), str(directory))
    unit = _loss_unit(rename)
    tokenizers = {record["tokenizer"] for record in kept} - {None}
    if len(tokenizers) > 1 and unit == NATS:
        raise TableError(
            f"{directory}: the runs have {len(tokenizers)} tokenizers, and neither {NATS} nor tokens of different ones "
            "compare; fit bits per byte over bytes with --column loss=bits_per_byte --column D=training_bytes"
        )
    return replace(table, loss_unit=unit)


def _root(run: str, trunks: Mapping[str, str]) -> str:
    """The trunk that a run hangs on, by way of others where it branched off from a branch; without one, itself."""
    seen: set[str] = set()
    while run in trunks and run not in seen:
        seen.add(run)
        run = trunks[run]
    return run


def _field(record: Mapping[str, Any], name: str) -> Any:
    """A field of a record; a.b is the field b of the mapping a."""
    head, _, rest = name.partition(".")
    value = record.get(head)
    return _field(value, rest) if rest and isinstance(value, Mapping) else value


def _record(content: bytes, fields: Mapping[str, str]) -> tuple[dict[str, Any], str | None]:
    """A training record as a row, whose columns come from ``fields``, and why it cannot be used."""
    try:
        raw = json.loads(content)
    except (ValueError, RecursionError) as error:
        return {}, f"record.json is not JSON: {_first_line(error)}"
    if not isinstance(raw, dict):
        return {}, "record.json is not a JSON object"
    if raw.get("complete") is not True:
        raw = {**raw, "complete": False}
    record = {column: _field(raw, name) for column, name in fields.items()}
    record |= {"tokenizer": raw.get("tokenizer_sha256"), "branch_of": raw.get("branch_of")}
    bad = next((f"{c}: {p}" for c in REQUIRED if (p := _problem(c, record[c]))), None)
    return record, _unfit(raw) or bad
