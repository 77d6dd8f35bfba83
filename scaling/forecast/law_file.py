"""law.json and what is kept beside it: the fitted law as a file that any later tool can read.

Sections in code; one flat object in the file, where every key keeps its name, because other people's scripts read it.
Files appear whole or not at all. Numbers are written in full precision; infinities and not-a-numbers as null.
"""

import dataclasses
import io
import json
import math
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from configs.reader import ConfigError, build, config
from data.files import write_bytes, write_text
from scaling.errors import ArtifactError
from scaling.forecast.law_sections import (
    SECTIONS,
    ChecksSection,
    DataSection,
    FitSection,
    OthersSection,
    UncertaintySection,
)
from scaling.laws import LAWS, Array, Law
from scaling.tables.compute import SIX_ND, Compute

SCHEMA = 2
READABLE = (1, 2)
"""Schemas that `read_law` understands; 1 does not say how C follows from N and D."""
COMPUTE_KEYS = ("definition", "sizes", "flops_per_token")


@config
class LawFile:
    """A fitted law: parameters, data, compute, uncertainty, checks, and other laws beside it."""

    fit: FitSection
    data: DataSection
    compute: Compute
    uncertainty: UncertaintySection
    checks: ChecksSection
    others: OthersSection

    @property
    def declared(self) -> Law:
        """The law's formula."""
        return LAWS[self.fit.law]

    def flat(self) -> dict[str, Any]:
        """What stands in the file, by key, in JSON's types."""
        sections = (vars(getattr(self, name)) for name in SECTIONS)
        compute = {key: getattr(self.compute, key) for key in COMPUTE_KEYS}
        whole = {"schema": SCHEMA, "compute": compute}
        for section in sections:
            whole |= section
        return {key: to_jsonable(value) for key, value in whole.items()}

    def write(self, directory: Path, draws: Mapping[str, Array] | None = None) -> Path:
        """Write DIRECTORY/law.json, and the bootstrap draws to draws.npz first, where given."""
        if draws is not None:
            write_draws(directory / "draws.npz", draws)
        text = json.dumps(self.flat(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        write_text(directory / "law.json", text)
        return directory / "law.json"


def to_jsonable(value: Any) -> Any:
    """``value`` in JSON's types: dataclasses become objects, arrays lists, non-finite numbers null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_jsonable(getattr(value, f.name)) for f in fields(value)}
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


def read_law(path: str | Path) -> LawFile:
    """Read a law.json (or that of a directory). Raises ArtifactError with a sentence that names file and key."""
    path = Path(path)
    if path.is_dir():
        path = path / "law.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda word: None)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: not JSON: {error}") from error
    return parse_law(content, str(path))


def parse_law(content: Any, source: str) -> LawFile:
    """The content of a law.json of this version or an earlier one. Keys that it does not know are passed over.

    Raises ArtifactError naming ``source``, what a file that is none lacks, and the first key of another type.
    """
    if not isinstance(content, dict):
        raise ArtifactError(f"{source}: not a law: a JSON object is expected")
    if "schema" not in content:
        raise ArtifactError(f"{source}: not a law: the key 'schema' is missing")
    if type(content["schema"]) is not int or content["schema"] not in READABLE:
        raise ArtifactError(f"{source}: schema {content['schema']!r} is not one that this version reads: {READABLE}")
    keys = {name: [f.name for f in fields(section)] for name, section in SECTIONS.items()}
    tree = {name: {key: content[key] for key in keys[name] if key in content} for name in keys}
    try:
        found: dict[str, Any] = {name: build(SECTIONS[name], tree[name], source) for name in tree}
        compute = _compute(content, found["data"], source)
    except ConfigError as error:
        first = error.problems[0]
        said = f"the key {first.key!r} {first.message}" if first.key else first.message
        raise ArtifactError(f"{source}: not a law: {said}") from None
    for name in LAWS[found["fit"].law].variables:
        if name not in found["data"].fit_range:
            raise ArtifactError(f"{source}: not a law: the key 'fit_range.{name}' is required and missing")
    return LawFile(**found, compute=compute)


def _compute(content: Mapping[str, Any], data: DataSection, source: str) -> Compute:
    """How C follows from N and D.

    Schema 1 says so where C is 6ND, and shows it in its points where the law reads C; else 6ND is assumed.
    """
    if content["schema"] != 1:
        return build(_StoredCompute, {"compute": content["compute"]} if "compute" in content else {}, source).compute
    if data.c_definition == "6nd":
        return SIX_ND
    points = {k: np.asarray(v, dtype=float) for k, v in data.points.items()}
    if {"N", "D", "C"} <= points.keys() and len(points["C"]):
        return Compute.of_rows("exact", *(points[k] for k in "NDC"))
    return Compute(assumed=True)


@config
class _StoredCompute:
    compute: Compute


def read_draws(path: str | Path, names: Collection[str] = (), name: str = "draws.npz") -> dict[str, Array]:
    """The bootstrap draws beside a law.json: parameter name -> (draws,). Raises ArtifactError.

    ``names`` are those that must be there.
    """
    path = Path(path)
    path = (path if path.is_dir() else path.parent) / name
    try:
        with np.load(path) as archive:
            draws = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        why = "is missing" if isinstance(error, FileNotFoundError) else "is no file of draws"
        raise ArtifactError(f"{path} {why}; copy the one that was written beside law.json, or fit again") from error
    missing = [name for name in names if name not in draws]
    if missing:
        raise ArtifactError(f"{path}: the bootstrap draws are not those of this law: there is no {missing[0]}")
    return draws
