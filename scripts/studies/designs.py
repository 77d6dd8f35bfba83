"""Compare designs of a sweep: FLOPs spent, and error and interval of the prediction of runs of ten times the compute.

    python scripts/study.py designs runs/known-entropy --cooldown 0.3
    python scripts/study.py designs table.csv --fix E=1.767 --out fits/designs

The table must hold a factorial of sizes and token budgets, and one or more runs of at least ten times its compute, as
configs/sweeps/studies/known_entropy.yaml does. Designs are subsets of the factorial, so that all predict the same runs;
scaling/design/compare_designs.py says what they are.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table as Grid

from configs.cli import Parser, make_console, numbers, run_command
from configs.formatting import flops, percent
from data.files import require_writable, write_bytes, write_json
from scaling.design.compare_designs import ENOUGH, REACH, Outcome, cheapest, compare, split
from scaling.errors import FitError
from scaling.fit.bootstrap import DRAWS, LEVEL
from scaling.forecast.law_file import to_jsonable
from scaling.tables.compute import C_DEFINITIONS
from scaling.tables.read import read_table
from scaling.tables.table import N_DEFINITIONS


def show(outcomes: list[Outcome], target_flops: float, level: float, console: Console) -> None:
    """Print a row for each prediction of each design, and the cheapest good one."""
    headings = ("design", "runs", "FLOPs", "of the target's", "predicted run", "measured", "predicted")
    grid = Grid(*headings, f"{100 * level:g} % interval", "error")
    for outcome in outcomes:
        spent = (outcome.name, str(outcome.runs), flops(outcome.flops), f"{100 * outcome.flops / target_flops:.2g} %")
        if outcome.reason:
            grid.add_row(*spent, f"not fitted: {outcome.reason}")
        for i, s in enumerate(outcome.scored):
            covered = "" if s.covered else " (not covered)"
            numbers = (f"{s.loss:.4f}", f"{s.predicted:.4f}", f"{s.low:.4f} to {s.high:.4f}{covered}", percent(s.error))
            grid.add_row(*(spent if i == 0 else ("",) * 4), s.run, *numbers)
    console.print(grid)
    for sure, claim in ((False, "inside its intervals"), (True, "with intervals no wider than that to either side")):
        said = "none"
        if best := cheapest(outcomes, sure=sure):
            share = f"{100 * best.flops / target_flops:.2g} % of the largest predicted"
            said = f"{best.name}, {best.runs} runs, {flops(best.flops)} FLOPs, {share}"
        console.print(f"cheapest design that predicts within {100 * ENOUGH:g} %, {claim}: {said}")


def run(args: argparse.Namespace) -> None:
    """Read, compare, print, write."""
    if not args.reach > 1:
        raise FitError(f"--reach must be above 1, not {args.reach:g}")
    if args.cooldown is not None and not 0 < args.cooldown < 1:
        raise FitError(f"--cooldown must lie between 0 and 1, not {args.cooldown:g}")
    if not 0 < args.level < 1:
        raise FitError(f"--level must lie between 0 and 1, not {args.level:g}")
    if args.out is not None:
        require_writable(args.out)
    table = read_table(args.source).redefine(args.n_definition, args.c_definition)
    pins = numbers(args.fix, "--fix")
    outcomes = compare(table, pins, args.reach, args.cooldown, args.draws, args.level, args.seed)
    target_flops = float(split(table, args.reach)[1].columns["C"].max())
    console = make_console(180)
    show(outcomes, target_flops, args.level, console)
    if args.out is not None:
        from scaling.report.plot_style import png  # matplotlib is slow to import and not needed before
        from scaling.report.plots_designs import designs

        content = {"table_sha256": table.sha256, "pinned": pins, "designs": [asdict(o) for o in outcomes]}
        write_json(args.out / "designs.json", to_jsonable(content))
        write_bytes(args.out / "designs.png", png(designs(outcomes)))
        console.print(f"written: {args.out / 'designs.json'}, designs.png", soft_wrap=True)


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("source", metavar="RUNS_DIR|TABLE", type=Path, help="finished runs, as for fit.py")
    add("--fix", "--pin", action="append", default=[], metavar="NAME=VALUE", help="fix a parameter: --fix E=1.767")
    add("--reach", type=float, default=REACH, help=f"compute of predicted over fitted runs (default: {REACH:g})")
    add("--cooldown", type=float, help="also price the factorial as trunks with branches that cool down for this part")
    add("--n-definition", default="total", choices=N_DEFINITIONS, help="which parameters N counts (default: total)")
    add("--c-definition", default="exact", choices=C_DEFINITIONS, help="C as recorded or 6ND (default: exact)")
    add("--draws", type=int, default=DRAWS, help=f"bootstrap draws (default: {DRAWS})")
    add("--level", type=float, default=LEVEL, help=f"level of the intervals (default: {LEVEL})")
    add("--seed", type=int, default=0, help="seed of starts and bootstrap (default: 0)")
    add("--out", type=Path, help="directory for designs.json and designs.png")
    return run_command(parser, run, words)


if __name__ == "__main__":
    sys.exit(main())
