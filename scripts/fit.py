"""Fit a scaling law to measured losses: point estimates with a certificate, intervals, and a held-out test.

Units: N in parameters, D in tokens, loss in nats per token, C in FLOPs.

    python scripts/fit.py runs/quickstart
    python scripts/fit.py table.csv --law chinchilla --holdout compute:10x --out fits/table

RUNS_DIR holds one directory a run, each with the record.json of a finished run. TABLE is CSV, JSONL or Parquet with
columns N, D, loss and optionally run, C, weight. Of runs with different tokenizers, bits per byte are fitted:
--column loss=bits_per_byte --column D=training_bytes. RUNS_DIR/baselines.json (scripts/study.py ngram) is shown
beside the runs. The law is fitted to every row; the held-out rows are predicted by
a second fit that has not seen them.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from configs.cli import Parser, make_console, numbers, pairs, parse_count, run_command
from data.files import require_writable
from scaling.errors import FitError
from scaling.fit.bootstrap import DRAWS, LEVEL, METHODS
from scaling.fit.estimate import LOSSES
from scaling.fit.model_averaging import all_draws
from scaling.fit.weights import WEIGHTS
from scaling.forecast.law_file import write_draws
from scaling.forecast.preregistration import score_forecasts
from scaling.laws import LAWS
from scaling.report.console import show
from scaling.study import FitOptions, fit_law
from scaling.tables.baselines import read_baselines
from scaling.tables.cells import MAX_VALUE
from scaling.tables.compute import C_DEFINITIONS, Compute
from scaling.tables.read import read_table
from scaling.tables.table import N_DEFINITIONS
from scaling.validation.lr_scans import at_best, scans

LEAST_DRAWS = 100  # with fewer, the ends of an interval are noise


def point(args: argparse.Namespace, compute: Compute) -> dict[str, float] | None:
    """The model that a sensitivity analysis is asked about. Raises FitError for half of one."""
    if args.params is None and args.tokens is None:
        return None
    if args.params is None or args.tokens is None:
        raise FitError("--params and --tokens go together")
    if not args.sensitivity:
        raise FitError("--params and --tokens name the model that --sensitivity follows; add it, or leave them out")
    if max(args.params, args.tokens) > MAX_VALUE:
        raise FitError(f"--params {args.params:g} and --tokens {args.tokens:g} are beyond any plausible value")
    return {"N": args.params, "D": args.tokens, "C": float(compute.flops(args.params, args.tokens))}


def run(args: argparse.Namespace) -> None:
    """Read, fit, print, write."""
    if not args.source.exists():
        raise FitError(f"{args.source}: there is no such file or directory")
    if args.out is None and not args.source.is_dir():
        raise FitError("--out DIR is needed to fit a table")
    if not 0 < args.level < 1:
        raise FitError(f"--level must lie between 0 and 1, not {args.level}")
    if args.draws < LEAST_DRAWS:
        raise FitError(f"--draws must be at least {LEAST_DRAWS}, not {args.draws}")
    if args.seed < 0:
        raise FitError(f"--seed must not be negative, not {args.seed}")
    table = read_table(args.source, pairs(args.column, "--column"))
    table = table.redefine(args.n_definition, args.c_definition)
    tuned = scans(table) if args.best_of else []
    if tuned:
        table = at_best(table, tuned)
    options = FitOptions(
        law=args.law,
        holdout=args.holdout,
        loss=args.loss,
        delta=args.delta,
        fixed=numbers(args.fix, "--fix"),
        starts=args.starts,
        method=args.bootstrap,
        clustered=not args.iid,
        draws=args.draws,
        level=args.level,
        seed=args.seed,
        weights=args.weights,
        average=not args.no_average,
        sensitivity=args.sensitivity,
        tuned=tuned,
        point=point(args, table.compute),
    )
    out = args.out or args.source
    require_writable(out)
    runs_dir = args.source if args.source.is_dir() else None
    forecasts = score_forecasts({out, runs_dir} if runs_dir else {out}, table)
    baselines = read_baselines(runs_dir, table.loss_unit) if runs_dir else {}
    result = fit_law(table, options, forecasts, baselines)
    console = make_console()
    show(result.law, console)
    if result.average:
        write_draws(out / "average.npz", all_draws(result.average))
    written = result.law.write(out, result.draws)
    console.print(f"law: {written}", soft_wrap=True)
    from scaling.report.report import write_report  # matplotlib is slow to import and not needed before

    console.print(f"report: {write_report(result.law, table, result.draws, runs_dir, out)}", soft_wrap=True)


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("source", metavar="RUNS_DIR|TABLE", type=Path, help="what to fit")
    add("--law", default="chinchilla", choices=list(LAWS), help="the law to fit (default: chinchilla)")
    add("--holdout", help="rows to predict unseen: largest, none, compute:10x, N>=1e9, D>2e10 (default: largest)")
    add("--out", type=Path, help="where law.json, draws.npz and report/ go (default: RUNS_DIR)")
    add("--loss", choices=LOSSES, help="objective (default: log-huber; mse for task_sigmoid)")
    add("--delta", type=float, default=1e-3, help="turning point of the Huber loss (default: 1e-3)")
    add("--fix", "--pin", action="append", default=[], metavar="NAME=VALUE", help="fix a parameter: --fix E=1.69")
    add("--column", action="append", default=[], metavar="NAME=COLUMN", help="as in --column loss=bits_per_byte")
    add("--n-definition", default="total", choices=N_DEFINITIONS, help="which parameters N counts (default: total)")
    add("--c-definition", default="exact", choices=C_DEFINITIONS, help="C as recorded or 6ND (default: exact)")
    add("--bootstrap", default=METHODS[0], choices=METHODS, help=f"how noise is resampled (default: {METHODS[0]})")
    add("--iid", action="store_true", help="resample rows instead of whole runs")
    add("--draws", type=int, default=DRAWS, help=f"bootstrap draws, at least {LEAST_DRAWS} (default: {DRAWS})")
    add("--level", type=float, default=LEVEL, help=f"level of the intervals, between 0 and 1 (default: {LEVEL})")
    add("--best-of", choices=("lr",), help="of runs with the same N and D that differ in this, fit the best")
    add("--weights", default="column", choices=WEIGHTS, help="column weight, or seed and evaluation noise")
    add("--no-average", action="store_true", help="do not fit the other laws in N and D and average over them")
    add("--sensitivity", action="store_true", help="refit under every combination of debatable choices")
    add("--params", type=parse_count, metavar="N", help="model whose prediction --sensitivity follows, with --tokens")
    add("--tokens", type=parse_count, metavar="D", help="tokens of that model")
    add("--starts", default="grid", choices=("grid", "random"), help="set of starting points (default: grid)")
    add("--seed", type=int, default=0, help="seed of starts and bootstrap (default: 0)")
    return run_command(parser, run, words)


if __name__ == "__main__":
    sys.exit(main())
