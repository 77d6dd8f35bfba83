"""How early does the band of a ladder speak, and how early the spike guard? Real training with injected faults.

A ladder of small models is trained on the Python sources of this machine. Bands predicted from it are held against
larger models: healthy ones, where both must stay silent, and ones with a fault. The delay is in optimizer steps from
the fault to the first alert. Bands are judged as if every --log_every-th step had been logged, once by the loss of that
step alone and once by the mean since the row before.

    OMP_NUM_THREADS=1 python scripts/bench/bench_monitor.py --seeds 3

'end' is the loss of the last 20 steps against the middle of the band. A guard that never speaks counts as speaking at
the last step. 'frozen' counts runs with parameters that no gradient has reached.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from configs.cli import Parser, make_console, run_command
from configs.curve_band import BAND, CurveBand
from data.config import DataConfig
from data.loading.mixture import Mixture, open_mixture
from model.counts import count_parameters
from model.parameters import parameter_table
from scaling.laws import Array
from scaling.studies.curve_bands import band
from scaling.tables.curves import Curve
from train.checkpoint.fragments import without_gradient
from train.config import RunConfig, SpikeConfig, load_run
from train.distributed.topology import Topology, connect, disconnect, launched_topology
from train.engine.ds_config import derive
from train.engine.engine import MicroBatch, build_engine, gradient_norm, release, train_step
from train.engine.lr_schedule import lr_multiplier
from train.engine.micro_batches import training_batches
from train.stability.band_monitor import Monitor
from train.stability.spike_detector import Kind, SpikeState, detect_spike

RUN = Path(__file__).resolve().parents[2] / "configs" / "runs" / "tiny.yaml"
RUNGS = ("tiny-3k", "tiny-6k", "tiny-14k", "tiny-25k", "tiny-55k")
LENGTHS = (0.5, 0.7, 1.0)  # of the rungs, as fractions of the steps of the targets
TARGETS = ("tiny-98k", "tiny-150k")
BEGIN = 0.3  # progress at which a fault sets in that does not hold from the start
LOOK = 20  # steps after which parameters without a gradient are looked for, as in the loop
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
    """The last block gets no gradient."""


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


class Trained(NamedTuple):
    """A run that was trained to its end."""

    loss: Array
    """Of every step, nats per token (steps,)."""
    grad_norm: Array
    """Before clipping (steps,)."""
    frozen: list[str]
    """Parameters without a gradient after `LOOK` steps."""


def train(run: RunConfig, corpus: Mixture, topology: Topology, fault: Fault) -> Trained:
    """Train with a fault."""
    plan, table = run.step_plan, parameter_table(run.model)
    engine = build_engine(plan, table, run.seed, derive(plan, topology.data_parallel))
    draw = np.random.default_rng(run.seed)
    begin = round(fault.begin * run.steps)
    if fault.frozen:
        engine.module.blocks[-1].requires_grad_(False)
    seen, frozen = [], []
    for step in range(run.steps):
        broken = step >= begin
        lr = run.optimizer.lr * lr_multiplier(run.schedule, step, run.steps) * (fault.lr if broken else 1.0)
        place = step % fault.stale if broken and fault.stale else step
        batches = training_batches(corpus, run.train, run.seed, place, topology)
        loss = train_step(engine, (fault.batch(b, draw) if broken else b for b in batches), lr, topology)
        seen.append((loss.item(), gradient_norm(engine)))
        if step + 1 == LOOK:
            frozen = without_gradient(engine, table, topology)
    release(engine)
    losses, grad_norms = np.array(seen).T
    return Trained(losses, grad_norms, frozen)


def logged(loss: Array, every: int, averaged: bool) -> tuple[Array, Array]:
    """Return the steps that the loop logs (rows,), and their loss or the mean since the step logged before."""
    step = np.unique(np.concatenate([[1], np.arange(every, len(loss) + 1, every), [len(loss)]]))
    if not averaged:
        return step, loss[step - 1]
    total = np.concatenate([[0.0], np.cumsum(loss)])
    return step, np.diff(total[np.concatenate([[0], step])]) / np.diff(step, prepend=0)


def first_alert(run: RunConfig, step: Array, loss: Array, expected: CurveBand, path: Path) -> int | None:
    """Return the step at which the monitor speaks, or None."""
    expected.write(path)
    monitor = Monitor(path, run.steps)
    rows = zip(step.tolist(), loss.tolist(), strict=True)
    return next((step for step, loss in rows if monitor.follow(step, loss)[1]), None)


def first_verdict(trained: Trained) -> int | None:
    """Return the step at which the spike guard sees a spike, or None."""
    state, config = SpikeState(), SpikeConfig()
    for step, (loss, norm) in enumerate(zip(trained.loss.tolist(), trained.grad_norm.tolist(), strict=True), 1):
        state, verdict = detect_spike(state, step, loss, norm, config)
        if verdict.kind not in (Kind.OK, Kind.OUTLIER):
            return step
    return None


def measure(folder: Path, steps: int, seeds: int, every: int, console: Console) -> Table:
    """Train the ladder and the targets; return the table of delays."""
    data = replace(DataConfig(vocab_size=512, max_bytes=8_000_000), directory=str(folder / "corpora"))
    corpus = open_mixture(data, progress=False)
    topology = launched_topology(1)
    connect(topology)

    def make(size: str, steps: int, seed: int) -> RunConfig:
        keys = {"model.size": size, "train.steps": steps, "seed": seed, "data.vocab_size": 512}
        keys |= {"train.global_batch_size": 8, "train.micro_batch_size": 8, "train.sequence_length": 64}
        run = load_run(RUN, ["--wandb.mode=disabled", *(f"--{key}={value}" for key, value in keys.items())])
        return replace(run, optimizer=replace(run.optimizer, lr=0.005 * (run.model.d_model / 32) ** -0.5))

    ladder = [make(size, round(length * steps), 0) for size in RUNGS for length in LENGTHS]
    finished = [(run, train(run, corpus, topology, HEALTHY)) for run in ladder]
    console.print(f"{len(ladder)} finished runs, {len(TARGETS)} sizes and {seeds} seeds for each row below")

    def expect(run: RunConfig, averaged: bool) -> CurveBand:
        rungs = []
        for rung, trained in finished:
            step, loss = logged(trained.loss, every, averaged)
            N, nothing = float(count_parameters(rung.model).total), np.full(len(step), np.nan)
            tokens = step * rung.tokens_per_step
            curve = Curve(rung.name, N, True, tokens, nothing, loss, loss, nothing, step, nothing)
            rungs.append((N, float(rung.tokens), curve))
        return band(rungs, count_parameters(run.model).total, run.tokens)

    table = Table("fault", "end", "band of loss", "delay", "of loss_mean", "delay", "ahead by", "spike guard", "frozen")
    for fault in (HEALTHY, *FAULTS):
        targets = [make(size, steps, FIRST_SEED + k) for size in TARGETS for k in range(seeds)]
        runs = [(run, train(run, corpus, topology, fault)) for run in targets]
        alerts: dict[bool, list[int | None]] = {False: [], True: []}
        ends = []
        for run, trained in runs:
            for averaged, found in alerts.items():
                expected = expect(run, averaged)
                found.append(first_alert(run, *logged(trained.loss, every, averaged), expected, folder / BAND))
            ends.append(float(trained.loss[-20:].mean() / expected.centre[-1]) - 1)  # of the means
        guards = [first_verdict(trained) for _, trained in runs]
        begin = round(fault.begin * steps)
        ahead = [(g or steps) - b for b, g in zip(alerts[True], guards, strict=True) if b is not None]
        table.add_row(
            fault.name,
            f"{statistics.median(ends):+.1%}",
            *_alerts(alerts[False], begin),
            *_alerts(alerts[True], begin),
            f"{statistics.median(ahead):.0f}" if ahead and fault is not HEALTHY else "",
            _alerts(guards, begin)[0],
            f"{sum(bool(trained.frozen) for _, trained in runs)} of {len(runs)}",
        )
    disconnect()
    return table


def _alerts(found: Sequence[int | None], begin: int) -> tuple[str, str]:
    spoke = [step - begin for step in found if step is not None]
    return f"{len(spoke)} of {len(found)}", f"{statistics.median(spoke):.0f}" if spoke else ""


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark and print its table; return the exit status."""
    parser = Parser(__doc__)
    parser.add_argument("--steps", type=int, default=500, help="optimizer steps of the targets (default 500)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each size and fault (default 3)")
    parser.add_argument("--log_every", type=int, default=10, help="steps between rows (default 10)")
    parser.add_argument("--work", type=Path, default=Path("runs/bench-monitor"), help="where the corpus goes")
    return run_command(parser, run, arguments)


def run(options: argparse.Namespace) -> None:
    """Train, measure, print."""
    options.work.mkdir(parents=True, exist_ok=True)
    console = make_console(150)
    console.print(measure(options.work, options.steps, options.seeds, options.log_every, console))


if __name__ == "__main__":
    sys.exit(main())
