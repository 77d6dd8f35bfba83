"""Proposed runs as a sweep file that scripts/sweep.py runs: real model shapes with exact counts."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from configs.keys import merge, nest
from configs.reader import ConfigError, Problem, build, dump_yaml, read_tree
from model.config import ModelConfig, expand_model
from model.counts import count_parameters, training_flops_per_token
from model.sizes import SIZES
from scaling.design.optimal_design import Candidates
from scaling.laws import Array
from scaling.tables.compute import Compute

# Keys of a sweep that say which runs there are; all others are kept.
_RUNS = ("axes", "grids", "points", "name", "runs_dir", "base")
_SHAPE = ("size", "n_layer", "d_model", "n_head")


@dataclass(frozen=True)
class Shape:
    """A model that could be trained: its keys in a sweep, its N as the law counts it, its FLOPs per token."""

    keys: dict[str, Any]
    N: int
    flops_per_token: int


@dataclass(frozen=True)
class Setting:
    """An existing sweep, whose data, recipe and directory the proposed runs share."""

    path: Path
    tree: dict[str, Any]
    base: Path
    run: dict[str, Any]  # keys of a run, with those of `base` below

    @property
    def tokens_per_step(self) -> int:
        """Tokens of an optimizer step: D is a multiple of it."""
        train = self.run.get("train", {})
        return int(train["sequence_length"]) * int(train["global_batch_size"])


def read_setting(path: Path) -> Setting:
    """Read a sweep file. Raises ConfigError."""
    tree, origin = read_tree(path)
    for key in ("name", "base"):
        if not isinstance(tree.get(key), str):
            raise ConfigError([Problem(str(path), key, "is missing: this is not a sweep")])
    base = Path(os.path.normpath(Path(origin["base"]).parent / tree["base"]))
    run = merge(read_tree(base)[0], nest(tree.get("run", {})))
    train = run.get("train", {})
    for key in ("sequence_length", "global_batch_size"):
        if not isinstance(train.get(key), int):
            raise ConfigError([Problem(str(base), f"train.{key}", "is missing")])
    return Setting(path, tree, base, run)


def shapes(setting: Setting, n_definition: str = "total") -> list[Shape]:
    """The named sizes and models between them, from narrow to wide, in the style of the sweep's runs."""
    named: list[dict[str, Any]] = [{"size": name} for name in SIZES]
    widths = np.array(sorted({s.d_model for s in SIZES.values()}))
    depths = np.array([np.mean([s.n_layer for s in SIZES.values() if s.d_model == w]) for w in widths])
    between: list[dict[str, Any]] = []
    for d_model in [*range(8, 64, 8), *range(64, 512, 32), *range(512, 2048, 128), *range(2048, 8192, 512)]:
        if d_model not in widths:
            n_layer = max(1, round(float(np.interp(np.log(d_model), np.log(widths), depths))))
            # Heads of 64 where that divides the width, else of 32, 16 or 8.
            n_head = next(d_model // width for width in (64, 32, 16, 8) if d_model % width == 0)
            between.append({"size": None, "n_layer": n_layer, "d_model": d_model, "n_head": n_head})
    made = (_shape(setting, keys, n_definition) for keys in [*named, *between])
    return sorted((s for s in made if s), key=lambda s: s.N)


def _shape(setting: Setting, keys: dict[str, Any], n_definition: str) -> Shape | None:
    """A shape with the vocabulary and context of the sweep's runs, or None where it cannot be built with them."""
    common = {k: v for k, v in setting.run.get("model", {}).items() if k not in _SHAPE}
    vocabulary = setting.run.get("data", {}).get("vocab_size")
    if isinstance(vocabulary, int):
        common.setdefault("vocab_size", vocabulary)
    length = setting.run["train"]["sequence_length"]
    size = SIZES.get(keys.get("size") or "")
    if size and size.vocab_size and size.vocab_size != common.get("vocab_size", size.vocab_size):
        return None
    common.setdefault("context_length", length)
    try:
        model = build(ModelConfig, expand_model(merge(common, keys)), str(setting.path))
    except ConfigError:
        return None
    counts = count_parameters(model)
    N = {"total": counts.total, "non-embedding": counts.non_embedding, "with-head": counts.with_head}[n_definition]
    return Shape(keys, N, training_flops_per_token(model, length))


def _spelled(keys: dict[str, Any]) -> dict[str, Any]:
    """A shape by its numbers, whether or not it has a name."""
    size = SIZES.get(keys.get("size") or "")
    numbers = {k: getattr(size, k) for k in _SHAPE[1:]} if size else keys
    return {**numbers, "size": None}


def candidates(
    setting: Setting, found: Sequence[Shape], compute: Compute, D_range: tuple[float, float], budget: float
) -> Candidates:
    """Every shape at every doubling of tokens in ``D_range``, within ``budget`` FLOPs. ``columns`` has its index.

    What a run costs is counted exactly; its C is that of the law where ``compute`` is 6ND.
    """
    tokens = np.exp2(np.arange(np.log2(D_range[0]), np.log2(D_range[1]) + 1e-9, 0.5))
    step = setting.tokens_per_step
    tokens = np.unique(np.maximum(1, np.round(tokens / step))) * step
    index, D = np.repeat(np.arange(len(found)), len(tokens)), np.tile(tokens, len(found))
    N = np.array([s.N for s in found], dtype=float)[index]
    flops: Array = np.array([s.flops_per_token for s in found], dtype=float)[index] * D
    kept = flops <= budget
    C: Array = flops if compute.definition == "exact" else compute.flops(N, D)
    columns = {"N": N, "D": D, "U": D, "C": C, "shape": index}
    return Candidates({k: v[kept] for k, v in columns.items()}, flops[kept])


def sweep_yaml(setting: Setting, found: Sequence[Shape], runs: Candidates, path: Path, comment: str) -> str:
    """A sweep file for ``path`` whose points are ``runs``, and which shares the rest with the setting's.

    The runs land in the directory of the existing sweep, so that the next fit sees them.
    """
    kept = {k: v for k, v in setting.tree.items() if k not in _RUNS}
    # Shape keys that the runs below state would win over a named size.
    spelled = any(k in setting.run.get("model", {}) for k in _SHAPE[1:])
    keys = [_spelled(shape.keys) if spelled else shape.keys for shape in found]
    pairs = zip(runs.columns["shape"], runs.columns["D"], strict=True)
    points = [{"model": dict(keys[int(shape)]), "train.tokens": int(D)} for shape, D in pairs]
    tree = {
        "name": f"{setting.tree['name']}-next",
        "base": os.path.relpath(setting.base, path.parent),
        "runs_dir": setting.tree.get("runs_dir") or f"runs/{setting.tree['name']}",
        **kept,
        "points": points,
    }
    lines = "".join(f"# {line}\n" for line in comment.splitlines())
    return lines + dump_yaml(tree)
