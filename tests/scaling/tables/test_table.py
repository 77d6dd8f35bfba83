import json

import numpy as np
import pandas as pd
import pytest

from scaling.errors import TableError
from scaling.tables.read import read_table
from scaling.tables.table import frontier
from tests.helpers.scaling_tables import table

HEADER = "N,D,loss\n"


def write_run(directory, name, **fields):
    record = {"N": 100, "N_non_embedding": 60, "N_head": 30, "D": 2000, "flops": 9e5, "val_loss": 3.0}
    record |= {"seed": 0, "steps": 10, "complete": True, "tainted": False} | fields
    (directory / name).mkdir(parents=True)
    (directory / name / "record.json").write_text(json.dumps(record))


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_formats_agree(tmp_path, suffix):
    frame = pd.DataFrame({"N": [1e7, 2e7], "D": [1e9, 2e9], "loss": [3.5, 3.25], "run": ["a", "b"], "C": [1.0, 2.0]})
    path = tmp_path / f"t.{suffix}"
    if suffix == "csv":
        frame.to_csv(path, index=False)
    elif suffix == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_parquet(path)
    table = read_table(path)
    np.testing.assert_array_equal(table.columns["loss"], [3.5, 3.25])
    np.testing.assert_array_equal(table.columns["C"], [1.0, 2.0])
    assert table.run == ["a", "b"]
    assert list(table.rows) == [1, 2]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HEADER + "1e7,1e9,3.5\n1e7,1e9,nan\n", r"row 2, column loss: 'nan' is not a finite number"),
        (HEADER + "1e7,1e9,3.5\n1e7,,3.1\n", r"row 2, column D: it is empty"),
        (HEADER + "7B,1e9,3.5\n", r"row 1, column N: '7B' is not a number"),
        (HEADER + "1e7,-1e9,3.5\n", r"row 1, column D: '-1e9' is not positive"),
        (HEADER + "1e7,1e9,0\n", r"row 1, column loss: '0' is not positive"),
        (HEADER + "1e7,1e999,3\n", r"row 1, column D: '1e999' is not a finite number"),
        ("N,D\n1,2\n", r"no column loss"),
        ("N,D,loss,loss\n1,2,3,4\n", None),
        (HEADER, r"the table has no rows"),
        ("", r"the file is empty"),
        ("N,D,loss,complete\n1,2,3,false\n", r"every row is marked incomplete"),
    ],
)
def test_a_bad_table_is_named_to_the_cell(tmp_path, text, expected):
    path = tmp_path / "t.csv"
    path.write_text(text)
    if expected is None:  # pandas renames the second column; the first one is used
        assert read_table(path).columns["loss"][0] == 3
        return
    with pytest.raises(TableError, match=expected) as caught:
        read_table(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("t.jsonl", b'{"N": 1, "D": 2, "loss": 3}\n{"N": 1,\n', "line 2 is not JSON"),
        ("t.jsonl", b'{"N": true, "D": 2, "loss": 3}\n', "True is not a number"),
        ("t.jsonl", b"\xff\xfe\n", "not UTF-8"),
        ("t.jsonl", b"[1]\n", "line 1 is not a JSON object"),
        ("t.parquet", b"PAR1 no", "not a readable Parquet"),
        ("t.csv", b"\xff\xfeN", "not a readable CSV"),
        ("t.txt", b"N", "a table is a .csv"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TableError, match=expected):
        read_table(tmp_path / name)


def test_runs_that_cannot_be_used_are_listed(tmp_path):
    write_run(tmp_path, "good")
    write_run(tmp_path, "midway", complete=False)
    write_run(tmp_path, "spiked", tainted=True)
    write_run(tmp_path, "diverged", val_loss=float("nan"))
    write_run(tmp_path, "odd", N=-3)
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "record.json").write_text('{"N": 1')
    (tmp_path / "running").mkdir()
    (tmp_path / "running" / "metrics.jsonl").write_text("")
    (tmp_path / "notes").mkdir()
    table = read_table(tmp_path)
    assert table.run == ["good"]
    reasons = {e.row: e.reason for e in table.excluded}
    assert reasons.keys() == {"midway", "spiked", "diverged", "odd", "torn", "running"}
    assert "not finished" in reasons["midway"]
    assert "spike" in reasons["spiked"]
    assert "loss" in reasons["diverged"]
    assert "N" in reasons["odd"]
    assert len(read_table(tmp_path / "good" / "record.json")) == 1


def test_the_error_of_the_evaluation_belongs_to_the_loss_it_was_measured_for(tmp_path):
    more = {"val_loss_stderr": 0.01, "bits_per_byte": 1.2, "other": 0.02}
    for name in ("a", "b"):
        write_run(tmp_path / "runs", name, **more)
    assert read_table(tmp_path / "runs").columns["stderr"].tolist() == [0.01, 0.01]
    assert "stderr" not in read_table(tmp_path / "runs", {"loss": "bits_per_byte"}).columns
    named = read_table(tmp_path / "runs", {"loss": "bits_per_byte", "stderr": "other"})
    assert named.columns["stderr"].tolist() == [0.02, 0.02]
    (tmp_path / "t.csv").write_text("N,D,loss,val_loss_stderr\n1e6,1e7,3,.01\n2e6,1e7,2.9,.02\n")
    assert read_table(tmp_path / "t.csv").columns["stderr"].tolist() == [0.01, 0.02]
    (tmp_path / "t.csv").write_text("N,D,val_loss,val_loss_stderr,stderr\n1e6,1e7,3,.01,.03\n")
    assert read_table(tmp_path / "t.csv", {"loss": "val_loss"}).columns["stderr"].tolist() == [0.03]
    write_run(tmp_path / "runs", "old")
    assert "stderr" not in read_table(tmp_path / "runs").columns  # where one run does not have it, nothing compares


def test_a_directory_without_usable_runs_is_an_error(tmp_path):
    with pytest.raises(TableError, match="no finished runs"):
        read_table(tmp_path)
    write_run(tmp_path, "midway", complete=False)
    with pytest.raises(TableError, match="no run can be fitted; midway"):
        read_table(tmp_path)


def test_definitions_of_n_and_c(tmp_path):
    write_run(tmp_path, "a")
    table = read_table(tmp_path)
    assert table.columns["C"][0] == 9e5
    assert table.redefine("non-embedding").columns["N"][0] == 60
    assert table.redefine("with-head", "6nd").columns["C"][0] == 6 * 90 * 2000
    assert table.redefine("with-head").redefine("total").columns["N"][0] == 100
    path = tmp_path / "t.csv"
    path.write_text(HEADER + "100,2000,3\n")
    assert read_table(path).columns["C"][0] == 6 * 100 * 2000
    with pytest.raises(TableError, match="N_non_embedding"):
        read_table(path).redefine("non-embedding")


def test_thousands_may_be_set_apart_by_underscores(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(HEADER + "1_000_000,2_000_000_000,3.5\n")
    assert read_table(path).columns["D"][0] == 2e9


def test_runs_of_different_tokenizers_are_fitted_in_bits_per_byte(tmp_path):
    for i, tokenizer in enumerate(("a", "b")):
        record = {"complete": True, "N": 10 * (i + 1), "D": 100, "val_loss": 3.0, "tokenizer_sha256": tokenizer}
        record |= {"bits_per_byte": 1.5 + i, "training_bytes": 250, "val_loss_by_component": {"code": 2.5}}
        (tmp_path / tokenizer).mkdir()
        (tmp_path / tokenizer / "record.json").write_text(json.dumps(record))
    with pytest.raises(TableError, match=r"2 tokenizers.*--column loss=bits_per_byte --column D=training_bytes"):
        read_table(tmp_path)
    table = read_table(tmp_path, {"loss": "bits_per_byte", "D": "training_bytes"})
    assert (table.columns["loss"].tolist(), table.columns["D"].tolist()) == ([1.5, 2.5], [250, 250])
    assert table.loss_unit == "bits per byte"
    part = read_table(tmp_path / "a" / "record.json", {"loss": "val_loss_by_component.code"})
    assert (part.columns["loss"].tolist(), part.loss_unit) == ([2.5], "nats per token")


def test_columns_can_be_renamed(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("N,D,val\n1,2,3\n")
    assert read_table(path, {"loss": "val"}).columns["loss"][0] == 3
    with pytest.raises(TableError, match="no column 'value'"):
        read_table(path, {"loss": "value"})


def test_branches_of_a_trunk_are_one_cluster(tmp_path):
    """Also a branch of a branch, one whose trunk is not there, and rows of a file."""
    for name, trunk in {"a": None, "b": "a", "c": "b", "d": "gone", "e": "gone", "f": None}.items():
        write_run(tmp_path, name, branch_of=trunk)
    table = read_table(tmp_path)
    assert (table.run, table.cluster) == (list("abcdef"), ["a", "a", "a", "gone", "gone", "f"])
    assert table.select(table.rows > 2).cluster == ["a", "gone", "gone", "f"]
    path = tmp_path / "t.csv"
    path.write_text("N,D,loss,run,cluster\n1,2,3,x,\n1,2,4,y,z\n1,2,5,,\n")
    assert read_table(path).cluster == ["x", "z", "row 3"]


def test_frontier_is_the_lower_envelope():
    columns = {"N": np.array([1.0, 2, 3, 4]), "D": np.ones(4), "loss": np.array([4.0, 5.0, 3.0, 3.5])}
    assert list(frontier(table(columns), "N")) == [True, False, True, False]
