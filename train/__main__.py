"""Command line of one training run; `deepspeed scripts/pretrain.py` and `deepspeed --module train` both end here."""

import argparse
import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path

from configs.reader import ConfigError, Problem, dump_yaml
from train.config import RunConfig, batch_problem, load_run
from train.stored import changed_keys
from train.watchdog import watch_launcher

USER_ERROR = 2
"""Exit status for a mistake in the input; nothing was started and nothing was changed."""
DIVERGED = 3
"""Exit status of a run whose loss stopped being a number."""
NO_CHECKPOINT = 4
"""Exit status when checkpoints exist but none can be continued from."""

_EXAMPLE = """\
example:
  deepspeed --num_accelerators 1 scripts/pretrain.py --config configs/runs/tiny.yaml --run-dir runs/tiny \\
      --train.tokens=1_000_000 --precision=bf16

Every key of the YAML can be overridden as --section.key=value; --print-config shows them all, resolved.
Lengths are in tokens, losses in nats per token.
exit status: 0 done, 2 a mistake in the input, 3 diverged, 4 no usable checkpoint; other: see the log, run again."""


def main(arguments: list[str] | None = None) -> int:
    """Train one run; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="pretrain.py",
        description="Train one model, continuing from its newest checkpoint.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, required=True, metavar="RUN.yaml", help="the run")
    parser.add_argument("--run-dir", type=Path, help="where everything of the run goes (default: runs/NAME)")
    parser.add_argument("--deepspeed", action="store_true", help="accepted for the launcher's sake; always on")
    parser.add_argument("--deepspeed_config", type=Path, metavar="ds.json", help="your own DeepSpeed configuration")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")
    known, overrides = parser.parse_known_args(arguments)
    try:
        return _run(known, overrides)
    except (ConfigError, ValueError, FileNotFoundError, PermissionError, BlockingIOError) as error:
        return _complain(str(error), USER_ERROR)
    except KeyboardInterrupt:
        return _complain("interrupted; the same command continues from the newest checkpoint", 130)


def _run(options: argparse.Namespace, overrides: list[str]) -> int:
    run = load_run(options.config, overrides)
    if options.print_config:
        print(dump_yaml(run), end="")
        return 0
    run_dir = options.run_dir or Path("runs") / run.name
    watch_launcher()
    # Imports of torch and deepspeed take seconds; mistakes above are told at once.
    from train.topology import connect, disconnect, launched_topology

    topology = launched_topology(run.parallel.pipeline_stages)
    problem = batch_problem(run, topology.data_parallel)
    if problem:
        raise ConfigError([Problem(str(options.config), "", problem)])
    from train.ds_config import derive, merge_user_config, read_user_config

    ds_config = derive(run, topology.data_parallel)
    if options.deepspeed_config:
        user = read_user_config(options.deepspeed_config)
        ds_config = merge_user_config(run, ds_config, user, str(options.deepspeed_config))

    from data.prepare import prepare
    from data.shards import open_corpus
    from train.files import only_process, write_atomic

    _check_stored(run, run_dir)
    corpus = open_corpus(prepare(run.data, progress=topology.is_main), verify=topology.local_rank == 0)
    if corpus.vocab_size > run.model.vocab_size:
        message = f"{run.model.vocab_size} is less than the corpus's {corpus.vocab_size}, which is the nearest"
        raise ConfigError([Problem(str(options.config), "model.vocab_size", message)])

    with ExitStack() as stack:
        if topology.is_main:
            stack.enter_context(only_process(run_dir / ".lock", f"the run in {run_dir}", patience=15))
        if _is_complete(run_dir):
            if topology.is_main:
                print(f"{run_dir}: complete already; delete it to train again")
            return 0
        if topology.is_main:
            write_atomic(run_dir / "config.yaml", dump_yaml(run))
        connect(topology)
        from train.checkpoint import CheckpointError
        from train.loop import TrainingDiverged, train

        try:
            train(run, run_dir, corpus, topology, ds_config)
        except TrainingDiverged as error:
            return _complain(str(error), DIVERGED)
        except CheckpointError as error:
            return _complain(str(error), NO_CHECKPOINT)
        finally:
            disconnect()
    return 0


def _is_complete(run_dir: Path) -> bool:
    try:
        return bool(json.loads((run_dir / "record.json").read_text())["complete"])
    except (OSError, ValueError, KeyError):
        return False


def _check_stored(run: RunConfig, run_dir: Path) -> None:
    """Refuse to continue a run under another configuration. Raises `ConfigError` naming the keys."""
    message = "this directory holds a run with {old}, not {new}; take another --run-dir, or delete this one"
    changed = changed_keys(run, run_dir / "config.yaml")
    if changed:
        raise ConfigError([Problem(str(run_dir), key, message.format(old=old, new=new)) for key, old, new in changed])


def _complain(message: str, status: int) -> int:
    # All ranks find the same mistake; one says it.
    if os.environ.get("RANK", "0") == "0":
        print(message, file=sys.stderr, flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
