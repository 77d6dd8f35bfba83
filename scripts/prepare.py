"""Prepare a corpus: text -> byte-level BPE tokenizer -> memory-mapped token shards with a manifest.

    python scripts/prepare.py configs/runs/tiny.yaml
    python scripts/prepare.py configs/runs/tiny.yaml --data.source=files --data.files='[books/*.jsonl.xz]'
    python scripts/prepare.py configs/sweeps/quickstart.yaml --data.vocab_size=4096 --print-config

Units: max_bytes and tokenizer_bytes count UTF-8 bytes of text, shard_tokens and vocab_size count tokens. An existing
corpus is found, not prepared again. Of a run file only the data: section is read; of a sweep, the corpora of all its
runs are prepared.
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from configs.cli import Parser, run_command
from configs.keys import merge
from configs.reader import ConfigError, Problem, build, dump_yaml, parse_overrides, read_tree
from data.config import DataConfig
from data.corpus.contamination import warning
from data.corpus.shards import Manifest
from data.corpus.tokenizer import expand_data
from data.loading.mixture import open_mixture
from train.sweep.expand import load_sweep


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = Parser(__doc__, overrides=True)
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a run or sweep YAML with a data: section")
    parser.add_argument("--print-config", action="store_true", help="print the data section as it is used, and stop")
    goes_on = "interrupted; the same command goes on after the last whole shard"
    return run_command(parser, run, arguments, interrupted=goes_on)


def run(options: argparse.Namespace) -> None:
    """Prepare what the configuration names, and print its figures."""
    configs = load_data_configs(options.config, options.overrides)
    if options.print_config:
        for config in configs:
            print(dump_yaml({"data": asdict(config)}), end="")
        return
    corpora = [component.corpus for config in configs for component in open_mixture(config).components]
    for corpus in {corpus.directory: corpus for corpus in corpora}.values():
        print(summary(corpus.directory, corpus.manifest))


def load_data_configs(path: Path, overrides: list[str]) -> list[DataConfig]:
    """Read the `data:` section of a run file, or every different one that the runs of a sweep file have."""
    tree, origin = read_tree(path)
    if "base" in tree:
        return list(dict.fromkeys(run.config.data for run in load_sweep(path, overrides).runs))
    given = parse_overrides(overrides)
    if "data" not in tree | given:
        raise ConfigError([Problem(str(path), "data", "there is no such section; expected 'data:' with its keys")])
    merged = expand_data(merge(tree, given)["data"])
    if not isinstance(merged, dict):
        raise ConfigError([Problem(str(path), "data", f"{merged!r} is not a mapping of keys to values")])
    files = {key.removeprefix("data."): file for key, file in origin.items() if key.startswith("data.")}
    return [build(DataConfig, merged, str(path), files | dict.fromkeys(given.get("data", {}), "command line"))]


def summary(directory: Path, manifest: Manifest) -> str:
    """Return the corpus's main figures, one a line."""
    lines = [f"corpus      {directory}"]
    for name, split in (("train", manifest.train), ("validation", manifest.validation)):
        lines.append(
            f"{name:<11} {split.tokens:>13,} tokens  {split.documents:>9,} documents  "
            f"{split.bytes / 1e6:>10,.2f} MB  {split.bytes / split.tokens:.2f} bytes/token  "
            f"{len(split.shards)} shard{'s' if len(split.shards) > 1 else ''}"
        )
    tokenizer = manifest.tokenizer
    if manifest.language is not None:
        lines.append(f"entropy     {manifest.language.entropy_rate:>13.6f} nats per token, exactly")
        return "\n".join(lines)
    dropped = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in manifest.dropped.items())
    lines += [
        f"vocabulary  {tokenizer.vocab_size:>13,} tokens  ({manifest.dtype}, sha256 {tokenizer.sha256[:12]})",
        f"dropped     {dropped}" + ("; the rest was cut off at max_bytes" if manifest.source["capped"] else ""),
    ]
    found = manifest.contamination
    if found is not None:
        lines.append(
            f"repeated    {found.windows:.1%} of the validation text, in windows of {found.window_tokens} tokens, and "
            f"{found.documents:.1%} of its documents occur in training"
        )
        if doubt := warning(found):
            lines.append(f"warning     {doubt}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
