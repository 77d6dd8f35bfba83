"""Measure how often the intervals hold the truth, over simulated studies.

    OMP_NUM_THREADS=1 python scripts/bench/bench_coverage.py --studies 500

Designs: 20 and 60 points with independent runs, and with runs of 2 and 3 rows that share 70 % of the noise's
variance. The noise is 1 % of the loss. `mean` is the noiseless loss of a model with 10x the largest N and 10x its D,
`new` a noisy measurement of it. The last lines fit a wrong law: the intervals cannot know that, which is what
averaging, windows and sensitivity are for.
"""

import argparse
import sys
import time
from collections.abc import Sequence

from rich.table import Table as Grid

from configs.cli import Parser, make_console, run_command
from scaling.fit.bootstrap import METHODS
from scaling.laws import LAWS
from scaling.validation.coverage import coverage, ladder

TRUTH = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
COUPLED = {"E": 1.5, "A": 2000.0, "B": 3000.0, "alpha": 0.45, "beta": 0.4, "gamma": 0.7}
POINT = {"N": 1e10, "D": 8e11}


def main(words: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit status."""
    parser = Parser(__doc__)
    parser.add_argument("--studies", type=int, default=500, help="simulated studies of each kind (default: 500)")
    parser.add_argument("--draws", type=int, default=300, help="bootstrap draws of a study (default: 300)")
    parser.add_argument("--sigma", type=float, default=0.01, help="relative noise (default: 0.01)")
    parser.add_argument("--method", default=METHODS[0], choices=METHODS, help=f"bootstrap (default: {METHODS[0]})")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    return run_command(parser, run, words)


def run(args: argparse.Namespace) -> None:
    """Simulate every kind of study, and print a table."""
    law, started = LAWS["chinchilla"], time.perf_counter()
    names = ("E", "A", "B", "alpha", "beta", "mean", "new")
    grid = Grid("law", "design", *names, "bias", "failed")
    grid.title = f"{args.studies} studies, 90 % intervals, {args.method}, noise {100 * args.sigma:g} %"
    settings = {"studies": args.studies, "draws": args.draws, "method": args.method, "seed": args.seed}
    for label, drawn, truth, model, designs in (
        ("true", law, TRUTH, law, ((20, False), (20, True), (60, False), (60, True))),
        ("coupled, fitted as chinchilla", LAWS["coupled"], COUPLED, law, ((60, False),)),
        ("chinchilla, fitted as kaplan_nd", law, TRUTH, LAWS["kaplan_nd"], ((60, False),)),
        ("chinchilla, fitted with one exponent", law, TRUTH, LAWS["chinchilla_tied"], ((60, False),)),
    ):
        for points, clustered in designs:
            found = coverage(drawn, truth, ladder(points, clustered, args.sigma), POINT, model, **settings)
            cells = [f"{100 * found.covered[k]:.1f}" if k in found.covered else "" for k in names]
            grid.add_row(label, found.design, *cells, f"{100 * found.bias:+.2f} %", str(found.failed))
    console = make_console(140)
    console.print(grid)
    console.print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
