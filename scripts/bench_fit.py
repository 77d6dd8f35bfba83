#!/usr/bin/env python
"""Time the fitter against a scipy BFGS multi-start of the same objective, in one run on one core.

    OMP_NUM_THREADS=1 python scripts/bench_fit.py
    OMP_NUM_THREADS=1 python scripts/bench_fit.py --table tests/tables/kyo_takano.csv --draws 4000

Prints seconds for the point fit (72 starts) and for the bootstrap, those that scipy.optimize.minimize (BFGS, the same
starts, the same centred coordinates, the same analytic gradient) takes, the ratios, and how near both came to the
best objective. scipy's bootstrap is timed on a few draws from the optimum and scaled up. Each timing is the best of
several.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

from scaling.estimate import Problem, fit, make_problem, minimise, starting_points
from scaling.laws import LAWS, Array
from scaling.table import Table, read_table
from scaling.uncertainty import METHODS, bootstrap

TRUTH = {"E": 1.82, "A": 482.0, "B": 2085.0, "alpha": 0.348, "beta": 0.366}


def simulated(rows: int, seed: int = 0) -> Table:
    """A table of ``rows`` runs about the law that Besiroglu et al. 2024 refit, with 0.5 % noise and some outliers."""
    rng = np.random.default_rng(seed)
    N = np.exp(rng.uniform(np.log(5e7), np.log(1.6e10), rows))
    D = N * np.exp(rng.uniform(np.log(2), np.log(300), rows))
    noise = 0.005 * rng.standard_t(3, rows)
    loss = LAWS["chinchilla"].evaluate(TRUTH, {"N": N, "D": D}) * np.exp(noise)
    columns = {"N": N, "D": D, "loss": loss}
    return Table(columns, [f"run{i}" for i in range(rows)], np.arange(1, rows + 1), [], "", "simulated").redefine()


def best_of(repeats: int, action: Callable[[], object]) -> float:
    """Least wall time of ``action`` in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


def scipy_fit(problem: Problem, start: Array, weights: Array) -> tuple[float, Array]:
    """Minimise one problem by BFGS from one start; objective and coordinates."""
    lower, upper = np.array(problem.law.bounds).T
    delta = problem.loss.delta

    def objective(theta: Array) -> tuple[float, Array]:
        theta = np.clip(theta, lower, upper)
        prediction, gradient = problem.law.model(theta[None], problem.x)
        residual = np.log(prediction[0]) - np.log(problem.y)
        slope = gradient[0] @ (weights * np.clip(residual, -delta, delta) / prediction[0])
        # Scaled up: BFGS stops at an absolute gradient of 1e-5, far from the optimum of a sum of this size.
        return 1e4 * float((weights * problem.loss.rho(residual)).sum()), 1e4 * slope

    with np.errstate(all="ignore"):
        found = minimize(objective, start, jac=True, method="BFGS", options={"maxiter": 1000})
    return float(found.fun) / 1e4, found.x


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, help="table to fit (default: simulated)")
    parser.add_argument("--rows", type=int, default=240, help="rows of the simulated table")
    parser.add_argument("--draws", type=int, default=4000, help="bootstrap draws")
    parser.add_argument("--scipy-draws", type=int, default=40, help="draws that scipy is timed on")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    table = read_table(args.table) if args.table else simulated(args.rows)
    law = LAWS["chinchilla"]
    problem = make_problem(law, table)
    starts = starting_points(problem)
    fitted = fit(law, table)
    best = fitted.certificate.objective
    print(f"{len(table)} rows, {len(starts)} starts, log-Huber 1e-3")

    own = best_of(args.repeats, lambda: fit(law, table))
    found = minimise(problem, starts).objective
    begin = time.perf_counter()
    others = np.array([scipy_fit(problem, s, problem.weights)[0] for s in starts])
    other = time.perf_counter() - begin
    best = min(best, float(others.min()))
    print(f"point fit  scaling {own:8.3f} s   scipy BFGS {other:8.2f} s   ratio {other / own:6.0f}x")
    for name, values in (("scaling", found), ("scipy BFGS", others)):
        near = int((values <= best * (1 + 1e-8)).sum())
        print(f"  {name:10s} best objective {values.min():.12g}, {near} of {len(starts)} starts within 1e-8")

    rng = np.random.default_rng(1)
    counts = rng.multinomial(len(table), np.full(len(table), 1 / len(table)), size=args.scipy_draws).astype(float)
    begin = time.perf_counter()
    slow = np.array([scipy_fit(problem, fitted.theta, w)[0] for w in counts])
    other = (time.perf_counter() - begin) * args.draws / args.scipy_draws
    mine = minimise(problem, np.repeat(fitted.theta[None], len(counts), axis=0), weights=counts).objective
    for method in METHODS:
        own = best_of(args.repeats, lambda m=method: bootstrap(fitted, table.run, m, draws=args.draws))
        print(
            f"{args.draws} draws ({method})  scaling {own:6.2f} s   scipy BFGS {other:8.1f} s   ratio {other / own:5.0f}x"
        )
    print(f"  objective over draws, scaling / scipy: {(mine / slow).min():.6f} to {(mine / slow).max():.6f}")


if __name__ == "__main__":
    main()
