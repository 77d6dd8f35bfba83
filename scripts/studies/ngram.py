"""Losses of n-gram models (interpolated Kneser-Ney, orders 1 to 5) on the tokens that runs are evaluated on.

For a directory of runs, the losses go to RUNS_DIR/baselines.json, and reports of fits show them. For a corpus, they are
printed. What was counted once is kept in the corpus's directory. Losses are in nats per token; bits per byte compare
across tokenizers.

    python scripts/study.py ngram runs/quickstart
    python scripts/study.py ngram corpora/pysource-0123456789ab --sequence-length 64
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from configs.cli import Parser, run_command
from configs.run_record import RECORD, read_record
from data.config import DataError
from data.corpus.shards import Corpus, open_corpus
from data.files import write_json
from data.loading.batches import validation_windows
from data.loading.mixture import open_mixture
from evaluation.ngram import ORDER, Baseline, baselines
from train.config import EvalConfig, load_stored


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = Parser(__doc__)
    parser.add_argument("source", metavar="RUNS_DIR|CORPUS", type=Path, help="runs to compare with, or a corpus")
    parser.add_argument("--order", type=int, default=ORDER, help=f"highest order (default: {ORDER})")
    parser.add_argument("--sequence-length", type=int, default=64, help="of a CORPUS: tokens per window (default: 64)")
    tokens = EvalConfig.tokens
    parser.add_argument("--tokens", type=int, default=tokens, help=f"of a CORPUS: evaluated (default: {tokens:,})")
    return run_command(parser, run, arguments)


def run(options: argparse.Namespace) -> None:
    """Measure, write, print."""
    if options.order < 1:
        raise DataError(f"--order {options.order} must be at least 1")
    if (options.source / "manifest.json").is_file():
        found = measure(open_corpus(options.source), options.sequence_length, options.tokens, options.order)
    else:
        found = for_runs(options.source, options.order)
        write_json(options.source / "baselines.json", {"baselines": [asdict(baseline) for baseline in found]})
    table = Table("model", "loss (nats per token)", "bits per byte")
    for baseline in found:
        table.add_row(baseline.name, f"{baseline.loss:.4f}", f"{baseline.bits_per_byte:.4f}")
    Console().print(table)


def measure(corpus: Corpus, sequence_length: int, tokens: int, order: int) -> list[Baseline]:
    """Return the baselines of one corpus on the windows of a run's validation."""
    return baselines(corpus, validation_windows(corpus, sequence_length, tokens), order)


def for_runs(directory: Path, order: int) -> list[Baseline]:
    """Return the baselines of the corpus that most of the runs of a directory read.

    Raises:
        DataError: when no run has a record, or they read mixtures.
    """
    uses: dict[str, list[Path]] = {}
    for path in sorted(directory.glob(f"*/{RECORD}")):
        if (corpus := read_record(path).identity.corpus) is not None:
            uses.setdefault(corpus, []).append(path.parent)
    if not uses:
        raise DataError(f"'{directory}' is neither a corpus nor a directory of runs with a record.json")
    run = load_stored(max(uses.values(), key=len)[0] / "config.yaml")
    if run.data.mixture:
        raise DataError(f"the runs in '{directory}' read a mixture; give the directory of one of its corpora")
    (component,) = open_mixture(run.data).components
    return measure(component.corpus, run.train.sequence_length, run.eval.tokens, order)


if __name__ == "__main__":
    sys.exit(main())
