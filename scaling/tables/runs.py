"""A runs directory as a table: RUNS_DIR/*/record.json, without the runs that are unfinished or spoilt."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from configs.run_record import RECORD, RecordError, RunRecord, parse_record, read_record
from scaling.errors import TableError
from scaling.tables.cells import OPTIONAL, REQUIRED, cell_problem, first_line, unfit_reason
from scaling.tables.table import NATS, Excluded, Table, columns_of, has_stderr, unit_of_loss

# Field of a training record -> column. `flops` is exact: attention and head included, embedding look-up not.
RECORD_FIELDS = {"val_loss": "loss", "flops": "C", "steps": "S", "unique_tokens": "U", "val_loss_stderr": "stderr"}
RECORD_FIELDS |= {k: k for k in ("N", "D", "N_non_embedding", "N_head", "seed", "lr", "entropy_rate")}


def read_records(directory: Path) -> dict[Path, RunRecord]:
    """Every DIR/*/record.json, by its path, in order. Raises TableError where there is none, or one cannot be read."""
    try:
        records = {path: read_record(path) for path in sorted(directory.glob(f"*/{RECORD}"))}
    except RecordError as error:
        raise TableError(str(error)) from None
    if not records:
        raise TableError(f"{directory}: no finished runs in it (looked for */{RECORD})")
    return records


def read_runs(directory: Path, run_dirs: list[Path], rename: Mapping[str, str]) -> Table:
    """Read the record.json of each of ``run_dirs``, folders of ``directory``; for ``rename`` see read_table.

    Runs that cannot be fitted are left out and listed. Raises TableError where none is left.
    """
    fields = {column: name for name, column in RECORD_FIELDS.items()} | dict(rename)
    if not has_stderr(rename) and "stderr" not in rename:
        del fields["stderr"]  # it is that of val_loss
    digest = hashlib.sha256()
    excluded: list[Excluded] = []
    kept: list[dict[str, Any]] = []
    tokenizers: set[str | None] = set()
    rows: list[int] = []
    runs: list[str] = []
    trunks: dict[str, str] = {}
    seen = 0
    for run_dir in run_dirs:
        path = run_dir / RECORD
        if not path.exists():
            if (run_dir / "metrics.jsonl").exists():
                excluded.append(Excluded(run_dir.name, "no record.json: the run has not finished"))
            continue
        seen += 1
        if not path.is_file():
            excluded.append(Excluded(run_dir.name, "record.json is not a file"))
            continue
        content = path.read_bytes()
        digest.update(content)
        try:
            record = parse_record(content, RECORD)
        except RecordError as error:
            excluded.append(Excluded(run_dir.name, first_line(error)))
            continue
        if record.recipe.branch_of:
            trunks[run_dir.name] = record.recipe.branch_of
        values = record.flat()
        row = {column: _field(values, name) for column, name in fields.items()}
        bad = next((f"{c}: {p}" for c in REQUIRED if (p := cell_problem(c, row[c]))), None)
        if reason := unfit_reason(values) or bad:
            excluded.append(Excluded(run_dir.name, reason))
            continue
        rows.append(seen)
        runs.append(run_dir.name)
        kept.append(row)
        tokenizers.add(record.identity.tokenizer_sha256)
    if not seen:
        raise TableError(f"{directory}: no finished runs in it (looked for */record.json)")
    if not kept:
        raise TableError(f"{directory}: no run can be fitted; {excluded[0].row}: {excluded[0].reason}")
    # A field that only some trainers write is usable only if every run has it.
    optional = [c for c in OPTIONAL if all(cell_problem(c, r.get(c)) is None for r in kept)]
    clusters = [_root(run, trunks) for run in runs]
    unit = unit_of_loss(rename)
    tokenizers.discard(None)
    if len(tokenizers) > 1 and unit == NATS:
        raise TableError(
            f"{directory}: the runs have {len(tokenizers)} tokenizers, and neither {NATS} nor tokens of different ones "
            "compare; fit bits per byte over bytes with --column loss=bits_per_byte --column D=training_bytes"
        )
    columns, numbers = columns_of(kept, [*REQUIRED, *optional]), np.array(rows, dtype=np.int64)
    table = Table(
        columns, runs, numbers, excluded, digest.hexdigest(), str(directory), loss_unit=unit, cluster=clusters
    )
    return table.redefine()


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
