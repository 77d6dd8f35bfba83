"""Run a ladder of training runs: plan it, spread it over the devices of this machine or of a hostfile, resume it.

    python scripts/sweep.py configs/sweeps/quickstart.yaml --dry-run
    python scripts/sweep.py configs/sweeps/quickstart.yaml --axes.seed=[0,1] --parallel_runs=2
    python scripts/sweep.py configs/sweeps/gpt2.yaml --hostfile=hosts --price_per_device_hour=2.5

A key of the sweep sets the sweep; any other key is one of a run and holds for all runs (--seed=1 --precision=bf16).
N and D count parameters and tokens, losses are in nats per token, times are of one run from its start to its end.
"""

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from configs.cli import Parser, run_command
from configs.reader import as_tree, dump_yaml
from configs.run_record import complete_record
from model.counts import count_parameters
from scaling.design.optimal_design import Candidates
from scaling.design.stopping import MIN_RUNS, StoppingRule, reasons, should_stop
from scaling.errors import FitError, TableError
from scaling.studies.curve_bands import MIN_RUNGS
from scaling.tables.read import read_table
from train.checkpoint.stored_config import require_unchanged
from train.launch.devices import as_if, find_devices, require_devices
from train.launch.display import result_table, show_table, status_table
from train.launch.plan import make_plan, plan_summary, plan_table
from train.launch.run_state import checkpoint_step, read_states
from train.launch.scheduler import end_of_log, run_sweep
from train.sweep.expand import load_sweep
from train.sweep.run import Run, Sweep


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    statuses = {"0": "all runs complete", "1": "some failed", "128 + n": "ended by signal n"}
    parser = Parser(__doc__, statuses, overrides=True)
    parser.add_argument("config", type=Path, metavar="SWEEP.yaml", help="the sweep")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    mode.add_argument("--status", action="store_true", help="print how far every run is and stop")
    mode.add_argument("--print-config", action="store_true", help="print the sweep's configuration and stop")
    return run_command(parser, run, arguments, interrupted="interrupted before any run was started")


def run(options: argparse.Namespace) -> int:
    """Plan the sweep, show it, and run what is left of it."""
    sweep = load_sweep(options.config, options.overrides)
    if options.print_config:
        print(dump_yaml(sweep.config), end="")
        return 0
    states = read_states(sweep.runs, _unneeded(sweep))
    if options.status:
        show_table(status_table(sweep.runs, states))
        return 0
    devices = find_devices(sweep.config)
    if not options.dry_run:
        require_devices(sweep, devices)
    require_unchanged([(as_tree(run.config), run.directory) for run in sweep.runs])
    plan = make_plan(sweep, planned_for := as_if(devices, sweep))
    words = {name: state.state for name, state in states.items()}
    show_table(plan_table(plan, words))
    print(*plan_summary(plan, words), sep="\n")
    if planned_for is not devices:
        print(f"note: there are {devices} here; the plan is for {planned_for}")
    if options.dry_run:
        return 0
    outcome = run_sweep(
        plan, lambda: _prepare(sweep), completed=lambda: _renew_bands(sweep), unneeded=lambda: _unneeded(sweep)
    )
    show_table(result_table(sweep.runs, outcome.states))
    if outcome.failures:
        print(f"{len(outcome.failures)} of {len(sweep.runs)} runs failed:", file=sys.stderr)
        print(*map(end_of_log, outcome.failures), sep="\n", file=sys.stderr)
    if outcome.interrupted_by is not None:
        print("stopped; the same command continues", file=sys.stderr)
        return 128 + outcome.interrupted_by
    return 1 if outcome.failures else 0


def _renew_bands(sweep: Sweep) -> None:
    """Let the finished runs predict the loss curves of the others, in a process that training does not wait for."""
    complete = sum(complete_record(run.directory) is not None for run in sweep.runs)
    if MIN_RUNGS <= complete < len(sweep.runs):
        script = Path(__file__).with_name("studies") / "curve_bands.py"
        command = ["nice", sys.executable, str(script), str(sweep.config.directory)]
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _unneeded(sweep: Sweep) -> Mapping[str, str]:
    """Return the runs that the rule `stop` does without, with the reason, by what is complete."""
    rule = sweep.config.stop
    left = [run for run in sweep.runs if complete_record(run.directory) is None]
    if rule is None or not left or len(sweep.runs) - len(left) < MIN_RUNS:
        return {}
    asked = StoppingRule(rule.params, rule.tokens, rule.width)
    try:
        verdict = should_stop(read_table(sweep.config.directory), asked, _candidates(left))
    except (TableError, FitError):  # runs of too few sizes or budgets determine no law yet
        return {}
    return reasons(asked, verdict, [run.name for run in left])


def _candidates(runs: Sequence[Run]) -> Candidates:
    """Runs as the law sees them, with the FLOPs that they have still to spend."""
    configs = [run.config for run in runs]
    N, D = np.array([(count_parameters(c.model).total, c.tokens) for c in configs], dtype=float).T
    done = np.array([max(checkpoint_step(run.directory), run.config.first_step) for run in runs])
    share = 1 - done / np.array([c.steps for c in configs])
    return Candidates({"N": N, "D": D}, np.maximum(share, 1e-6) * np.array([float(c.flops) for c in configs]))


def _prepare(sweep: Sweep) -> None:
    from train.sweep.corpora import prepare_corpora  # reads text and tokenizers, which a plan needs no time for

    for remark in prepare_corpora(sweep.runs):
        print(remark)


if __name__ == "__main__":
    sys.exit(main())
