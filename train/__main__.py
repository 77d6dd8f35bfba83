"""Train one model, continuing from its newest checkpoint.

    deepspeed --num_accelerators 1 scripts/pretrain.py --config configs/runs/tiny.yaml --run-dir runs/tiny \\
        --train.tokens=1_000_000 --precision=bf16

Every key of the YAML can be overridden as --section.key=value; --print-config shows them all, resolved.
Lengths are in tokens, losses in nats per token. `deepspeed --module train` is the same command.
"""

import argparse
import sys
from pathlib import Path

from configs.cli import DESCRIPTIONS, Parser
from configs.reader import dump_yaml
from data.files import require_writable
from train.config import load_run
from train.exit_codes import exit_status
from train.supervision.watchdog import watch_launcher


def main(arguments: list[str] | None = None) -> int:
    """Train one run; return the exit status."""
    statuses = {f"{status:d}": text for status, text in DESCRIPTIONS.items()}
    parser = Parser(__doc__, statuses, overrides=True, prog="pretrain.py")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", type=Path, metavar="RUN.yaml", help="the run")
    what.add_argument("--jobs", type=Path, metavar="DIR", help="train the runs that a sweep hands over in DIR")
    parser.add_argument("--run-dir", type=Path, help="where everything of the run goes (default: runs/NAME)")
    parser.add_argument("--deepspeed", action="store_true", help="accepted for the launcher's sake; always on")
    parser.add_argument("--deepspeed_config", type=Path, metavar="ds.json", help="your own DeepSpeed configuration")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")
    options = parser.parse_args(arguments)
    return exit_status(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    if options.jobs is not None:
        return _serve(options.jobs)
    run = load_run(options.config, options.overrides)
    if options.print_config:
        print(dump_yaml(run), end="")
        return 0
    run_dir = options.run_dir or Path("runs") / run.name
    require_writable(run_dir)
    watch_launcher()
    # Importing torch takes seconds; mistakes in the configuration are told before.
    from train.distributed.topology import disconnect
    from train.run import run_job

    try:
        return run_job(run, run_dir, str(options.config), options.deepspeed_config)
    finally:
        disconnect()


def _serve(directory: Path) -> int:
    watch_launcher()
    from train.distributed.topology import disconnect
    from train.launch.worker import serve

    try:
        return serve(directory)
    finally:
        disconnect()


if __name__ == "__main__":
    sys.exit(main())
