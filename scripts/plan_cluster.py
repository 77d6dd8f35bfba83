"""Plan a run on a cluster before it is rented: memory of each GPU, pipeline bubble, communication and step time.

    python scripts/plan_cluster.py --config configs/runs/gpt2.yaml --gpu H100
    python scripts/plan_cluster.py --config configs/runs/gpt2.yaml --gpu A100 --nodes 128 --model.size=gpt3-175b \\
        --train.sequence_length=2048 --train.global_batch_size=1536 --train.micro_batch_size=1 \\
        --parallel.pipeline_stages=32

Memory is in GiB (2^30 bytes), of the fullest moment of a step; bandwidths are in GB/s (10^9 bytes) and direction for
each GPU; times are in seconds. How well this agrees with measured and published figures: docs/cluster-planning.md.
"""

import argparse
import difflib
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from configs.cli import Parser, make_console, make_table, run_command
from configs.reader import ConfigError, Problem
from model.config import ModelConfig
from model.counts import count_parameters
from train.config import RunConfig, StepPlan, load_run
from train.cost.gpus import GIB, GPUS, USABLE
from train.cost.memory import blocks_of_stage
from train.cost.step_time import MATMUL_EFFICIENCY, Cluster, Prediction, alternatives, obstacle, predict, replicas_of

_SHOWN_STAGES = 8


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = Parser(__doc__, {"0": "the run fits", "1": "it does not"}, overrides=True)
    add = parser.add_argument
    add("--config", type=Path, required=True, metavar="RUN.yaml", help="the run; --a.b=c overrides a key")
    add("--gpu", default="H100", help=f"kind of GPU (default H100): {', '.join(GPUS)}")
    add("--gpus-per-node", type=int, default=8, metavar="N", help="GPUs in a machine (default 8)")
    add("--nodes", type=int, default=1, metavar="N", help="machines (default 1)")
    add("--memory", type=float, metavar="GIB", help="memory of a GPU, where it is not the usual one")
    add("--link", type=float, metavar="GB/S", help="bandwidth inside a machine")
    add("--network", type=float, metavar="GB/S", help="bandwidth between machines, for each GPU")
    share = f"share of the peak that matrix products reach (default {MATMUL_EFFICIENCY})"
    add("--efficiency", type=float, default=MATMUL_EFFICIENCY, help=share)
    add("--alternatives", type=int, default=5, metavar="N", help="other topologies listed (default 5)")
    add("--json", action="store_true", help="print one JSON object")
    return run_command(parser, plan, arguments)


def plan(options: argparse.Namespace) -> int:
    """Predict, print, and return whether the run fits, as a status."""
    run, cluster = load_run(options.config, options.overrides), _cluster(options)
    parameters = count_parameters(run.model).total
    problem = obstacle(run.step_plan, cluster.devices)
    prediction = None if problem else predict(run.step_plan, cluster)
    others = alternatives(run.step_plan, cluster)[: options.alternatives] if options.alternatives else []
    status = 0 if prediction is not None and _fits(prediction, cluster) else 1
    if options.json:
        content = {
            "parameters": parameters,
            "tokens_per_step": run.tokens_per_step,
            "steps": run.steps,
            "devices": cluster.devices,
            "gpu": asdict(cluster.gpu),
            "problem": problem,
            "plan": None if prediction is None else _as_json(run.step_plan, prediction, cluster),
            "alternatives": [_as_json(*other, cluster) for other in others],
        }
        print(json.dumps(content, indent=2))
        return status
    console = make_console()
    where = f"{cluster.devices:,} x {options.gpu} ({cluster.nodes} x {cluster.per_node})"
    each = f"{parameters:,} parameters, {run.precision}, {run.tokens_per_step:,} tokens per step"
    print(f"{run.name}: {each}, on {where}")
    if prediction is None:
        print(f"cannot be spread so: {problem}")
    else:
        console.print(_stage_table(run.model, prediction))
        print(*_summary(run, cluster, prediction), sep="\n")
    if others:
        console.print(_alternatives_table(cluster, others))
    elif options.alternatives:
        print("no topology of this trainer fits: take more GPUs, larger ones, or a smaller train.global_batch_size")
    return status


def _cluster(options: argparse.Namespace) -> Cluster:
    """Read the cluster's flags. Raises `ConfigError`."""
    by_lower_case = {name.lower(): name for name in GPUS}
    problems = []
    if options.gpu.lower() not in by_lower_case:
        near = difflib.get_close_matches(options.gpu.lower(), by_lower_case, n=1, cutoff=0.0)[0]
        known = ", ".join(GPUS)
        message = f"'{options.gpu}' is not in the table; nearest is '{by_lower_case[near]}' (of {known})"
        problems.append(Problem("command line", "--gpu", message))
    for key in ("gpus_per_node", "nodes", "memory", "link", "network", "efficiency"):
        value = getattr(options, key)
        if value is not None and not value > 0:
            problems.append(Problem("command line", f"--{key.replace('_', '-')}", f"{value} must be above 0"))
    if options.efficiency > 1:
        message = f"{options.efficiency} is more than the peak; nearest is 1"
        problems.append(Problem("command line", "--efficiency", message))
    if problems:
        raise ConfigError(problems)
    gpu = GPUS[by_lower_case[options.gpu.lower()]]
    units = {"memory": GIB, "link": 1e9, "network": 1e9}
    given = {key: getattr(options, key) * unit for key, unit in units.items() if getattr(options, key) is not None}
    return Cluster(replace(gpu, **given), options.gpus_per_node, options.nodes, options.efficiency)


def _fits(prediction: Prediction, cluster: Cluster) -> bool:
    return prediction.peak <= USABLE * cluster.gpu.memory


def _gib(size: float) -> str:
    return f"{size / GIB:,.2f}"


def _stage_table(model: ModelConfig, prediction: Prediction) -> Table:
    stages = len(prediction.memory)
    shown = set(range(stages))
    if stages > _SHOWN_STAGES:
        shown = {0, 1, stages // 4, stages // 2, 3 * stages // 4, stages - 2, stages - 1}
    parts = ["#weights", "#gradients", "#optimizer", "#buffers", "#activations", "#peak"]
    table = make_table("GiB on each GPU", "#stage", "#blocks", *parts, "at", "#host")
    for stage in sorted(shown):
        memory = prediction.memory[stage]
        sizes = (memory.parameters, memory.gradients, memory.optimizer, memory.buffers, memory.activations, memory.peak)
        blocks = blocks_of_stage(model.n_layer, stages, stage)
        table.add_row(f"{stage + 1}/{stages}", str(blocks), *map(_gib, sizes), memory.worst_moment, _gib(memory.host))
    return table


def _summary(run: RunConfig, cluster: Cluster, prediction: Prediction) -> list[str]:
    step, volume = prediction.step, prediction.volume
    verdict = "fits" if _fits(prediction, cluster) else "does not fit"
    limit = f"{_gib(USABLE * cluster.gpu.memory)} GiB usable of {_gib(cluster.gpu.memory)}"
    names = {"compute": "arithmetic and memory", "pipeline": "pipeline sends", "host": "to the host and back"}
    spent = [f"{names.get(part, part)} {seconds:.3g} s" for part, seconds in asdict(step).items() if seconds]
    names = {"host": "to the host"}
    sent = [f"{names.get(part, part)} {size / 1e9:,.3g} GB" for part, size in asdict(volume).items() if size]
    days = run.steps * step.seconds / 86_400
    rate = run.tokens_per_step / step.seconds
    return [
        f"verdict    {verdict}: at most {_gib(prediction.peak)} GiB, {limit}",
        f"bubble     {prediction.bubble:.1%} of a stage's time",
        f"sent       {', '.join(sent).replace('_', ' ') or 'nothing'} by each GPU and step",
        f"step       {step.seconds:.3g} s: {', '.join(spent).replace('_', ' ')}",
        f"speed      {rate:,.0f} tokens/s, MFU {prediction.mfu:.1%}; {run.steps:,} steps take {days:.3g} days",
    ]


def _alternatives_table(cluster: Cluster, others: list[tuple[StepPlan, Prediction]]) -> Table:
    title = "topologies of this trainer that fit, the fastest first"
    split = ("#stages", "#tensor", "#replicas", "#ZeRO", "#micro_batch_size", "#recompute")
    table = make_table(title, *split, "#peak GiB", "#bubble", "#step s", "#MFU")
    for plan, prediction in others:
        parallel, train = plan.parallel, plan.train
        degrees = (parallel.pipeline_stages, parallel.tensor_parallel, replicas_of(parallel, cluster.devices))
        cells = (*degrees, plan.zero_stage, train.micro_batch_size, "yes" if train.activation_checkpointing else "no")
        speed = (f"{prediction.bubble:.1%}", f"{prediction.step.seconds:.3g}", f"{prediction.mfu:.1%}")
        table.add_row(*map(str, cells), _gib(prediction.peak), *speed)
    return table


def _as_json(plan: StepPlan, prediction: Prediction, cluster: Cluster) -> dict[str, Any]:
    """Return everything that the tables say of one topology, in bytes and seconds."""
    return {
        "pipeline_stages": plan.parallel.pipeline_stages,
        "tensor_parallel": plan.parallel.tensor_parallel,
        "zero_stage": plan.zero_stage,
        "micro_batch_size": plan.train.micro_batch_size,
        "activation_checkpointing": plan.train.activation_checkpointing,
        "fits": _fits(prediction, cluster),
        "peak_bytes": prediction.peak,
        "memory": [asdict(memory) | {"peak": memory.peak} for memory in prediction.memory],
        "volume": asdict(prediction.volume),
        "bubble": prediction.bubble,
        "step": asdict(prediction.step) | {"seconds": prediction.step.seconds},
        "mfu": prediction.mfu,
    }


if __name__ == "__main__":
    sys.exit(main())
