"""Reasons to doubt a fit, found before and after it: each a named warning with what to do about it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from configs.formatting import count
from scaling.fit.bootstrap import Bootstrap, residual_sigma
from scaling.fit.estimate import Fit
from scaling.fit.weights import replicate_sigma
from scaling.forecast.law_sections import Diagnostic
from scaling.tables.table import Table
from scaling.validation.lr_scans import Tuned, high_sizes, scans


@dataclass(frozen=True)
class Study:
    """What is looked at: a fitted table, whose rows are the best of the scans ``tuned`` if there are any."""

    table: Table
    fit: Fit
    boot: Bootstrap
    tuned: Sequence[Tuned]


Check = Callable[[Study], str | None]
_CHECKS: list[tuple[Check, str]] = []


def _advice(text: str) -> Callable[[Check], Check]:
    """Make a function a check, in this order: it says what it saw, if anything; its name is the warning's."""

    def register(check: Check) -> Check:
        _CHECKS.append((check, text))
        return check

    return register


def diagnose(table: Table, fit: Fit, boot: Bootstrap, tuned: Sequence[Tuned] = ()) -> list[Diagnostic]:
    """Every warning that applies to a fitted table, whose rows are the best of the scans `tuned` if there are any."""
    study = Study(table, fit, boot, tuned)
    return [Diagnostic(check.__name__, seen, advice) for check, advice in _CHECKS if (seen := check(study))]


@_advice("their reasons are under `excluded`; finish or repeat these runs")
def excluded_rows(study: Study) -> str | None:
    """Rows that were left out."""
    rows = [str(e.row) for e in study.table.excluded]
    return f"{len(rows)} rows were left out: {', '.join(rows[:5])}{', ...' if len(rows) > 5 else ''}" if rows else None


@_advice("give N in parameters, D in tokens and loss in nats per token in every row")
def mixed_units(study: Study) -> str | None:
    """Values that look like another unit: N in millions, D in billions, loss in bits, or a jump between rows."""
    N, D, loss = (study.table.columns[k] for k in ("N", "D", "loss"))
    gaps = {k: np.diff(np.sort(np.log10(v))).max(initial=0.0) for k, v in (("N", N), ("D", D))}
    doubts = {
        f"N as small as {N.min():.4g}": N.min() < 100,
        f"D as small as {D.min():.4g}": D.min() < 1e4,
        f"losses as large as {loss.max():.4g}": loss.max() > 15,
        **{f"a gap of {10**gap:.3g}x in {name}": gap > 3 for name, gap in gaps.items()},
    }
    return " and ".join(text for text, holds in doubts.items() if holds)


@_advice("remove copies; replicate seeds should differ in loss")
def duplicate_rows(study: Study) -> str | None:
    """Rows that repeat another one to the last digit of the loss."""
    rows = np.column_stack([study.table.columns[k] for k in ("N", "D", "loss")])
    extra = len(rows) - len(np.unique(rows, axis=0))
    return f"{extra} rows repeat another row's N, D and loss exactly" if extra else None


@_advice("use the loss at the end of a decayed schedule; earlier points are too high (Hoffmann et al. 2022)")
def mid_schedule_rows(study: Study) -> str | None:
    """Several rows of a run at different D: checkpoints of a schedule that had not finished."""
    pairs = set(zip(study.table.run, study.table.columns["D"], strict=True))
    several = len(pairs) - len({run for run, _ in pairs})
    return f"{several} rows are earlier points of a run that went on to more tokens" if several else None


@_advice("leave out --iid: intervals may be several times too narrow")
def iid_with_repeated_runs(study: Study) -> str | None:
    """Rows of one run resampled as if they were independent."""
    rows, clusters = len(study.table), len(set(study.table.cluster))
    if study.boot.clustered or rows == clusters:
        return None
    return f"{rows} rows come from {clusters} runs or trunks and were resampled as independent"


@_advice("intervals rest on very little: add runs, pin E, or fit a law with fewer parameters")
def few_runs(study: Study) -> str | None:
    """Hardly more independent runs than parameters."""
    clusters, free = study.boot.clusters, study.fit.problem.free
    return f"{clusters} independent runs or trunks for {free} parameters" if clusters <= free + 4 else None


@_advice("try --starts random and --loss log-mse; if they differ, the data do not determine this law")
def unconverged(study: Study) -> str | None:
    """A gradient that is not zero, few starts that agree, or an optimum that is its own start."""
    c, problem = study.fit.certificate, study.fit.problem
    vanishing = 1e-6 * max(1.0, problem.weights.sum() * min(problem.loss.delta, 1.0) * 1e3)
    doubts = {
        f"the gradient norm is {c.gradient_norm:.2g}": c.gradient_norm > vanishing,
        f"only {c.starts_agreeing} of {c.starts} starts agree": c.starts_agreeing < c.starts / 2,
        "the optimum is its own starting point": c.distance_from_start < 1e-6,
    }
    return " and ".join(text for text, holds in doubts.items() if holds)


@_advice("trust predictions near the data only; add sizes and tokens-per-parameter ratios, or pin E")
def ill_conditioned(study: Study) -> str | None:
    """A direction in parameter space that the data hardly see."""
    number = study.fit.certificate.condition_number
    return (
        None if number < 1e5 else f"the condition number is {number:.2g}: some combination of parameters is almost free"
    )


@_advice("the data do not determine it: pin it to a known value, add sizes, or read its profile instead")
def at_bound(study: Study) -> str | None:
    """A parameter at its bound, in the fit or in more than a twentieth of the draws."""
    hit = study.fit.certificate.boundary
    often = {k: share for k, share in study.boot.boundary.items() if share > 0.05 or k in hit}
    parts = [f"{k} in {100 * share:.0f} % of the draws" for k, share in often.items()]
    return f"at its bound: {', '.join(parts)}" if parts else None


@_advice("look at these rows; compare --loss log-huber with log-mse before leaving any out")
def outliers(study: Study) -> str | None:
    """Residuals far outside the bulk. They stay in the fit; the default loss bounds their pull."""
    size = np.abs(study.fit.residuals)
    spread = 1.4826 * np.median(size)
    far = int((size > 8 * spread).sum())
    if spread <= 1e-12 or not far or len(size) < 10:
        return None
    return f"{far} residuals exceed eight standard deviations of the bulk, the largest {size.max():.3g}"


@_advice("these losses may be too high: scan further on that side")
def lr_at_edge(study: Study) -> str | None:
    """The best learning rate is the lowest or highest that was tried."""
    edges = [f"N = {count(t.N)}, D = {count(t.D)} ({t.lr:g})" for t in study.tuned if t.at_edge]
    return f"the best learning rate is the lowest or highest tried at {'; '.join(edges)}" if edges else None


@_advice("fit the best of each with --best-of lr")
def several_learning_rates(study: Study) -> str | None:
    """Runs that differ in their learning rate alone, all of them in the fit."""
    several = sum(len(tried.tried) > 1 for tried in scans(study.table)) if "lr" in study.table.columns else 0
    if not several:
        return None
    return f"{several} sizes and budgets were trained at several learning rates, and all of these runs are in the fit"


@_advice("their learning rate may not be the best: scan it (axis lr_multiple: [0.5, 1, 2]), then fit with --best-of lr")
def untuned_size(study: Study) -> str | None:
    """Without a scan: sizes whose losses all lie far above the law."""
    if any(len(t.tried) > 1 for t in study.tuned) or not {"N", "D", "lr"} <= study.table.columns.keys():
        return None
    high = ", ".join(map(count, high_sizes(study.fit, study.table)))
    return f"all losses at N = {high} lie above the law, further than those of other sizes" if high else None


def _in_N_and_D(study: Study) -> bool:
    return {"N", "D"} <= set(study.fit.law.variables)


def _different(values: np.ndarray, tolerance: float) -> int:
    """Number of values that differ by more than a relative tolerance."""
    return 1 + int((np.diff(np.sort(np.log(values))) > tolerance).sum())


@_advice("train at least five sizes over a factor of ten or more, or pin E")
def too_few_sizes(study: Study) -> str | None:
    """Fewer than five model sizes, or all within a factor of ten."""
    N = study.table.columns["N"]
    sizes, span = _different(N, 0.02), N.max() / N.min()
    few = _in_N_and_D(study) and (sizes < 5 or span < 10)
    return f"{sizes} model sizes spanning {span:.3g}x" if few else None


@_advice("train some sizes for other horizons, at least three ratios a factor of two or more apart")
def too_few_ratios(study: Study) -> str | None:
    """Fewer than three tokens-per-parameter ratios."""
    ratios = _different(study.table.columns["D"] / study.table.columns["N"], 0.1)
    return f"{ratios} different numbers of tokens per parameter" if _in_N_and_D(study) and ratios < 3 else None


@_advice("add runs with another number of tokens per parameter; the sum of both terms is still usable on this line")
def collinear_design(study: Study) -> str | None:
    """log N and log D nearly proportional: A/N^alpha and B/D^beta cannot be told apart."""
    x = np.log([study.table.columns["N"], study.table.columns["D"]])
    if not _in_N_and_D(study) or x.shape[1] < 3 or (np.ptp(x, axis=1) == 0).any():
        return None
    r = float(np.corrcoef(x)[0, 1])
    return (
        f"log N and log D are correlated at {r:.3f}, so size and data cannot be told apart" if abs(r) >= 0.97 else None
    )


@_advice("another law may fit better: compare --law coupled, and look at residuals against N and D")
def misfit(study: Study) -> str | None:
    """Residuals much larger than seeds explain: the law does not describe the data."""
    fit = study.fit
    sigma, cells = replicate_sigma(study.table)
    spread = residual_sigma(fit.residuals, fit.problem.free)
    relative = fit.problem.loss.scale == "log" and fit.law.response == "loss"
    if not relative or cells < 3 or sigma == 0 or spread < 3 * sigma:
        return None
    return f"residuals ({spread:.2g} relative) are {spread / sigma:.1f} times the spread between seeds ({sigma:.2g})"
