"""What the parity tests run on their ranks: several runs one after another, each reduced to what is compared.

    python -m tests.helpers.parity_ranks CONFIG.yaml CASES.json RESULTS.pt

CASES is a list of {name, overrides, ds_json, fault}. One launch serves them all, whatever their topology, because
starting processes takes longer than training these models.
"""

import gc
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data.loading.mixture import Mixture, open_mixture
from model.parameters import parameter_table
from train.config import RunConfig, load_run
from train.distributed.topology import Topology, connect, disconnect, launched_topology
from train.engine.ds_config import derive, merge_user_config
from train.engine.engine import build_engine, gradient_norm, named_parameters, release, train_step
from train.engine.lr_schedule import lr_multiplier
from train.engine.micro_batches import training_batches


@dataclass
class Case:
    """One run."""

    name: str
    overrides: list[str] = field(default_factory=list)
    ds_json: dict[str, Any] = field(default_factory=dict)
    fault: tuple[str, float] | None = None
    """Multiply the gradients of parameters whose name contains the word by the factor: a mistake on purpose."""


@dataclass
class Result:
    """What a run did."""

    losses: list[float]
    """Nats per token, one for each step."""
    norms: list[float]
    """Global gradient norms before clipping."""
    gradients: dict[str, Tensor]
    """Gradients of the first step in fp32, before clipping, by name in `GPT`."""
    left_over: tuple[int, int]
    """What is there after the engine's release and was not before it: bytes of tensors, process groups."""


def run_case(case: Case, run: RunConfig, corpus: Mixture) -> Result:
    """Train; the gradients are on the first rank only."""
    topology = launched_topology(run.parallel.pipeline_stages, run.parallel.tensor_parallel)
    before = tensor_bytes(), process_groups()
    torch.manual_seed(run.seed)
    ds_config = merge_user_config(run.step_plan, derive(run.step_plan, topology.data_parallel), case.ds_json, "ds.json")
    engine = build_engine(run.step_plan, parameter_table(run.model), run.seed, ds_config)
    if case.fault is not None:
        word, factor = case.fault
        for name, parameter in named_parameters(engine):
            if word in name:
                parameter.register_hook(lambda gradient, factor=factor: gradient * factor)
    losses, norms, gradients = [], [], {}
    for step in range(run.steps):
        lr = run.optimizer.lr * lr_multiplier(run.schedule, step, run.steps)
        losses.append(
            train_step(engine, training_batches(corpus, run.train, run.seed, step, topology), lr, topology).item()
        )
        norms.append(gradient_norm(engine))
        if step == 0:
            gradients = first_gradients(engine, run, topology, norms[0])
    release(engine)
    kept = tensor_bytes() - sum(gradient.nbytes for gradient in gradients.values())
    return Result(losses, norms, gradients, (kept - before[0], process_groups() - before[1]))


def tensor_bytes() -> int:
    """Bytes of all tensors that this process can still reach."""
    gc.collect()
    return sum(thing.nbytes for thing in gc.get_objects() if isinstance(thing, Tensor))


def process_groups() -> int:
    """Number of connections between processes, the one of all among them."""
    return len(dist.distributed_c10d._world.pg_names)


def first_gradients(engine: Any, run: RunConfig, topology: Topology, norm: float) -> dict[str, Tensor]:
    """Collect the first step's gradients from all ranks on the first.

    They are read where every kind of optimizer keeps them in fp32: after one step, Adam's first moment is
    (1 - beta1) times the clipped gradient. Clipping is undone with the norm that the engine reports, so that a mistake
    in either shows.
    """
    if hasattr(engine.optimizer, "_hp_optimizer_states_linked"):
        # DeepSpeed links states to parameters when the first parameter group has been updated, before the rest are.
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()
    undo = max(1.0, norm / run.optimizer.gradient_clipping) / (1 - run.optimizer.beta1)
    mine = {name: (first_moment(engine, p) * undo).cpu() for name, p in named_parameters(engine)}
    everyone: list[Any] | None = [None] * topology.world_size if topology.is_main else None
    dist.gather_object(mine, everyone)
    merged: dict[str, Tensor] = {}
    for held in everyone or []:
        for name, gradient in held.items():
            assert torch.equal(merged.setdefault(name, gradient), gradient), f"ranks disagree on {name}"
    return merged


def first_moment(engine: Any, parameter: nn.Parameter) -> Tensor:
    """Adam's first moment of a parameter, whole, in fp32. All ranks of a replica must ask together."""
    from deepspeed.utils import safe_get_full_optimizer_state

    if isinstance(engine.optimizer, torch.optim.Optimizer):  # plain fp32: nothing wrapped around it
        moment = engine.optimizer.state[parameter]["exp_avg"]
    else:
        moment = safe_get_full_optimizer_state(parameter, "exp_avg")
    if not getattr(parameter, "tensor_model_parallel", False):
        return moment.clone()
    # DeepSpeed can put a matrix together that lies in parts on tensor-parallel ranks, but only a parameter's own.
    weights, parameter.data = parameter.data, moment
    parameter.gather_params([parameter])
    whole, parameter.data = parameter.data, weights
    return whole


def main(config: Path, cases_path: Path, results_path: Path) -> None:
    cases = [Case(**case) for case in json.loads(cases_path.read_text())]
    runs = [load_run(config, case.overrides) for case in cases]
    connect(launched_topology(1))
    corpus = open_mixture(runs[0].data, progress=False, verify=False)
    results = {case.name: vars(run_case(case, run, corpus)) for case, run in zip(cases, runs, strict=True)}
    if dist.get_rank() == 0:
        torch.save(results, results_path)
    disconnect()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
