"""Predict where the loss curves of unfinished runs should lie, from the finished runs of the same ladder.

    python scripts/study.py curve_bands runs/quickstart

Writes band.json into the directory of every unfinished run of RUNS_DIR. A run that finds one logs the band beside its
loss and raises an alert when it leaves it. scripts/sweep.py does this by itself whenever a run has finished.
Progress is the fraction of a run's steps, losses are in nats per token.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from configs.cli import Parser, run_command
from configs.curve_band import BAND, CurveBand
from configs.run_record import complete_record
from model.counts import count_parameters
from scaling.errors import FitError
from scaling.studies.curve_bands import band
from scaling.tables.curves import Curve, read_curves
from train.config import RunConfig, load_stored

Rung = tuple[RunConfig, Curve]


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = Parser(__doc__)
    parser.add_argument("runs_dir", type=Path, metavar="RUNS_DIR", help="one directory a run")
    return run_command(parser, lambda options: renew(options.runs_dir), words)


def renew(runs_dir: Path) -> None:
    """Write the bands of all unfinished runs. Raises FitError when there is none, or when none has enough siblings."""
    runs = {path.parent.name: load_stored(path) for path in sorted(runs_dir.glob("*/config.yaml"))}
    records = {name: complete_record(runs_dir / name) for name in runs}
    curves = {curve.name: curve for curve in read_curves(runs_dir)}
    healthy = [name for name, record in records.items() if record and not record.result.tainted]
    rungs = [(runs[name], curves[name]) for name in healthy if name in curves]
    waiting = [name for name, record in records.items() if record is None]
    if not waiting:
        found = "all runs are complete" if records else "there are no runs in it (looked for */config.yaml)"
        raise FitError(f"{runs_dir}: {found}; bands are for runs that go on")
    reasons = {}
    for name in waiting:
        try:
            predict(runs[name], rungs).write(runs_dir / name / BAND)
        except FitError as error:
            reasons[name] = str(error)
    print(f"{runs_dir}: bands for {len(waiting) - len(reasons)} of {len(waiting)} unfinished runs")
    if len(reasons) == len(waiting):
        raise FitError(f"{runs_dir}: {next(iter(reasons.values()))}")


def predict(run: RunConfig, rungs: Sequence[Rung]) -> CurveBand:
    """Predict the course of `run` from those rungs that are trained alike. Raises FitError when they are too few."""
    alike = [(float(_parameters(r)), float(r.tokens), curve) for r, curve in rungs if _kind(r) == _kind(run)]
    return band(alike, _parameters(run), run.tokens)


def _parameters(run: RunConfig) -> int:
    return count_parameters(run.model).total


def _kind(run: RunConfig) -> tuple[object, ...]:
    """Everything but size, tokens, batch and learning rate that shapes a loss curve."""
    model = run.model
    blocks = (model.positions, model.norm, model.mlp, model.qk_norm, model.tie_embeddings, model.parametrization)
    return run.data, run.schedule, run.train.sequence_length, blocks


if __name__ == "__main__":
    sys.exit(main())
