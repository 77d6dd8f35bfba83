"""Time the fitter against a scipy BFGS multi-start of the same objective, in one run on one core.

    OMP_NUM_THREADS=1 python scripts/bench/bench_fit.py
    OMP_NUM_THREADS=1 python scripts/bench/bench_fit.py --table tests/tables/kyo_takano.csv --draws 4000

Two baselines, both scipy.optimize.minimize(method="BFGS") from the same starts, with the objective scaled up so that
BFGS does not stop early:

- published: log A, log B, log E, alpha, beta on uncentred logarithms with logsumexp and scipy's own differences for
  the gradient, as in the replication of Besiroglu et al. 2024;
- assisted: the coordinates and the analytic gradient of this package lent to BFGS.

Prints seconds for the point fit and for the bootstrap (BFGS timed on a few draws from the optimum and scaled up), the
ratios, and how near each came to the best objective. Own timings are the best of several, BFGS runs once.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from timeit import repeat

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp

from configs.cli import Parser, run_command
from scaling.fit.bootstrap import METHODS, bootstrap
from scaling.fit.estimate import FitProblem, fit, make_problem, minimise, starting_points
from scaling.laws import LAWS, Array
from scaling.tables.read import read_table
from scaling.tables.table import Table

TRUTH = {"E": 1.82, "A": 482.0, "B": 2085.0, "alpha": 0.348, "beta": 0.366}


def simulated(rows: int, seed: int = 0) -> Table:
    """A table of ``rows`` runs about the law that Besiroglu et al. 2024 refit, with 0.5 % noise and some outliers."""
    rng = np.random.default_rng(seed)
    N = np.exp(rng.uniform(np.log(5e7), np.log(1.6e10), rows))
    D = N * np.exp(rng.uniform(np.log(2), np.log(300), rows))
    noise = 0.005 * rng.standard_t(3, rows)
    loss = LAWS["chinchilla"].evaluate(TRUTH, {"N": N, "D": D}) * np.exp(noise)
    return Table(
        {"N": N, "D": D, "loss": loss}, [f"run{i}" for i in range(rows)], np.arange(1, rows + 1), [], "", "simulated"
    ).redefine()


SCALE = 1e4  # BFGS stops at an absolute gradient of 1e-5, far from the optimum of a sum of this size
Start = Callable[[Array, Array], float]


def assisted(problem: FitProblem) -> Start:
    """BFGS with this package's coordinates and gradient: (start, weights) -> objective."""
    lower, upper = np.array(problem.law.bounds).T
    delta = problem.loss.delta

    def solve(start: Array, weights: Array) -> float:
        def objective(theta: Array) -> tuple[float, Array]:
            theta = np.clip(theta, lower, upper)
            prediction, gradient = problem.law.model(theta[None], problem.x)
            residual = np.log(prediction[0]) - np.log(problem.y)
            slope = gradient[0] @ (weights * np.clip(residual, -delta, delta) / prediction[0])
            return SCALE * float((weights * problem.loss.rho(residual)).sum()), SCALE * slope

        with np.errstate(all="ignore"):
            return float(minimize(objective, start, jac=True, method="BFGS", options={"maxiter": 1000}).fun) / SCALE

    return solve


def published(problem: FitProblem) -> Start:
    """BFGS as in published code: (start in this package's coordinates, weights) -> objective."""
    x = problem.x + problem.centre[:, None]
    target = np.log(problem.y)

    def solve(start: Array, weights: Array) -> float:
        E, A, B, alpha, beta = problem.law.decode(start, problem.centre)
        first = np.array([np.log(A), np.log(B), np.log(max(E, 1e-3)), alpha, beta])

        def objective(theta: Array) -> float:
            a, b, e, alpha, beta = theta
            terms = [a - alpha * x[0], b - beta * x[1], np.full_like(target, e)]
            return SCALE * float((weights * problem.loss.rho(logsumexp(terms, axis=0) - target)).sum())

        with np.errstate(all="ignore"):
            return float(minimize(objective, first, method="BFGS", options={"maxiter": 1000}).fun) / SCALE

    return solve


def timed(solve: Start, problems: list[tuple[Array, Array]]) -> tuple[float, Array]:
    """Seconds for all problems (start, weights) and their objectives."""
    begin = time.perf_counter()
    objectives = np.array([solve(start, weights) for start, weights in problems])
    return time.perf_counter() - begin, objectives


def main(words: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit status."""
    parser = Parser(__doc__)
    parser.add_argument("--table", type=Path, help="table to fit (default: simulated)")
    parser.add_argument("--rows", type=int, default=240, help="rows of the simulated table (default: 240)")
    parser.add_argument("--draws", type=int, default=4000, help="bootstrap draws (default: 4000)")
    parser.add_argument("--scipy-draws", type=int, default=40, help="draws that scipy is timed on (default: 40)")
    parser.add_argument("--repeats", type=int, default=3, help="repeats of own timings; the least counts (default: 3)")
    return run_command(parser, run, words)


def run(args: argparse.Namespace) -> None:
    """Time everything in turn, and print it."""
    table = read_table(args.table) if args.table else simulated(args.rows)
    law = LAWS["chinchilla"]
    problem = make_problem(law, table)
    starts = starting_points(problem)
    fitted = fit(law, table)
    best = fitted.certificate.objective
    print(f"{len(table)} rows, {len(starts)} starts, log-Huber 1e-3")

    found = minimise(problem, starts).objective
    rng = np.random.default_rng(1)
    counts = rng.multinomial(len(table), np.full(len(table), 1 / len(table)), size=args.scipy_draws).astype(float)

    def least_seconds(action: Callable[[], object]) -> float:
        return min(repeat(action, number=1, repeat=args.repeats))

    own_fit = least_seconds(lambda: fit(law, table))
    own_boot = {m: least_seconds(partial(bootstrap, fitted, table.run, m, draws=args.draws)) for m in METHODS}
    mine = minimise(problem, np.repeat(fitted.theta[None], len(counts), axis=0), weights=counts).objective
    print(f"this package: point fit {own_fit:.3f} s, {args.draws} draws", end=" ")
    print(", ".join(f"{m} {seconds:.2f} s" for m, seconds in own_boot.items()))
    print(f"  {_near(found, best)} of {len(starts)} starts within 1e-8 of {best:.12g}")
    for name, solve in (("published", published(problem)), ("assisted", assisted(problem))):
        seconds, others = timed(solve, [(s, problem.weights) for s in starts])
        slow, draws = timed(solve, [(fitted.theta, w) for w in counts])
        slow *= args.draws / args.scipy_draws
        ratios = ", ".join(f"{m} {slow / own:.0f}x" for m, own in own_boot.items())
        print(f"BFGS {name}: point fit {seconds:.2f} s, ratio {seconds / own_fit:.0f}x; draws {slow:.0f} s, {ratios}")
        print(f"  {_near(others, best)} of {len(starts)} starts within 1e-8, best {others.min():.12g}")
        ratio = draws / mine
        print(f"  objective of its draws / ours: median {np.median(ratio):.6f}, worst {ratio.max():.6f}")


def _near(objectives: Array, best: float) -> int:
    return int((objectives <= best * (1 + 1e-8)).sum())


if __name__ == "__main__":
    sys.exit(main())
