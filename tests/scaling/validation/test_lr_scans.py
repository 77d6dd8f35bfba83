"""Of scans over the learning rate the best runs are fitted, and sizes that look untuned are named."""

import json
from pathlib import Path

import numpy as np
import pytest

from scaling.errors import FitError, TableError
from scaling.fit.bootstrap import bootstrap
from scaling.fit.estimate import fit
from scaling.laws import LAWS
from scaling.report.plots_lr_transfer import picture
from scaling.studies.lr_transfer import read_scans, transfers
from scaling.tables.table import Table
from scaling.validation.diagnostics import diagnose
from scaling.validation.lr_scans import at_best, scans
from scripts.fit import main as fit_main
from scripts.studies.lr_transfer import main as transfer_main
from tests.helpers.scaling_tables import TRUTH, grid, table

LAW = LAWS["chinchilla"]
RATES = np.array([0.5, 1.0, 2.0, 4.0]) * 1e-3


def scanned(best: float = 1e-3, seeds: int = 1) -> Table:
    """Losses of the law at the best rate, and a parabola in log lr above it."""
    columns = {k: np.repeat(v, len(RATES) * seeds) for k, v in grid().items()}
    lr = np.tile(np.repeat(RATES, seeds), len(grid()["N"]))
    noise = np.exp(0.001 * np.random.default_rng(0).standard_normal(len(lr)))
    loss = LAW.evaluate(TRUTH, columns) * (1 + 0.02 * np.log2(lr / best) ** 2) * noise
    return table({**columns, "lr": lr, "loss": loss})


def warnings(points: Table, tuned: bool) -> set[str]:
    found = scans(points) if tuned else []
    rows = at_best(points, found) if tuned else points
    fitted = fit(LAW, rows)
    return {w.name for w in diagnose(rows, fitted, bootstrap(fitted, rows.run, draws=100), found)}


def test_the_best_runs_give_the_law() -> None:
    points = scanned(seeds=2)
    found = scans(points)
    assert {tuned.lr for tuned in found} == {1e-3}
    rows = at_best(points, found)
    assert len(rows) == 2 * len(found)  # both seeds
    assert fit(LAW, rows).params["alpha"] == pytest.approx(TRUTH["alpha"], rel=0.05)
    with pytest.raises(FitError, match="needs the column lr"):
        scans(table({k: v for k, v in points.columns.items() if k != "lr"}))


def test_warnings_of_scans() -> None:
    assert not {"lr_at_edge", "several_learning_rates", "untuned_size"} & warnings(scanned(), tuned=True)
    assert "lr_at_edge" in warnings(scanned(best=8e-3), tuned=True)
    assert "several_learning_rates" in warnings(scanned(), tuned=False)


@pytest.mark.parametrize("untuned", [False, True])
def test_a_size_that_sticks_out_is_named(untuned: bool) -> None:
    columns = grid(np.geomspace(1e7, 3e9, 7), np.array([5.0, 20, 80, 320]))
    noise = np.exp(0.002 * np.random.default_rng(0).standard_normal(len(columns["N"])))
    loss = LAW.evaluate(TRUTH, columns) * noise
    if untuned:
        loss = np.where(columns["N"] == np.unique(columns["N"])[3], loss * 1.03, loss)
    points = table({**columns, "loss": loss, "lr": np.full(len(loss), 1e-3)})
    assert ("untuned_size" in warnings(points, tuned=False)) is untuned


def write_runs(folder: Path, optimum: dict[str, float]) -> None:
    """Records whose best learning rate is .004 at width 16 and, for each parametrization, `optimum` at 256."""
    for name, best in optimum.items():
        for width, at in ((16, 0.004), (256, best)):
            for lr in 0.001 * 2.0 ** np.arange(6):
                loss = 3 - width / 500 + 0.1 * np.log2(lr / at) ** 2
                run = folder / f"{name}-{width}-{lr:g}"
                run.mkdir(parents=True)
                record = {"parametrization": name, "d_model": width, "n_layer": 2, "lr": lr, "val_loss": loss}
                record |= {"N": width * 1000, "D": 1e6 * width, "complete": True, "corpus": "c"}
                (run / "record.json").write_text(json.dumps(record | {"D": 1e6}))


def test_transfer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_runs(tmp_path, {"standard": 0.001, "mup": 0.004})
    standard, mup = transfers(read_scans(tmp_path))
    assert (mup.doublings, standard.doublings) == (0, -2)
    assert mup.doublings_of_optimum == pytest.approx(0, abs=1e-6)
    assert (mup.penalty, standard.penalty) == pytest.approx((0, 0.4))
    assert standard.largest.at_edge
    assert len(picture(read_scans(tmp_path)).axes) == 2
    assert transfer_main([str(tmp_path)]) == 0
    assert (tmp_path / "lr_transfer.png").read_bytes().startswith(b"\x89PNG")
    assert "-2" in capsys.readouterr().out
    with pytest.raises(TableError, match="differ in tokens, corpus or d_model too"):
        read_scans(tmp_path, "n_layer")


def test_fit_takes_the_best_of_each_scan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    points = scanned()
    rows = zip(*(points.columns[k] for k in ("N", "D", "lr", "loss")), strict=True)
    (tmp_path / "t.csv").write_text("N,D,lr,loss\n" + "".join(",".join(map(repr, map(float, r))) + "\n" for r in rows))
    words = ["--out", str(tmp_path / "out"), "--best-of", "lr", "--draws", "100", "--no-average"]
    assert fit_main([str(tmp_path / "t.csv"), *words]) == 0
    law = json.loads((tmp_path / "out/law.json").read_text())
    assert len(law["rows"]) == len(law["tuning"]) == len(grid()["N"])
    assert law["tuning"][0]["tried"] == RATES.tolist()
    assert "best of lr" in capsys.readouterr().out
