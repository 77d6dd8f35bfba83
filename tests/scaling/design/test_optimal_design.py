"""Plans: the best model for a budget, and runs that narrow a forecast, against closed forms and Fisher information."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from configs.reader import ConfigError, build
from model.config import ModelConfig, expand_model
from model.counts import count_parameters, training_flops_per_token
from scaling.design.optimal_design import Candidates, DesignBasis, best_for, covariance, design, sensible
from scaling.design.optimal_design import grid as candidate_grid
from scaling.design.sweep_file import candidates, read_setting, shapes, sweep_yaml
from scaling.errors import PlanError
from scaling.fit.bootstrap import bootstrap, residual_sigma
from scaling.fit.estimate import fit, jacobian
from scaling.forecast.law_file import read_draws, read_law
from scaling.laws import LAWS
from scaling.tables.compute import SIX_ND
from tests.helpers.scaling_tables import TRUTH, grid, law_file, simulated

ROOT = Path(__file__).parents[3]
LAW = LAWS["chinchilla"]
TARGET = {"N": 1e10, "D": 2e11, "U": 2e11, "C": 1.2e22}


@pytest.fixture(scope="module")
def fitted():
    """A fit to 20 noisy runs, as the part of law.json that planning reads, and its draws."""
    table = simulated(noise=0.003, seed=2)
    found = fit(LAW, table)
    draws = bootstrap(found, table.run, draws=400).params
    law = law_file(
        found.params,
        intervals={k: [float(np.quantile(v, 0.05)), float(np.quantile(v, 0.95))] for k, v in draws.items()},
        fit_range={k: [table.columns[k].min(), table.columns[k].max()] for k in ("N", "D", "C")},
        residuals=found.residuals,
        residual_sigma=residual_sigma(found.residuals, 5),
        source="simulated",
    )
    return law, draws


def test_best_for_a_budget_is_the_closed_form_of_the_paper():
    law = law_file()
    draws = {k: np.array([v, v]) for k, v in TRUTH.items()}
    best = best_for(law, draws, "C", 5.76e23)
    alpha, beta = TRUTH["alpha"], TRUTH["beta"]
    G = (alpha * TRUTH["A"] / (beta * TRUTH["B"])) ** (1 / (alpha + beta))
    assert best.N.value == pytest.approx(G * (5.76e23 / 6) ** (beta / (alpha + beta)), rel=1e-12)
    assert best.D.value == pytest.approx((5.76e23 / 6) ** (alpha / (alpha + beta)) / G, rel=1e-12)
    for given, value in (("N", best.N.value), ("D", best.D.value)):
        again = best_for(law, draws, given, value)
        assert again.C.value == pytest.approx(5.76e23, rel=1e-9)


def test_intervals_come_from_the_draws(fitted):
    law, draws = fitted
    best = best_for(law, draws, "C", 1e22)
    assert best.C.low == pytest.approx(best.C.high) == pytest.approx(1e22)
    assert best.N.low < best.N.value < best.N.high
    each = [best_for(law_file({k: v[i] for k, v in draws.items()}), draws, "C", 1e22) for i in range(0, 400, 50)]
    assert all(best.N.low * 0.5 < b.N.value < best.N.high * 2 for b in each)


@pytest.mark.parametrize(("name", "given", "value"), [("kaplan_n", "C", 1e20), ("chinchilla", "N", -1.0)])
def test_plans_that_cannot_be_made_say_why(name, given, value):
    params = TRUTH if name == "chinchilla" else {"N_c": 1e13, "alpha": 0.07}
    law = law_file(params, name)
    with pytest.raises(PlanError, match=r"not a loss over N and D|positive"):
        best_for(law, {k: np.array([v]) for k, v in params.items()}, given, value)


def test_a_chosen_run_removes_what_fisher_information_says():
    """With Gaussian draws of small spread, the variance after a run is that of the information with its row added."""
    table, sigma = simulated(), 1e-4
    found = fit(LAW, table)
    J = jacobian(found.problem, found.theta)
    information = J.T @ J / sigma**2
    rng = np.random.default_rng(0)
    theta = rng.multivariate_normal(found.theta, np.linalg.inv(information), size=40_000)
    values = LAW.decode(theta, found.problem.centre)
    draws = {k: values[:, i] for i, k in enumerate(LAW.parameters)}
    basis = DesignBasis(LAW, found.params, draws, sigma, "log")
    run = {"N": np.array([3e9]), "D": np.array([6e10])}
    chosen = design(basis, TARGET, Candidates(run, np.array([1.0])), 10.0, 1)

    def gradient(N, D):
        x = np.log([[N], [D]]) - found.problem.centre[:, None]
        prediction, slope = LAW.model(found.theta[None], x)
        return slope[0, :, 0] / prediction[0, 0]

    t, g = gradient(TARGET["N"], TARGET["D"]), gradient(3e9, 6e10)
    before = t @ np.linalg.inv(information) @ t
    after = t @ np.linalg.inv(information + np.outer(g, g) / sigma**2) @ t
    assert chosen.sigma**2 == pytest.approx(before, rel=0.03)
    assert chosen.steps[0].sigma ** 2 == pytest.approx(after, rel=0.03)
    assert chosen.steps[0].gain == pytest.approx(1 - after / before, rel=0.03)


def test_the_design_beats_random_runs_of_the_same_number(fitted):
    law, draws = fitted
    possible = candidate_grid(law, TARGET, 1e21)
    chosen = design(DesignBasis.of(law, draws), TARGET, possible, 1e21, 3)
    assert len(chosen.steps) == 3
    assert chosen.flops <= 1e21
    sigmas = [chosen.sigma, *(s.sigma for s in chosen.steps)]
    assert sigmas == sorted(sigmas, reverse=True)
    rng = np.random.default_rng(0)
    for _ in range(20):
        three = rng.choice(len(possible), 3, replace=False)
        at = {k: np.append(TARGET[k], v[three]) for k, v in possible.columns.items()}
        K = covariance(LAW, draws, {k: at[k] for k in LAW.variables})
        noise = np.eye(3) * law.fit.residual_sigma**2
        left = K[0, 0] - K[0, 1:] @ np.linalg.solve(K[1:, 1:] + noise, K[1:, 0])
        assert chosen.steps[-1].sigma <= np.sqrt(left) * 1.02


def test_a_budget_too_small_for_any_run_is_refused(fitted):
    law, draws = fitted
    with pytest.raises(PlanError, match="costs at most"):
        design(DesignBasis.of(law, draws), TARGET, candidate_grid(law, TARGET, 1e21), 1e3, 3)


def test_measured_and_far_fetched_runs_are_not_proposed():
    known = grid()
    asked = {"N": np.array([1e8, 1e8, 1e8, 1e8]), "D": np.array([5e8, 1.5e9, 1e12, 1e7])}
    # Measured at 5 tokens per parameter; new at 15; 10,000 and 0.1 are beyond 4 times the measured 5 to 320.
    kept = sensible(Candidates(asked, np.ones(4)), known["N"], known["D"])
    assert kept.tolist() == [False, True, False, False]


# --- Sweep files ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def setting():
    """The quickstart sweep."""
    return read_setting(ROOT / "configs/sweeps/quickstart.yaml")


def test_shapes_have_the_counts_of_the_models_that_the_sweep_would_train(setting):
    found = shapes(setting)
    assert len({s.N for s in found}) > 20
    run = setting.run
    length = run["train"]["sequence_length"]
    base = {"style": run["model"]["style"], "vocab_size": run["data"]["vocab_size"], "context_length": length}
    for shape in found[::7]:
        model = build(ModelConfig, expand_model({**base, **shape.keys}), "test")
        assert count_parameters(model).total == shape.N
        assert shape.flops_per_token == training_flops_per_token(model, length)
    non_embedding = {json.dumps(s.keys): s.N for s in shapes(setting, "non-embedding")}
    assert all(non_embedding[json.dumps(s.keys)] < s.N for s in found)


def test_candidates_are_whole_steps_within_the_budget(setting):
    found = shapes(setting)
    possible = candidates(setting, found, SIX_ND, (2e5, 4e6), 1e13)
    assert len(possible) > 50
    assert (possible.flops <= 1e13).all()
    assert (possible.columns["D"] % setting.tokens_per_step == 0).all()


def test_the_sweep_file_is_accepted_by_the_trainer(setting, tmp_path):
    sweep = pytest.importorskip("train.sweep.expand")
    found = shapes(setting)
    possible = candidates(setting, found, SIX_ND, (2e5, 4e6), 1e13)
    some = np.arange(0, len(possible), 9)
    runs = Candidates({k: v[some] for k, v in possible.columns.items()}, possible.flops[some])
    path = tmp_path / "next.yaml"
    path.write_text(sweep_yaml(setting, found, runs, path, "A comment\nof two lines"))
    loaded = sweep.load_sweep(path)
    assert str(loaded.config.directory) == "runs/quickstart"
    by_size = [(count_parameters(r.config.model).total, r.config.tokens) for r in loaded.runs]
    assert by_size == [(int(n), int(d)) for n, d in zip(runs.columns["N"], runs.columns["D"], strict=True)]
    costs = [r.config.tokens * r.config.flops_per_token for r in loaded.runs]
    np.testing.assert_allclose(costs, runs.flops, rtol=1e-12)


def test_a_file_that_is_not_a_sweep_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("name: a\n")
    with pytest.raises(ConfigError, match="base"):
        read_setting(tmp_path / "a.yaml")


# --- The command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(fitted, tmp_path_factory):
    """The law on disk."""
    law, draws = fitted
    return law.write(tmp_path_factory.mktemp("law"), draws)


@pytest.fixture
def plan(monkeypatch, capsys):
    """scripts/plan.py, called in this process: exit status and what was printed."""
    main = runpy.run_path(str(ROOT / "scripts/plan.py"), run_name="plan")["main"]
    monkeypatch.chdir(ROOT)

    def call(*args):
        try:
            status = main([str(a) for a in args])
        except SystemExit as end:  # argparse
            status = end.code
        return status, capsys.readouterr()

    return call


def test_the_command_prints_the_best_model_for_a_budget(plan, saved):
    status, printed = plan(saved, "--flops", 1e22, "--json")
    assert status == 0, printed.err
    answer = json.loads(printed.out)
    best = best_for(read_law(saved), read_draws(saved), "C", 1e22)
    assert answer["N"]["value"] == pytest.approx(best.N.value)
    assert answer["N"]["low"] == pytest.approx(best.N.low)
    assert set(answer["C"].values()) == {1e22}
    assert answer["loss"]["low"] < answer["loss"]["loss"] < answer["loss"]["high"]
    assert "tokens per parameter" in plan(saved, "--params", "7B")[1].out


def test_the_command_proposes_runs_and_writes_a_sweep(plan, saved, tmp_path):
    path = tmp_path / "next.yaml"
    like = ("--like", "configs/sweeps/gpt2.yaml", "--write", path)
    status, printed = plan(saved, "--target-params", 1e10, "--target-tokens", 2e11, "--budget", 1e21, "--json", *like)
    assert status == 0, printed.err
    answer = json.loads(printed.out)
    assert len(answer["runs"]) == 3
    assert answer["runs"][-1]["sigma_after"] < answer["sigma"]
    assert sum(r["flops"] for r in answer["runs"]) <= 1e21
    assert path.read_text().count("train.tokens") == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "say what to plan"),
        (["--target-params", "1e9"], "both --target-params and --target-tokens"),
        (["--flops", "-1"], "positive"),
        (["--flops", "1e20", "--write", "a.yaml"], "--write needs"),
        (["--flops", "1e20", "--budget", "1e18"], "--budget is about runs to propose"),
        (["--flops", "1e20", "--params", "7B"], "not allowed with"),
        (["--flops", "1e999"], "not a positive finite number"),
        (["--target-params", "1e300", "--target-tokens", "1e300"], "beyond any plausible value"),
        (["--target-params", "1e9", "--target-tokens", "1e11", "--runs", "0"], "--runs"),
        (["--target-params", "1e9", "--target-tokens", "1e11", "--like", "no.yaml"], "no.yaml"),
    ],
)
def test_mistakes_end_in_one_sentence(plan, saved, options, message):
    status, printed = plan(saved, *options)
    assert status == 2
    assert message in printed.err
    assert len(printed.err.strip().splitlines()) == 1


def test_help_shows_units_and_an_example():
    command = [sys.executable, "scripts/plan.py", "--help"]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "nats per token" in text
    assert "FLOPs" in text
    assert "python scripts/plan.py" in text
