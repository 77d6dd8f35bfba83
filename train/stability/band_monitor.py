"""Compare a run's loss curve with the band that its finished siblings predict, and say early when it leaves it.

The band is `RUN_DIR/band.json`, which `scripts/study.py curve_bands` writes and renews while a ladder trains; the run
reads it again whenever it has changed. A run without that file is not monitored. Nothing here alters training.
"""

import math
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from configs.curve_band import CurveBand, read_band
from configs.reader import ConfigError

_LEAST_ROWS = 3


@dataclass
class Monitor:
    """Follows one run of `steps` optimizer steps, row by row."""

    path: Path
    steps: int
    _progress: list[float] = field(default_factory=lambda: [0.0])
    _integral: list[float] = field(default_factory=lambda: [0.0])
    """Integral of the log loss over progress, at each of `_progress`."""
    _outside_since: float | None = None
    _rows_outside: int = 0
    _alerted: bool = False
    _band: CurveBand | None = None
    _read: int = 0
    """Time of change of the band that was read last, ns."""

    def follow(self, step: int, loss: float) -> tuple[dict[str, float], str | None]:
        """Take the loss (nats per token) of a logged step, which stands for the steps since the one before it.

        Returns:
            What is logged beside the loss, empty where no band is known: `loss_smooth`, the geometric mean over the
            last stretch of the run, `band_low` and `band_high`. And a sentence when the curve has left the band for
            half of that stretch, once for each time that it does.
        """
        x = step / self.steps
        if x <= self._progress[-1] or not (loss > 0 and math.isfinite(loss)):
            return {}, None
        self._integral.append(self._integral[-1] + (x - self._progress[-1]) * math.log(loss))
        self._progress.append(x)
        band = self._current()
        if band is None or not band.progress[0] <= x:
            return {}, None
        window = band.window
        begin = np.interp(x * (1 - window), self._progress, self._integral)
        smooth = math.exp((self._integral[-1] - float(begin)) / (window * x))
        at = math.log(x)
        stages = np.log(band.progress)
        low, high = (math.exp(np.interp(at, stages, np.log(side))) for side in (band.low, band.high))
        return {"loss_smooth": smooth, "band_low": low, "band_high": high}, self._judge(x, window, smooth, low, high)

    def _judge(self, x: float, window: float, smooth: float, low: float, high: float) -> str | None:
        if low <= smooth <= high:
            self._outside_since, self._rows_outside, self._alerted = None, 0, False
            return None
        self._rows_outside += 1
        if self._outside_since is None:
            self._outside_since = x
        lasting = x - self._outside_since >= window * x / 2 and self._rows_outside >= _LEAST_ROWS
        if self._alerted or not lasting:
            return None
        self._alerted = True
        where = "above" if smooth > high else "below"
        return f"the loss {smooth:.4f} is {where} the band {low:.4f} to {high:.4f} that finished runs predict"

    def _current(self) -> CurveBand | None:
        """The newest band; one that cannot be read leaves the one before it."""
        with suppress(OSError, ConfigError):
            changed = self.path.stat().st_mtime_ns
            if changed != self._read:
                self._read = changed
                self._band = read_band(self.path)
        return self._band
