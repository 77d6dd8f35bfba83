"""Hold a sweep on a generated lexicon against what is known of it: L - E of every run, and the exponents.

    python scripts/study.py known_entropy runs/known-entropy --out fits/known-entropy.png
    python scripts/study.py known_entropy table.csv --config configs/sweeps/studies/known_entropy.yaml

The exponents of a finite lexicon are no constants: each word that is still to be learned is rarer than the last. Beside
every exponent between two neighbouring sizes stands the prediction for a speller (data/corpus/grammar.py), who knows
the most frequent words and nothing else, at the same L - E. It has no free constant.
"""

import argparse
import itertools
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table as Grid

from configs.cli import Parser, make_console, run_command
from configs.formatting import count
from data.corpus.grammar import Grammar, exponent_of_speller, make_grammar
from data.files import require_writable, write_bytes
from scaling.errors import TableError
from scaling.laws import Array
from scaling.report.plot_style import LAW, SECOND, Scale, figure, log_axis, png, span
from scaling.tables.read import read_table
from scaling.tables.table import Table
from scaling.validation.known_entropy import entropy_rate
from train.config import load_stored
from train.sweep.expand import load_sweep


def lexicon(source: Path, sweep: Path | None) -> Grammar:
    """The lexicon that the runs read. Raises ConfigError, TableError."""
    stored = sorted(source.glob("*/config.yaml"))
    if sweep is None and not stored:
        raise TableError(f"{source}: no config.yaml of a run in it; name the sweep with --config")
    data = (load_sweep(sweep).runs[0].config if sweep else load_stored(stored[0])).data
    return make_grammar(data.language, data.vocab_size)


@dataclass(frozen=True)
class LocalExponent:
    """From one run to its neighbour of next larger N (or D) at the same D (or N): the exponent of L - E in between.

    ``excess`` is L - E halfway, nats per token, and ``predicted`` the exponent of a speller there.
    """

    held: float
    low: float
    high: float
    excess: float
    measured: float
    predicted: float


def share(variable: str, grammar: Grammar) -> float:
    """Exponent in N or D over a speller's in words: p D = constant reaches D^(1/a) words of a Zipf law r^-a."""
    return 1.0 if variable == "N" else 1 / grammar.config.root_exponent


def mean_by(x: Array, y: Array) -> list[tuple[float, float]]:
    """Each value of ``x`` (n,), rising, with the mean of ``y`` (n,) there."""
    return [(value, float(y[x == value].mean())) for value in np.unique(x).tolist()]


def steps(table: Table, grammar: Grammar, variable: str) -> list[LocalExponent]:
    """The steps in ``variable``, N or D, from the means over seeds."""
    x, held = table.columns[variable], table.columns[{"N": "D", "D": "N"}[variable]]
    excess = table.columns["loss"] - grammar.entropy_rate
    found = []
    for one in np.unique(held).tolist():
        for (low, before), (high, after) in itertools.pairwise(mean_by(x[held == one], excess[held == one])):
            halfway, measured = math.sqrt(before * after), -math.log(after / before) / math.log(high / low)
            predicted = share(variable, grammar) * float(exponent_of_speller(grammar, np.array([halfway]))[0])
            found.append(LocalExponent(one, low, high, halfway, measured, predicted))
    return found


def show(table: Table, by: Mapping[str, list[LocalExponent]], grammar: Grammar, console: Console) -> None:
    """Print L - E of every run, and measured and predicted exponents."""
    grid = Grid("run", "N", "D", "loss", "L - E", title=f"E = {grammar.entropy_rate:.6f} nats per token, exactly")
    for i in np.lexsort((table.columns["D"], table.columns["N"])):
        loss = table.columns["loss"][i]
        sizes = (count(table.columns["N"][i]), count(table.columns["D"][i]))
        grid.add_row(table.run[i], *sizes, f"{loss:.4f}", f"{loss - grammar.entropy_rate:.4f}")
    console.print(grid)
    for variable, found in by.items():
        other = {"N": "D", "D": "N"}[variable]
        grid = Grid(f"exponent in {variable}", f"at {other}", "L - E", "measured", "predicted")
        for s in found:
            reach = f"{count(s.low)} to {count(s.high)}"
            grid.add_row(reach, count(s.held), f"{s.excess:.3f}", f"{s.measured:.2f}", f"{s.predicted:.2f}")
        console.print(grid)
        measured, predicted = (float(np.mean([getattr(s, k) for s in found])) for k in ("measured", "predicted"))
        console.print(f"mean exponent in {variable}: measured {measured:.2f}, predicted {predicted:.2f}")


def draw(table: Table, by: Mapping[str, list[LocalExponent]], grammar: Grammar) -> Figure:
    """L - E against N at every budget of tokens, and the exponents against L - E with the speller's."""
    N, D = table.columns["N"], table.columns["D"]
    excess = table.columns["loss"] - grammar.entropy_rate
    scale = Scale("D", D)
    with figure(4.0, 1, 2) as (drawn, (left, right)):
        for budget in np.unique(D):
            left.plot(*zip(*mean_by(N[budget == D], excess[budget == D]), strict=True), color=scale(budget), lw=1)
        left.scatter(N, excess, s=18, c=scale(D), ec="white", lw=0.4, zorder=3)
        left.set_ylim(*span(excess))
        log_axis(left.yaxis, "loss")
        log_axis(left.xaxis, "N")
        left.set_ylabel("L − E (nats per token)")
        curve = np.geomspace(excess.min(), excess.max(), 200)
        for variable, marker, label in (("N", "o", "α, from N to N"), ("D", "x", "β, from D to D")):
            colour = LAW if variable == "N" else SECOND
            right.plot(curve, share(variable, grammar) * exponent_of_speller(grammar, curve), color=colour, lw=1.2)
            points = [(s.excess, s.measured) for s in by[variable]]
            right.plot(*zip(*points, strict=True), marker, ms=4, color=colour, label=label)
        log_axis(right.xaxis, "loss")
        right.set_xlabel("L − E (nats per token)")
        right.set_ylabel("exponent; lines: a speller's")
        right.set_ylim(bottom=0)
        right.legend()
        scale.key(drawn, [left])
    return drawn


def run(args: argparse.Namespace) -> None:
    """Read, compare, print, draw."""
    if args.out is not None:
        require_writable(args.out.parent)
    table = read_table(args.source)
    grammar = lexicon(args.source, args.config)
    rate = entropy_rate(table)
    if rate is None:
        raise TableError(f"{args.source}: its runs are not on a generated language, whose entropy is known")
    if abs(rate - grammar.entropy_rate) > 1e-9:
        raise TableError(f"{args.source}: its entropy rate is {rate}, and that of the lexicon {grammar.entropy_rate}")
    if (table.columns["loss"] <= rate).any():
        raise TableError(f"{args.source}: a loss is below the entropy rate {rate}, which no model can reach")
    by = {variable: steps(table, grammar, variable) for variable in ("N", "D")}
    show(table, by, grammar, make_console())
    if args.out is not None:
        write_bytes(args.out, png(draw(table, by, grammar)))


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = Parser(__doc__)
    parser.add_argument("source", metavar="RUNS_DIR|TABLE", type=Path, help="finished runs on a lexicon")
    lexicon = "the sweep of a TABLE, which names its lexicon"
    parser.add_argument("--config", type=Path, metavar="SWEEP.yaml", help=lexicon)
    parser.add_argument("--out", type=Path, metavar="PNG", help="picture to write")
    return run_command(parser, run, words)


if __name__ == "__main__":
    sys.exit(main())
