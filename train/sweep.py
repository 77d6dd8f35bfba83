"""Sweeps: one YAML file that expands into the runs of a ladder.

The runs are the full factorial of `axes`, those of `grids`, and then `points`. Each is laid over `run`, which is laid
over the run file `base`; the command line is laid over all of them.
"""

import difflib
import itertools
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

from configs.reader import ConfigError, Problem, Tree, build, check, config, merge, parse_overrides, read_tree
from model.config import ModelConfig
from model.counts import count_parameters, training_flops_per_token
from train.config import RunConfig, batch_problem, expand_run, is_safe_name
from train.rules import Derived, LrRule, RulesConfig, follow, refuse_two_scalings
from train.trunk import plant, trunk_problem

_DERIVED_BUDGETS = ("tokens_per_parameter", "flops")
LEAST_TO_JUDGE = 7
"""Runs without which no rule can be asked whether a sweep may stop: more than a law has parameters."""
_BUDGETS = ("train.tokens", "train.steps", *_DERIVED_BUDGETS)
_BESIDE_A_RUN = ("devices_per_run", "lr_multiple")  # keys of a point that are not keys of a run
# Keys that say where and how fast a run is computed, not what: they stay out of its name when a point sets them.
_NOT_IN_NAME = ("name", "devices_per_run", "train.micro_batch", "train.compile", "train.activation_checkpointing")
_NOT_IN_NAME_SECTIONS = ("checkpoint.", "evaluate.", "parallel.", "wandb.", "watch.")


@config
class StopRule:
    """When enough is known of the forecast for one model: runs that it does not need are not started.

    The law of Chinchilla is fitted whenever a run has finished, cheap runs going first (scaling/stopping.py).
    """

    params: float
    """Parameters N of the model to forecast, all of them counted."""
    tokens: float
    """Its training tokens D."""
    width: float = 0.02
    """Width of the interval of its expected loss, as a fraction of the loss, at which the sweep ends."""
    level: float = 0.9
    """Level of that interval."""
    at_least: int = 10
    """Runs that are complete before anything is judged."""
    negligible: float = 0.05
    """Runs are left out that all together would narrow the forecast by less than this fraction; 0 leaves out none."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (key, message) for every value out of its range."""
        for key in ("params", "tokens", "width"):
            if getattr(self, key) <= 0:
                yield key, f"{getattr(self, key)} must be above 0"
        if not 0 < self.level < 1:
            yield "level", f"{self.level} must be between 0 and 1"
        if self.at_least < LEAST_TO_JUDGE:
            yield "at_least", f"{self.at_least} is too few for a law of 5 parameters; nearest is {LEAST_TO_JUDGE}"
        if not 0 <= self.negligible < 1:
            yield "negligible", f"{self.negligible} must be at least 0 and below 1"


@config
class SweepConfig:
    """A ladder of runs and what they are run on."""

    name: str
    """Name of the sweep and of its group in W&B: letters, digits, '.', '_' and '-'."""
    base: str
    """The run file that every run starts from; relative to the file that names it."""
    run: dict[str, Any] = field(default_factory=dict)
    """Keys of a run, laid over `base` for every run."""
    axes: dict[str, list[Any]] = field(default_factory=dict)
    """Dotted key of a run -> its values; every combination becomes a run. Null undoes those of the file it extends.

    Beside the keys of a run, `tokens_per_parameter` (train.tokens = that times N, embeddings counted), `flops`
    (train.tokens = that over the exact FLOPs per token; an IsoFLOP profile), `lr_multiple` (times the learning rate
    that a rule or the file gives: a scan at each size) and `devices_per_run` can vary.
    """
    grids: list[dict[str, list[Any]]] = field(default_factory=list)
    """Further factorials, each like `axes`."""
    points: list[dict[str, Any]] = field(default_factory=list)
    """Further runs, each given by its keys; the same keys as in `axes`, and `name`."""
    trunk: bool = False
    """Train the runs that differ in their budget alone as one trunk with branches (train/trunk.py), each with the
    losses it would have by itself; needs `schedule.kind: wsd` and `schedule.warmup_steps`."""
    stop: StopRule | None = None
    """When to end before all runs are done; null: never."""
    lr: LrRule | None = None
    """Learning rate by width; an `optimizer.lr` in `axes`, in `points` or on the command line wins."""
    rules: RulesConfig = RulesConfig()
    """Published rules by size, for the learning rate and others; see docs/transfer.md."""
    runs_dir: str | None = None
    """Where the runs go, one directory each; null: runs/NAME."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """What to run on; `auto`: the GPUs of this machine, or its CPU where there are none, or the GPUs of `hostfile`."""
    hostfile: str | None = None
    """Machines to run on, a line `host slots=N` each, as DeepSpeed takes it, with N GPUs, or with `device: cpu` N
    processes; null: this machine. See docs/multinode.md."""
    remote: Literal["ssh", "slurm"] = "ssh"
    """How runs are started on the machines of `hostfile`: `ssh`, by the deepspeed launcher through pdsh, or `slurm`, by
    srun inside the allocation that the sweep itself runs in."""
    devices_per_run: int = 1
    """GPUs a run trains on; on a CPU, processes."""
    threads_per_run: int | None = None
    """CPU cores a run is given, shared by its processes; null: one for each. Not used on GPUs."""
    runs_per_gpu: int = 1
    """Runs that share a GPU, each in a process of its own, for models too small to fill one. Their kernels take turns;
    where NVIDIA's MPS daemon runs, they overlap."""
    parallel_runs: int | None = None
    """Runs at a time at most, to spare memory; null: as many as the devices hold."""
    runs_per_launch: int | None = None
    """Runs that one launch trains, one after another in the same processes, at most; null: as many as there are."""
    launcher_args: list[str] = field(default_factory=list)
    """More arguments for the `deepspeed` launcher, such as [--ssh_port, "2222"]; with `remote: slurm`, for srun."""
    retries: int = 0
    """Times that a run is launched again after it failed; a mistake in its input or a divergence is not retried."""
    grace_seconds: float = 60.0
    """Time that runs are given to end after Ctrl-C or SIGTERM, before they are killed."""
    flops_per_second: float | None = None
    """Training FLOP/s of one device, for the time estimate while no run of this sweep has finished."""
    price_per_device_hour: float | None = None
    """Price of one device for one hour, in any currency, for the cost estimate."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (key, message) for every value that cannot work."""
        if not is_safe_name(self.name):
            yield (
                "name",
                f"'{self.name}' is not a safe name; use letters, digits, '.', '_', '-', starting with a letter",
            )
        for key in ("devices_per_run", "threads_per_run", "runs_per_gpu", "parallel_runs", "runs_per_launch"):
            value = getattr(self, key)
            if value is not None and value < 1:
                yield key, f"{value} must be at least 1"
        for key in ("retries", "grace_seconds", "price_per_device_hour"):
            value = getattr(self, key)
            if value is not None and value < 0:
                yield key, f"{value} must not be negative"
        if self.flops_per_second is not None and self.flops_per_second <= 0:
            yield "flops_per_second", f"{self.flops_per_second} must be above 0"
        if self.remote == "slurm" and self.hostfile is None:
            yield "remote", "slurm needs a hostfile with the machines of the allocation; docs/multinode.md shows how"
        if "slurm" in self.launcher_args:
            yield "launcher_args", "the launcher cannot place several runs by Slurm; nearest is 'remote: slurm'"
        for section, tree in (("run", self.run), *((f"points.{i}", point) for i, point in enumerate(self.points))):
            keys = [key for key, _ in _items(tree)]
            for key in sorted({key for key in keys if keys.count(key) > 1}):
                yield f"{section}.{key}", "is given twice, dotted and nested"
        if self.lr is not None and "optimizer.lr" in _leaves(_nest(self.run)):
            yield "run.optimizer.lr", "is given beside the rule `lr`; leave one out (lr: null)"
        if self.lr is not None and self.rules.lr is not None:
            yield "rules.lr", "is given beside the rule `lr`; leave one out"

    @property
    def directory(self) -> Path:
        """Where the runs go."""
        return Path(self.runs_dir) if self.runs_dir is not None else Path("runs") / self.name


@dataclass(frozen=True)
class Run:
    """One run of a sweep."""

    config: RunConfig
    devices: int
    """GPUs, or processes on a CPU."""
    directory: Path
    derived: tuple[Derived, ...] = ()
    """What the sweep's rules gave."""

    @property
    def name(self) -> str:
        """The name of the run and of its directory."""
        return self.config.name

    @property
    def data_parallel(self) -> int:
        """Number of model replicas."""
        return self.devices // self.config.parallel.devices_per_replica

    @property
    def accumulation(self) -> int:
        """Micro-batches per optimizer step on each replica."""
        return self.config.train.global_batch // (self.config.train.micro_batch * self.data_parallel)


@dataclass(frozen=True)
class Sweep:
    """A sweep, expanded."""

    config: SweepConfig
    runs: tuple[Run, ...]


def load_sweep(path: Path | str, overrides: list[str] | None = None) -> Sweep:
    """Read a sweep file and expand it.

    Args:
        path: the YAML file.
        overrides: `--a.b=c` arguments. One whose first key is a key of `SweepConfig` sets that; any other is a key of
            every run, wins over the file and, where the file has an axis of that name, narrows it to this value.

    Raises:
        ConfigError: with every problem of the sweep and of all its runs.
    """
    path = Path(path)
    tree, origin = read_tree(path)
    of_a_run = [key for key in ("model", "data", "train") if key in tree]
    if of_a_run and "base" not in tree:
        message = "is a key of a run; scripts/pretrain.py trains it, and a sweep names it as its base"
        raise ConfigError([Problem(origin[of_a_run[0]], of_a_run[0], message)])
    for_sweep, for_runs = _route(parse_overrides(overrides or []))
    origin |= dict.fromkeys(_paths(for_sweep), "command line")
    found: list[Problem] = []
    axes = _read_axes(tree.pop("axes", None) or {}, origin, found)
    over = for_sweep.pop("axes", {})
    axes = {} if over is None else axes | _read_axes(over, origin, found)
    tree = merge(tree, for_sweep) | {"axes": _narrow(axes, for_runs)}
    if isinstance(grids := tree.get("grids"), list):
        tree["grids"] = [_narrow(_read_axes(g, origin, found, f"grids.{i}"), for_runs) for i, g in enumerate(grids)]
    if isinstance(base := tree.get("base"), str) and "base" not in for_sweep:
        tree["base"] = os.path.normpath(Path(origin["base"]).parent / base)
    if found:
        raise ConfigError(found)
    sweep = build(SweepConfig, tree, str(path), origin)
    return Sweep(sweep, _expand(sweep, str(path), origin, for_runs))


# --------------------------------------------------------------------------------------- reading keys


def _route(given: Tree) -> tuple[Tree, Tree]:
    """Split command-line keys into those of the sweep and those of its runs."""
    sweep_keys = {f.name for f in fields(SweepConfig)}
    run_keys = {f.name for f in fields(RunConfig)} | {*_DERIVED_BUDGETS, "lr_multiple"}
    unknown = [key for key in given if key not in sweep_keys | run_keys]
    if unknown:
        raise ConfigError([Problem("command line", key, _unknown(key, sweep_keys | run_keys)) for key in unknown])
    return (
        {key: value for key, value in given.items() if key in sweep_keys},
        {key: value for key, value in given.items() if key not in sweep_keys},
    )


def _unknown(key: str, valid: set[str]) -> str:
    near = difflib.get_close_matches(key, sorted(valid), n=1, cutoff=0.5)
    return "unknown key; " + (f"did you mean '{near[0]}'?" if near else f"valid keys: {', '.join(sorted(valid))}")


def _read_axes(tree: Any, origin: Mapping[str, str], found: list[Problem], where: str = "axes") -> dict[str, list[Any]]:
    """Flatten axes, written dotted or nested, to dotted keys; `where` is the key that holds them."""
    section = origin.get(where.partition(".")[0], "")
    if not isinstance(tree, dict):
        found.append(Problem(section, where, "must be a mapping of run keys to lists of values"))
        return {}
    axes: dict[str, list[Any]] = {}
    for key, values in _items(tree):
        if wrong := _wrong_values(values) or ("is given twice" if key in axes else None):
            found.append(Problem(origin.get(f"{where}.{key}", section), f"{where}.{key}", wrong))
        else:
            axes[key] = values
    return axes


def _wrong_values(values: Any) -> str | None:
    if values is None:
        return "null is not a list of values; write one, such as [1, 2]"
    if not isinstance(values, list):
        return f"{values!r} is not a list of values; write [{values}]"
    if not values:
        return "is an empty list; give it at least one value"
    repeated = [value for i, value in enumerate(values) if value in values[:i]]
    return f"{repeated[0]!r} is given twice; drop one" if repeated else None


def _narrow(axes: dict[str, list[Any]], for_runs: Tree) -> dict[str, list[Any]]:
    """Let the command line replace the values of an axis by one."""
    given = _leaves(for_runs)
    if _budgets(given):
        axes = {key: values for key, values in axes.items() if key not in _BUDGETS or key in given}
    return {key: [given[key]] if key in given else values for key, values in axes.items()}


def _items(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of everything in a tree that is not itself a mapping."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _items(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _leaves(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten nested mappings to dotted keys."""
    return dict(_items(tree))


def _paths(tree: Mapping[str, Any]) -> set[str]:
    """Return the dotted keys of a tree, those of its inner mappings included."""
    parts = (key.split(".") for key in _leaves(tree))
    return {".".join(key[:end]) for key in parts for end in range(1, len(key) + 1)}


def _nest(tree: Mapping[str, Any]) -> Tree:
    """Undo dotted keys."""
    nested: Tree = {}
    for key, value in tree.items():
        node = _nest(value) if isinstance(value, dict) else value
        for part in reversed(key.split(".")):
            node = {part: node}
        nested = merge(nested, node)
    return nested


def _budgets(leaves: Mapping[str, Any]) -> bool:
    return any(leaves.get(key) is not None for key in _BUDGETS)


def _lay(upper: Tree, lower: Tree) -> Tree:
    """Merge two layers of a run; a budget in the upper one replaces the lower one's, whatever it is stated in."""
    if _budgets(_leaves(upper)):
        lower = _nest({key: value for key, value in _leaves(lower).items() if key not in _BUDGETS})
    return merge(lower, upper)


# ------------------------------------------------------------------------------------------ expansion


def _expand(sweep: SweepConfig, source: str, origin: Mapping[str, str], for_runs: Tree) -> tuple[Run, ...]:
    """Build all runs, or raise `ConfigError` with the problems of all."""
    base, run_origin = read_tree(Path(sweep.base))
    common = _nest(sweep.run)
    run_origin |= {key.removeprefix("run."): file for key, file in origin.items() if key.startswith("run.")}
    lowest = _lay(common, base)
    factorials = [g for g in (sweep.axes, *sweep.grids) if g] or ([] if sweep.points else [{}])
    combinations = [dict(zip(g, values, strict=True)) for g in factorials for values in itertools.product(*g.values())]
    choices = [_nest(chosen) for chosen in (*combinations, *sweep.points)]

    runs: list[Run] = []
    problems: dict[Problem, list[str]] = {}
    for chosen in choices:
        files = {key: origin.get(f"axes.{key}", source) for key in _paths(chosen)} | run_origin
        files |= {key: origin.get(f"axes.{key}", source) for key in _leaves(chosen)}
        files |= dict.fromkeys(_leaves(for_runs), "command line")
        try:
            run = _build_run(sweep, _lay(for_runs, _lay(chosen, lowest)), chosen, lowest, files, for_runs)
            if sweep.trunk and (unfit := trunk_problem(run.config)) is not None:
                raise ConfigError([Problem(files.get(unfit[0], sweep.base), *unfit)])
            runs.append(run)
        except ConfigError as error:
            label = ", ".join(f"{key}={value}" for key, value in _leaves(chosen).items())
            for problem in error.problems:
                problems.setdefault(problem, []).append(label)
    for name, count in Counter(run.name for run in runs).items():
        if count > 1:
            key = "points" if sweep.points else "axes"
            message = f"{count} runs would be named '{name}'; drop all but one, or give points of their own a name"
            problems[Problem(origin.get(key, source), key, message)] = []
    if problems:
        raise ConfigError([_told_once(p, where, len(choices)) for p, where in problems.items()])
    if sweep.trunk:
        planted = plant([run.config for run in runs])
        runs = [replace(run, config=config) for run, config in zip(runs, planted, strict=True)]
    return tuple(runs)


def _told_once(problem: Problem, where: list[str], runs: int) -> Problem:
    """Say of a problem which runs have it, unless all do."""
    if not where or len(where) == runs:
        return problem
    where_words = f"in {len(where)} of {runs} runs, the first with {where[0]}"
    return Problem(problem.source, problem.key, f"{problem.message} ({where_words})")


def _build_run(
    sweep: SweepConfig, tree: Tree, chosen: Tree, lowest: Tree, origin: Mapping[str, str], for_runs: Tree
) -> Run:
    """Turn the merged keys of one run into a `Run`."""
    stated = _leaves(chosen).keys() | _leaves(for_runs).keys()
    devices = tree.get("devices_per_run", sweep.devices_per_run)
    given_name = _leaves(chosen).get("name")
    keys = {key: value for key, value in tree.items() if key not in _BESIDE_A_RUN}
    keys["name"] = "unnamed" if given_name is None else given_name
    run = build(RunConfig, keys, sweep.base, origin, lambda keys: _fill_in(keys, sweep, "optimizer.lr" in stated))
    problem = _device_problem(run, devices, sweep.runs_per_gpu)
    if problem:
        key, message = problem
        raise ConfigError([Problem(origin.get(key, sweep.base), key, message)])
    if "optimizer.lr" not in stated:
        refuse_two_scalings(run.model, sweep.lr, sweep.rules)
    replicas = devices // run.parallel.devices_per_replica
    run, values = follow(run, sweep.rules, replicas, stated, tree.get("lr_multiple", 1))
    if given_name is None:
        run = replace(run, name=_run_name(run, tree, chosen, lowest))
        for key, message in check(run):  # it may be too long
            raise ConfigError([Problem(origin.get(key, sweep.base), key, message)])
    return Run(run, devices, sweep.directory / run.name, tuple(values))


def _fill_in(tree: Tree, sweep: SweepConfig, keeps_lr: bool) -> Tree:
    """Derive what the sweep derives from the size of a run: its learning rate and its tokens."""
    budget = {key: tree[key] for key in _DERIVED_BUDGETS if tree.get(key) is not None}
    tree = expand_run({key: value for key, value in tree.items() if key not in _DERIVED_BUDGETS})
    optimizer, wandb = tree.get("optimizer", {}), tree.get("wandb", {})
    d_model = tree["model"].get("d_model")
    if sweep.lr is not None and not keeps_lr and isinstance(optimizer, dict) and isinstance(d_model, int):
        tree["optimizer"] = optimizer | {"lr": sweep.lr.at(max(1, d_model))}
    if isinstance(wandb, dict) and wandb.get("group") is None:
        tree["wandb"] = wandb | {"group": sweep.name}
    if budget:
        tree["train"] = tree["train"] | {"tokens": _derived_tokens(budget, tree), "steps": None}
    return tree


def _derived_tokens(budget: Mapping[str, Any], tree: Tree) -> int:
    """Return the training tokens D that a ratio to N, or a number of FLOPs, comes to."""
    stated = [*budget, *(f"train.{key}" for key in ("tokens", "steps") if tree["train"].get(key) is not None)]
    if len(stated) > 1:
        raise ConfigError([Problem("", stated[-1], f"is given beside {stated[0]}; leave one out")])
    ((key, value),) = budget.items()
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        raise ConfigError([Problem("", key, f"{value!r} is not a number above 0")])
    length = tree["train"].get("sequence_length")
    try:
        model = build(ModelConfig, tree["model"], "")
    except ConfigError:
        return 1  # the caller builds the whole run next, and says what is wrong with its model
    if key == "tokens_per_parameter":
        return max(1, round(value * count_parameters(model).total))
    return max(1, round(value / training_flops_per_token(model, length))) if isinstance(length, int) else 1


def _device_problem(run: RunConfig, devices: Any, runs_per_gpu: int) -> tuple[str, str] | None:
    if not isinstance(devices, int) or isinstance(devices, bool) or devices < 1:
        return "devices_per_run", f"{devices!r} is not a whole number above 0"
    if devices > 1 and runs_per_gpu > 1:
        reason = "the processes of one run wait for each other, and would for all that share their GPUs"
        return "devices_per_run", f"{devices} does not work with runs_per_gpu={runs_per_gpu}: {reason}; nearest is 1"
    replica = run.parallel.devices_per_replica
    if devices % replica:
        near = max(replica, round(devices / replica) * replica)
        return "devices_per_run", f"{devices} does not divide into replicas of {replica} devices; nearest is {near}"
    problem = batch_problem(run, devices // replica)
    if problem is None:
        return None
    key, message = problem.split(": ", 1)
    return key, message


# ---------------------------------------------------------------------------------------------- names


def _run_name(run: RunConfig, requested: Tree, chosen: Tree, lowest: Tree) -> str:
    """Name a run after its size, its tokens and whatever else it was chosen to differ in.

    A value equal to the base's is not named, so that adding an axis to a sweep keeps the names of the runs it had.
    """
    model = run.model
    size = model.size or f"L{model.n_layer}-d{model.d_model}-h{model.n_head}"
    named = {"model.size"} if model.size else {"model.size", "model.n_layer", "model.d_model", "model.n_head"}
    wanted, below = _leaves(requested), _leaves(lowest)
    parts = [size, _budget_word(run, wanted)]
    for key in _leaves(chosen):
        is_named = key in named or key in _BUDGETS or key in _NOT_IN_NAME or key.startswith(_NOT_IN_NAME_SECTIONS)
        if not is_named and key in wanted and wanted[key] != below.get(key, _default(RunConfig, key)):
            parts.append(_word(_short_key(key), wanted[key]))
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(parts))


def _budget_word(run: RunConfig, wanted: Mapping[str, Any]) -> str:
    if wanted.get("tokens_per_parameter") is not None:
        return f"{wanted['tokens_per_parameter']:g}tpp"
    if wanted.get("flops") is not None:
        return f"{wanted['flops']:.4g}flop".replace("+", "")
    return f"{short_count(wanted.get('train.tokens') or run.tokens)}tok"


def short_count(count: float) -> str:
    """Write a count to four digits: 1_000_000 as 1.0M, 131_072 as 131.1k."""
    exponent = min(max(int(math.log10(max(count, 1)) // 3), 0), 4)
    digits = f"{count / 1000**exponent:.4g}"
    return (digits if "." in digits or len(digits) > 1 or not exponent else f"{digits}.0") + " kMBT"[exponent].strip()


def _short_key(key: str) -> str:
    """Return what a name says of a dotted key: its last part, or, of a weight in a mixture, the component."""
    *parents, last = key.split(".")
    return parents[-1] if parents[:-1] == ["data", "mixture"] and last == "weight" else last


def _word(key: str, value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return f"{key}-{str(value).lower()}"
    if isinstance(value, str):
        return Path(value).stem if "/" in value else value
    return f"{key}{value:g}" if isinstance(value, float) else f"{key}{value}"


def _default(cls: Any, key: str) -> Any:
    """Return the default of a dotted key, or MISSING."""
    if key == "lr_multiple":
        return 1
    head, _, rest = key.partition(".")
    if not is_dataclass(cls) or head not in (known := {f.name: f for f in fields(cls)}):
        return MISSING
    return _default(get_type_hints(cls)[head], rest) if rest else known[head].default
