"""Fit a law for whole loss curves under any learning-rate schedule, and predict curves under other schedules.

    python scripts/study.py multi_power --fit runs/a runs/b --predict runs/c --out fits/curves
    python scripts/study.py multi_power --fit cosine.csv constant.csv --predict wsd.csv --json

A curve is a run's directory, its metrics.jsonl, or a CSV file with columns step, lr and loss (nats per token). The
curves are of one size of model and one batch size. Of the curves to predict, only the steps and learning rates are
used; their losses are what the prediction is scored against. Writes curves.json and curves.png to --out. The law is
the multi-power law of Luo et al. 2025 (arXiv:2503.12811).
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as Grid

from configs.cli import Parser, make_console, run_command
from configs.formatting import significant, symbol
from data.files import write_bytes, write_json
from scaling.errors import CurveError
from scaling.forecast.law_file import to_jsonable
from scaling.report.plot_style import png
from scaling.report.plots_multi_power import predictions
from scaling.studies.multi_power import UNITS, CurveLaw, Score, fit_curves, read_curve, score


def show(law: CurveLaw, scores: list[Score], console: Console) -> None:
    """Print coefficients and scores."""
    grid = Grid("parameter", "value", "meaning")
    for name, value in law.params.items():
        grid.add_row(symbol(name), significant(value, 5), UNITS[name])
    console.print(grid)
    agree = f"{law.finalists_agreeing} of {law.finalists} searches agree"
    console.print(f"log-Huber objective {law.objective:.6g}; {agree}")
    if law.boundary:
        names = ", ".join(symbol(k) for k in law.boundary)
        console.print(f"[yellow]at the limit of their range, so not determined by these curves[/yellow]: {names}")
    grid = Grid("curve", "", "points", "R²", "mean error", "largest error", "error at the end")
    for s in scores:
        errors = (f"{s.mae:.4f}", f"{s.worst:.4f}", f"{s.last:+.4f}")
        grid.add_row(s.name, "fitted" if s.fitted else "predicted", str(s.points), f"{s.r2:.5f}", *errors)
    console.print(grid)
    console.print("errors in nats per token")


def run(args: argparse.Namespace) -> None:
    """Read, fit, score, print, write."""
    fitted = [read_curve(path) for path in args.fit]
    others = [read_curve(path) for path in args.predict]
    names = [c.name for c in (*fitted, *others)]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise CurveError(f"two curves are called {twice[0]!r}; each needs a name of its own")
    law = fit_curves(fitted)
    scores = [score(law, curve) for curve in (*fitted, *others)]
    answer: dict[str, Any] = {"law": "multi-power", "paper": "Luo et al. 2025, arXiv:2503.12811", "params": law.params}
    answer |= {"objective": law.objective, "finalists": law.finalists, "finalists_agreeing": law.finalists_agreeing}
    answer["boundary"] = law.boundary
    answer["curves"] = [asdict(s) for s in scores]
    console = make_console()
    if args.json:
        print(json.dumps(to_jsonable(answer)))
    else:
        show(law, scores, console)
    if args.out:
        write_json(args.out / "curves.json", to_jsonable(answer))
        write_bytes(args.out / "curves.png", png(predictions(law, [*others, *fitted])))
        if not args.json:
            console.print(f"written: {args.out}/curves.json, {args.out}/curves.png", soft_wrap=True)


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--fit", nargs="+", required=True, type=Path, metavar="CURVE", help="curves to fit; at least one decays")
    add("--predict", nargs="*", default=[], type=Path, metavar="CURVE", help="curves to predict and score")
    add("--out", type=Path, help="where curves.json and curves.png go (default: nowhere)")
    add("--json", action="store_true", help="print one JSON object")
    return run_command(parser, run, words)


if __name__ == "__main__":
    sys.exit(main())
