"""Sweeps: one YAML file that expands into the runs of a ladder.

The runs are the full factorial of `axes`, those of `grids`, and then `points`. Each is laid over `run`, which is laid
over the run file `base`; the command line is laid over all of them.
"""

import difflib
import itertools
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

from configs.formatting import short_count
from configs.keys import Tree, dotted_keys, flat_items, flatten, merge, nest
from configs.reader import ConfigError, Problem, build, check, parse_overrides, read_tree
from configs.renamed import first_name, first_value
from model.config import ModelConfig
from model.counts import count_parameters, training_flops_per_token
from train.checkpoint.branching import trunk_problem
from train.config import RunConfig, batch_problem, expand_run
from train.sweep.config import SweepConfig
from train.sweep.hparam_rules import follow, refuse_two_scalings
from train.sweep.run import Run, Sweep
from train.sweep.trunk import assign_branches

_DERIVED_BUDGETS = ("tokens_per_parameter", "flops")
_BUDGETS = ("train.tokens", "train.steps", *_DERIVED_BUDGETS)
_BESIDE_A_RUN = ("devices_per_run", "lr_multiple")  # keys of a point that are not keys of a run
# Keys that say where and how fast a run is computed, not what: they stay out of its name when a point sets them.
_NOT_IN_NAME = ("name", "devices_per_run", "train.micro_batch_size", "train.compile", "train.activation_checkpointing")
_NOT_IN_NAME_SECTIONS = ("checkpoint.", "eval.", "parallel.", "wandb.", "watchdog.")


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
    origin |= dict.fromkeys(dotted_keys(for_sweep), "command line")
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
    for key, values in flat_items(tree):
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
    given = flatten(for_runs)
    if _budgets(given):
        axes = {key: values for key, values in axes.items() if key not in _BUDGETS or key in given}
    return {key: [given[key]] if key in given else values for key, values in axes.items()}


def _budgets(leaves: Mapping[str, Any]) -> bool:
    return any(leaves.get(key) is not None for key in _BUDGETS)


def _lay(upper: Tree, lower: Tree) -> Tree:
    """Merge two layers of a run; a budget in the upper one replaces the lower one's, whatever it is stated in."""
    if _budgets(flatten(upper)):
        lower = nest({key: value for key, value in flatten(lower).items() if key not in _BUDGETS})
    return merge(lower, upper)


# ------------------------------------------------------------------------------------------ expansion


def _expand(sweep: SweepConfig, source: str, origin: Mapping[str, str], for_runs: Tree) -> tuple[Run, ...]:
    """Build all runs, or raise `ConfigError` with the problems of all."""
    base, run_origin = read_tree(Path(sweep.base))
    common = nest(sweep.run)
    run_origin |= {key.removeprefix("run."): file for key, file in origin.items() if key.startswith("run.")}
    lowest = _lay(common, base)
    factorials = [g for g in (sweep.axes, *sweep.grids) if g] or ([] if sweep.points else [{}])
    combinations = [dict(zip(g, values, strict=True)) for g in factorials for values in itertools.product(*g.values())]
    choices = [nest(chosen) for chosen in (*combinations, *sweep.points)]

    runs: list[Run] = []
    problems: dict[Problem, list[str]] = {}
    for chosen in choices:
        files = {key: origin.get(f"axes.{key}", source) for key in dotted_keys(chosen)} | run_origin
        files |= {key: origin.get(f"axes.{key}", source) for key in flatten(chosen)}
        files |= dict.fromkeys(flatten(for_runs), "command line")
        try:
            run = _build_run(sweep, _lay(for_runs, _lay(chosen, lowest)), chosen, lowest, files, for_runs)
            if sweep.trunk and (unfit := trunk_problem(run.config.schedule)) is not None:
                raise ConfigError([Problem(files.get(unfit[0], sweep.base), *unfit)])
            runs.append(run)
        except ConfigError as error:
            label = ", ".join(f"{key}={value}" for key, value in flatten(chosen).items())
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
        planted = assign_branches([run.config for run in runs])
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
    stated = flatten(chosen).keys() | flatten(for_runs).keys()
    devices = tree.get("devices_per_run", sweep.devices_per_run)
    given_name = flatten(chosen).get("name")
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
    problem = batch_problem(run.train, devices // replica)
    if problem is None:
        return None
    key, message = problem.split(": ", 1)
    return key, message


# ---------------------------------------------------------------------------------------------- names


def _run_name(run: RunConfig, requested: Tree, chosen: Tree, lowest: Tree) -> str:
    """Name a run after its size, its tokens and whatever else it was chosen to differ in.

    A value equal to the base's is not named, so that adding an axis to a sweep keeps the names of the runs it had. Keys
    and values are named as they were first, so that their directories are found whatever they are called today.
    """
    model = run.model
    size = model.size or f"L{model.n_layer}-d{model.d_model}-h{model.n_head}"
    named = {"model.size"} if model.size else {"model.size", "model.n_layer", "model.d_model", "model.n_head"}
    wanted, below = flatten(requested), flatten(lowest)
    parts = [size, _budget_word(run, wanted)]
    for key in flatten(chosen):
        is_named = key in named or key in _BUDGETS or key in _NOT_IN_NAME or key.startswith(_NOT_IN_NAME_SECTIONS)
        if not is_named and key in wanted and wanted[key] != below.get(key, _default(RunConfig, key)):
            parts.append(_word(_short_key(first_name(key)), first_value(key, wanted[key])))
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(parts))


def _budget_word(run: RunConfig, wanted: Mapping[str, Any]) -> str:
    if wanted.get("tokens_per_parameter") is not None:
        return f"{wanted['tokens_per_parameter']:g}tpp"
    if wanted.get("flops") is not None:
        return f"{wanted['flops']:.4g}flop".replace("+", "")
    return f"{short_count(wanted.get('train.tokens') or run.tokens)}tok"


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
