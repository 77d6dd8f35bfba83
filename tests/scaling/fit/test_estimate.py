import numpy as np
import pytest

from scaling.errors import FitError
from scaling.fit.estimate import LOSSES, fit, jacobian, loss_named, make_problem, starting_points
from scaling.laws import LAWS
from scaling.tables.read import read_table
from tests.helpers.scaling_tables import TABLES, TRUTH, simulated, table

CHINCHILLA = LAWS["chinchilla"]


def test_published_table_reaches_the_certified_optimum():
    """Fits of the same table computed independently with other optimizers, to the digits those reached."""
    points = read_table(TABLES / "kyo_takano.csv")
    fitted = fit(CHINCHILLA, points)
    assert fitted.certificate.objective <= 0.00084009310 * (1 + 1e-7)
    expected = {"E": 1.783894, "A": 442.1642, "B": 1271.808, "alpha": 0.3426260, "beta": 0.3420019}
    assert fitted.params == pytest.approx(expected, rel=5e-6)
    assert fitted.certificate.gradient_norm < 1e-9
    assert fitted.certificate.starts_agreeing == fitted.certificate.starts == 72
    assert fitted.certificate.distance_from_start > 0.1
    squares = fit(CHINCHILLA, points, loss_named("log-mse"))
    assert squares.certificate.objective == pytest.approx(0.0035052886883896704, rel=1e-12)
    assert squares.params["alpha"] == pytest.approx(0.351261326, rel=1e-7)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("starts", ["grid", "random"])
def test_truth_is_recovered_without_noise(loss, starts):
    fitted = fit(CHINCHILLA, simulated(), loss_named(loss), starts=starts)
    assert fitted.params == pytest.approx(TRUTH, rel=1e-6)


def test_every_single_start_leads_to_the_truth():
    from scaling.fit.estimate import minimise

    problem = make_problem(CHINCHILLA, simulated())
    solution = minimise(problem, np.concatenate([starting_points(problem), starting_points(problem, "random")]))
    params = CHINCHILLA.decode(solution.theta, problem.centre)
    np.testing.assert_allclose(params, np.broadcast_to(list(TRUTH.values()), params.shape), rtol=1e-6)


def test_optimum_is_no_worse_than_scipy_finds():
    from scipy.optimize import minimize

    problem = make_problem(CHINCHILLA, simulated(noise=0.01, seed=3))
    fitted = fit(CHINCHILLA, simulated(noise=0.01, seed=3))

    def objective(theta):
        prediction, _ = CHINCHILLA.model(theta[None], problem.x)
        return 1e3 * problem.loss.rho(problem.residual(prediction[0], problem.y)).sum()

    other = min(
        minimize(objective, start, method="Nelder-Mead", options={"maxiter": 4000, "fatol": 1e-12}).fun / 1e3
        for start in (fitted.theta, *starting_points(problem)[::24])
    )
    assert fitted.certificate.objective <= other * (1 + 1e-9)


def test_weights_count_as_repeated_rows():
    points = simulated(noise=0.01)
    weights = np.arange(len(points)) % 3
    repeated = table({k: np.repeat(v, weights) for k, v in points.columns.items()})
    assert fit(
        CHINCHILLA, points.with_columns({**points.columns, "weight": weights.astype(float)})
    ).params == pytest.approx(fit(CHINCHILLA, repeated).params, rel=1e-6)


def test_pinned_parameters_stay_where_they_are():
    fitted = fit(CHINCHILLA, simulated(noise=0.01), fixed={"E": 1.5, "A": 300.0, "alpha": 0.3})
    assert {k: fitted.params[k] for k in ("E", "A", "alpha")} == pytest.approx({"E": 1.5, "A": 300.0, "alpha": 0.3})
    assert jacobian(fitted.problem, fitted.theta).shape == (20, 2)
    for fixed, message in [
        ({"A": 3.0}, "pin alpha as well"),
        ({"gamma": 1.0}, "no parameter"),
        ({"E": -1.0}, "pinned"),
    ]:
        with pytest.raises(FitError, match=message):
            fit(CHINCHILLA, simulated(), fixed=fixed)


def test_a_bound_that_is_hit_is_named():
    columns = simulated().columns
    flat = {**columns, "loss": (8.8e13 / columns["N"]) ** 0.076}  # a power law without an irreducible loss
    fitted = fit(CHINCHILLA, table(flat))
    assert fitted.certificate.boundary
    assert np.isfinite(list(fitted.params.values())).all()


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (slice(0, 5), "5 rows are too few for the 5 parameters"),
        (slice(0, 8), "2 different values of N"),
    ],
)
def test_too_little_data_is_refused(keep, message):
    points = simulated()
    some = np.zeros(len(points), dtype=bool)
    some[keep] = True
    with pytest.raises(FitError, match=message):
        fit(CHINCHILLA, points.select(some))


def test_unknown_loss_is_refused():
    with pytest.raises(FitError, match="not one of log-huber"):
        loss_named("hubber")
