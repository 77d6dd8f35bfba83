"""A runs directory as a table: RUNS_DIR/*/record.json, without the runs that are unfinished or spoilt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from scaling.errors import TableError
from scaling.tables.cells import OPTIONAL, REQUIRED, cell_problem, first_line, unfit_reason
from scaling.tables.table import NATS, Excluded, Table, make_table, unit_of_loss

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


def read_runs(directory: Path, run_dirs: list[Path], rename: Mapping[str, str]) -> Table:
    """Read the record.json of each of ``run_dirs``, folders of ``directory``; for ``rename`` see read_table.

    Runs that cannot be fitted are left out and listed. Raises TableError where none is left.
    """
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
    optional = [c for c in OPTIONAL if all(cell_problem(c, r.get(c)) is None for r in kept)]
    clusters = [_root(run, trunks) for run in runs]
    table = make_table([*REQUIRED, *optional], kept, runs, clusters, rows, excluded, digest.hexdigest(), str(directory))
    unit = unit_of_loss(rename)
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
        return {}, f"record.json is not JSON: {first_line(error)}"
    if not isinstance(raw, dict):
        return {}, "record.json is not a JSON object"
    if raw.get("complete") is not True:
        raw = {**raw, "complete": False}
    record = {column: _field(raw, name) for column, name in fields.items()}
    record |= {"tokenizer": raw.get("tokenizer_sha256"), "branch_of": raw.get("branch_of")}
    bad = next((f"{c}: {p}" for c in REQUIRED if (p := cell_problem(c, record[c]))), None)
    return record, unfit_reason(raw) or bad
