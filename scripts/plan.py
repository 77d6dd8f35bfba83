"""Plan with a fitted law: the best model for a budget, or the next runs that make a forecast sharper.

Units: parameters, tokens, FLOPs as the fit counts them, written 7e9, 7B (k, M, B, T) or 7_000_000_000.
Losses are in nats per token.

    python scripts/plan.py runs/quickstart/law.json --flops 1e21
    python scripts/plan.py runs/quickstart/law.json --params 7B
    python scripts/plan.py runs/quickstart/law.json --target-params 1e7 --target-tokens 2e8 --budget 1e15 --runs 4 \\
        --like configs/sweeps/quickstart.yaml --write next.yaml

--flops gives the best N and D for a budget; --params the tokens, and --tokens the parameters, that belong to it on the
compute-optimal line. --target-params and --target-tokens name a model whose loss is to be forecast, and --budget what
may be spent on other runs to know it better; with --like, the runs are real models in the style of that sweep, and
--write makes a sweep file of them for scripts/sweep.py.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table as Grid

from configs.cli import Parser, make_console, parse_count, run_command
from configs.formatting import count, flops, significant
from data.files import write_text
from scaling.design.optimal_design import Best, Candidates, Design, DesignBasis, best_for, design, grid, sensible
from scaling.design.sweep_file import Setting, Shape, candidates, read_setting, shapes, sweep_yaml
from scaling.errors import PlanError
from scaling.forecast.forecast import forecast
from scaling.forecast.law_file import LawFile, read_draws, read_law
from scaling.laws import Array
from scaling.tables.cells import MAX_VALUE

RUNS = 3


@dataclass(frozen=True)
class Proposal:
    """Runs to train next: those chosen, in order, and what they are expected to do to the forecast."""

    design: Design
    runs: Candidates
    shapes: list[Shape]
    setting: Setting | None
    target: dict[str, float]


def propose(args: argparse.Namespace, law: LawFile, draws: Mapping[str, Array]) -> Proposal:
    """Choose the next runs for a target. Raises PlanError, ConfigError."""
    N, D = args.target_params, args.target_tokens
    if N is None or D is None:
        raise PlanError("a target needs both --target-params and --target-tokens")
    if max(N, D) > MAX_VALUE:
        raise PlanError(f"--target-params {N:g} and --target-tokens {D:g} are beyond any plausible value")
    C = float(law.compute.flops(N, D))
    budget = C / 10 if args.budget is None else args.budget
    runs_wanted = RUNS if args.runs is None else args.runs
    if runs_wanted < 1:
        raise PlanError(f"--runs must be at least 1, not {runs_wanted}")
    target = {"N": N, "D": D, "U": D, "C": C}
    setting, found = None, []
    if args.like:
        setting = read_setting(args.like)
        low, high = law.data.fit_range["N"]
        found = [s for s in shapes(setting, law.data.n_definition) if low / 2 <= s.N <= min(4 * high, max(high, N))]
        tokens = law.data.fit_range["D"]
        possible = candidates(setting, found, law.compute, (tokens[0], min(4 * tokens[1], max(tokens[1], D))), budget)
    else:
        possible = grid(law, target, budget)
    points = law.data.points
    if {"N", "D"} <= points.keys():  # leave those that are trained already or too far from the fitted ones
        possible = pick(possible, sensible(possible, np.array(points["N"]), np.array(points["D"])))
    chosen = design(DesignBasis.of(law, draws), target, possible, budget, runs_wanted)
    runs = pick(possible, np.array([s.candidate for s in chosen.steps]))
    return Proposal(chosen, runs, found, setting, target)


def pick(runs: Candidates, which: NDArray[Any]) -> Candidates:
    """Some of the candidates, by mask or by index."""
    return Candidates({k: v[which] for k, v in runs.columns.items()}, runs.flops[which])


def show_best(best: Best, loss: Mapping[str, float], console: Console) -> None:
    """Print the best model."""
    table = Grid("", "best", f"{100 * loss['level']:g} % interval")
    rows = (("parameters N", best.N, count), ("tokens D", best.D, count), ("compute C (FLOPs)", best.C, flops))
    for name, q, write in rows:
        interval = f"{write(q.low)} to {write(q.high)}" if q.high > 1.0001 * q.low else "given"
        table.add_row(name, write(q.value), interval)
    table.add_row("tokens per parameter", significant(best.D.value / best.N.value, 3), "")
    table.add_row("loss (nats per token)", f"{loss['loss']:.4f}", f"{loss['low']:.4f} to {loss['high']:.4f}")
    console.print(table)
    if loss["extrapolation"] > 1:
        console.print(f"{loss['extrapolation']:.3g}x outside the fitted range")


def show_proposal(proposal: Proposal, console: Console) -> None:
    """Print the proposed runs."""
    design, target = proposal.design, proposal.target
    console.print(
        f"target: N = {count(target['N'])}, D = {count(target['D'])}. The coefficients leave its expected loss "
        f"uncertain by {100 * design.sigma:.3g} % (one standard deviation)."
    )
    table = Grid("run", "N", "D", "FLOPs", "share of the variance removed", "uncertain by, after it")
    names = [""] * len(proposal.runs)
    if proposal.shapes:
        keys = [proposal.shapes[int(i)].keys for i in proposal.runs.columns["shape"]]
        names = [k.get("size") or f"{k['n_layer']} layers of {k['d_model']}" for k in keys]
    for i, step in enumerate(design.steps):
        N, D = proposal.runs.columns["N"][i], proposal.runs.columns["D"][i]
        numbers = (count(N), count(D), flops(step.flops), f"{100 * step.gain:.1f} %", f"{100 * step.sigma:.3g} %")
        table.add_row(f"{i + 1} {names[i]}".strip(), *numbers)
    console.print(table)
    console.print(f"together {flops(design.flops)} FLOPs")


def run(args: argparse.Namespace) -> None:
    """Read, plan, print, write."""
    law = read_law(args.law)
    draws = read_draws(args.law, law.declared.parameters)
    console, compute = make_console(), law.compute
    given = [(k, v) for k, v in (("C", args.flops), ("N", args.params), ("D", args.tokens)) if v is not None]
    wants_runs = args.target_params is not None or args.target_tokens is not None
    if not given and not wants_runs:
        raise PlanError("say what to plan: --flops, --params, --tokens, or --target-params with --target-tokens")
    idle = [f"--{k}" for k in ("budget", "runs", "like") if getattr(args, k) is not None]
    if idle and not wants_runs:
        remedy = "name --target-params and --target-tokens, or leave it out"
        raise PlanError(f"{idle[0]} is about runs to propose: {remedy}")
    if args.write and not (args.like and wants_runs):
        raise PlanError("--write needs a target and --like SWEEP.yaml, which says what the runs have in common")
    best = loss = None
    if given:
        best = best_for(law, draws, *given[0])
        predicted = forecast(args.law, law, {"N": best.N.value, "D": best.D.value})
        loss = {k: getattr(predicted, k) for k in ("loss", "low", "high", "level", "extrapolation")}
    proposal = propose(args, law, draws) if wants_runs else None
    sizes = [best.N.value] if best else []
    sizes += [proposal.target["N"]] if proposal else []
    cautions = compute.caution(sizes)
    answer: dict[str, Any] = {"compute": compute.words, "cautions": list(cautions)}
    if not args.json:
        console.print(compute.words, *cautions, sep="\n", soft_wrap=True)
    if best and loss:
        answer |= asdict(best) | {"loss": loss}
        if not args.json:
            show_best(best, loss, console)
    if proposal:
        columns = (proposal.runs.columns[k].tolist() for k in ("N", "D"))
        runs = [
            {"N": N, "D": D, "flops": s.flops, "sigma_after": s.sigma, "gain_per_flop": s.gain_per_flop}
            for N, D, s in zip(*columns, proposal.design.steps, strict=True)
        ]
        answer |= {"target": proposal.target, "sigma": proposal.design.sigma, "runs": runs}
        if not args.json:
            show_proposal(proposal, console)
    if args.json:
        print(json.dumps(answer))
    if args.write and proposal and proposal.setting:
        write_text(args.write, written(args, proposal, proposal.setting))
        if not args.json:
            console.print(f"sweep: {args.write}", soft_wrap=True)


def written(args: argparse.Namespace, proposal: Proposal, setting: Setting) -> str:
    """The sweep file of a proposal."""
    target, sigma = proposal.target, proposal.design.sigma
    comment = (
        f"Runs that should narrow the forecast for N = {count(target['N'])}, D = {count(target['D'])} by {args.law}\n"
        f"from {100 * sigma:.3g} % to {100 * proposal.design.steps[-1].sigma:.3g} % (one standard deviation), "
        "most useful first."
    )
    return sweep_yaml(setting, proposal.shapes, proposal.runs, args.write, comment)


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("law", metavar="LAW.json", type=Path, help="a fitted law, or the directory that holds its law.json")
    given = parser.add_mutually_exclusive_group()
    given.add_argument("--flops", type=parse_count, metavar="C", help="budget in FLOPs: give the best N and D")
    given.add_argument("--params", type=parse_count, metavar="N", help="parameters: give the tokens they deserve")
    given.add_argument("--tokens", type=parse_count, metavar="D", help="tokens: give the parameters they deserve")
    add("--target-params", type=parse_count, metavar="N", help="parameters of the model to forecast")
    add("--target-tokens", type=parse_count, metavar="D", help="tokens of the model to forecast")
    budget = "FLOPs for all proposed runs (default: a tenth of the target's)"
    add("--budget", type=parse_count, metavar="C", help=budget)
    add("--runs", type=int, help=f"runs to propose at most (default: {RUNS})")
    add("--like", type=Path, metavar="SWEEP.yaml", help="a sweep whose data, recipe and directory the runs share")
    add("--write", type=Path, metavar="NEXT.yaml", help="write the proposed runs as a sweep (with --like)")
    add("--json", action="store_true", help="print one JSON object")
    return run_command(parser, run, words)


if __name__ == "__main__":
    sys.exit(main())
