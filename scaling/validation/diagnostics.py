"""Reasons to doubt a fit, found before and after it: each a named warning with what to do about it."""

from collections.abc import Callable, Sequence

import numpy as np

from configs.formatting import count
from scaling.fit.bootstrap import Bootstrap
from scaling.fit.estimate import Fit
from scaling.fit.weights import replicate_sigma
from scaling.forecast.law_sections import Diagnostic
from scaling.tables.table import Table
from scaling.validation.lr_scans import Tuned, high_sizes, scans


def _same(values: np.ndarray, tolerance: float) -> int:
    """Number of values that differ by more than a relative tolerance."""
    ordered = np.sort(np.log(values))
    return 1 + int((np.diff(ordered) > tolerance).sum())


def too_few_sizes(table: Table) -> Diagnostic | None:
    """Fewer than five model sizes, or all within a factor of ten."""
    N = table.columns["N"]
    sizes, span = _same(N, 0.02), N.max() / N.min()
    if sizes >= 5 and span >= 10:
        return None
    return Diagnostic(
        "too_few_sizes",
        f"{sizes} model sizes spanning {span:.3g}x",
        "train at least five sizes over a factor of ten or more, or pin E",
    )


def too_few_ratios(table: Table) -> Diagnostic | None:
    """Fewer than three tokens-per-parameter ratios."""
    ratio = table.columns["D"] / table.columns["N"]
    different = _same(ratio, 0.1)
    if different >= 3:
        return None
    return Diagnostic(
        "too_few_ratios",
        f"{different} different numbers of tokens per parameter",
        "train some sizes for other horizons, at least three ratios a factor of two or more apart",
    )


def collinear(table: Table) -> Diagnostic | None:
    """log N and log D nearly proportional: A/N^alpha and B/D^beta cannot be told apart."""
    x = np.log([table.columns["N"], table.columns["D"]])
    if len(table) < 3 or (np.ptp(x, axis=1) == 0).any():
        return None
    correlation = float(np.corrcoef(x)[0, 1])
    if abs(correlation) < 0.97:
        return None
    return Diagnostic(
        "collinear_design",
        f"log N and log D are correlated at {correlation:.3f}, so size and data cannot be told apart",
        "add runs with another number of tokens per parameter; the sum of both terms is still usable on this line",
    )


def duplicates(table: Table) -> Diagnostic | None:
    """Rows that repeat another one to the last digit of the loss."""
    rows = np.column_stack([table.columns[k] for k in ("N", "D", "loss")])
    extra = len(rows) - len(np.unique(rows, axis=0))
    if not extra:
        return None
    return Diagnostic(
        "duplicate_rows",
        f"{extra} rows repeat another row's N, D and loss exactly",
        "remove copies; replicate seeds should differ in loss",
    )


def mixed_units(table: Table) -> Diagnostic | None:
    """Values that look like another unit: N in millions, D in billions, loss in bits, or a jump between rows."""
    N, D, loss = (table.columns[k] for k in ("N", "D", "loss"))
    doubts = []
    if N.min() < 100:
        doubts.append(f"N as small as {N.min():.4g}")
    if D.min() < 1e4:
        doubts.append(f"D as small as {D.min():.4g}")
    if loss.max() > 15:
        doubts.append(f"losses as large as {loss.max():.4g}")
    for name, values in (("N", N), ("D", D)):
        gaps = np.diff(np.sort(np.log10(values)))
        if len(gaps) and gaps.max() > 3:
            doubts.append(f"a gap of {10 ** gaps.max():.3g}x in {name}")
    if not doubts:
        return None
    return Diagnostic(
        "mixed_units",
        " and ".join(doubts),
        "give N in parameters, D in tokens and loss in nats per token in every row",
    )


def repeated_runs(table: Table, clustered: bool) -> Diagnostic | None:
    """Rows of one run resampled as if they were independent."""
    repeats = len(table) - len(set(table.cluster))
    if clustered or not repeats:
        return None
    return Diagnostic(
        "iid_with_repeated_runs",
        f"{len(table)} rows come from {len(set(table.cluster))} runs or trunks and were resampled as independent",
        "leave out --iid: intervals may be several times too narrow",
    )


def few_clusters(table: Table, clustered: bool, free: int) -> Diagnostic | None:
    """Hardly more independent runs than parameters."""
    clusters = len(set(table.cluster)) if clustered else len(table)
    if clusters > free + 4:
        return None
    return Diagnostic(
        "few_runs",
        f"{clusters} independent runs or trunks for {free} parameters",
        "intervals rest on very little: add runs, pin E, or fit a law with fewer parameters",
    )


def mid_schedule(table: Table) -> Diagnostic | None:
    """Several rows of a run at different D: checkpoints of a schedule that had not finished."""
    pairs = {(run, d) for run, d in zip(table.run, table.columns["D"], strict=True)}
    several = len(pairs) - len({run for run, _ in pairs})
    if not several:
        return None
    return Diagnostic(
        "mid_schedule_rows",
        f"{several} rows are earlier points of a run that went on to more tokens",
        "use the loss at the end of a decayed schedule; earlier points are too high (Hoffmann et al. 2022)",
    )


def excluded_rows(table: Table) -> Diagnostic | None:
    """Rows that were left out."""
    if not table.excluded:
        return None
    names = ", ".join(str(e.row) for e in table.excluded[:5]) + ("" if len(table.excluded) <= 5 else ", ...")
    return Diagnostic(
        "excluded_rows",
        f"{len(table.excluded)} rows were left out: {names}",
        "their reasons are under `excluded`; finish or repeat these runs",
    )


def unconverged(fit: Fit) -> Diagnostic | None:
    """A gradient that is not zero, few starts that agree, or an optimum that is its own start."""
    c = fit.certificate
    doubts = []
    if c.gradient_norm > 1e-6 * max(1.0, fit.problem.weights.sum() * min(fit.problem.loss.delta, 1.0) * 1e3):
        doubts.append(f"the gradient norm is {c.gradient_norm:.2g}")
    if c.starts_agreeing < c.starts / 2:
        doubts.append(f"only {c.starts_agreeing} of {c.starts} starts agree")
    if c.distance_from_start < 1e-6:
        doubts.append("the optimum is its own starting point")
    if not doubts:
        return None
    return Diagnostic(
        "unconverged",
        " and ".join(doubts),
        "try --starts random and --loss log-mse; if they differ, the data do not determine this law",
    )


def ill_conditioned(fit: Fit) -> Diagnostic | None:
    """A direction in parameter space that the data hardly see."""
    number = fit.certificate.condition_number
    if number < 1e5:
        return None
    return Diagnostic(
        "ill_conditioned",
        f"the condition number is {number:.2g}: some combination of parameters is almost free",
        "trust predictions near the data only; add sizes and tokens-per-parameter ratios, or pin E",
    )


def at_bound(fit: Fit, boot: Bootstrap) -> Diagnostic | None:
    """A parameter at its bound, in the fit or in more than a twentieth of the draws."""
    often = {k: share for k, share in boot.boundary.items() if share > 0.05 or k in fit.certificate.boundary}
    if not often:
        return None
    parts = [f"{k} in {100 * share:.0f} % of the draws" for k, share in often.items()]
    return Diagnostic(
        "at_bound",
        f"at its bound: {', '.join(parts)}",
        "the data do not determine it: pin it to a known value, add sizes, or read its profile instead",
    )


def outliers(fit: Fit) -> Diagnostic | None:
    """Residuals far outside the bulk. They stay in the fit; the default loss bounds their pull."""
    size = np.abs(fit.residuals)
    spread = 1.4826 * np.median(size)
    far = np.flatnonzero(size > 8 * spread) if spread > 1e-12 else np.array([], dtype=int)
    if not len(far) or len(size) < 10:
        return None
    return Diagnostic(
        "outliers",
        f"{len(far)} residuals exceed eight standard deviations of the bulk, the largest {size.max():.3g}",
        "look at these rows; compare --loss log-huber with log-mse before leaving any out",
    )


def noisier_than_replicates(fit: Fit, table: Table) -> Diagnostic | None:
    """Residuals much larger than seeds explain: the law does not describe the data."""
    sigma, cells = replicate_sigma(table)
    spread = float(np.sqrt((fit.residuals**2).sum() / max(len(table) - fit.problem.free, 1)))
    if cells < 3 or sigma == 0 or spread < 3 * sigma:
        return None
    return Diagnostic(
        "misfit",
        f"residuals ({spread:.2g} relative) are {spread / sigma:.1f} times the spread between seeds ({sigma:.2g})",
        "another law may fit better: compare --law coupled, and look at residuals against N and D",
    )


def edge_of_scan(tuned: Sequence[Tuned]) -> Diagnostic | None:
    """The best learning rate is the lowest or highest that was tried."""
    at_edge = [f"N = {count(t.N)}, D = {count(t.D)} ({t.lr:g})" for t in tuned if t.at_edge]
    if not at_edge:
        return None
    return Diagnostic(
        "lr_at_edge",
        f"the best learning rate is the lowest or highest tried at {'; '.join(at_edge)}",
        "these losses may be too high: scan further on that side",
    )


def several_rates(table: Table) -> Diagnostic | None:
    """Runs that differ in their learning rate alone, all of them in the fit."""
    if "lr" not in table.columns:
        return None
    several = sum(len(tuned.tried) > 1 for tuned in scans(table))
    if not several:
        return None
    return Diagnostic(
        "several_learning_rates",
        f"{several} sizes and budgets were trained at several learning rates, and all of these runs are in the fit",
        "fit the best of each with --best-of lr",
    )


def untuned_size(fit: Fit, table: Table, tuned: Sequence[Tuned]) -> Diagnostic | None:
    """Without a scan: sizes whose losses all lie far above the law."""
    if any(len(t.tried) > 1 for t in tuned) or not {"N", "D", "lr"} <= table.columns.keys():
        return None
    high = high_sizes(fit, table)
    if not high:
        return None
    return Diagnostic(
        "untuned_size",
        f"all losses at N = {', '.join(map(count, high))} lie above the law, further than those of other sizes",
        "their learning rate may not be the best: scan it (axis lr_multiple: [0.5, 1, 2]), then fit with --best-of lr",
    )


def diagnose(table: Table, fit: Fit, boot: Bootstrap, tuned: Sequence[Tuned] = ()) -> list[Diagnostic]:
    """Every warning that applies to a fitted table, whose rows are the best of the scans `tuned` if there are any."""
    checks: list[Callable[[], Diagnostic | None]] = [
        lambda: excluded_rows(table),
        lambda: mixed_units(table),
        lambda: duplicates(table),
        lambda: mid_schedule(table),
        lambda: repeated_runs(table, boot.clustered),
        lambda: few_clusters(table, boot.clustered, fit.problem.free),
        lambda: unconverged(fit),
        lambda: ill_conditioned(fit),
        lambda: at_bound(fit, boot),
        lambda: outliers(fit),
        lambda: edge_of_scan(tuned),
        lambda: several_rates(table),
        lambda: untuned_size(fit, table, tuned),
    ]
    if {"N", "D"} <= set(fit.law.variables):
        checks += [lambda: too_few_sizes(table), lambda: too_few_ratios(table), lambda: collinear(table)]
    if fit.problem.loss.scale == "log" and fit.law.response == "loss":
        checks.append(lambda: noisier_than_replicates(fit, table))
    return [warned for check in checks if (warned := check())]
