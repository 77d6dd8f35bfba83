"""law.json as a contract: what is written is read back, and a damaged file ends in one sentence that names the key."""

import copy
import io
import json
import runpy
import shutil
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scaling.errors import ArtifactError
from scaling.fit.model_averaging import all_draws
from scaling.forecast.law_file import LawFile, parse_law, read_law, write_draws
from scaling.study import FitOptions, fit_law
from tests.conftest import ROOT
from tests.helpers.scaling_tables import law_file, simulated

OLD = ROOT / "tests/old_files/laws"
STABLE = ("schema", "law", "params", "intervals", "level", "holdout", "certificate", "excluded", "table_sha256")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A directory with a law, its draws and those of the average; C is exact."""
    out = tmp_path_factory.mktemp("law")
    data = simulated(noise=0.003)
    ratio = 1.1 + 0.1 * np.cos(np.log(data.columns["N"]))
    exact = data.with_columns({**data.columns, "C_exact": ratio * data.columns["C"]}).redefine()
    options = FitOptions(draws=100, sensitivity=True, point={"N": 1e9, "D": 1e10, "C": 6.6e19})
    result = fit_law(exact, options, baselines={"5-gram": 3.0})
    write_draws(out / "average.npz", all_draws(result.average))
    result.law.write(out, result.draws)
    return out


def test_what_is_written_is_read(saved, tmp_path):
    law = read_law(saved)
    assert isinstance(law, LawFile)
    assert law.compute.definition == "exact"
    assert len(law.compute.sizes) == 5
    again = law.write(tmp_path)
    assert again.read_bytes() == (saved / "law.json").read_bytes()
    content = json.loads(again.read_text())
    assert set(STABLE) <= content.keys()
    assert content["compute"].keys() == {"definition", "sizes", "flops_per_token"}


@pytest.mark.parametrize("name", ["by_compute", "by_size"])
def test_a_file_of_schema_1_keeps_all_it_said(name):
    old = json.loads((OLD / name / "law.json").read_text())
    new = read_law(OLD / name).flat()

    def kept(before: Any, after: Any) -> None:
        if isinstance(before, dict):
            for key, value in before.items():
                kept(value, after[key])
        elif isinstance(before, list):
            for pair in zip(before, after, strict=True):
                kept(*pair)
        else:
            assert before == after

    kept({k: v for k, v in old.items() if k != "schema"}, new)


@pytest.mark.parametrize("key", STABLE)
def test_the_sentence_names_file_and_key(saved, tmp_path, key):
    content = json.loads((saved / "law.json").read_text())
    del content[key]
    path = tmp_path / "law.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ArtifactError) as error:
        read_law(path)
    assert str(error.value).startswith(f"{path}: not a law: the key '{key}' is")
    assert "missing" in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 3}, "schema 3 is not one that this version reads"),
        ({"law": "newton"}, "unknown law 'newton'"),
        ({"level": 1.5}, "does not lie between 0 and 1"),
        ({"params": {"E": 1.0}}, r"the key 'params\.A' is required and missing"),
        ({"fit_range": {"N": [1, 2]}}, r"the key 'fit_range\.D' is required and missing"),
        ({"points": {"N": [1.0], "D": []}}, "different lengths"),
        ({"compute": {"definition": "exact", "sizes": [], "flops_per_token": []}}, r"compute\.sizes' are missing"),
        ({"compute": {"definition": "7nd"}}, r"compute\.definition"),
        ({"bootstrap": {"seed": -1}}, r"bootstrap\.seed' -1 must not be negative"),
    ],
)
def test_values_that_cannot_be_used_are_named(saved, change, message):
    content = json.loads((saved / "law.json").read_text())
    with pytest.raises(ArtifactError, match=message):
        parse_law({**content, **change}, "law.json")


def test_keys_of_other_programs_are_passed_over(saved):
    content = json.loads((saved / "law.json").read_text())
    assert parse_law({**content, "remark": "mine"}, "law.json").flat() == content


def test_draws_of_another_law_are_refused(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "law")
    write_draws(tmp_path / "law" / "draws.npz", {"E": np.ones(100)})
    assert "not those of this law" in run("predict", tmp_path / "law", "--params", 1e9, "--tokens", 1e10)
    (tmp_path / "law" / "draws.npz").write_bytes(b"PK\x03\x04 torn")
    assert "is no file of draws; copy" in run("plan", tmp_path / "law", "--flops", 1e20)
    (tmp_path / "law" / "draws.npz").unlink()
    assert "is missing; copy" in run("plan", tmp_path / "law", "--flops", 1e20)


@cache
def main(name: str) -> Any:
    """The entry of a command."""
    return runpy.run_path(str(ROOT / f"scripts/{name}.py"))["main"]


def run(name: str, *words: object) -> str:
    """Run a command in this process: it answers, or says one sentence, which is returned."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main(name)([str(w) for w in words])
    assert status in (0, 2)
    assert bool(out.getvalue()) == (status == 0)
    assert len(err.getvalue().strip().splitlines()) == (status == 2)
    return err.getvalue()


def paths(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where all keys of a file are; of a list the first element stands for all."""
    for key in value if isinstance(value, dict) else range(min(1, len(value))) if isinstance(value, list) else ():
        yield (*before, key)
        yield from paths(value[key], (*before, key))


KINDS: tuple[Any, ...] = (None, True, -1, 0, 7, 2.5, 1e300, "text", "", [], [1.0], ["a"], {}, {"a": 1})


@settings(max_examples=250, deadline=None)
@given(st.data())
def test_any_damage_ends_in_an_answer_or_a_sentence(saved, tmp_path_factory, data):
    directory = tmp_path_factory.getbasetemp() / "damaged"
    if not directory.exists():
        shutil.copytree(saved, directory)
    content = json.loads((saved / "law.json").read_text())
    path = data.draw(st.sampled_from(list(paths(content))))
    damage = data.draw(st.sampled_from(("gone", *KINDS)))
    changed = copy.deepcopy(content)
    place = changed
    for key in path[:-1]:
        place = place[key]
    if damage == "gone":
        del place[path[-1]]
    else:
        place[path[-1]] = damage
    (directory / "law.json").write_text(json.dumps(changed))
    run("predict", directory, "--params", 3e9, "--tokens", 1e11, "--average")
    run("plan", directory, "--flops", 1e21)
    run("plan", directory, "--target-params", 3e9, "--target-tokens", 1e11, "--budget", 1e19, "--runs", 1)


@settings(max_examples=100, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=4), st.lists, max_leaves=5))
@example([])
@example({})
def test_what_is_no_law_is_refused(content):
    for tree in (content, {"schema": 2, "law": content}, {**law_file().flat(), "params": content}):
        with pytest.raises(ArtifactError) as error:
            parse_law(tree, "law.json")
        assert str(error.value).startswith("law.json: ")
        assert "\n" not in str(error.value)
