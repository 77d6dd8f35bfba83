"""Learning rate, batch, warmup and weight decay that follow from the size of a run: published rules with their sources.

A sweep names them in its `rules` section. Each is a power law that was fitted to tuned models of the sizes in `fitted`;
far from those it is a guess, and the plan says so. Under muP and CompleteP (`model/parametrization.py`) the learning
rate needs no such rule.
"""

import difflib
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

import pydantic

from configs.reader import ConfigError, Count, Positive, Problem, config
from model.config import ModelConfig
from model.counts import count_parameters
from train.config import RunConfig

Range = tuple[float, float]


@dataclass(frozen=True)
class RuleInputs:
    """What the rules depend on."""

    N: float
    """Parameters without embeddings and output projection."""
    D: float
    """Training tokens."""
    C: float
    """Training FLOPs without embeddings and output projection: (6 N + 12 n_layer d_model T) D."""


@dataclass(frozen=True)
class HparamRule:
    """One rule for one quantity."""

    formula: str
    source: str
    value: Callable[[RuleInputs], float]
    fitted: Mapping[str, Range]
    """Fields of `RuleInputs` and the range that the rule was fitted over."""


_DEEPSEEK = "DeepSeek: Bi et al. 2024, arXiv 2401.02954, equation 1"
_DEEPSEEK_FITTED = {"C": (1e17, 2e19)}
_STEP_LAW = "Step Law: Li et al. 2025, arXiv 2503.04715"
_STEP_LAW_FITTED = {"N": (6e7, 1.1e9), "D": (2e9, 1e11)}

LR = {
    "deepseek": HparamRule("0.3118 C^-0.1250", _DEEPSEEK, lambda s: 0.3118 * s.C**-0.125, _DEEPSEEK_FITTED),
    "step_law": HparamRule(
        "1.79 N^-0.713 D^0.307", _STEP_LAW, lambda s: 1.79 * s.N**-0.713 * s.D**0.307, _STEP_LAW_FITTED
    ),
}
"""Peak learning rate."""
BATCH = {
    "deepseek": HparamRule("0.2920 C^0.3271 tokens", _DEEPSEEK, lambda s: 0.292 * s.C**0.3271, _DEEPSEEK_FITTED),
    "step_law": HparamRule("0.58 D^0.571 tokens", _STEP_LAW, lambda s: 0.58 * s.D**0.571, _STEP_LAW_FITTED),
}
"""Tokens per optimizer step."""
WARMUP = {
    "porian": HparamRule(
        "N tokens", "Porian et al. 2024, arXiv 2406.19146, section 3", lambda s: s.N, {"N": (5e6, 9e8)}
    ),
}
"""Length of the linear warmup in tokens."""


@config
class LrRule:
    """Peak learning rate by width: lr = reference * (model.d_model / d_model)^power."""

    reference: Positive
    """Peak learning rate at the reference width."""
    d_model: Count
    """The reference width."""
    power: Annotated[float, pydantic.Field(ge=-10, le=10)]
    """How the rate changes with width; -1 is Adam's in muP (Yang et al. 2022, arXiv 2203.03466), 0 keeps it."""

    def at(self, d_model: int) -> float:
        """Return the rate at a width, to six digits, so that it prints as it is used."""
        return float(f"{self.reference * (d_model / self.d_model) ** self.power:.6g}")


@config
class RulesConfig:
    """What follows from the size of each run, and by which rule. A key of an axis, a point or the command line wins."""

    lr: str | None = None
    """`optimizer.lr`: a rule of `LR`."""
    batch: str | None = None
    """`train.global_batch_size`, to the nearest multiple of the micro-batches of all devices: a rule of `BATCH`."""
    warmup: str | None = None
    """`schedule.warmup_steps`, at most half of the run: a rule of `WARMUP`, or `untuned`, which is 2 / (1 - beta2)."""
    timescale: Positive | None = None
    """`optimizer.weight_decay` = 1 / (lr x steps x this): AdamW forgets over this fraction of a run, whatever its
    length, batch and learning rate (Wang & Aitchison 2024, arXiv 2405.13698)."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (key, message) for every rule that is in no table: an entry there is all that a new one needs."""
        for key, known in (("lr", [*LR]), ("batch", [*BATCH]), ("warmup", [*WARMUP, "untuned"])):
            if (name := getattr(self, key)) is not None and name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
                yield key, f"\"{name}\" is not one of {', '.join(known)}; nearest is '{near}'"


@dataclass(frozen=True)
class Derived:
    """One value that a rule gave."""

    key: str
    """The key of the run."""
    value: float
    formula: str
    source: str
    beyond: float
    """Orders of magnitude between the run and what the rule was fitted to."""
    outside: str
    """The same in words; empty inside."""


def size_of(run: RunConfig) -> RuleInputs:
    """Return what the rules depend on."""
    N = count_parameters(run.model).non_embedding
    attention = 12 * run.model.n_layer * run.model.d_model * run.train.sequence_length
    D = run.train.tokens or run.tokens
    return RuleInputs(N, D, (6 * N + attention) * D)


def follow(
    run: RunConfig, rules: RulesConfig, data_parallel: int, stated: Collection[str], multiple: Any = 1
) -> tuple[RunConfig, list[Derived]]:
    """Put into a run what the rules give for its size; return it with what they gave, in order.

    Args:
        run: the run, with whatever values its file has.
        rules: the rules.
        data_parallel: its replicas.
        stated: keys that are stated for this run, and win.
        multiple: multiplies the learning rate in the end.

    Raises:
        ConfigError: for a batch that depends on itself, or a multiple that is not a number above 0.
    """
    if rules.batch is not None and run.train.tokens is None:
        message = "needs train.tokens, tokens_per_parameter or flops: steps follow from the batch"
        raise ConfigError([Problem("", "rules.batch", message)])
    if not isinstance(multiple, int | float) or isinstance(multiple, bool) or multiple <= 0:
        raise ConfigError([Problem("", "lr_multiple", f"{multiple!r} is not a number above 0")])
    size = size_of(run)
    found: list[Derived] = []

    def give(key: str, value: float, formula: str, source: str, fitted: Mapping[str, Range]) -> None:
        nonlocal run
        if key not in stated:
            found.append(Derived(key, value, formula, source, *_outside(size, fitted)))
            run = _with_value(run, key, value)

    # In this order: steps follow from the batch, and warmup and decay from steps.
    if rules.batch is not None:
        rule, unit = BATCH[rules.batch], run.train.micro_batch_size * data_parallel
        sequences = max(1, round(rule.value(size) / run.train.sequence_length / unit)) * unit
        give("train.global_batch_size", sequences, rule.formula, rule.source, rule.fitted)
    if rules.lr is not None:
        rule = LR[rules.lr]
        give("optimizer.lr", rule.value(size), rule.formula, rule.source, rule.fitted)
    if rules.warmup is not None and "schedule.warmup_fraction" not in stated:
        rule = WARMUP[rules.warmup] if rules.warmup != "untuned" else _untuned(run)
        steps = min(round(rule.value(size) / run.tokens_per_step), run.steps // 2)
        give("schedule.warmup_steps", steps, rule.formula, rule.source, rule.fitted)
    if rules.timescale is not None:
        decay = 1 / (run.optimizer.lr * run.steps * rules.timescale)
        source = "Wang & Aitchison 2024, arXiv 2405.13698"
        give("optimizer.weight_decay", decay, f"1 / (lr x steps x {rules.timescale:g})", source, {})
    if multiple != 1:
        run = _with_value(run, "optimizer.lr", run.optimizer.lr * multiple)
    return run, found


def refuse_two_scalings(model: ModelConfig, by_width: LrRule | None, rules: RulesConfig) -> None:
    """Raise `ConfigError` for a rule by size on top of a parametrization that needs none."""
    if model.parametrization == "standard":
        return
    message = f"{model.parametrization} scales the learning rate with the size already; "
    if by_width is not None and by_width.power:
        raise ConfigError([Problem("", "lr.power", f"{by_width.power:g}: {message}nearest is 0")])
    if rules.lr is not None:
        raise ConfigError([Problem("", "rules.lr", f"{rules.lr}: {message}nearest is `lr` with power 0")])


def _untuned(run: RunConfig) -> HparamRule:
    """Return the warmup that follows from AdamW's memory, whatever the size."""
    steps = 2 / (1 - run.optimizer.beta2)
    source = "Ma & Yarats 2021, arXiv 1910.04209"
    return HparamRule("2 / (1 - beta2) steps", source, lambda _: steps * run.tokens_per_step, {})


def _with_value(run: RunConfig, key: str, value: float) -> RunConfig:
    """Return the run with a number of a section changed, fractions to six digits, so that they print as they are."""
    section, name = key.split(".")
    exact = int(value) if name in ("global_batch_size", "warmup_steps") else float(f"{value:.6g}")
    return replace(run, **{section: replace(getattr(run, section), **{name: exact})})


def _outside(size: RuleInputs, fitted: Mapping[str, Range]) -> tuple[float, str]:
    """Return the largest distance from the fitted ranges in orders of magnitude, and all of them in words."""
    away = {}
    for name, (low, high) in fitted.items():
        value = getattr(size, name)
        if not low <= value <= high:
            away[name] = math.log10(value / low) if value < low else math.log10(value / high)
    words = ", ".join(f"{name} = {getattr(size, name):.1e}, 10^{by:+.1f} from it" for name, by in away.items())
    return max(map(abs, away.values()), default=0.0), words
