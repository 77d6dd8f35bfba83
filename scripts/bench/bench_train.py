"""Time training: this trainer's whole loop, the same model in a bare PyTorch loop, and a reference GPT.

Every contender is a process of its own that pauses before a step until it is its turn. On a CPU all of them are
started and take turns of a few steps, so that the noise of the machine falls on all alike. On a GPU they come one
after the other, so that each has the device and its memory for itself.

    python scripts/bench/bench_train.py                              # the table of docs/performance.md for this machine
    python scripts/bench/bench_train.py --models gpt3-1.3b:8x2048 --precisions bf16 --compile --vocab 50304
    python scripts/bench/bench_train.py --models 4x128x4:16x256 --contenders two-runs two-ranks
    DS_ACCELERATOR=cpu python scripts/bench/bench_train.py                 # leave the GPU alone

contenders:
  trainer              the loop that scripts/pretrain.py runs: DeepSpeed, data, clipping, logging every 10 steps
  bare                 the same model and fused AdamW in a plain loop; in bf16 with fp32 master weights, as DeepSpeed's
  reference            a GPT-2 and its loop, written as nanoGPT's are: autocast, whole logits, AdamW fused on GPUs alone
  reference-compiled   the same under torch.compile, whatever --compile says
  two-ranks            the trainer on two data-parallel ranks, with half of the threads and one batch each
  two-runs             two trainers that know nothing of each other, otherwise alike

Bare loops get their batches ready-made. tokens/s is the median over turns; FLOP/s counts attention and head, without
a discount for the causal mask; MFU is against the device's dense bf16 peak. "first / it" is the median over turns of
the speed of the first contender over this one's, with the quartiles. GiB is the most that PyTorch had allocated on a
GPU, beside what train/cost/memory.py plans for it.
"""

import argparse
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import chain, cycle, product
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.cli import Parser, run_command
from configs.reader import build
from data.loading.mixture import open_mixture
from model.config import ModelConfig
from model.init import initialise
from model.parameters import parameter_table
from model.transformer import GPT
from train import loop
from train.config import RunConfig, expand_run
from train.cost.memory import peak_memory
from train.distributed.ports import reserve_port
from train.distributed.topology import Topology, uses_gpu
from train.engine.engine import MicroBatch
from train.engine.micro_batches import training_batches
from train.engine.optimizer import adamw
from train.run import run_job
from train.telemetry.record import device_name, peak_flops

LOG_EVERY = 10
Step = Callable[[Tensor, Tensor], Tensor]
"""Tokens and targets -> loss, after an update of the weights."""


class ReferenceGPT(nn.Module):
    """GPT-2 as nanoGPT writes it (github.com/karpathy/nanoGPT): whole logits, exact GELU, tied output."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.d_model
        self.n_head = config.n_head
        self.tokens = nn.Embedding(config.vocab_size, d)
        self.places = nn.Embedding(config.context_length, d)

        def block() -> nn.ModuleDict:
            parts = {"ln1": nn.LayerNorm(d), "qkv": nn.Linear(d, 3 * d), "out": nn.Linear(d, d)}
            parts |= {"ln2": nn.LayerNorm(d), "up": nn.Linear(d, 4 * d), "down": nn.Linear(4 * d, d)}
            return nn.ModuleDict(parts)

        self.blocks = nn.ModuleList(block() for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(d)
        self.head = nn.Linear(d, config.vocab_size, bias=False)
        self.head.weight = self.tokens.weight
        for matrix in (parameter for parameter in self.parameters() if parameter.ndim > 1):
            nn.init.normal_(matrix, std=0.02)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss in nats per token."""
        B, T = tokens.shape
        x = self.tokens(tokens) + self.places(torch.arange(T, device=tokens.device))
        for block in self.blocks:
            assert isinstance(block, nn.ModuleDict)
            q, k, v = block["qkv"](block["ln1"](x)).split(x.shape[-1], dim=2)
            q, k, v = (t.view(B, T, self.n_head, -1).transpose(1, 2) for t in (q, k, v))
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + block["out"](mixed.transpose(1, 2).contiguous().view(B, T, -1))
            x = x + block["down"](F.gelu(block["up"](block["ln2"](x))))
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))


@dataclass
class Turns:
    """The turns of one process; it calls `wait` before every step."""

    parent: Connection
    steps: int
    waited: int = 0
    begin: float = 0.0

    def wait(self) -> None:
        """Between two turns, report the time of the last, in seconds, and the most memory so far, in bytes."""
        if self.waited % self.steps == 0:
            if uses_gpu():
                torch.cuda.synchronize()
            if self.waited:
                seconds = time.perf_counter() - self.begin
                self.parent.send((seconds, torch.cuda.max_memory_allocated() if uses_gpu() else 0))
            self.parent.recv()
            self.begin = time.perf_counter()
        self.waited += 1


def train_ours(run: RunConfig, run_dir: Path, turns: Turns) -> None:
    """Run the real loop, unchanged; it pauses where it asks for the step's data."""
    ask = loop.training_batches

    def wait_and_ask(*arguments: Any) -> Iterator[MicroBatch]:
        turns.wait()
        return ask(*arguments)

    vars(loop)["training_batches"] = wait_and_ask
    run_job(run, run_dir, "bench_train.py")


def bare(run: RunConfig, device: torch.device) -> Step:
    """Our model in a plain loop; 16-bit weights have fp32 masters, which the optimizer updates."""
    model = GPT(run.model, compiled=run.train.compile).to(device)
    initialise(model.named_parameters(), run.model, run.seed)
    masters = dict(model.named_parameters())
    if run.precision == "bf16":
        masters = {name: nn.Parameter(parameter.detach().clone()) for name, parameter in masters.items()}
        model.bfloat16()
    weights: list[Tensor] = list(model.parameters())
    updated: list[Tensor] = list(masters.values())
    optimizer = adamw(masters.items(), run.optimizer, parameter_table(run.model))

    def step(tokens: Tensor, targets: Tensor) -> Tensor:
        loss = model(tokens, targets)
        loss.backward()
        if run.precision == "bf16":
            for weight, master in zip(weights, updated, strict=True):
                assert weight.grad is not None
                master.grad, weight.grad = weight.grad.float(), None
        nn.utils.clip_grad_norm_(updated, run.optimizer.gradient_clipping)
        optimizer.step()
        optimizer.zero_grad()
        if run.precision == "bf16":
            with torch.no_grad():
                torch._foreach_copy_(weights, updated)
        return loss

    return step


def reference(run: RunConfig, device: torch.device) -> Step:
    """The reference, trained as nanoGPT does."""
    torch.backends.cuda.matmul.allow_tf32 = True
    model = ReferenceGPT(run.model).to(device)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    fused = device.type == "cuda"
    optimizer = torch.optim.AdamW(groups, lr=run.optimizer.lr, betas=(0.9, 0.95), fused=fused)
    if run.train.compile:
        model.compile()

    def step(tokens: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=run.precision == "bf16"):
            loss = model(tokens, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    return step


def contend(parent: Connection, name: str, run: RunConfig, steps: int, directory: Path, place: dict[str, str]) -> None:
    """Be one process of a contender; what it prints goes to a file in `directory`."""
    os.environ |= place
    with (directory / "log.txt").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    turns = Turns(parent, steps)
    plain = CONTENDERS[name].plain
    if plain is None:
        train_ours(run, directory / "run", turns)
        return
    topology = Topology(0, 1, 0, 1)
    device = topology.device
    if not uses_gpu():
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    corpus = open_mixture(run.data, progress=False, verify=False)
    batches = [batch for step in range(8) for batch in training_batches(corpus, run.train, run.seed, step, topology)]
    step = plain(run, device)
    for done, (tokens, targets) in enumerate(cycle(batches), 1):
        turns.wait()
        loss = step(tokens.to(device, non_blocking=True), targets.to(device, non_blocking=True))
        if done % LOG_EVERY == 0:
            loss.item()  # read as a log would


@dataclass(frozen=True)
class ContenderKind:
    """What a contender is made of."""

    plain: Callable[[RunConfig, torch.device], Step] | None = None
    """Makes the step of its plain loop; None for this trainer."""
    processes: int = 1
    connected: bool = False
    """Whether its processes are ranks of one run."""
    always_compiled: bool = False


CONTENDERS = {
    "trainer": ContenderKind(),
    "bare": ContenderKind(bare),
    "reference": ContenderKind(reference),
    "reference-compiled": ContenderKind(reference, always_compiled=True),
    "two-ranks": ContenderKind(processes=2, connected=True),
    "two-runs": ContenderKind(processes=2),
}


@dataclass
class Contender:
    """A contender's processes, and its tokens per second in every turn."""

    name: str
    run: RunConfig
    steps: int
    processes: Sequence[tuple[BaseProcess, Connection]]
    log: Path
    speeds: list[float] = field(default_factory=list)
    memory: int = 0
    """Bytes allocated at most on one device."""

    def take_turn(self, counts: bool) -> None:
        """Let all processes take their steps; the slowest one's time is the turn's."""
        for _, connection in self.processes:
            connection.send(None)
        try:
            reports = [connection.recv() for _, connection in self.processes]
        except EOFError:
            tail = "\n".join(self.log.read_text().splitlines()[-15:])
            raise RuntimeError(f"{self.name} stopped:\n{tail}") from None
        tokens = self.steps * self.run.train.micro_batch_size * self.run.train.sequence_length * len(self.processes)
        self.memory = max(memory for _, memory in reports)
        if counts:
            self.speeds.append(tokens / max(seconds for seconds, _ in reports))


def start(name: str, run_tree: dict[str, Any], steps: int, threads: int, directory: Path) -> Contender:
    """Start a contender's processes."""
    kind = CONTENDERS[name]
    train = run_tree["train"] | {"compile": run_tree["train"]["compile"] or kind.always_compiled}
    if kind.connected:
        train["global_batch_size"] *= kind.processes
    run = build(RunConfig, run_tree | {"train": train}, "command line", expand=expand_run)
    # Read when torch is imported, which a new process does before it gets here.
    os.environ["OMP_NUM_THREADS"] = str(max(1, threads // kind.processes))
    context = get_context("spawn")
    processes = []
    port = reserve_port()
    for rank in range(kind.processes):
        home = directory / name / ("together" if kind.connected else str(rank))
        home.mkdir(parents=True, exist_ok=True)
        place: dict[str, Any] = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": kind.processes}
        place |= {"LOCAL_SIZE": kind.processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port.number}
        environment = {key: str(value) for key, value in place.items()} if kind.connected else {}
        ours, theirs = context.Pipe()
        process = context.Process(target=contend, args=(theirs, name, run, steps, home, environment), daemon=True)
        process.start()
        theirs.close()
        processes.append((process, ours))
    return Contender(name, run, steps, processes, home / "log.txt")


def measure(names: Sequence[str], run_tree: dict[str, Any], turns: int, steps: int, threads: int) -> list[Contender]:
    """Return the contenders after `turns` timed turns each; one turn before them warms up."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        finished: list[Contender] = []
        for group in [[name] for name in names] if uses_gpu() else [names]:
            contenders = [start(name, run_tree, steps, threads, Path(folder)) for name in group]
            try:
                for turn, contender in product(range(-1, turns), contenders):
                    contender.take_turn(counts=turn >= 0)
            finally:
                for process, _ in chain.from_iterable(contender.processes for contender in contenders):
                    process.kill()
                    process.join()
            finished += contenders
    return finished


def rows(model: str, precision: str, contenders: list[Contender]) -> Iterator[str]:
    """Yield the rows of a Markdown table."""
    first = contenders[0]
    peak = peak_flops()
    for contender in contenders:
        speed = statistics.median(contender.speeds)
        flops = speed * contender.run.flops_per_token
        devices = len(contender.processes)
        mfu = f"{flops / devices / peak:.1%}" if peak else ""
        memory = f"{contender.memory / 2**30:.1f}" if contender.memory else ""
        ratios = [ours / its for ours, its in zip(first.speeds, contender.speeds, strict=True)]
        low, ratio, high = statistics.quantiles(ratios, n=4, method="inclusive")
        compared = "" if contender is first else f"{ratio:.2f} ({low:.2f} to {high:.2f})"
        planned = ""
        if contender.memory and CONTENDERS[contender.name].plain is None:
            train = contender.run.train
            planned = f"{peak_memory(contender.run.step_plan, train.micro_batches(1)) / 2**30:.1f}"
        cells = (model, precision, contender.name, f"{speed:,.0f}", f"{flops:.3g}", mfu, compared, memory, planned)
        yield f"| {' | '.join(cells)} |"


def parse_model(text: str, batch: str) -> tuple[dict[str, Any], int, int]:
    """Read SIZE or LAYERSxWIDTHxHEADS with an optional :BATCHxSEQUENCE; return model keys, batch and sequence.

    Raises:
        ValueError: when the text is none of these.
    """
    shape, _, given = text.partition(":")
    sequences, length = (int(number) for number in (given or batch).split("x"))
    if shape.count("x") == 2 and shape.replace("x", "").isdigit():
        n_layer, d_model, n_head = (int(number) for number in shape.split("x"))
        return {"n_layer": n_layer, "d_model": d_model, "n_head": n_head}, sequences, length
    return {"size": shape}, sequences, length


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark and print its table; return the exit status."""
    gpu = uses_gpu()
    parser = Parser(__doc__, {"1": "a speed could not be measured"})
    models = ["gpt2:64x1024", "gpt2-medium:32x1024", "gpt3-1.3b:8x2048"] if gpu else ["4x64x4", "4x128x4", "4x256x8"]
    metavar = "MODEL[:BATCHxTOKENS]"
    parser.add_argument("--models", nargs="+", default=models, metavar=metavar, help="sizes, or LAYERSxWIDTHxHEADS")
    parser.add_argument("--batch", default="16x256", metavar="BATCHxTOKENS", help="where a model names none")
    parser.add_argument("--style", default="gpt2", choices=["gpt2", "modern"], help="blocks of our model")
    parser.add_argument("--precisions", nargs="+", default=["bf16"] if gpu else ["fp32", "bf16"])
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=gpu, help="torch.compile for all")
    parser.add_argument("--zero", type=int, choices=[0, 1, 2, 3], help="ZeRO stage of the trainer")
    parser.add_argument("--vocab", type=int, default=50304 if gpu else 4096, help="tokens in the vocabulary")
    contenders = ["trainer", "bare", "reference"] + ([] if gpu else ["reference-compiled"])
    parser.add_argument("--contenders", nargs="+", default=contenders, choices=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--turns", type=int, default=7, help="timed turns")
    parser.add_argument("--steps", type=int, default=20 if gpu else 3, help="steps per turn")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads per contender")
    return run_command(parser, run, arguments, (ValueError, RuntimeError))


def run(options: argparse.Namespace) -> int:
    """Print the table, a row for each contender as it is done; return the exit status."""
    versions = f"torch {version('torch')}, deepspeed {version('deepspeed')}"
    print(f"{device_name()}, {options.threads} threads, {versions}")
    how = f"{options.style} blocks, {'compiled' if options.compile else 'eager'}, vocabulary {options.vocab:,}"
    print(f"{how}, {options.turns} turns of {options.steps} steps\n")
    print(f"| model | precision | contender | tokens/s | FLOP/s | MFU | {options.contenders[0]} / it | GiB | planned |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for text in options.models:
        keys, batch, sequence = parse_model(text, options.batch)
        for precision in options.precisions:
            tree: dict[str, Any] = {
                "precision": precision,
                "model": {**keys, "style": options.style, "vocab_size": options.vocab},
                "data": {"vocab_size": options.vocab},
                "train": {"sequence_length": sequence, "global_batch_size": batch, "micro_batch_size": batch}
                | {"steps": 10**6, "compile": options.compile},
                "optimizer": {"lr": 3e-4},
                "parallel": {"zero_stage": options.zero},
                "log_every": LOG_EVERY,
                "watchdog": {"step_timeout": 3600.0},  # a contender that waits for its turn is not stuck
                "wandb": {"mode": "disabled"},
            }
            open_mixture(build(RunConfig, tree, "command line", expand=expand_run).data, progress=False)
            finished = measure(options.contenders, tree, options.turns, options.steps, options.threads)
            for row in rows(text, precision, finished):
                print(row, flush=True)
            if not all(math.isfinite(speed) for speed in finished[0].speeds):
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
