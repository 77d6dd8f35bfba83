"""How far the best learning rate moves while models grow, and what it costs to keep that of the smallest.

The question is that of Yang et al. 2022 (arXiv 2203.03466), figure 1, and Dey et al. 2025 (arXiv 2505.01618), figure 1.
Losses are in nats per token.
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scaling.errors import TableError
from scaling.laws import Array
from scaling.tables.runs import read_records

SIZES = {"d_model": "width", "n_layer": "blocks"}
"""Field of a record that sizes may differ in, and its name in the picture."""
_ORDER = ("standard", "mup", "completep")


@dataclass(frozen=True)
class Scan:
    """Models of one size, trained at several learning rates."""

    parametrization: str
    size: int
    lr: Array
    """Learning rates (n,), ascending."""
    loss: Array
    """Losses (n,), means over seeds."""

    @property
    def best(self) -> int:
        """Index of the lowest loss."""
        return int(np.argmin(self.loss))

    @property
    def at_edge(self) -> bool:
        """Whether the best learning rate is the smallest or the largest that was tried."""
        return self.best in (0, len(self.lr) - 1)

    @property
    def optimum(self) -> float:
        """Learning rate at the lowest point of the parabola through the best and its neighbours, over log lr."""
        if self.at_edge:
            return float(self.lr[self.best])
        near = slice(self.best - 1, self.best + 2)
        a, b, _ = np.polyfit(np.log(self.lr[near]), self.loss[near], 2)
        return float(np.exp(-b / (2 * a)))


@dataclass(frozen=True)
class Transfer:
    """What happened to the best learning rate of one parametrization between its smallest and its largest model."""

    parametrization: str
    smallest: Scan
    largest: Scan
    doublings: float
    """log2 of the largest model's best learning rate on the grid over the smallest one's."""
    doublings_of_optimum: float
    """The same of the parabolas' lowest points."""
    penalty: float | None
    """Loss of the largest model at the smallest one's best learning rate, above its own best; None: not trained."""


def read_scans(runs_dir: Path, size: str = "d_model") -> list[Scan]:
    """Read */record.json into one scan for each parametrization and `size` (a key of `SIZES`), in order.

    Raises TableError when there is nothing to compare, or when the runs differ in something else.
    """
    losses: dict[tuple[str, int], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    others = set()
    for path, record in read_records(runs_dir).items():
        shape = {key: getattr(record.size, key) for key in SIZES}
        lr, corpus = record.recipe.lr, record.identity.corpus
        if lr is None or corpus is None or None in shape.values():
            raise TableError(f"{path}: a transfer needs all of lr, corpus, {', '.join(SIZES)}")
        losses[record.size.parametrization or "standard", shape.pop(size)][lr].append(record.result.val_loss)
        others.add((record.tokens.D, corpus, *shape.values()))
    if len(others) > 1:
        rest = " and ".join(key for key in SIZES if key != size)
        raise TableError(f"{runs_dir}: the runs differ in tokens, corpus or {rest} too; a transfer varies {size} alone")
    scans = []
    for (parametrization, value), found in sorted(losses.items(), key=lambda item: (_ORDER.index(item[0][0]), item[0])):
        rates, means = np.array([(rate, np.mean(seeds)) for rate, seeds in sorted(found.items())]).T
        scans.append(Scan(parametrization, value, rates, means))
    return scans


def transfers(scans: list[Scan]) -> list[Transfer]:
    """Compare the smallest with the largest model of each parametrization. Raises TableError for one of one size."""
    found = []
    for name in dict.fromkeys(scan.parametrization for scan in scans):
        alike = sorted((scan for scan in scans if scan.parametrization == name), key=lambda scan: scan.size)
        small, large = alike[0], alike[-1]
        if small is large:
            raise TableError(f"{name}: one size alone; a transfer needs two")
        kept = large.loss[large.lr == small.lr[small.best]]
        doublings = float(np.log2(large.lr[large.best] / small.lr[small.best]))
        penalty = float(kept[0] - large.loss[large.best]) if len(kept) else None
        found.append(Transfer(name, small, large, doublings, float(np.log2(large.optimum / small.optimum)), penalty))
    return found
