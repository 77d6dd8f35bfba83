"""law.json and what is kept beside it: the fitted law as a file that any later tool can read.

Files appear whole or not at all. Numbers are written in full precision; infinities and not-a-numbers as null.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data.files import write_bytes, write_text
from scaling.errors import ArtifactError
from scaling.laws import LAWS, Array
from scaling.tables.compute import SIX_ND, Compute

SCHEMA = 2
READ = (1, 2)
KEYS = ("schema", "law", "params", "intervals", "level", "holdout", "certificate", "excluded", "table_sha256")


def to_jsonable(value: Any) -> Any:
    """``value`` in JSON's types: arrays become lists, non-finite numbers null."""
    if isinstance(value, Mapping):
        return {str(k): to_jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_jsonable(v) for v in value]
    if isinstance(value, np.ndarray | np.generic):
        return to_jsonable(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_draws(path: Path, draws: Mapping[str, Array]) -> None:
    """Write draws, name -> (draws,), as a NumPy archive."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{k: np.asarray(v) for k, v in draws.items()})  # type: ignore[arg-type]
    write_bytes(path, buffer.getvalue())


def write_law(directory: Path, law: Mapping[str, Any], draws: Mapping[str, Array] | None = None) -> Path:
    """Write ``law`` to DIRECTORY/law.json, and the bootstrap draws to draws.npz first, where given."""
    directory = Path(directory)
    if draws is not None:
        write_draws(directory / "draws.npz", draws)
    text = json.dumps(to_jsonable(law), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(directory / "law.json", text)
    return directory / "law.json"


def read_law(path: str | Path) -> dict[str, Any]:
    """The content of a law.json (or of the directory that holds one). Raises ArtifactError."""
    path = Path(path)
    if path.is_dir():
        path = path / "law.json"
    try:
        law = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ArtifactError(f"{path}: not JSON: {error}") from error
    if not isinstance(law, dict):
        raise ArtifactError(f"{path}: not a law: a JSON object is expected")
    missing = [key for key in KEYS if key not in law]
    if missing:
        raise ArtifactError(f"{path}: not a law: the key {missing[0]!r} is missing")
    if law["schema"] not in READ:
        raise ArtifactError(f"{path}: schema {law['schema']!r} is not one that this version reads: {READ}")
    if law["law"] not in LAWS:
        raise ArtifactError(f"{path}: unknown law {law['law']!r}; the laws are {', '.join(LAWS)}")
    return law


def compute_of(law: Mapping[str, Any]) -> Compute:
    """How C follows from N and D, by the content of a law.json.

    Schema 1 says so where C is 6ND, and shows it in its points where the law reads C; else 6ND is assumed.
    """
    if "compute" in law:
        found = law["compute"]
        return Compute(found["definition"], tuple(found["sizes"]), tuple(found["flops_per_token"]))
    if law.get("c_definition") == "6nd":
        return SIX_ND
    points = {k: np.asarray(v, dtype=float) for k, v in law.get("points", {}).items()}
    if {"N", "D", "C"} <= points.keys():
        return Compute.of_rows("exact", *(points[k] for k in "NDC"))
    return Compute(assumed=True)


def read_draws(path: str | Path, name: str = "draws.npz") -> dict[str, Array]:
    """The bootstrap draws beside a law.json: parameter name -> (draws,). Raises ArtifactError."""
    path = Path(path)
    path = (path if path.is_dir() else path.parent) / name
    try:
        with np.load(path) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: the bootstrap draws cannot be read: {error}") from error
