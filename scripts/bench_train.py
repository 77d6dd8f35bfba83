"""Time training steps: this trainer, the same model in a bare PyTorch loop, and a reference GPT.

All three see the same tokens, and take turns of a few steps, so that the noise of the machine falls on all alike.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.reader import build
from model.config import ModelConfig
from model.init import initialise
from model.transformer import GPT, Block
from train.config import RunConfig, expand_run
from train.ds_config import derive
from train.engine import MicroBatch, build_engine, gradient_norm, train_step
from train.optimizer import adamw
from train.record import device_name, peak_flops
from train.topology import Topology, connect, disconnect, launched_topology

EPILOG = """\
examples:
  OMP_NUM_THREADS=2 python scripts/bench_train.py --size tiny-790k --precision bf16
  python scripts/bench_train.py --size gpt2 --precision bf16 --compile --batch 32 --sequence 1024 --vocab 50304

tokens/s is the median over turns; FLOP/s counts attention and head, and MFU is against the device's dense bf16 peak.
The ratio is the median over turns of (ours / other) in the same turn."""


class ReferenceGPT(nn.Module):
    """A GPT-2 written as most tutorials write it: nn.MultiheadAttention's parts, whole logits, autocast."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.d_model
        self.n_head = config.n_head
        self.tokens = nn.Embedding(config.vocab_size, d)
        self.places = nn.Embedding(config.context_length, d)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "ln1": nn.LayerNorm(d),
                    "qkv": nn.Linear(d, 3 * d),
                    "out": nn.Linear(d, d),
                    "ln2": nn.LayerNorm(d),
                    "up": nn.Linear(d, 4 * d),
                    "down": nn.Linear(4 * d, d),
                }
            )
            for _ in range(config.n_layer)
        )
        self.norm = nn.LayerNorm(d)
        self.head = nn.Linear(d, config.vocab_size, bias=False)
        self.head.weight = self.tokens.weight
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.02) if parameter.ndim > 1 else None

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss in nats per token."""
        B, T = tokens.shape
        x = self.tokens(tokens) + self.places(torch.arange(T, device=tokens.device))
        for block in self.blocks:
            assert isinstance(block, nn.ModuleDict)
            q, k, v = block["qkv"](block["ln1"](x)).split(x.shape[-1], dim=2)
            q, k, v = (t.view(B, T, self.n_head, -1).transpose(1, 2) for t in (q, k, v))
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + block["out"](mixed.transpose(1, 2).reshape(B, T, -1))
            x = x + block["down"](F.gelu(block["up"](block["ln2"](x))))
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))


def bare_step(model: nn.Module, optimizer: torch.optim.Optimizer, run: RunConfig) -> Callable[[MicroBatch], None]:
    """Return the step of a plain loop: autocast, backward, clip, update."""
    device = next(model.parameters()).device
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(run.precision, torch.float32)

    def step(batch: MicroBatch) -> None:
        tokens, targets = batch[0].to(device), batch[1].to(device)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            loss = model(tokens, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), run.optimizer.gradient_clipping)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def our_step(run: RunConfig, topology: Topology) -> Callable[[MicroBatch], None]:
    """Return this trainer's step: DeepSpeed engine, clipping, and a log line every ten steps."""
    engine = build_engine(run, topology, derive(run, topology.data_parallel))
    done = 0

    def step(batch: MicroBatch) -> None:
        nonlocal done
        loss = train_step(engine, [batch], run.optimizer.lr, topology)
        done += 1
        if done % run.log_every == 0:
            json.dumps({"step": done, "loss": loss.item(), "grad_norm": gradient_norm(engine)})

    return step


def contenders(run: RunConfig, topology: Topology) -> Iterator[tuple[str, Callable[[MicroBatch], None]]]:
    """Yield each contender's name and step."""
    yield "this trainer", our_step(run, topology)
    bare = GPT(run.model).to(topology.device)
    initialise(bare.named_parameters(), run.model, run.seed)
    reference = ReferenceGPT(run.model).to(topology.device)
    if run.train.compile:
        for layer in bare.modules():
            if isinstance(layer, Block):
                layer.compile()
        reference.compile()
    yield "same model, bare loop", bare_step(bare, adamw(bare.named_parameters(), run.optimizer), run)
    yield "reference GPT", bare_step(reference, torch.optim.AdamW(reference.parameters(), lr=run.optimizer.lr), run)


def time_turns(run: RunConfig, topology: Topology, turns: int, steps: int) -> dict[str, list[float]]:
    """Return each contender's tokens/s in every turn."""
    generator = torch.Generator().manual_seed(0)
    shape = (run.train.micro_batch, run.train.sequence_length)
    batches = [
        (torch.randint(run.model.vocab_size, shape, generator=generator), torch.randint(run.model.vocab_size, shape))
        for _ in range(steps)
    ]
    named = list(contenders(run, topology))
    speeds: dict[str, list[float]] = {name: [] for name, _ in named}
    for turn in range(-1, turns):  # turn -1 warms up
        for name, step in named:
            begin = time.perf_counter()
            for batch in batches:
                step(batch)
            if topology.device.type == "cuda":
                torch.cuda.synchronize()
            if turn >= 0:
                speeds[name].append(steps * run.tokens_per_step / (time.perf_counter() - begin))
    return speeds


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark and print a table; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", default="tiny-790k", help="a size of model/sizes.py")
    parser.add_argument("--style", default="gpt2", choices=["gpt2", "modern"], help="blocks of our model")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--compile", action="store_true", help="torch.compile for all contenders")
    parser.add_argument("--batch", type=int, default=16, help="sequences per step")
    parser.add_argument("--sequence", type=int, default=256, help="tokens per sequence")
    parser.add_argument("--vocab", type=int, default=4096, help="tokens in the vocabulary")
    parser.add_argument("--turns", type=int, default=7, help="timed turns")
    parser.add_argument("--steps", type=int, default=5, help="steps per turn")
    options = parser.parse_args(arguments)

    tree: dict[str, Any] = {
        "precision": options.precision,
        "model": {"size": options.size, "style": options.style, "vocab_size": options.vocab},
        "data": {"vocab_size": options.vocab},
        "train": {
            "sequence_length": options.sequence,
            "global_batch": options.batch,
            "micro_batch": options.batch,
            "steps": 1,
            "compile": options.compile,
        },
        "optimizer": {"lr": 3e-4},
        "wandb": {"mode": "disabled"},
    }
    run = build(RunConfig, tree, "command line", expand=expand_run)
    topology = launched_topology(1)
    connect(topology)
    speeds = time_turns(run, topology, options.turns, options.steps)
    disconnect()

    ours = speeds["this trainer"]
    peak = peak_flops()
    print(f"{device_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}; {options.size}", end=" ")
    print(f"{options.style} {options.precision}{' compiled' if options.compile else ''}, B={options.batch}", end=" ")
    print(f"T={options.sequence} V={options.vocab}")
    print(f"{'':24}{'tokens/s':>12}{'FLOP/s':>12}{'MFU':>8}{'ours / it':>12}")
    for name, values in speeds.items():
        speed = statistics.median(values)
        flops = speed * run.flops_per_token
        mfu = f"{flops / peak:.1%}" if peak else "-"
        ratio = statistics.median(a / b for a, b in zip(ours, values, strict=True))
        print(f"{name:24}{speed:12,.0f}{flops:12.3g}{mfu:>8}{ratio:12.3f}")
    return 0 if all(math.isfinite(value) for value in ours) else 1


if __name__ == "__main__":
    sys.exit(main())
