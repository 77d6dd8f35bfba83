"""The validation loss: of each component's fixed tokens, and of the mixture that the run trains on.

Its standard error is that of a mean over windows, which are taken as independent samples of the text; the tokens of
one are not (clustered standard errors: Miller 2024, arXiv:2411.00640). It is made of each window's own loss, and so the
same on every topology and with every size of micro-batch, to the order of sums.
"""

import math
from dataclasses import dataclass
from typing import Any

from data.loading.batches import Windows, target_bytes, validation_windows
from data.loading.mixture import Mixture
from train.config import TrainConfig
from train.distributed.topology import Topology
from train.engine.engine import evaluate
from train.engine.micro_batches import validation_batches


@dataclass(frozen=True)
class Losses:
    """Losses in nats per token: `mean` over the mixture by its weights, and of every component by name."""

    mean: float
    stderr: float | None
    """Standard error of `mean` over validation windows; None where a component has a single one."""
    by_component: dict[str, float]


class Validation:
    """The validation windows of every component of a run, and this replica's batches of them."""

    def __init__(self, mixture: Mixture, tokens: int, train: TrainConfig, topology: Topology) -> None:
        """Read at most `tokens` tokens of each component, in windows and micro-batches as for training."""
        self.weights = {component.name: component.weight for component in mixture.components}
        self.windows: dict[str, Windows] = {}
        self.bytes_per_token: dict[str, float] = {}
        self._topology, size = topology, train.micro_batch_size
        for name, corpus in ((component.name, component.corpus) for component in mixture.components):
            windows = validation_windows(corpus, train.sequence_length, tokens)
            self.windows[name] = windows
            self.bytes_per_token[name] = target_bytes(corpus, windows) / (len(windows) * windows.sequence_length)
        self._batches = {name: validation_batches(windows, size, topology) for name, windows in self.windows.items()}

    @property
    def tokens(self) -> int:
        """Targets over all components."""
        return sum(len(windows) * windows.sequence_length for windows in self.windows.values())

    def mean(self, by_component: dict[str, float]) -> float:
        """Return the mean over the tokens of the mixture of what is known per token of each component."""
        return sum(self.weights[name] * value for name, value in by_component.items())

    def measure(self, engine: Any) -> Losses:
        """Evaluate the model. All processes must ask together."""
        losses, variance = {}, 0.0
        for name, batches in self._batches.items():
            total, squares = evaluate(engine, batches, self._topology)
            losses[name], variance_of_mean = mean_and_variance(len(self.windows[name]), total, squares)
            if self.weights[name]:  # of a component that is validated on alone, not even a NaN counts
                variance += self.weights[name] ** 2 * variance_of_mean
        return Losses(self.mean(losses), math.sqrt(variance) if math.isfinite(variance) else None, losses)


def mean_and_variance(n: int, total: float, squares: float) -> tuple[float, float]:
    """Return the mean of `n` numbers and the variance of that mean, by their sum and that of their squares.

    A single number has a variance of NaN.
    """
    mean = total / n
    return mean, max(0.0, squares / n - mean**2) / (n - 1) if n > 1 else math.nan
