"""Forecasts written down before the run: stamped with a hash, scored when the run lands."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from data.files import write_text
from scaling.errors import ForecastError
from scaling.forecast.forecast import Forecast
from scaling.forecast.law_file import LawFile, to_jsonable
from scaling.forecast.law_sections import ForecastScores, ScoredForecast
from scaling.tables.table import Table

FOLDER = "forecasts"
SAME = 0.01  # relative difference within which a run is the one that was forecast


def content_hash(content: Mapping[str, Any]) -> str:
    """SHA-256 of a forecast's canonical JSON, its own hash left out."""
    body = {k: v for k, v in content.items() if k != "sha256"}
    return hashlib.sha256(json.dumps(to_jsonable(body), sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def register(directory: Path, law: LawFile, forecast: Forecast, now: datetime | None = None) -> Path:
    """Write a forecast to DIRECTORY/forecasts. It is never overwritten.

    Raises ForecastError where a run at that point was in the fit (it is known, not forecast) or where the same
    forecast is already registered.
    """
    points = law.data.points
    fitted = [dict(zip(points, row, strict=True)) for row in zip(*points.values(), strict=True)]
    if any(_matches(forecast.inputs, row) for row in fitted):
        raise ForecastError("a run at this point was part of the fit, so there is nothing left to forecast")
    content: dict[str, Any] = {
        "schema": 1,
        "law": law.fit.law,
        "params": law.fit.params,
        "inputs": forecast.inputs,
        "loss": forecast.loss,
        "low": forecast.low,
        "high": forecast.high,
        "level": forecast.level,
        "extrapolation": forecast.extrapolation,
        "n_definition": law.data.n_definition,
        "table_sha256": law.data.table_sha256,
        "date": (now or datetime.now(UTC)).isoformat(timespec="seconds"),
    }
    content = to_jsonable(content)
    content["sha256"] = content_hash(content)
    for known in read_forecasts([directory])[0]:
        if all(known[k] == content[k] for k in ("inputs", "table_sha256", "law", "params")):
            raise ForecastError(f"this forecast is already registered as {known['file']}")
    path = directory / FOLDER / f"{content['sha256'][:16]}.json"
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return path


def read_forecasts(directories: Iterable[Path]) -> tuple[list[dict[str, Any]], list[str]]:
    """Every forecast under the directories, oldest first, and the files whose content no longer has its hash."""
    found: dict[str, dict[str, Any]] = {}
    changed: list[str] = []
    for path in sorted({p for d in directories for p in (Path(d) / FOLDER).glob("*.json")}):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            honest = isinstance(content, dict) and content_hash(content) == content.get("sha256")
        except (OSError, ValueError):
            honest = False
        if honest:
            found[content["sha256"]] = {**content, "file": path.name}
        else:
            changed.append(path.name)
    return sorted(found.values(), key=lambda f: (f["date"], f["file"])), changed


def _matches(inputs: Mapping[str, float], row: Mapping[str, float]) -> bool:
    """Whether a row is at the inputs of a forecast; C follows from N and D and is not compared."""
    shared = [k for k in inputs if k in row and (k != "C" or set(inputs) == {"C"})]
    return bool(shared) and all(abs(np.log(row[k] / inputs[k])) <= SAME for k in shared)


def score_forecasts(directories: Iterable[Path], table: Table) -> ForecastScores:
    """Score the forecasts whose runs are in ``table``.

    A forecast made from this very table is still pending. Several runs at one point (seeds) are averaged.
    """
    forecasts, changed = read_forecasts(directories)
    scored: list[ScoredForecast] = []
    for forecast in forecasts:
        rows = table.redefine(forecast["n_definition"], table.c_definition).columns
        names = [k for k in ("N", "D", "U", "S", "C") if k in rows]
        hits = [i for i in range(len(table)) if _matches(forecast["inputs"], {k: float(rows[k][i]) for k in names})]
        if not hits or forecast["table_sha256"] == table.sha256:
            continue
        measured = float(np.mean(rows["loss"][hits]))
        kept = {k: forecast[k] for k in ("file", "date", "law", "inputs", "low", "high", "level", "sha256")}
        scored.append(
            ScoredForecast(
                **kept,
                runs=sorted({table.run[i] for i in hits}),
                predicted=forecast["loss"],
                loss=measured,
                error=forecast["loss"] / measured - 1,
                covered=forecast["low"] <= measured <= forecast["high"],
            )
        )
    if not scored:
        return ForecastScores(pending=len(forecasts), changed=changed)
    return ForecastScores(
        scored=scored,
        pending=len(forecasts) - len(scored),
        covered=sum(s.covered for s in scored),
        expected_coverage=float(np.mean([s.level for s in scored])),
        rms_error=float(np.sqrt(np.mean([s.error**2 for s in scored]))),
        changed=changed,
    )
