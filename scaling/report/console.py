"""What fit.py prints: coefficients, held-out predictions, checks, exclusions and warnings."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table as Grid

from scaling.forecast.law_file import compute_of
from scaling.formatting import nats
from scaling.validation.known_entropy import verdict


def show(law: dict[str, Any], console: Console) -> None:
    """Print coefficients, held-out predictions, exclusions and warnings."""
    level = f"{100 * law['level']:g} %"
    console.print(f"[bold]{law['formula']}[/bold]   {len(law['rows'])} rows, {law['runs']} runs of {law['source']}")
    console.print(compute_of(law).words)
    grid = Grid("parameter", "value", f"{level} interval")
    for name, value in law["params"].items():
        low, high = law["intervals"][name]
        grid.add_row(name, f"{value:.6g}", f"{low:.4g} to {high:.4g}")
    console.print(grid)
    if said := verdict(law):
        console.print(said)
    certificate = law["certificate"]
    console.print(
        f"objective {certificate['objective']:.9g}, gradient norm {certificate['gradient_norm']:.1e}, "
        f"{certificate['starts_agreeing']} of {certificate['starts']} starts agree, "
        f"condition number {certificate['condition_number']:.3g}"
    )
    if law["holdout"]:
        grid = Grid("held out", "N", "D", "measured", "predicted", f"{level} interval", "error", "covered")
        for row in law["holdout"]:
            grid.add_row(
                row["run"],
                f"{row['N']:.4g}",
                f"{row['D']:.4g}",
                nats(row["loss"]),
                nats(row["predicted"]),
                f"{nats(row['low'])} to {nats(row['high'])}",
                f"{100 * row['error']:+.2f} %",
                "yes" if row["covered"] else "no",
            )
        console.print(grid)
    if law["tuning"]:
        grid = Grid("best of lr", "N", "D", "loss", "tried", "losses")
        for row in law["tuning"]:
            edge = " (edge)" if row["at_edge"] else ""
            found = min(row["losses"]), " ".join(f"{rate:g}" for rate in row["tried"])
            losses = " ".join(map(nats, row["losses"]))
            grid.add_row(f"{row['lr']:g}{edge}", f"{row['N']:.4g}", f"{row['D']:.4g}", nats(found[0]), found[1], losses)
        console.print(grid)
    show_checks(law, console)
    for excluded in law["excluded"]:
        console.print(f"excluded {excluded['row']}: {excluded['reason']}")
    for warning in law["warnings"]:
        console.print(f"[yellow]warning {warning['name']}[/yellow]: {warning['message']}; {warning['advice']}")


def show_checks(law: dict[str, Any], console: Console) -> None:
    """Print the profile of E, expanding windows, the weights of the laws, sensitivity and the tally of forecasts."""
    if found := law["profile_E"]:
        console.print("profile of E: {:.4g} to {:.4g}".format(*found["interval"]))
    if (found := law["backtest"]) and found["predictions"]:
        console.print(
            f"expanding windows: {found['predictions']} predictions in {len(found['windows'])} windows, "
            f"root mean square error {100 * found['rms_error']:.2f} %, {found['covered']} inside their interval"
        )
    if found := law["averaged"]:
        parts = [f"{m['label']} {m['weight']:.2f}" for m in found["members"]]
        console.print(f"laws by backtest weight: {', '.join(parts)}")
    if found := law["sensitivity"]:
        grid = Grid("sensitivity", "least", "median", "largest", title=f"{len(found['settings'])} refits")
        for name, values in found["spread"].items():
            grid.add_row(name, *(f"{v:.5g}" for v in values))
        console.print(grid)
    found = law["forecasts"]
    if found["scored"] or found["pending"]:
        console.print(
            f"forecasts: {len(found['scored'])} scored, {found['covered']} inside their interval, "
            f"{found['pending']} pending"
        )
    for name in found["changed"]:
        console.print(f"[yellow]warning[/yellow]: forecast {name} was changed after it was registered; not scored")
