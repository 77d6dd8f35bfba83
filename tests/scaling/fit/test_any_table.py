"""Any table is either fitted or refused with a typed error."""

import json
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaling.errors import FitError, TableError
from scaling.laws import LAWS
from scaling.study import FitOptions, fit_law
from scaling.tables.read import read_table
from scaling.tables.table import Table
from tests.helpers.scaling_tables import table

CELLS = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.integers(-(10**30), 10**30),
    st.text(max_size=5),
    st.none(),
    st.booleans(),
    st.lists(st.integers(), max_size=2),
    st.floats(1.0, 1e12),
)
NAMES = st.sampled_from(["N", "D", "loss", "run", "C", "weight", "complete", "other", "stderr", "U"])
POSITIVE = st.one_of(st.floats(1e-30, 1e40), st.floats(1.0, 1e12), st.sampled_from([1.0, 2.0, 1e7, 1e9]))
FEW = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def read_or_refuse(path: Path) -> Table | None:
    """The table, or None after a refusal in one sentence that names the file; anything else is a failure."""
    refusal = ""
    try:
        return read_table(path)
    except TableError as error:
        refusal = str(error)
    assert str(path) in refusal
    assert "\n" not in refusal
    return None


@FEW
@given(content=st.binary(max_size=300), suffix=st.sampled_from([".csv", ".jsonl", ".parquet"]))
def test_any_bytes_are_read_or_refused(tmp_path, content, suffix):
    path = tmp_path / f"t{suffix}"
    path.write_bytes(content)
    points = read_or_refuse(path)
    assert points is None or len(points) > 0


@FEW
@given(records=st.lists(st.dictionaries(NAMES, CELLS, max_size=7), max_size=6))
def test_any_records_are_read_or_refused(tmp_path, records):
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in records))
    points = read_or_refuse(path)
    if points is None:
        return
    for name in ("N", "D", "loss"):
        assert np.isfinite(points.columns[name]).all()
        assert (points.columns[name] > 0).all()
    assert len(points) + len(points.excluded) == len(records)


@FEW
@given(text=st.text(alphabet="NDlos,\n1e7.\"' -x", max_size=80))
def test_any_csv_is_read_or_refused(tmp_path, text):
    path = tmp_path / "t.csv"
    path.write_text("N,D,loss\n" + text)
    points = read_or_refuse(path)
    assert points is None or len(points) > 0


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """Tables of positive numbers, from sensible to absurd, with runs, weights and compute."""
    n = draw(st.integers(1, 14))
    columns = {k: np.array(draw(st.lists(POSITIVE, min_size=n, max_size=n))) for k in ("N", "D", "loss")}
    if draw(st.booleans()):
        columns["weight"] = np.array(draw(st.lists(st.floats(0, 1e6), min_size=n, max_size=n)))
    if draw(st.booleans()):
        columns["loss"] = 2 + 5 * (columns["N"] / columns["N"].max()) ** 0.1
    return table(columns, draw(st.lists(st.sampled_from("abc"), min_size=n, max_size=n)))


@settings(max_examples=120, deadline=None, derandomize=True)
@given(points=tables(), law=st.sampled_from([k for k in LAWS if LAWS[k].response == "loss"]))
def test_any_positive_table_is_fitted_or_refused(points, law):
    refusal = ""
    try:
        result = fit_law(points, FitOptions(law=law, draws=100, average=False))
    except FitError as error:
        refusal = str(error)
    if refusal:
        assert "\n" not in refusal
        return
    assert result.law.checks.certificate.objective >= 0
    assert not np.isnan(list(result.fit.params.values())).any()
