"""`band.json` of a run: where its loss curve should lie by its finished siblings; the run reads it while it trains."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, fields
from itertools import pairwise
from pathlib import Path

from configs.reader import ConfigError, Problem, build, config
from data.files import write_json

BAND = "band.json"


@config
class CurveBand:
    """Expected course of one run. `progress` are fractions of its steps; the rest nats per token, one for each.

    The values are for the geometric mean of the loss over the last `window` of the progress made.
    """

    progress: tuple[float, ...]
    low: tuple[float, ...]
    centre: tuple[float, ...]
    high: tuple[float, ...]
    window: float
    rungs: int
    """Finished runs that predict it."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (key, message) for what cannot be interpolated."""
        for key in ("progress", "low", "centre", "high"):
            values = getattr(self, key)
            if not values or len(values) != len(self.progress) or not all(0 < value < math.inf for value in values):
                yield key, "must be positive numbers, as many as progress has"
        if any(later <= earlier for earlier, later in pairwise(self.progress)):
            yield "progress", "must rise"
        if not 0 < self.window <= 1:
            yield "window", f"{self.window} must be above 0 and at most 1"

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        write_json(path, asdict(self))


def read_band(path: Path) -> CurveBand:
    """Read a band.json.

    Raises OSError when there is none, and `ConfigError` naming all that is missing or cannot be interpolated.
    """
    try:
        content = json.loads(path.read_bytes())
        known = {field.name: content[field.name] for field in fields(CurveBand) if field.name in content}
    except (ValueError, TypeError, RecursionError) as error:
        raise ConfigError([Problem(str(path), "", f"is not a JSON object: {type(error).__name__}")]) from None
    return build(CurveBand, known, str(path))
