"""One rank that builds real engines, trains two steps with each, and prints the bytes that were allocated.

    python -m tests.helpers.measure_memory '[{"parallel": {"zero_stage": 1}, ...}, ...]'

Each case is a tree laid over `RUN`; its own `model`, if it has one, replaces `MODEL`. Prints a JSON line with the
case's index for each: `resting`, bytes of all tensors between steps, and `peak`, the most bytes at once during a
step, by the allocator's own account.
"""

import gc
import json
import logging
import sys
from typing import Any

import torch
import torch.nn.functional as F

import model.loss
import model.transformer
from configs.keys import merge
from configs.reader import build
from model.memory import CHUNK_LOGITS
from model.parameters import parameter_table
from train.config import RunConfig, expand_run
from train.distributed.topology import Topology, connect, launched_topology
from train.engine.ds_config import derive
from train.engine.engine import build_engine, release, train_step

BUCKET = 1_000_000
MODEL = {"style": "gpt2", "n_layer": 4, "d_model": 128, "n_head": 4, "vocab_size": 2048}
RUN = {
    "data": {"vocab_size": 2048},
    "train": {"sequence_length": 128, "global_batch_size": 16, "micro_batch_size": 8, "steps": 2},
    "optimizer": {"lr": 1e-3},
    "wandb": {"mode": "disabled"},
}


def run_of(case: dict[str, Any]) -> RunConfig:
    """The run of a case."""
    return build(RunConfig, merge(RUN, {"model": MODEL} | case), "case", expand=expand_run)


def storages() -> dict[int, torch.UntypedStorage]:
    """The storages that live tensors have, by address."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor)]
    return {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors}


def measure(run: RunConfig, topology: Topology) -> dict[str, int]:
    """Bytes at rest after a step, and at the worst moment of the next."""
    settings = derive(run.step_plan, topology.data_parallel)
    # Small tensors stay whole at stage 3; here all are small.
    settings["zero_optimization"] |= {"reduce_bucket_size": BUCKET, "stage3_param_persistence_threshold": 0}
    before = storages()  # held, so that no address is used again
    engine = build_engine(run.step_plan, parameter_table(run.model), run.seed, settings)
    shape = (run.train.micro_batch_size, run.train.sequence_length)
    tokens = torch.randint(run.model.vocab_size, shape, generator=torch.Generator().manual_seed(0))  # alike on all
    batches = [(tokens, tokens)] * (
        run.train.global_batch_size // (run.train.micro_batch_size * topology.data_parallel)
    )
    train_step(engine, batches, 1e-3, topology)
    resting = sum(storage.nbytes() for address, storage in storages().items() if address not in before)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        train_step(engine, batches, 1e-3, topology)
    assert profile.profiler is not None
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    release(engine)
    return {"resting": resting, "peak": resting + most}


def main() -> None:
    """Measure the cases of the command line."""
    # As on a GPU: 16-bit attention, and the loss in chunks of a GPU's size.
    model.transformer.causal_attention = lambda q, k, v, scale: F.scaled_dot_product_attention(q, k, v, is_causal=True)
    model.loss._CHUNK_LOGITS["cpu"] = CHUNK_LOGITS
    runs = [run_of(case) for case in json.loads(sys.argv[1])]
    connect(launched_topology(1))
    logging.disable(logging.WARNING)
    for index, run in enumerate(runs):
        topology = launched_topology(run.parallel.pipeline_stages, run.parallel.tensor_parallel)
        print(json.dumps({"case": index, "rank": topology.rank, **measure(run, topology)}), flush=True)


if __name__ == "__main__":
    main()
