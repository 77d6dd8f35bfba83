"""What a training run is. One YAML file, read into one `RunConfig`, decides everything about a run."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from configs.reader import ConfigError, Count, Fraction, NonNegative, Positive, Problem, Whole, config, load
from data.config import DataConfig
from data.corpus.tokenizer import expand_data
from model.config import ModelConfig, expand_model, nearest_divisor
from model.counts import training_flops_per_token

Precision = Literal["fp32", "bf16", "fp16"]
"""Number format of weights and activations in the forward and backward pass."""
Decay = Annotated[float, pydantic.Field(ge=0, lt=1)]
"""How much of a running mean stays from step to step."""
Timeout = Annotated[float, pydantic.Field(ge=1)]
"""Seconds, at least one."""


@config
class TrainConfig:
    """How much is trained, and in what portions."""

    sequence_length: Count
    """Tokens per sequence; at most `model.context_length`."""
    global_batch_size: Count
    """Sequences per optimizer step, over all devices."""
    micro_batch_size: Count
    """Sequences per device and forward pass; gradients accumulate until `global_batch_size` is reached."""
    steps: Count | None = None
    """Optimizer steps; give this or `tokens`."""
    tokens: Count | None = None
    """Training tokens D, rounded up to whole steps; give this or `steps`."""
    compile: bool = False
    """Compile the blocks and the loss with torch.compile."""
    activation_checkpointing: bool = False
    """Keep only each block's input and recompute the rest in the backward pass."""
    gradient_dtype: Literal["fp32", "bf16"] = "fp32"
    """What gradients add up in over micro-batches and replicas when `precision` is bf16: bf16 loses small terms."""

    def micro_batches(self, data_parallel: int) -> int:
        """Return how many micro-batches each of so many replicas accumulates in a step."""
        return self.global_batch_size // (self.micro_batch_size * data_parallel)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (key, message) for every combination that cannot run."""
        if (self.steps is None) == (self.tokens is None):
            yield "steps", "give exactly one of train.steps and train.tokens (set the other to null)"
        if self.global_batch_size % self.micro_batch_size:
            near = nearest_divisor(self.global_batch_size, self.micro_batch_size)
            message = f"{self.micro_batch_size} does not divide global_batch_size={self.global_batch_size}"
            yield "micro_batch_size", f"{message}; nearest is {near}"


@config
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101)."""

    lr: Positive
    """Peak learning rate."""
    beta1: Decay = 0.9
    """Decay of the first moment."""
    beta2: Decay = 0.95
    """Decay of the second moment."""
    eps: Positive = 1e-8
    """Added to the root of the second moment."""
    weight_decay: NonNegative = 0.1
    """Decoupled decay, applied to matrices of the blocks and the output projection, not to vectors."""
    gradient_clipping: Positive = 1.0
    """Largest global gradient norm; larger gradients are scaled down to it."""


@config
class ScheduleConfig:
    """The learning rate over the run, as a multiple of `optimizer.lr`."""

    kind: Literal["cosine", "constant", "wsd"] = "cosine"
    """`cosine` to `min_lr_ratio`; `constant`; or `wsd`: warm up, stay, cool down linearly (Hu et al. 2024,
    2404.06395)."""
    warmup_fraction: Fraction = 0.05
    """Linear warmup, as a fraction of the steps."""
    warmup_steps: Whole | None = None
    """Linear warmup in optimizer steps, however long the run is; null: as `warmup_fraction` says."""
    cooldown_fraction: Fraction = 0.2
    """Length of the final decay of `wsd`, as a fraction of the steps."""
    min_lr_ratio: Fraction = 0.1
    """Where `cosine` and `wsd` end, as a fraction of the peak."""

    def warmup_length(self, steps: int) -> int:
        """Return the steps of warmup of a run of `steps`."""
        return round(self.warmup_fraction * steps) if self.warmup_steps is None else self.warmup_steps

    def cooldown_start(self, steps: int) -> int:
        """Return the steps of a `wsd` run of `steps` before it cools down."""
        return steps - round(self.cooldown_fraction * steps)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (key, message) for a warmup and a cooldown that do not fit into one run."""
        if self.kind == "wsd" and self.warmup_steps is None and self.warmup_fraction + self.cooldown_fraction > 1:
            message = f"warmup_fraction {self.warmup_fraction} + cooldown_fraction {self.cooldown_fraction}"
            yield "cooldown_fraction", f"{message} is more than the whole run"


@config
class ParallelConfig:
    """How a run is spread over devices. Data parallelism is what is left: devices / devices_per_replica."""

    pipeline_stages: Count = 1
    """Consecutive groups of layers on devices of their own (PP)."""
    zero_stage: Literal[0, 1, 2, 3] | None = None
    """ZeRO stage (Rajbhandari et al. 2020); null: 0 for plain fp32 on whole models, else 1."""
    tensor_parallel: Count = 1
    """Devices that share each matrix of the blocks (Shoeybi et al. 2019, arXiv 1909.08053), each its heads."""
    offload_optimizer: bool = False
    """Keep the optimizer's state in the host's memory and update there (ZeRO-Offload, Ren et al. 2021)."""

    @property
    def devices_per_replica(self) -> int:
        """Devices that hold one copy of the model."""
        return self.pipeline_stages * self.tensor_parallel

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (key, message) for every combination that DeepSpeed refuses or gets wrong."""
        if self.pipeline_stages > 1 and self.zero_stage in (2, 3):
            message = f"{self.zero_stage} does not work with pipeline_stages={self.pipeline_stages}"
            yield "zero_stage", f"{message}: the pipeline needs whole gradients on each stage; nearest is 1"
        if self.offload_optimizer and self.zero_stage == 0:
            message = "true needs a ZeRO stage that owns the optimizer's state; nearest is zero_stage=1"
            yield "offload_optimizer", message
        if self.tensor_parallel > 1 and self.pipeline_stages > 1:
            message = f"{self.tensor_parallel} does not work with pipeline_stages={self.pipeline_stages}"
            reason = "DeepSpeed's groups for tensor parallelism know no stages, and it hangs"
            yield "tensor_parallel", f"{message}: {reason}; nearest is 1"
        if self.tensor_parallel > 1 and self.zero_stage == 0:
            message = "only ZeRO sums the gradient norm over the parts of a matrix; nearest is 1"
            yield "zero_stage", f"0 does not work with tensor_parallel={self.tensor_parallel}: {message}"


@config
class EvalConfig:
    """Validation on a fixed set of tokens, the same for every topology."""

    interval: Count | None = None
    """Steps between evaluations during training; null: only at the end."""
    tokens: Count = 65_536
    """Validation tokens, rounded down to whole sequences; at most what the corpus holds out."""


@config
class CheckpointConfig:
    """States that a stopped run continues from."""

    interval: Count | None = None
    """Steps between checkpoints, the last step always among them; null: none."""
    keep: Count = 2
    """Newest checkpoints kept at least; more are where a rollback may have to go further back
    (`spikes.rollback_margin`)."""
    branch_points: list[Count] = field(default_factory=list)
    """Steps after which a checkpoint is written that stays, for runs that branch off; a sweep's `trunk` sets it."""

    def due(self, done: int) -> bool:
        """Return whether a checkpoint is written after `done` steps, wherever the run ends."""
        return done in self.branch_points or (self.interval is not None and done % self.interval == 0)


@config
class BranchConfig:
    """Where a run begins if not at its first step: at a checkpoint of a run that has been the same until then."""

    run: str
    """Directory of that run, seen from the directory that this run's own lies in: in a sweep its name."""
    step: Count
    """Optimizer steps it had done."""


@config
class SpikeConfig:
    """When the loss spikes: what counts as one (with the constants of `train/stability/spike_detector.py`), and how far
    training goes back."""

    enabled: bool = True
    """Judge the steps. Off, a loss that is not finite still ends the run."""
    loss_z: NonNegative = 5.0
    """Deviation from which a loss is an outlier, in robust standard deviations."""
    norm_z: NonNegative = 8.0
    """Deviation from which a logarithm of the gradient norm is an outlier, in robust standard deviations."""
    patience: Count = 64
    """Steps within which a spike must be over by itself; otherwise training is rolled back."""
    rollback_margin: Count = 100
    """Training goes back to a checkpoint at least so many steps before the first sign of the spike."""
    max_rollbacks: Count = 3
    """Rollbacks allowed within 1,000 steps; the run has diverged when one more is needed."""


@config
class WatchdogConfig:
    """How long a rank may be silent before it counts as hung and the run is ended, to be launched again."""

    step_timeout: Timeout = 45.0
    """For an optimizer step; ten times the slowest step so far where that is more."""
    startup_timeout: Timeout = 1800.0
    """For the start with the first step, an evaluation, or a checkpoint; and, of a sweep, to be launched at all."""


@config
class WandbConfig:
    """Weights & Biases, which shows runs and is never needed by them: `metrics.jsonl` is complete without it."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """`auto`: online when a key is configured, else offline files that `wandb sync` uploads later."""
    project: str = "scaling-testbed"
    """W&B project."""
    entity: str | None = None
    """W&B user or team; null: the key's default."""
    group: str | None = None
    """Runs shown together; a sweep sets its own name."""


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """What one optimizer step computes and how it is spread over devices: of a run, what engine and cost plan read.

    Neither the text nor the length of the run is in it; `steps` and `tokens` of `train` do not count.
    """

    precision: Precision
    model: ModelConfig
    train: TrainConfig
    optimizer: OptimizerConfig
    parallel: ParallelConfig

    @property
    def zero_stage(self) -> int:
        """The ZeRO stage in force."""
        if self.parallel.zero_stage is not None:
            return self.parallel.zero_stage
        whole = self.parallel.devices_per_replica == 1 and not self.parallel.offload_optimizer
        return 0 if self.precision == "fp32" and whole else 1

    @property
    def tokens_per_step(self) -> int:
        """Tokens of the step, over all devices."""
        return self.train.global_batch_size * self.train.sequence_length

    @property
    def flops_per_token(self) -> int:
        """Exact training FLOPs per token."""
        return training_flops_per_token(self.model, self.train.sequence_length)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (key, message) for every combination across sections that cannot run."""
        if self.train.sequence_length > self.model.context_length:
            message = f"{self.train.sequence_length} is longer than model.context_length={self.model.context_length}"
            yield "train.sequence_length", f"{message}; nearest is {self.model.context_length}"
        if self.parallel.pipeline_stages > self.model.n_layer:
            message = f"{self.parallel.pipeline_stages} stages for n_layer={self.model.n_layer} blocks"
            yield "parallel.pipeline_stages", f"{message}; nearest is {self.model.n_layer}"
        if self.parallel.zero_stage == 0 and self.precision != "fp32":
            message = f"0 does not work with precision={self.precision}: DeepSpeed keeps fp32 master weights under ZeRO"
            yield "parallel.zero_stage", f"{message} only; nearest is 1"
        for key in ("n_head", "d_ff"):
            if getattr(self.model, key) % max(1, self.parallel.tensor_parallel):
                near = math.gcd(getattr(self.model, key), self.parallel.tensor_parallel)
                message = f"{self.parallel.tensor_parallel} does not divide model.{key}={getattr(self.model, key)}"
                yield "parallel.tensor_parallel", f"{message}; nearest is {near}"
        if self.train.gradient_dtype == "bf16" and self.precision != "bf16":
            yield "train.gradient_dtype", f"bf16 is for precision=bf16, not {self.precision}; leave it out"
        if (
            self.parallel.offload_optimizer
            and self.parallel.pipeline_stages > 1
            and self.model.tie_embeddings
            and (self.precision, self.train.gradient_dtype) == ("bf16", "fp32")
        ):
            # Measured in 0.19.8: from the first step on, the two stages hold different copies of a tied embedding.
            message = "DeepSpeed does not add fp32 sums of tied gradients over stages when they move to the host"
            yield "parallel.offload_optimizer", f"true: {message}; nearest is train.gradient_dtype=bf16"


@config
class RunConfig:
    """One training run."""

    name: str = "run"
    """Name of the run: letters, digits, '.', '_' and '-'."""
    seed: int = 0
    """Decides initial weights and the order of the data."""
    precision: Precision = "fp32"
    """Number format of weights and activations in the forward and backward pass."""
    model: ModelConfig
    """The model."""
    data: DataConfig
    """The text."""
    train: TrainConfig
    """How much of it, in what portions."""
    optimizer: OptimizerConfig
    """AdamW."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Learning rate over the run."""
    parallel: ParallelConfig = ParallelConfig()
    """Spread over devices."""
    eval: EvalConfig = EvalConfig()
    """Validation."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Checkpoints."""
    branch: BranchConfig | None = None
    """Where the run begins; null: at its first step. A sweep's `trunk` sets it."""
    log_every: Count = 10
    """Steps between lines of `metrics.jsonl`; the first and last step are always logged."""
    spikes: SpikeConfig = SpikeConfig()
    """When the loss spikes."""
    watchdog: WatchdogConfig = WatchdogConfig()
    """Limits of silence."""
    wandb: WandbConfig = WandbConfig()
    """Weights & Biases."""

    @property
    def step_plan(self) -> StepPlan:
        """The sections that decide one optimizer step."""
        return StepPlan(**{field.name: getattr(self, field.name) for field in fields(StepPlan)})

    @property
    def tokens_per_step(self) -> int:
        """Tokens per optimizer step, over all devices."""
        return self.step_plan.tokens_per_step

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        if self.train.steps is not None:
            return self.train.steps
        assert self.train.tokens is not None
        return -(-self.train.tokens // self.tokens_per_step)

    @property
    def stable_steps(self) -> int:
        """Optimizer steps before a `wsd` run cools down, in which nothing depends on its length."""
        return self.schedule.cooldown_start(self.steps)

    @property
    def tokens(self) -> int:
        """Training tokens D of the whole run."""
        return self.steps * self.tokens_per_step

    @property
    def flops_per_token(self) -> int:
        """Exact training FLOPs per token."""
        return self.step_plan.flops_per_token

    @property
    def flops(self) -> int:
        """Exact training FLOPs of the whole run, the part that it shares with another included."""
        return self.tokens * self.flops_per_token

    @property
    def tokens_spent(self) -> int:
        """Training tokens of the steps that the run does itself."""
        return (self.steps - self.first_step) * self.tokens_per_step

    @property
    def flops_spent(self) -> int:
        """Exact training FLOPs of the steps that the run does itself."""
        return self.tokens_spent * self.flops_per_token

    @property
    def first_step(self) -> int:
        """Optimizer steps done where the run begins."""
        return 0 if self.branch is None else self.branch.step

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (key, message) for every combination across sections that cannot run."""
        yield from name_problems(self.name)
        if not 0 <= self.seed < 2**32:
            yield "seed", f"{self.seed} is not between 0 and 2^32 - 1, which random number generators take"
        yield from self.step_plan.problems()
        per_string = self.data.language.tokens_per_string
        if self.data.source == "grammar" and self.train.sequence_length % per_string:
            near = max(1, round(self.train.sequence_length / per_string)) * per_string
            message = f"{self.train.sequence_length} is no multiple of the {per_string} tokens of a string"
            reason = "the entropy is exact for whole strings"
            yield "train.sequence_length", f"{message} (data.grammar.levels), and {reason}; nearest is {near}"
        if self.model.vocab_size != self.data.vocab_size:
            message = f"{self.model.vocab_size} differs from data.vocab_size={self.data.vocab_size}"
            yield "model.vocab_size", f"{message}; leave it out to take the tokenizer's"
        if (self.train.steps is None) != (self.train.tokens is None):
            yield from self._length_problems()

    def _length_problems(self) -> Iterator[tuple[str, str]]:
        """Yield (key, message) for what does not fit into the steps of the run."""
        before = self.stable_steps if self.schedule.kind == "wsd" else self.steps
        if self.schedule.warmup_steps is not None and self.schedule.warmup_steps > before:
            message = f"{self.schedule.warmup_steps} is more than the {before} steps before the cooldown or the end"
            yield "schedule.warmup_steps", f"{message}; nearest is {before}"
        if self.first_step > self.steps:
            yield "branch.step", f"{self.first_step} is more than the {self.steps} steps of the run"


def name_problems(name: str) -> Iterator[tuple[str, str]]:
    """Yield (key, message) unless a run or sweep of this name can be a directory anywhere and a word in a page."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9._-]{,99}", name):
        yield "name", f"'{name}' is not a safe name; use letters, digits, '.', '_', '-', starting with a letter"


def expand_run(tree: dict[str, Any]) -> dict[str, Any]:
    """Fill in what depends on other keys: the model's shape, its vocabulary and its context.

    Raises `ConfigError` for an unknown model size, a section that is not a mapping, or a sweep.
    """
    tree = dict(tree)
    for key in ("axes", "base"):
        if key in tree:
            raise ConfigError([Problem("", key, "is a key of a sweep; scripts/sweep.py runs it")])
    sections = {key: tree.get(key, {}) for key in ("model", "data", "train")}
    if wrong := [key for key, section in sections.items() if not isinstance(section, dict)]:
        raise ConfigError([Problem("", key, "must be a mapping of keys") for key in wrong])
    tree["data"] = expand_data(sections["data"])
    model = expand_model(sections["model"])
    model.setdefault("vocab_size", tree["data"].get("vocab_size", DataConfig.vocab_size))
    if "sequence_length" in sections["train"]:
        model.setdefault("context_length", sections["train"]["sequence_length"])
    tree["model"] = model
    return tree


def load_run(path: Path | str, overrides: list[str] | None = None) -> RunConfig:
    """Read a run's YAML file; `overrides` are `--a.b=c` arguments. Raises `ConfigError`.

    An override of `train.tokens` displaces the file's `train.steps`, and the other way round.
    """
    overrides = list(overrides or [])
    given = {override.partition("=")[0] for override in overrides}
    for key, other in (("--train.tokens", "--train.steps"), ("--train.steps", "--train.tokens")):
        if key in given and other not in given:
            overrides.append(f"{other}=null")
    return load(RunConfig, path, overrides, expand_run)


def load_stored(path: Path) -> RunConfig:
    """Read the config.yaml of a run, whichever version wrote it. Raises `ConfigError`.

    Nothing is said of names that are old: when the run goes on, it writes the file anew.
    """
    return load(RunConfig, path, expand=expand_run, tell=False)


def batch_problem(train: TrainConfig, data_parallel: int) -> str | None:
    """Return what is wrong with the batch for a number of data-parallel ranks, or None."""
    share, rest = divmod(train.global_batch_size, data_parallel)
    if rest:
        near = max(1, round(train.global_batch_size / data_parallel)) * data_parallel
        message = f"train.global_batch_size: {train.global_batch_size} does not divide over {data_parallel}"
        return f"{message} data-parallel ranks; nearest is {near}"
    if share % train.micro_batch_size:
        near = nearest_divisor(share, train.micro_batch_size)
        message = f"train.micro_batch_size: {train.micro_batch_size} does not divide the {share} sequences of each"
        return f"{message} of {data_parallel} data-parallel ranks; nearest is {near}"
    return None
