"""What fit.py prints: coefficients, held-out predictions, checks, exclusions and warnings."""

from rich.console import Console
from rich.table import Table as Grid

from configs.formatting import nats
from scaling.forecast.law_file import LawFile
from scaling.validation.known_entropy import verdict


def show(law: LawFile, console: Console) -> None:
    """Print coefficients, held-out predictions, exclusions and warnings."""
    level = f"{100 * law.fit.level:g} %"
    rows, runs = f"{len(law.data.rows)} rows", f"{law.data.runs} runs of {law.data.source}"
    console.print(f"[bold]{law.fit.formula}[/bold]   {rows}, {runs}")
    console.print(law.compute.words)
    grid = Grid("parameter", "value", f"{level} interval")
    for name, value in law.fit.params.items():
        low, high = law.fit.intervals[name]
        grid.add_row(name, f"{value:.6g}", f"{low:.4g} to {high:.4g}")
    console.print(grid)
    if truth := verdict(law):
        console.print(truth)
    certificate = law.checks.certificate
    console.print(
        f"objective {certificate.objective:.9g}, gradient norm {certificate.gradient_norm:.1e}, "
        f"{certificate.starts_agreeing} of {certificate.starts} starts agree, "
        f"condition number {certificate.condition_number:.3g}"
    )
    if law.checks.holdout:
        grid = Grid("held out", "N", "D", "measured", "predicted", f"{level} interval", "error", "covered")
        for row in law.checks.holdout:
            seen = row.run, f"{row.N:.4g}", f"{row.D:.4g}", nats(row.loss)
            said = nats(row.predicted), f"{nats(row.low)} to {nats(row.high)}"
            grid.add_row(*seen, *said, f"{100 * row.error:+.2f} %", "yes" if row.covered else "no")
        console.print(grid)
    if law.checks.tuning:
        grid = Grid("best of lr", "N", "D", "loss", "tried", "losses")
        for scan in law.checks.tuning:
            edge = " (edge)" if scan.at_edge else ""
            tried, losses = " ".join(f"{rate:g}" for rate in scan.tried), " ".join(map(nats, scan.losses))
            place = f"{scan.lr:g}{edge}", f"{scan.N:.4g}", f"{scan.D:.4g}"
            grid.add_row(*place, nats(min(scan.losses)), tried, losses)
        console.print(grid)
    show_checks(law, console)
    for excluded in law.data.excluded:
        console.print(f"excluded {excluded.row}: {excluded.reason}")
    for warning in law.checks.warnings:
        console.print(f"[yellow]warning {warning.name}[/yellow]: {warning.message}; {warning.advice}")


def show_checks(law: LawFile, console: Console) -> None:
    """Print the profile of E, expanding windows, the weights of the laws, sensitivity and the tally of forecasts."""
    if profile := law.uncertainty.profile_E:
        ends = ["no limit" if end is None else f"{end:.4g}" for end in profile.interval]
        console.print(f"profile of E: {ends[0]} to {ends[1]}")
    if (backtest := law.checks.backtest) and backtest.predictions:
        console.print(
            f"expanding windows: {backtest.predictions} predictions in {len(backtest.windows)} windows, "
            f"root mean square error {100 * backtest.rms_error:.2f} %, {backtest.covered} inside their interval"
        )
    if averaged := law.others.averaged:
        parts = [f"{m.label} {m.weight:.2f}" for m in averaged.members]
        console.print(f"laws by backtest weight: {', '.join(parts)}")
    if sensitivity := law.checks.sensitivity:
        grid = Grid("sensitivity", "least", "median", "largest", title=f"{len(sensitivity.settings)} refits")
        for name, values in sensitivity.spread.items():
            grid.add_row(name, *(f"{v:.5g}" for v in values))
        console.print(grid)
    forecasts = law.others.forecasts
    if forecasts.scored or forecasts.pending:
        console.print(
            f"forecasts: {len(forecasts.scored)} scored, {forecasts.covered} inside their interval, "
            f"{forecasts.pending} pending"
        )
    for name in forecasts.changed:
        console.print(f"[yellow]warning[/yellow]: forecast {name} was changed after it was registered; not scored")
