"""One run in processes that the launcher has started: check everything, connect, train."""

from contextlib import ExitStack
from pathlib import Path

import torch

from configs.reader import ConfigError, Problem, as_tree, dump_yaml
from configs.run_record import complete_record
from data.files import only_process, write_text
from data.loading.mixture import Mixture, open_mixture
from train.checkpoint.branching import trunk_problem
from train.checkpoint.manifest import newest_first
from train.checkpoint.stored_config import changed_keys
from train.config import RunConfig, batch_problem, load_stored
from train.distributed.rendezvous_check import require_one_run
from train.distributed.topology import Topology, connect, launched_topology, precision_problem
from train.engine.ds_config import derive, merge_user_config, read_user_config
from train.exit_codes import MISTAKES
from train.supervision.failures import known_failures
from train.supervision.heartbeat import HeartbeatWriter
from train.supervision.jit_locks import clear_stale_locks
from train.supervision.watchdog import watch_ranks


def run_job(run: RunConfig, run_dir: Path, source: str, user_ds_config: Path | None = None) -> int:
    """Train `run` in this process and those that were launched with it; return the exit status.

    The processes are connected when everything has been checked, unless they are already.

    Args:
        run: the run.
        run_dir: where everything of the run goes.
        source: where the run's keys were written, for messages.
        user_ds_config: the user's own DeepSpeed configuration.

    Raises:
        ConfigError, ValueError, BlockingIOError: for a mistake in the input, or machines that disagree; nothing has
            been changed.
        DataError: when text, a tokenizer or a prepared corpus cannot be used.
    """
    topology = launched_topology(run.parallel.pipeline_stages, run.parallel.tensor_parallel)
    try:
        return _run_job(run, run_dir, source, user_ds_config, topology)
    except MISTAKES as error:
        if topology.several_machines and not torch.distributed.is_initialized():
            _tell_other_machines(str(error), run, run_dir, topology)
        raise


def _run_job(run: RunConfig, run_dir: Path, source: str, user_ds_config: Path | None, topology: Topology) -> int:
    problem = precision_problem(run.precision) or batch_problem(run.train, topology.data_parallel)
    if problem:
        raise ConfigError([Problem(source, "", problem)])
    ds_config = derive(run.step_plan, topology.data_parallel)
    if user_ds_config is not None:
        ds_config = merge_user_config(run.step_plan, ds_config, read_user_config(user_ds_config), str(user_ds_config))
    _require_unchanged(run, run_dir)
    require_same_prefix(run, run_dir)
    mixture = _open_mixture(run, topology, source)

    with ExitStack() as stack:
        if topology.is_main:
            stack.enter_context(only_process(run_dir / ".lock", f"the run in {run_dir}", patience=35))
        if complete_record(run_dir) is not None:
            if topology.is_main:
                print(f"{run_dir}: complete already; delete it to train again")
            return 0
        if topology.is_main:
            clear_stale_locks()
            write_text(run_dir / "config.yaml", dump_yaml(run))
        heartbeat = stack.enter_context(HeartbeatWriter(run_dir, topology.rank, run.watchdog))
        stack.enter_context(known_failures(run.step_plan, topology.data_parallel))
        connect(topology, run.watchdog.startup_timeout)
        require_one_run(run_dir, topology)
        stack.enter_context(watch_ranks(run_dir, topology.rank, topology.world_size))
        # Importing deepspeed takes seconds; the mistakes above are told before.
        from train.distributed.consistency import exchange_mistakes, require_agreement
        from train.loop import train

        exchange_mistakes(None, topology)
        require_agreement(run, ds_config, mixture, run_dir, topology)
        train(run, run_dir, mixture, topology, ds_config, heartbeat)
    return 0


def _tell_other_machines(mistake: str, run: RunConfig, run_dir: Path, topology: Topology) -> None:
    """Join the processes that found no mistake and wait for this one, and end with them."""
    connect(topology, run.watchdog.startup_timeout)
    require_one_run(run_dir, topology)
    from train.distributed.consistency import exchange_mistakes

    exchange_mistakes(mistake, topology)


def _open_mixture(run: RunConfig, topology: Topology, source: str) -> Mixture:
    mixture = open_mixture(run.data, progress=topology.is_main, verify=topology.local_rank == 0)
    if mixture.vocab_size > run.model.vocab_size:
        message = f"{run.model.vocab_size} is less than the corpus's {mixture.vocab_size}, which is the nearest"
        raise ConfigError([Problem(source, "model.vocab_size", message)])
    return mixture


def _require_unchanged(run: RunConfig, run_dir: Path) -> None:
    """Refuse to continue a run under another configuration. Raises `ConfigError` naming the keys."""
    message = "this directory holds a run with {old}, not {new}; take another --run-dir, or delete this one"
    changed = changed_keys(as_tree(run), run_dir / "config.yaml")
    if changed:
        raise ConfigError([Problem(str(run_dir), key, message.format(old=old, new=new)) for key, old, new in changed])


def require_same_prefix(run: RunConfig, run_dir: Path) -> None:
    """Refuse to branch off from a run that was another one until then, unless it has been done already.

    Raises:
        ConfigError: naming every key that differs, or the last step that both share.
    """
    if run.branch is None or newest_first(run_dir / "checkpoints"):
        return
    path = run_dir.parent / run.branch.run / "config.yaml"
    if not path.exists():
        raise ConfigError([Problem(str(path), "", "is missing: there is no run to branch off from")])
    trunk = load_stored(path)
    problems = [
        Problem(str(run_dir), key, f"is {new} here, and {old} in the run that branch.run names; let them be the same")
        for key, old, new in changed_keys(as_tree(run), path)
        if key not in ("train.tokens", "train.steps")
    ]
    unfit, shared = trunk_problem(run.schedule), min(run.stable_steps, trunk.stable_steps)
    if not problems and run.steps != trunk.steps and unfit is not None:
        problems = [Problem(str(run_dir), *unfit)]
    if not problems and run.branch.step > shared:
        message = f"{run.branch.step} is in the cooldown of one of the two runs; nearest is {shared}"
        problems = [Problem(str(run_dir), "branch.step", message)]
    if problems:
        raise ConfigError(problems)
