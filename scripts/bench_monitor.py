"""How early does the band of a ladder speak, and how early the spike guard? Real training with injected faults.

A ladder of small models is trained on the Python sources of this machine. Bands predicted from it are held against
larger models: healthy ones, where both must stay silent, and ones with a fault. The delay is in optimizer steps from
the fault to the first alert.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from configs.reader import ConfigError
from data.config import DataConfig, DataError
from data.mixture import Mixture, open_mixture
from model.counts import count_parameters
from scaling.bands import Band, band
from scaling.traces import Curve
from train.batches import training_batches
from train.config import RunConfig, load_run
from train.ds_config import derive
from train.engine import MicroBatch, build_engine, gradient_norm, release, train_step
from train.files import write_json
from train.monitor import BAND, Monitor
from train.schedule import lr_multiplier
from train.spikes import Kind, SpikeConfig, SpikeState, judge
from train.topology import Topology, connect, disconnect, launched_topology

RUN = Path(__file__).resolve().parent.parent / "configs" / "runs" / "tiny.yaml"
RUNGS = ("tiny-3k", "tiny-6k", "tiny-14k", "tiny-25k", "tiny-55k")
LENGTHS = (0.5, 0.7, 1.0)  # of the rungs, as fractions of the steps of the targets
TARGETS = ("tiny-98k", "tiny-150k")
BEGIN = 0.3  # progress at which a fault sets in that does not hold from the start
FIRST_SEED = 101  # the band was chosen on smaller ones


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong without an error. Every function changes nothing before step `begin`."""

    name: str
    begin: float = BEGIN
    """Progress at which it sets in."""
    lr: float = 1.0
    """Factor of the learning rate."""
    batch: Callable[[MicroBatch, np.random.Generator], MicroBatch] = lambda batch, draw: batch
    stale: int | None = None
    """Batches that are read over and over."""
    frozen: bool = False
    """The last block does not learn."""


def shuffled(batch: MicroBatch, draw: np.random.Generator) -> MicroBatch:
    """Permute the targets of each sequence."""
    tokens_BT, targets_BT = batch
    return tokens_BT, targets_BT[:, torch.from_numpy(draw.permutation(targets_BT.shape[1]))]


HEALTHY = Fault("none", begin=0.0)
FAULTS = (
    Fault("learning rate x 10", begin=0.0, lr=10.0),
    Fault("learning rate / 10", begin=0.0, lr=0.1),
    Fault("labels shuffled", batch=shuffled),
    Fault("stale data: 16 batches over and over", stale=16),
    Fault("last block frozen", begin=0.0, frozen=True),
)


def train(run: RunConfig, corpus: Mixture, topology: Topology, fault: Fault) -> list[tuple[float, float]]:
    """Train with a fault; return (loss in nats per token, gradient norm) of every step."""
    engine = build_engine(run, topology, derive(run, topology.data_parallel))
    draw = np.random.default_rng(run.seed)
    begin = round(fault.begin * run.steps)
    block = engine.module.blocks[-1]
    kept = {name: value.clone() for name, value in block.state_dict().items()}
    seen = []
    for step in range(run.steps):
        broken = step >= begin
        lr = run.optimizer.lr * lr_multiplier(run.schedule, step, run.steps) * (fault.lr if broken else 1.0)
        place = step % fault.stale if broken and fault.stale else step
        batches: Iterator[MicroBatch] = training_batches(corpus, run, place, topology)
        if broken:
            batches = (fault.batch(batch, draw) for batch in batches)
        loss = train_step(engine, batches, lr, topology)
        seen.append((loss.item(), gradient_norm(engine)))
        if broken and fault.frozen:
            block.load_state_dict(kept)
    release(engine)
    return seen


def as_curve(run: RunConfig, seen: Sequence[tuple[float, float]]) -> Curve:
    """Write what was measured as a logged curve."""
    step = np.arange(1.0, len(seen) + 1)
    nothing = np.full(len(seen), np.nan)
    loss = np.array([loss for loss, _ in seen])
    N = float(count_parameters(run.model).total)
    return Curve(run.name, N, True, step * run.tokens_per_step, nothing, loss, nothing, step, nothing)


def first_alert(run: RunConfig, seen: Sequence[tuple[float, float]], expected: Band, path: Path) -> int | None:
    """Return the step at which the monitor speaks, or None."""
    shown = {"progress": expected.progress, "low": expected.low, "high": expected.high}
    write_json(path, {key: value.tolist() for key, value in shown.items()} | {"window": expected.window})
    monitor = Monitor(path, run.steps)
    return next((step for step, (loss, _) in enumerate(seen, 1) if monitor.follow(step, loss)[1]), None)


def first_verdict(seen: Sequence[tuple[float, float]]) -> int | None:
    """Return the step at which the spike guard sees a spike, or None."""
    state, config = SpikeState(), SpikeConfig()
    for step, (loss, norm) in enumerate(seen, 1):
        state, verdict = judge(state, step, loss, norm, config)
        if verdict.kind not in (Kind.OK, Kind.OUTLIER):
            return step
    return None


def measure(folder: Path, steps: int, seeds: int, console: Console) -> Table:
    """Train the ladder and the targets; return the table of delays."""
    data = replace(DataConfig(vocab_size=512, max_bytes=8_000_000), directory=str(folder / "corpora"))
    corpus = open_mixture(data, progress=False)
    topology = launched_topology(1)
    connect(topology)

    def make(size: str, steps: int, seed: int) -> RunConfig:
        keys = {"model.size": size, "train.steps": steps, "seed": seed, "data.vocab_size": 512}
        keys |= {"train.global_batch": 8, "train.micro_batch": 8, "train.sequence_length": 64, "wandb.mode": "disabled"}
        run = load_run(RUN, [f"--{key}={value}" for key, value in keys.items()])
        return replace(run, optimizer=replace(run.optimizer, lr=0.005 * (run.model.d_model / 32) ** -0.5))

    rungs = []
    for size in RUNGS:
        for length in LENGTHS:
            run = make(size, round(length * steps), 0)
            curve = as_curve(run, train(run, corpus, topology, HEALTHY))
            rungs.append((curve.N or 0.0, float(run.tokens), curve))
    console.print(f"{len(rungs)} finished runs, {len(TARGETS)} sizes and {seeds} seeds for each row below")

    table = Table("fault", "loss at the end", "band: alerts", "delay", "spike guard: alerts", "delay", "ahead by")
    for fault in (HEALTHY, *FAULTS):
        ends, bands, guards = [], [], []
        for size in TARGETS:
            for seed in range(FIRST_SEED, FIRST_SEED + seeds):
                run = make(size, steps, seed)
                expected = band(rungs, count_parameters(run.model).total, run.tokens)
                seen = train(run, corpus, topology, fault)
                ends.append(statistics.mean(loss for loss, _ in seen[-20:]) / float(expected.centre[-1]) - 1)
                bands.append(first_alert(run, seen, expected, folder / BAND))
                guards.append(first_verdict(seen))
        begin = round(fault.begin * steps)
        ahead = [(g or steps) - b for b, g in zip(bands, guards, strict=True) if b is not None]
        table.add_row(
            fault.name,
            f"{statistics.median(ends):+.1%}",
            *_alerts(bands, begin),
            *_alerts(guards, begin),
            f"{statistics.median(ahead):.0f}" if ahead and fault is not HEALTHY else "",
        )
    disconnect()
    return table


def _alerts(found: Sequence[int | None], begin: int) -> tuple[str, str]:
    spoke = [step - begin for step in found if step is not None]
    return f"{len(spoke)} of {len(found)}", f"{statistics.median(spoke):.0f}" if spoke else ""


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark and print its table; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Example: OMP_NUM_THREADS=1 python scripts/bench_monitor.py --seeds 3\n"
        "A guard that never speaks counts as speaking at the last step.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=500, help="optimizer steps of the targets (default 500)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each size and fault (default 3)")
    parser.add_argument("--work", type=Path, default=Path("runs/bench-monitor"), help="where the corpus goes")
    options = parser.parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    console = Console()
    try:
        console.print(measure(options.work, options.steps, options.seeds, console))
    except (ConfigError, DataError) as error:
        print(f"bench_monitor.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
