"""record.json: what was written is read again, and what cannot be read is told by file and key."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.run_record import (
    RECORD,
    SCHEMA,
    OtherVersionError,
    RecordError,
    complete_record,
    parse_record,
    read_record,
)

# The first record that this project wrote, and one of a mixture by schema 1; both shortened where keys are of a kind.
FIRST: dict[str, Any] = {
    "schema": 1,
    "name": "tiny",
    "complete": True,
    "tainted": False,
    "N": 98_000,
    "N_with_head": 163_000,
    "D": 1_000_000,
    "flops": 6_700_000_000_000_001,
    "val_loss": 3.25,
    "seed": 0,
    "lr": 0.005,
    "n_layer": 2,
    "style": "modern",
    "tied": True,
    "world_size": 1,
    "corpus": "pysource-0123456789ab",
    "python": "3.11.7",
}
MIXED = FIRST | {
    "entropy_rate": None,
    "branch_of": "trunk",
    "branch_step": 20,
    "val_loss_by_component": {"code": 3.5, "prose": 3.0},
    "weight_by_component": {"code": 0.5, "prose": 0.5},
}


def text(content: dict[str, Any], **changed: Any) -> str:
    return json.dumps(content | changed)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    for content in (FIRST, MIXED):
        record = parse_record(text(content), RECORD)
        record.write(tmp_path / RECORD)
        assert read_record(tmp_path / RECORD) == record
        assert complete_record(tmp_path) == record
        written = json.loads((tmp_path / RECORD).read_text())
        assert {key: written[key] for key in content} == content | {"schema": SCHEMA}


def test_a_record_of_the_first_version_is_read() -> None:
    record = parse_record(text(MIXED), RECORD)
    assert (record.size.N, record.tokens.D, record.result.val_loss, record.recipe.lr) == (98_000, 1e6, 3.25, 0.005)
    assert record.recipe.branch_of == "trunk"
    assert record.components is not None
    assert record.components.weight_by_component == {"code": 0.5, "prose": 0.5}
    # What later versions added is not known, and what they dropped is kept as it stands.
    assert record.result.val_loss_stderr is record.components.epochs_by_component is None
    assert record.others == {"N_with_head": 163_000}
    assert parse_record(text(FIRST), RECORD).components is None


@pytest.mark.parametrize(
    ("changed", "key", "problem"),
    [
        ({"val_loss": None}, "val_loss", "null is not a number"),
        ({"val_loss": float("nan")}, "val_loss", "null is not a number"),
        ({"D": "many"}, "D", '"many" is not a number'),
        ({"complete": "yes"}, "complete", '"yes" is not true or false'),
        ({"seed": 0.5}, "seed", "0.5 is not a whole number"),
        ({"corpus": 3}, "corpus", "3 is not text"),
        ({"val_loss_by_component": {"code": "x"}}, "val_loss_by_component.code", '"x" is not a number'),
        ({"schema": 3}, "schema", "3 is that of another version of this project; this one reads 1 and 2"),
    ],
)
def test_what_cannot_be_read_is_told_by_file_and_key(changed: dict[str, Any], key: str, problem: str) -> None:
    with pytest.raises(RecordError) as caught:
        parse_record(text(MIXED, **changed), "runs/a/record.json")
    assert str(caught.value) == f"runs/a/record.json: {key}: {problem}"


@pytest.mark.parametrize("key", ["complete", "N", "D", "val_loss"])
def test_a_key_that_every_record_has_is_missed(key: str) -> None:
    with pytest.raises(RecordError, match=f"^f: {key}: is required and missing$"):
        parse_record(json.dumps({k: v for k, v in FIRST.items() if k != key}), "f")


def test_a_damaged_record_is_none_and_that_of_another_version_is_not_trained_over(tmp_path: Path) -> None:
    assert complete_record(tmp_path) is None
    for content in ("", text(FIRST)[:-5], "[]", text(FIRST, complete=False), text(FIRST, D=None)):
        (tmp_path / RECORD).write_text(content)
        assert complete_record(tmp_path) is None
    (tmp_path / RECORD).write_text(text(FIRST, schema=SCHEMA + 1, complete=1))
    with pytest.raises(OtherVersionError, match=f"{RECORD}: schema: {SCHEMA + 1} is that of another version"):
        complete_record(tmp_path)


def test_a_number_that_is_none_is_not_written(tmp_path: Path) -> None:
    record = parse_record(text(FIRST), RECORD)
    vars(record.result)["val_loss"] = float("nan")
    with pytest.raises(ValueError, match="not JSON compliant"):
        record.write(tmp_path / RECORD)
    assert not (tmp_path / RECORD).exists()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from([10**400, 1e999]) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(content=st.binary(max_size=20) | JSON.map(lambda value: json.dumps(value).encode()), data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_anything_is_a_record_or_a_sentence(content: bytes, data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(MIXED)))
    for damaged in (content, text(MIXED, **{key: data.draw(JSON)})):
        lines = []
        try:
            parse_record(damaged, "a/record.json").flat()
        except RecordError as error:
            lines = str(error).splitlines()
        assert all(line.startswith("a/record.json: ") for line in lines)
