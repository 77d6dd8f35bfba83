"""Measure the data pipeline against what bounds it, in one run on one machine.

- Preparing: megabytes of text a second, from reading to shards on disk, over the bare `tokenizers` library on the
  same text in memory (a pipeline that adds nothing scores 1).
- Sampling: tokens a second that `batch` delivers, over those that the smallest model of the ladders trains on in a
  bare loop, which nothing on this machine outruns (a pipeline that is never waited for scores far above 1).
- Generating: tokens a second of the lexicon of known entropy (data/corpus/grammar.py), over reading tokens from shards.

    python scripts/bench/bench_data.py --megabytes 16 --vocab-size 4096
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from timeit import timeit

import torch
from rich.table import Table

from configs.cli import Parser, make_console, make_table, run_command
from configs.reader import build
from data.config import DataConfig, GrammarConfig
from data.corpus.documents import Tally, documents
from data.corpus.duplicates import duplicates_of
from data.corpus.grammar import STRINGS_PER_BLOCK, make_grammar, token_blocks
from data.corpus.prepare import prepare
from data.corpus.shards import TOKENIZER, Corpus, open_corpus
from data.corpus.sources import open_source
from data.corpus.tokenizer import load, train
from data.loading.batches import batch
from model.config import ModelConfig, expand_model
from model.init import initialise
from model.transformer import GPT

SMALLEST, BATCH, SEQUENCE = "tiny-1k", 16, 256
SAMPLED_STEPS, TRAINED_STEPS = 300, 4
GENERATED = 300 * STRINGS_PER_BLOCK  # tokens


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark and print its table; return the exit status."""
    parser = Parser(__doc__)
    parser.add_argument("--megabytes", type=float, default=16, help="text of pysource to prepare, MB (default 16)")
    parser.add_argument("--vocab-size", type=int, default=1024, help="tokens in the vocabulary (default 1024)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds; the best time counts (default 3)")
    return run_command(parser, run, arguments)


def run(options: argparse.Namespace) -> None:
    """Measure in a directory of its own, and print."""
    with tempfile.TemporaryDirectory() as directory:
        config = DataConfig(max_bytes=int(options.megabytes * 1e6), vocab_size=options.vocab_size, directory=directory)
        make_console().print(measure(config, options.repeats))


def measure(config: DataConfig, repeats: int) -> Table:
    """Return the table of figures for one configuration; every time is the best of `repeats`, taken in turn."""
    source = open_source(config)
    texts = [d.text for d in documents(source.texts(), source.max_bytes, duplicates_of(config), Tally())]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    first = prepare(config, progress=False)  # trains the tokenizer too, which the others are given
    tokenizer, corpus = load(first / TOKENIZER), open_corpus(first)

    def prepare_again() -> None:
        directory = f"{config.directory}/{next(prepared)}"
        prepare(replace(config, tokenizer=str(first / TOKENIZER), directory=directory), progress=False)

    training_text = texts[: max(1, len(texts) * config.tokenizer_bytes // int(megabytes * 1e6))]
    grammar = make_grammar(GrammarConfig(), vocab_size=64)
    prepared = iter(range(repeats))
    works: dict[str, Callable[[], object]] = {
        "prepare": prepare_again,
        "encode": lambda: tokenizer.backend.encode_batch_fast(texts, add_special_tokens=False),
        "train": lambda: train(training_text, config.vocab_size),
        "sample": lambda: sample(corpus, SAMPLED_STEPS),
        "step": trainer(corpus),
        "generate": lambda: sum(1 for _ in token_blocks(grammar, "train", GENERATED)),
    }
    rounds = [{name: timeit(work, number=1) for name, work in works.items()} for _ in range(repeats)]
    taken = {name: min(seconds[name] for seconds in rounds) for name in works}
    sampling = SAMPLED_STEPS * BATCH * SEQUENCE / taken["sample"]
    training = TRAINED_STEPS * BATCH * SEQUENCE / taken["step"]
    generating = GENERATED / taken["generate"]

    title = f"data pipeline: {megabytes:.1f} MB of text, vocabulary {config.vocab_size:,}"
    table = make_table(title, "what", "#speed", "against", "#speed", "#ratio")
    bare = ("tokenizers encode_batch_fast", f"{megabytes / taken['encode']:.2f} MB/s")
    whole = taken["prepare"] + taken["train"]
    for name, time_taken in (("prepare", taken["prepare"]), ("prepare + train tokenizer", whole)):
        table.add_row(name, f"{megabytes / time_taken:.2f} MB/s", *bare, f"{taken['encode'] / time_taken:.2f}")
    sampled, trained = f"{sampling / 1e6:.1f} M tokens/s", f"{training / 1e6:.3f} M tokens/s"
    table.add_row("batch", sampled, f"{SMALLEST} in a bare loop", trained, f"{sampling / training:,.0f}")
    generated = f"{generating / 1e6:.1f} M tokens/s"
    table.add_row("generate", generated, "batch", sampled, f"{generating / sampling:.2f}")
    return table


def sample(corpus: Corpus, steps: int) -> None:
    """Draw the batches of `steps` steps."""
    for step in range(steps):
        batch(corpus, 0, step, BATCH, SEQUENCE)


def trainer(corpus: Corpus) -> Callable[[], None]:
    """Return a function that trains the smallest model for `TRAINED_STEPS` steps."""
    shape = {"size": SMALLEST, "vocab_size": corpus.vocab_size, "context_length": SEQUENCE}
    config = build(ModelConfig, expand_model(shape), "bench_data.py")
    model = GPT(config)
    initialise(model.named_parameters(), config, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    drawn = [torch.from_numpy(batch(corpus, 0, step, BATCH, SEQUENCE)) for step in range(TRAINED_STEPS)]

    def run() -> None:
        for tokens in drawn:
            model(tokens[:, :-1], tokens[:, 1:]).backward()
            optimizer.step()
            optimizer.zero_grad()

    return run


if __name__ == "__main__":
    sys.exit(main())
