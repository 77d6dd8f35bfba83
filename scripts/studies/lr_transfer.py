"""Show how far the best learning rate moves when models grow, with and without muP or CompleteP.

    python scripts/sweep.py configs/sweeps/studies/lr_transfer.yaml
    python scripts/study.py lr_transfer runs/lr_transfer

RUNS_DIR holds finished runs that differ in parametrization, width (or with --size n_layer depth), learning rate and
seed alone. Prints a table and writes RUNS_DIR/lr_transfer.png. Losses are in nats per token.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from configs.cli import Parser, make_console, run_command
from data.files import write_bytes
from scaling.report.plot_style import png
from scaling.report.plots_lr_transfer import picture
from scaling.studies.lr_transfer import SIZES, Scan, Transfer, read_scans, transfers


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = Parser(__doc__)
    parser.add_argument("runs_dir", type=Path, metavar="RUNS_DIR", help="one directory a run")
    parser.add_argument("--size", default="d_model", choices=list(SIZES), help="what grows (default: d_model)")
    return run_command(parser, lambda args: run(args.runs_dir, args.size), words)


def run(runs_dir: Path, size: str) -> None:
    """Read, print, draw. Raises TableError."""
    scans = read_scans(runs_dir, size)
    found = transfers(scans)
    console = make_console()
    console.print(losses(scans, size))
    console.print(summary(found, size))
    out = runs_dir / "lr_transfer.png"
    write_bytes(out, png(picture(scans, size)))
    console.print(f"picture: {out}", soft_wrap=True)


def losses(scans: list[Scan], size: str) -> Table:
    """Every loss, the best of each row marked."""
    rates = sorted({float(rate) for scan in scans for rate in scan.lr})
    table = Table("parametrization", size, *(f"lr {rate:g}" for rate in rates), title="loss (nats per token)")
    for scan in scans:
        at = dict(zip(scan.lr.tolist(), scan.loss.tolist(), strict=True))
        best = float(scan.lr[scan.best])
        cells = [f"{at[rate]:.3f}{'*' if rate == best else ''}" if rate in at else "" for rate in rates]
        table.add_row(scan.parametrization, str(scan.size), *cells)
    return table


def summary(found: list[Transfer], size: str) -> Table:
    """How far the best learning rate moved, and what it costs to keep it."""
    table = Table("parametrization", size, "best lr", "moved by (doublings)", "of the parabola", "cost of keeping it")
    for t in found:
        edge = " (edge of the scan)" if t.smallest.at_edge or t.largest.at_edge else ""
        rates = [f"{scan.lr[scan.best]:g}" for scan in (t.smallest, t.largest)]
        cost = "not trained" if t.penalty is None else f"{t.penalty:.3f} nats ({t.penalty / t.largest.loss.min():.1%})"
        table.add_row(
            t.parametrization,
            f"{t.smallest.size} -> {t.largest.size}",
            " -> ".join(rates) + edge,
            f"{t.doublings:+.0f}",
            f"{t.doublings_of_optimum:+.1f}",
            cost,
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
