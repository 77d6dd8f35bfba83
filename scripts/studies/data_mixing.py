"""Predict the best mixture of texts for a large model from small runs on several mixtures.

A mixing law (Ye et al. 2024, arXiv 2403.16952) is fitted to the losses on each text, carried on from the small sizes to
the large one. Runs of that size, where the directory has any, are not fitted: they are what the prediction is compared
with. Losses are in nats per token.

    python scripts/study.py data_mixing runs/mixture
    python scripts/study.py data_mixing runs/mixture --target prose=1 --params 363264
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from configs.cli import Parser, make_console, numbers, parse_count, run_command
from configs.formatting import count, percent
from data.files import write_bytes, write_json
from scaling.errors import MixingError
from scaling.forecast.law_file import to_jsonable
from scaling.report.plot_style import png
from scaling.report.plots_data_mixing import mixing
from scaling.studies.data_mixing import (
    MixtureForecast,
    Mixtures,
    best_shares,
    bootstrap,
    fit_mixing,
    forecast,
    read_mixtures,
    target_of,
)

LEVEL = 0.9
Draws = Sequence[MixtureForecast]


def run(args: argparse.Namespace) -> None:
    """Read, fit, predict, compare, write."""
    found = read_mixtures(args.runs)
    target = target_of(found.names, numbers(args.target, "--target"))
    N = float(found.N.max()) if args.params is None else args.params
    small, checks = found.select(found.N < N), found.select(np.isclose(found.N, N))
    prediction = forecast(small, N, target)
    draws = bootstrap(small, N, target)
    console = make_console()
    show_sizes(small, target, console)
    show_best(found.names, prediction, draws, console)
    if checks.runs:
        show_checks(checks, prediction, draws, console)
    content = {
        "N": N,
        "target": dict(zip(found.names, target, strict=True)),
        "laws": {name: {"c": law.c, "t": law.t} for name, law in zip(found.names, prediction.laws, strict=True)},
        "best": dict(zip(found.names, prediction.best, strict=True)),
        "best_interval": dict(zip(found.names, interval([d.best for d in draws]).T, strict=True)),
        "loss": float(prediction.target_loss(prediction.best)),
        "level": LEVEL,
        "checks": [
            {"run": name, "shares": shares, "losses": losses, "predicted": prediction.losses(shares)}
            for name, shares, losses in zip(checks.runs, checks.shares, checks.losses, strict=True)
        ],
    }
    write_json(args.runs / "mixing.json", to_jsonable(content))
    written = [args.runs / "mixing.json"]
    if len(found.names) == 2:
        write_bytes(args.runs / "mixing.png", png(mixing(small, checks, prediction, draws, LEVEL)))
        written.append(args.runs / "mixing.png")
    console.print("written: " + ", ".join(map(str, written)), soft_wrap=True)


def interval(values: Sequence[np.ndarray]) -> np.ndarray:
    """Equal-tailed interval (2, ...) of values that a bootstrap drew."""
    return np.quantile(np.array(values), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)


def shares_in_words(names: Sequence[str], shares: np.ndarray) -> str:
    """Shares of components: code 0.42, prose 0.58."""
    return ", ".join(f"{name} {share:.2f}" for name, share in zip(names, shares, strict=True))


def show_sizes(runs: Mixtures, target: np.ndarray, console: Console) -> None:
    """The best mixture of every small size by itself, and how well the law describes it."""
    table = Table("size", "mixtures", "largest residual", "best mixture", title="Small runs, by size")
    for N in np.unique(runs.N):
        here = runs.select(runs.N == N)
        try:
            laws = [fit_mixing(here.shares, losses) for losses in here.losses.T]
        except MixingError as error:
            table.add_row(count(N), f"{len(here.runs)}", "–", str(error))
            continue
        fitted = np.stack([law(here.shares) for law in laws], axis=1)
        worst, best = np.abs(fitted - here.losses).max(), shares_in_words(runs.names, best_shares(laws, target))
        table.add_row(count(N), f"{len(here.runs)}", f"{worst:.4f} nats", best)
    console.print(table)


def show_best(names: Sequence[str], prediction: MixtureForecast, draws: Draws, console: Console) -> None:
    """What is predicted for the large size."""
    console.print(f"best mixture at {count(prediction.N)} parameters: {shares_in_words(names, prediction.best)}")
    for name, a, b in zip(names, *interval([draw.best for draw in draws]), strict=True):
        console.print(f"  {name}: {a:.2f} to {b:.2f} ({100 * LEVEL:g} % interval)")
    loss = float(prediction.target_loss(prediction.best))
    a, b = interval([draw.target_loss(draw.best) for draw in draws])
    console.print(f"  target loss there: {loss:.4f} ({a:.4f} to {b:.4f}) nats per token")


def show_checks(checks: Mixtures, prediction: MixtureForecast, draws: Draws, console: Console) -> None:
    """Runs of the large size beside what was predicted without them."""
    head = [f"{name}: measured, predicted" for name in checks.names]
    table = Table("mixture", *head, "target: measured", "predicted", "interval", "error", title="Runs of that size")
    measured = checks.losses @ prediction.target
    predicted = prediction.target_loss(checks.shares)
    lows, highs = interval([draw.target_loss(checks.shares) for draw in draws])
    for i in np.argsort(checks.shares[:, 0]):
        each = zip(checks.losses[i], prediction.losses(checks.shares[i]), strict=True)
        table.add_row(
            shares_in_words(checks.names, checks.shares[i]),
            *(f"{m:.4f}, {p:.4f}" for m, p in each),
            f"{measured[i]:.4f}",
            f"{predicted[i]:.4f}",
            f"{lows[i]:.4f} to {highs[i]:.4f}",
            percent(predicted[i] / measured[i] - 1),
        )
    console.print(table)
    best, foreseen = (shares_in_words(checks.names, checks.shares[v.argmin()]) for v in (measured, predicted))
    agree = "as predicted" if measured.argmin() == predicted.argmin() else f"predicted was {foreseen}"
    console.print(f"best of these: {best}, {agree}")


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("runs", metavar="RUNS_DIR", type=Path, help="the runs of a sweep over weights of data.mixture and sizes")
    add("--params", type=parse_count, metavar="N", help="the size that is predicted (default: the largest in RUNS_DIR)")
    add("--target", nargs="+", default=[], metavar="NAME=WEIGHT", help="the loss to make small (default: all alike)")
    return run_command(parser, run, words)


if __name__ == "__main__":
    sys.exit(main())
