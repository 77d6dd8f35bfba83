"""The report: one page that shows a law, the data behind it and the reasons to believe or doubt it.

The page is self-contained: pictures are data URIs, nothing is loaded from anywhere. The same pictures lie beside it
as PNG files. A section is there when law.json has what it needs.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import jinja2
import numpy as np

from configs.formatting import count, flops, formula, significant, symbol
from data.files import write_bytes, write_text
from scaling.design.allocation import measured_exponents
from scaling.forecast.fitted_law import FittedLaw
from scaling.forecast.law_file import LawFile
from scaling.laws import Array
from scaling.report.page import ReportSource, pluralise
from scaling.report.plot_style import Scale
from scaling.report.sections_fit import SECTIONS
from scaling.tables.table import Table


def write_report(law: LawFile, table: Table, draws: Mapping[str, Array], runs_dir: Path | None, out: Path) -> Path:
    """Write OUT/report/index.html and the PNGs beside it, and return the path of the page.

    ``draws`` are the bootstrap draws, parameter name -> (draws,), and may be empty: then there are no bands.
    ``runs_dir`` has the metrics.jsonl of the runs.
    """
    scales = {k: Scale(k, table.columns[k]) for k in ("N", "D")}
    source = ReportSource(FittedLaw(law, table, draws), runs_dir, scales)
    sections = [section for make in SECTIONS if (section := make(source))]
    templates = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(loader=templates, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["formula"] = formula
    name = Path(law.data.source).name
    page = environment.get_template("report.html.j2").render(
        title=f"Scaling law of {name}" if name else "Scaling law",
        summary=_summary(source),
        warnings=law.checks.warnings,
        sections=sections,
    )
    directory = out / "report"
    for section in sections:
        for picture in section.pictures:
            write_bytes(directory / f"{picture.name}.png", picture.image)
    write_text(directory / "index.html", page)
    return directory / "index.html"


# --- The first paragraph ------------------------------------------------------------------------------------------


def _range(values: Array, write: Callable[[float], str]) -> str:
    low, high = write(float(values.min())), write(float(values.max()))
    return low if low == high else f"{low} to {high}"


def _summary(source: ReportSource) -> list[str]:
    """What was fitted, whether it held, and what it says: a paragraph in plain words."""
    law, table, columns = source.law, source.view.table, source.view.table.columns
    rows, runs = pluralise(len(table), "measurement"), pluralise(len(set(table.run)), "training run")
    if 0 < len(law.data.rows) < len(table):
        rows = f"the {len(law.data.rows)} on the lower envelope of {rows}"
    said = [
        f"{law.fit.formula or law.fit.law} was fitted to {rows} of the {source.view.declared.response} of {runs}: "
        f"models of {_range(columns['N'], count)} parameters, trained on {_range(columns['D'], count)} tokens with "
        f"{_range(columns['C'], flops)} FLOPs.",
        _verdict(source),
        _coefficients_in_words(source),
    ]
    if source.view.declared.name == "chinchilla":
        a, b = (significant(float(v), 3) for v in measured_exponents(source.view, law.fit.params))
        said.append(f"By this law the best use of a budget C is N ∝ C^{a} parameters and D ∝ C^{b} tokens.")
    if excluded := len(law.data.excluded):
        were = "was" if excluded == 1 else "were"
        said.append(f"{pluralise(excluded, 'row')} {were} left out; the reasons are below.")
    return said


def _verdict(source: ReportSource) -> str:
    rows = source.law.checks.holdout
    if not rows:
        return "No measurement was held out, so nothing here shows that the law predicts."
    errors = 100 * np.abs([r.predicted / r.loss - 1 for r in rows])
    covered = sum(r.covered for r in rows)
    sizes = np.array([r.N for r in rows])
    what = f"the {_range(sizes, count)}-parameter model" if len(set(sizes)) == 1 else "the largest models"
    if len(rows) == 1:
        subject, seen = "The prediction", "it"
        off = f"was off by {errors[0]:.2f} %, and the measurement lies {'inside' if covered else 'outside'} its"
    else:
        subject, seen = f"The {len(rows)} predictions", "them"
        mean, worst = f"{errors.mean():.2f} % on average", f"{errors.max():.2f} % at most"
        off = f"were off by {mean} and {worst}, with {covered} of {len(rows)} inside the"
    return f"{subject} for {what}, made without having seen {seen}, {off} {source.level} interval."


def _coefficients_in_words(source: ReportSource) -> str:
    parts = []
    for name, value in source.law.fit.params.items():
        low, high = (significant(v, 3) for v in source.law.fit.intervals[name])
        parts.append(f"{symbol(name)} = {significant(value)} ({low} to {high})")
    return f"The fitted coefficients, with {source.level} intervals, are {', '.join(parts)}."
