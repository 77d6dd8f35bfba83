"""metrics.jsonl as it is written."""

import math
from pathlib import Path

from configs.metrics_rows import read_rows
from train.telemetry.metrics import MetricsLog


def test_torn_last_line_is_cut_and_steps_are_written_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 5.0}\n{"step": 2, "lo')
    log = MetricsLog(path)
    assert not log.write({"step": 1, "loss": 9.0})
    assert log.write({"step": 2, "loss": math.nan})
    log.close()
    assert read_rows(path) == [{"step": 1, "loss": 5.0}, {"step": 2, "loss": None}]
