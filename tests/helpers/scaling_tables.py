"""Tables with a known truth, shared by the tests of the fitter."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scaling.forecast.law_file import COMPUTE_KEYS, LawFile, parse_law, to_jsonable
from scaling.laws import LAWS
from scaling.tables.compute import SIX_ND, Compute
from scaling.tables.table import Table

TABLES = Path(__file__).parents[1] / "tables"
TRUTH = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}  # Hoffmann et al. 2022
SIZES = np.array([1e7, 3e7, 1e8, 3e8, 1e9])
RATIOS = np.array([5.0, 20.0, 80.0, 320.0])


def grid(sizes: np.ndarray = SIZES, ratios: np.ndarray = RATIOS) -> dict[str, np.ndarray]:
    """N and D of every size at every number of tokens per parameter."""
    N, ratio = (m.ravel() for m in np.meshgrid(sizes, ratios, indexing="ij"))
    return {"N": N, "D": N * ratio}


def table(columns: dict[str, np.ndarray], run: list[str] | None = None) -> Table:
    """A table of the given columns, each row a run of its own unless said otherwise."""
    n = len(columns["N"])
    run = run or [f"run{i}" for i in range(n)]
    return Table(dict(columns), run, np.arange(1, n + 1), [], "0" * 64, "simulated").redefine()


def simulated(noise: float = 0.0, seed: int = 0, law: str = "chinchilla", **params: float) -> Table:
    """20 runs whose losses follow a law exactly, or with log-normal noise."""
    columns = grid()
    loss = LAWS[law].evaluate({**TRUTH, **params}, columns)
    rng = np.random.default_rng(seed)
    return table({**columns, "loss": loss * np.exp(noise * rng.standard_normal(len(loss)))})


def law_file(
    params: Mapping[str, float] | None = None, law: str = "chinchilla", compute: Compute = SIX_ND, **keys: Any
) -> LawFile:
    """A law that was fitted to nothing: what a file must have, and any ``keys`` that matter."""
    params = dict(TRUTH if params is None else params)
    content = {
        "schema": 2,
        "compute": {k: getattr(compute, k) for k in COMPUTE_KEYS},
        "law": law,
        "params": params,
        "intervals": {k: [v, v] for k, v in params.items()},
        "level": 0.9,
        "holdout": [],
        "certificate": {"objective": 0.0, "gradient_norm": 0.0, "starts": 1, "starts_agreeing": 1},
        "excluded": [],
        "table_sha256": "0" * 64,
        "fit_range": {k: [1e6, 1e9] for k in {*LAWS[law].variables, "N", "D"}},
        "residuals": [0.0],
        "residual_sigma": 0.001,
        "free_parameters": 5,
        "loss": {"name": "log-huber", "scale": "log", "delta": 1e-3},
        "bootstrap": {"seed": 0},
    }
    return parse_law(to_jsonable({**content, **keys}), "a law.json")
