"""Time a sweep of small models on warm workers and with one launch per run, in turns, and compare their losses.

    python scripts/bench/bench_sweep.py configs/sweeps/quickstart.yaml --points=[] --train.tokens=51_200 --rounds 2

Every other argument is a key of the sweep or of its runs, as in sweep.py. The ratio is the median over rounds of
(seconds with one launch per run / seconds on warm workers) in the same round.
"""

import argparse
import contextlib
import io
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from configs.cli import Parser, run_command
from configs.metrics_rows import METRICS, read_rows
from configs.run_record import complete_record
from train.launch.devices import find_devices, require_devices
from train.launch.plan import make_plan
from train.launch.scheduler import run_sweep
from train.sweep.corpora import prepare_corpora
from train.sweep.expand import load_sweep
from train.sweep.run import Sweep
from train.telemetry.record import device_name

MODES = {"one launch per run": 1, "warm workers": None}
"""Name -> runs_per_launch."""


def time_sweep(sweep: Sweep, runs_per_launch: int | None) -> tuple[float, dict[str, Any]]:
    """Run a sweep from nothing; return its seconds and what each run measured, or None for one that failed."""
    with tempfile.TemporaryDirectory() as folder:
        runs = tuple(replace(run, directory=Path(folder) / run.name) for run in sweep.runs)
        config = replace(sweep.config, runs_dir=folder, runs_per_launch=runs_per_launch)
        plan = make_plan(Sweep(config, runs), find_devices(config))
        begin = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            run_sweep(plan, lambda: None)
        return time.perf_counter() - begin, {run.name: _losses(run.directory) for run in runs}


def _losses(run_dir: Path) -> list[tuple[float, ...]] | None:
    if (record := complete_record(run_dir)) is None:
        return None
    rows = read_rows(run_dir / METRICS)
    return [(record.result.val_loss,), *((row["step"], row["loss"] or 0, row["grad_norm"] or 0) for row in rows)]


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark and print a table; return the exit status."""
    parser = Parser(__doc__, {"0": "all losses are identical", "1": "they are not, or a run failed"}, overrides=True)
    parser.add_argument("config", type=Path, metavar="SWEEP.yaml", help="the sweep")
    parser.add_argument("--rounds", type=int, default=2, help="times that each way is timed")
    return run_command(parser, run, arguments)


def run(options: argparse.Namespace) -> int:
    """Time both ways in turns, and print a table; return the exit status."""
    sweep = load_sweep(options.config, [*options.overrides, "--wandb.mode=disabled"])
    devices = find_devices(sweep.config)
    require_devices(sweep, devices)
    prepare_corpora(sweep.runs)
    seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    measured = []
    for _ in range(options.rounds):
        for mode, runs_per_launch in MODES.items():
            taken, losses = time_sweep(sweep, runs_per_launch)
            seconds[mode].append(taken)
            measured.append(losses)

    count = len(sweep.runs)
    steps = sum(run.config.steps for run in sweep.runs) / count
    print(f"{device_name()}, {devices}; torch {version('torch')}, deepspeed {version('deepspeed')}")
    print(f"{count} runs, {steps:,.0f} steps each on average; median of {options.rounds} rounds")
    print(f"{'':24}{'seconds':>10}{'runs/minute':>14}{'ratio':>8}")
    for mode, values in seconds.items():
        taken = statistics.median(values)
        pairs = zip(seconds["one launch per run"], values, strict=True)
        ratio = statistics.median(cold / mine for cold, mine in pairs)
        print(f"{mode:24}{taken:10.1f}{60 * count / taken:14.1f}{ratio:8.2f}")
    failed = any(None in losses.values() for losses in measured)
    identical = not failed and all(losses == measured[0] for losses in measured)
    print("a run failed" if failed else f"losses and gradient norms: {'identical' if identical else 'NOT identical'}")
    return 0 if identical else 1


if __name__ == "__main__":
    sys.exit(main())
