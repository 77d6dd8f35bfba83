"""Score the spike guard against published rules, on synthetic loss curves and on recorded ones.

    OMP_NUM_THREADS=1 python scripts/bench/bench_spikes.py                         # 48 curves of seeds nobody tuned on
    OMP_NUM_THREADS=1 python scripts/bench/bench_spikes.py runs/*/*/metrics.jsonl  # these recorded curves too

A curve is a power law with a warmup and a cooldown and heavy-tailed noise whose scale drifts. Half the curves hold
four spikes and six harmless outliers of one step each, half are clean. Thresholds were chosen on curves of seeds below
1,000 (`--tune`); the scores are of curves of seeds from 20,000.

A rule's alarms less than 50 steps apart are one alarm for recall and precision. Precision counts alarms on harmless
outliers as false. False alarms are steps with an alarm outside every spike and outlier. Delay is from the first
changed step to the first alarm. A recorded curve is taken as clean: give only runs that trained well. Spikes are also
laid over the recorded curves, whose noise nobody chose.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.table import Table as Grid

from configs.cli import Parser, make_console, run_command
from configs.metrics_rows import read_rows
from train.config import SpikeConfig
from train.stability.spike_detector import Kind, SpikeState, detect_spike

Array = NDArray[np.float64]
TUNING_SEEDS, TEST_SEEDS = 0, 20_000
SAME_ALARM = 50
"""Steps between alarms that belong together, and after the end of a spike in which an alarm still counts for it."""


@dataclass(frozen=True)
class RecordedCurve:
    """Loss (nats per token) and gradient norm of each step, with what was done to them."""

    loss: Array
    grad_norm: Array
    spikes: list[tuple[str, int, int]] = field(default_factory=list)
    """(kind, first changed step, last changed step)."""
    outliers: list[int] = field(default_factory=list)
    """Steps made harmless outliers."""


def healthy(seed: int, steps: int = 3000) -> RecordedCurve:
    """A curve without spikes: power law, warmup, cooldown, student-t noise of drifting scale."""
    rng = np.random.default_rng(seed)
    t = np.arange(steps)
    floor, rise, exponent = rng.uniform(1.5, 3.0), rng.uniform(4, 8), rng.uniform(0.2, 0.5)
    warmup = steps * rng.uniform(0.01, 0.05)
    progress = np.where(t < warmup, t**2 / (2 * warmup), t - warmup / 2)  # the integral of the learning rate
    cooldown = np.clip((t / steps - 0.8) / 0.2, 0, 1)
    level = floor + rise * (1 + progress / rng.uniform(5, 20)) ** -exponent
    level *= 1 - rng.uniform(0.01, 0.05) * cooldown
    drift = np.exp(_walk(rng, steps, rng.uniform(0.2, 0.5)))
    noise = np.exp(rng.uniform(np.log(0.003), np.log(0.03))) * drift * _student(rng, steps)
    norm_noise = rng.uniform(0.05, 0.2) * drift * _student(rng, steps)
    together = rng.uniform(0, 0.5)
    log_norm = np.log(rng.uniform(0.2, 2)) + 1.5 * np.exp(-progress / 100) + 0.2 * t / steps + _walk(rng, steps, 0.1)
    spread = noise.std() or 1.0
    log_norm += np.sqrt(1 - together**2) * norm_noise + together * noise / spread * norm_noise.std()
    return RecordedCurve(level * (1 + noise), np.exp(log_norm))


def _student(rng: np.random.Generator, steps: int) -> Array:
    """Unit-variance student-t noise, cut at 8 where no batch's mean loss goes."""
    freedom = rng.uniform(3, 10)
    return np.clip(rng.standard_t(freedom, steps) / np.sqrt(freedom / (freedom - 2)), -8, 8)


def _walk(rng: np.random.Generator, steps: int, size: float) -> Array:
    """A slow random walk that ends about `size` from where it began."""
    return np.cumsum(rng.normal(0, size / np.sqrt(steps), steps))


def spiked(base: RecordedCurve, seed: int) -> RecordedCurve:
    """Lay one spike of each kind and some harmless outliers over a curve."""
    rng = np.random.default_rng(seed + 500_000)
    steps = len(base.loss)
    loss, log_norm = base.loss.copy(), np.log(base.grad_norm)
    places = np.linspace(0.1, 0.95, len(SPIKES) + 1)[:-1] * steps
    spikes = []
    for place, kind in zip(places, rng.permutation(list(SPIKES)), strict=True):
        start = int(place + rng.uniform(0, 0.05 * steps))
        factor, log_factor = SPIKES[kind](rng)
        stop = min(start + len(factor), steps)
        loss[start:stop] *= factor[: stop - start]
        log_norm[start:stop] += log_factor[: stop - start]
        spikes.append((str(kind), start, stop - 1))
    outliers: list[int] = []
    while len(outliers) < 6:
        step = int(rng.integers(100, steps - 10))
        if all(abs(step - o) > 20 for o in outliers) and not any(a - 20 <= step <= b + 120 for _, a, b in spikes):
            outliers.append(step)
            loss[step] *= 1 + rng.uniform(0.1, 1.0)
            log_norm[step] += np.log(rng.uniform(1, 10))
    return RecordedCurve(loss, np.exp(log_norm), spikes, outliers)


Shape = tuple[Array, Array]
"""What a spike multiplies the loss by, and adds to the logarithm of the gradient norm, from its first step on."""


def sharp(rng: np.random.Generator) -> Shape:
    """Up within three steps, down again over tens of steps."""
    up = np.linspace(0, 1, int(rng.integers(1, 4)) + 1)[1:]
    down = np.exp(-np.arange(200) / rng.uniform(10, 60))
    shape = np.concatenate([up, down])
    return 1 + rng.uniform(0.2, 1.5) * shape, np.log(rng.uniform(4, 50)) * shape


def slow(rng: np.random.Generator) -> Shape:
    """Up over tens of steps, with little to be seen in the gradient, and as slowly down."""
    up = np.linspace(0, 1, int(rng.integers(20, 80)))
    shape = np.concatenate([up, np.ones(50), np.exp(-np.arange(150) / rng.uniform(30, 60))])
    return 1 + rng.uniform(0.2, 0.6) * shape, np.log(rng.uniform(1.2, 4)) * shape


def gradient_first(rng: np.random.Generator) -> Shape:
    """The gradient grows severalfold each step, the loss follows: BLOOM-176B's iterations 31214 to 31250."""
    lead = int(rng.integers(2, 6))
    grown = np.arange(1, lead + 1) * np.log(rng.uniform(2.5, 6))
    down = np.exp(-np.arange(40) / rng.uniform(8, 15))
    height = rng.uniform(0.3, 1.3)
    return 1 + height * np.concatenate([np.zeros(lead), down]), np.concatenate([grown, grown[-1] * down])


def plateau(rng: np.random.Generator) -> Shape:
    """Up within 20 steps, and it stays there."""
    shape = np.concatenate([np.linspace(0, 1, int(rng.integers(2, 20))), np.ones(250)])
    return 1 + rng.uniform(0.15, 0.5) * shape, np.log(rng.uniform(1.0, 3)) * shape


SPIKES = {"sharp": sharp, "slow": slow, "gradient first": gradient_first, "plateau": plateau}


def recorded(path: Path) -> RecordedCurve | None:
    """The rows of a metrics.jsonl, or None where there are too few."""
    rows = read_rows(path)
    pairs = [(row["loss"], row["grad_norm"]) for row in rows if row.get("loss") and row.get("grad_norm")]
    return RecordedCurve(*np.array(pairs, dtype=np.float64).T) if len(pairs) >= 256 else None


Rule = Callable[[RecordedCurve], NDArray[np.bool_]]
"""Whether each step of a curve raises an alarm; a step is judged by it and those before it."""


def ours(curve: RecordedCurve) -> NDArray[np.bool_]:
    """`train.stability.spike_detector`: the steps at which a spike is recognised or acted upon."""
    state, settings = SpikeState(), SpikeConfig(max_rollbacks=10**9)  # a recorded curve cannot be rolled back
    alarms = np.zeros(len(curve.loss), dtype=bool)
    for step, (loss, norm) in enumerate(zip(curve.loss.tolist(), curve.grad_norm.tolist(), strict=True)):
        state, verdict = detect_spike(state, step, loss, norm, settings)
        alarms[step] = verdict.kind in (Kind.SOFT, Kind.ROLLBACK)
    return alarms


def olmo_core(curve: RecordedCurve) -> NDArray[np.bool_]:
    """OLMo-core `SkipStepOptimizer`: loss or norm above mean + 6 sigma of the 128 steps before; from 64 steps on."""
    return _above(curve.loss, 128, 63, 6) | _above(curve.grad_norm, 128, 63, 6)


def olmo_2(curve: RecordedCurve) -> NDArray[np.bool_]:
    """OLMo 2 (arXiv 2501.00656) spike score: values at least 7 sigma from the mean of the last 1,000.

    The paper does not say what the first values are compared with; here it is those there are, from 64 on.
    """
    return np.any([_above(values, 1000, 64, 7) for values in (curve.loss, -curve.loss, curve.grad_norm)], axis=0)


def llm_foundry(curve: RecordedCurve) -> NDArray[np.bool_]:
    """LLM Foundry `KillLossSpike`: loss at least twice the mean of the window, five in a row."""
    loss, window = curve.loss, max(100, round(len(curve.loss) * 0.05))
    high = [step >= window and loss[step] >= 2 * loss[step - window : step].mean() for step in range(len(loss))]
    return np.convolve(high, np.ones(5))[: len(high)] >= 5


def zclip(curve: RecordedCurve) -> NDArray[np.bool_]:
    """ZClip (arXiv 2504.02507): norm above the moving average (0.97) by z > 2.5; the average takes the clipped norm.

    It clips and does not mean to detect: an alarm here is a clipped step.
    """
    norms, warmup = curve.grad_norm, 25
    alarms = np.zeros(len(norms), dtype=bool)
    mean, variance = norms[:warmup].mean(), norms[:warmup].var()
    for step in range(warmup, len(norms)):
        sigma = np.sqrt(variance)
        z = (norms[step] - mean) / (sigma + 1e-6)
        alarms[step] = z > 2.5
        taken = mean + 2.5 * sigma / (z / 2.5) if alarms[step] else norms[step]
        mean = 0.97 * mean + 0.03 * taken
        variance = 0.97 * variance + 0.03 * (taken - mean) ** 2
    return alarms


def _above(values: Array, window: int, least: int, sigmas: float) -> NDArray[np.bool_]:
    """Whether a value lies `sigmas` above the mean of up to `window` before it, where there are at least `least`."""
    found = np.zeros(len(values), dtype=bool)
    for step in range(least, len(values)):
        before = values[max(0, step - window) : step]
        found[step] = values[step] - before.mean() > sigmas * before.std(ddof=1)
    return found


RULES: dict[str, Rule] = {
    "this spike guard": ours,
    "OLMo-core, 6 sigma of 128": olmo_core,
    "OLMo 2 spike score, 7 sigma of 1,000": olmo_2,
    "LLM Foundry, 2x the mean, 5 in a row": llm_foundry,
    "ZClip, z > 2.5": zclip,
}


@dataclass
class DetectorScore:
    """Counts over curves."""

    delays: list[int] = field(default_factory=list)
    """Steps from the first changed step of a spike to the first alarm, of each spike found."""
    missed: Counter[str] = field(default_factory=Counter)
    """Of each kind of spike."""
    alarms: int = 0
    """Groups of alarms."""
    false_groups: int = 0
    outliers: int = 0
    outlier_alarms: int = 0
    clean_steps: int = 0
    false_steps: int = 0

    @property
    def spikes(self) -> int:
        """Found or missed."""
        return len(self.delays) + self.missed.total()

    @property
    def recall(self) -> float:
        """Spikes found / spikes."""
        return len(self.delays) / self.spikes if self.spikes else float("nan")

    @property
    def precision(self) -> float:
        """Alarms that belong to a spike / alarms."""
        return 1 - self.false_groups / self.alarms if self.alarms else float("nan")

    @property
    def false_per_10k(self) -> float:
        """Steps with an alarm per 10,000 steps that nothing was done to."""
        return 1e4 * self.false_steps / max(1, self.clean_steps)


def score(rule: Rule, curves: list[RecordedCurve]) -> DetectorScore:
    """Count what a rule finds, misses and imagines on curves."""
    total = DetectorScore()
    for curve in curves:
        alarms = rule(curve)
        spike = np.zeros(len(alarms), dtype=bool)
        for kind, first, last in curve.spikes:
            spike[first : last + SAME_ALARM + 1] = True
            at = np.flatnonzero(alarms[first : last + 1])
            total.delays += at[:1].tolist()
            total.missed[kind] += len(at) == 0
        touched = spike.copy()
        for step in curve.outliers:
            total.outliers += 1
            total.outlier_alarms += bool(alarms[step : step + 5].any())
            touched[step : step + 5] = True
        steps = np.flatnonzero(alarms)
        groups = np.split(steps, np.flatnonzero(np.diff(steps) >= SAME_ALARM) + 1) if len(steps) else []
        total.alarms += len(groups)
        total.false_groups += sum(not spike[group].any() for group in groups)
        total.clean_steps += int((~touched).sum())
        total.false_steps += int((alarms & ~touched).sum())
    return total


def curves_of(first_seed: int, count: int) -> list[RecordedCurve]:
    """`count` synthetic curves, alternately spiked and clean."""
    return [spiked(healthy(s), s) if s % 2 == 0 else healthy(s) for s in range(first_seed, first_seed + count)]


def table(title: str, curves: list[RecordedCurve]) -> Grid:
    """Score every rule."""
    headings = ("rule", "recall", "precision", "false / 10k", "on outliers", "delay (median, 90 %)", "missed")
    grid = Grid(*headings, title=title)
    for name, rule in RULES.items():
        found = score(rule, curves)
        middle, long = np.percentile(found.delays or np.nan, [50, 90])
        rates = f"{found.recall:.2f}", f"{found.precision:.2f}", f"{found.false_per_10k:.2f}"
        outliers = f"{found.outlier_alarms} of {found.outliers}"
        missed = ", ".join(f"{count} {kind}" for kind, count in sorted(found.missed.items()) if count)
        grid.add_row(name, *rates, outliers, f"{middle:.0f}, {long:.0f}", missed)
    return grid


def main(words: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit status."""
    parser = Parser(__doc__)
    parser.add_argument("metrics", nargs="*", type=Path, help="recorded curves (default: runs/*/*/metrics.jsonl)")
    parser.add_argument("--curves", type=int, default=48, help="synthetic curves, half of them spiked (default: 48)")
    parser.add_argument("--tune", action="store_true", help="score the curves that thresholds may be chosen on")
    return run_command(parser, run, words)


def run(args: argparse.Namespace) -> None:
    """Score every rule on every set of curves, and print the tables."""
    seed = TUNING_SEEDS if args.tune else TEST_SEEDS
    synthetic = curves_of(seed, args.curves)
    real = [c for c in map(recorded, args.metrics or sorted(Path().glob("runs/*/*/metrics.jsonl"))) if c is not None]
    laid = [spiked(curve, seed + k) for k, curve in enumerate(real) if len(curve.loss) >= 2000]
    for title, curves in (
        (f"{args.curves} synthetic curves of seeds from {seed:,}, {{:,}} steps", synthetic),
        (f"{len(real)} recorded curves, {{:,}} rows, as they are", real),
        (f"{len(laid)} recorded curves of at least 2,000 rows with spikes laid over them", laid),
    ):
        if curves:
            make_console(150).print(table(title.format(sum(len(curve.loss) for curve in curves)), curves))


if __name__ == "__main__":
    sys.exit(main())
