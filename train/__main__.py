"""Command line of one training run; `deepspeed scripts/pretrain.py` and `deepspeed --module train` both end here."""

import argparse
import sys
from pathlib import Path

from configs.reader import dump_yaml
from data.files import require_writable
from train.config import load_run
from train.exit_codes import DESCRIPTIONS, exit_status
from train.supervision.watchdog import watch_launcher

_EXAMPLE = """\
example:
  deepspeed --num_accelerators 1 scripts/pretrain.py --config configs/runs/tiny.yaml --run-dir runs/tiny \\
      --train.tokens=1_000_000 --precision=bf16

Every key of the YAML can be overridden as --section.key=value; --print-config shows them all, resolved.
Lengths are in tokens, losses in nats per token.
exit status:
"""
_EXAMPLE += "\n".join(f"  {status:<3d} {text}" for status, text in DESCRIPTIONS.items())


def main(arguments: list[str] | None = None) -> int:
    """Train one run; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="pretrain.py",
        description="Train one model, continuing from its newest checkpoint.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", type=Path, metavar="RUN.yaml", help="the run")
    what.add_argument("--jobs", type=Path, metavar="DIR", help="train the runs that a sweep hands over in DIR")
    parser.add_argument("--run-dir", type=Path, help="where everything of the run goes (default: runs/NAME)")
    parser.add_argument("--deepspeed", action="store_true", help="accepted for the launcher's sake; always on")
    parser.add_argument("--deepspeed_config", type=Path, metavar="ds.json", help="your own DeepSpeed configuration")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")
    known, overrides = parser.parse_known_args(arguments)
    return exit_status(lambda: _run(known, overrides))


def _run(options: argparse.Namespace, overrides: list[str]) -> int:
    if options.jobs is not None:
        return _serve(options.jobs)
    run = load_run(options.config, overrides)
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
