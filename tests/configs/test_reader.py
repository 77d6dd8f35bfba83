"""The reader refuses what cannot run, says everything at once, and reads YAML without its surprises."""

import ast
import contextlib
import inspect
from pathlib import Path
from typing import Any, Literal, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.reader import ConfigError, config, dump_yaml, load, parse_overrides, parse_yaml
from tests.conftest import ROOT
from train.config import RunConfig, batch_problem, load_run
from train.sweep.expand import load_sweep

TINY = ROOT / "configs/runs/tiny.yaml"


@config
class Inner:
    width: int = 8
    kind: Literal["cosine", "constant"] = "cosine"
    stage: Literal[0, 1, 2, 3] = 0


@config
class Outer:
    seed: int = 0
    rate: float = 0.1
    inner: Inner = Inner()
    maybe: int | None = None
    many: tuple[int, ...] = ()


def read(tmp_path: Path, text: str, *overrides: str) -> Outer:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    return load(Outer, path, list(overrides))


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, "sed: 1\nrate: fast\ninner: {widht: 3, kind: cosin}\nmany: 4")
    text = str(caught.value)
    assert "a.yaml: sed: unknown key; did you mean 'seed'?" in text
    assert 'a.yaml: rate: "fast" is not a number' in text
    assert "inner.widht: unknown key; did you mean 'width'?" in text
    assert "inner.kind: \"cosin\" is not one of cosine, constant; nearest is 'cosine'" in text
    assert "many: 4 is not a list" in text
    assert len(caught.value.problems) == 5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rate: 1e-4", Outer(rate=1e-4)),
        ("rate: 3", Outer(rate=3.0)),
        ("seed: 1_000", Outer(seed=1000)),
        ("seed: 1e3", Outer(seed=1000)),
        ("rate: 1e300", Outer(rate=1e300)),
        ("maybe: null", Outer()),
        ("many: [1, 2]", Outer(many=(1, 2))),
    ],
)
def test_values(tmp_path: Path, text: str, expected: Outer) -> None:
    assert read(tmp_path, text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: no", '"no" is not a whole number'),
        ("seed: 12:30", '"12:30" is not a whole number'),
        ("seed: 1.5", "1.5 is not a whole number"),
        ("seed: true", "true is not a whole number"),
        ("inner: {stage: 4}", "4 is not one of 0, 1, 2, 3; nearest is 3"),
        ("inner: {stage: -1}", "nearest is 0"),
        ("rate: .nan", "line 1: .nan is not a finite number"),
        ("seed: 1\nseed: 2", "line 2: the key 'seed' is given twice"),
        ("- 1", "holds no keys"),
        ("", "holds no keys"),
        ("seed: [", "a.yaml"),
        ("1: 2", "not a word"),
    ],
)
def test_traps_of_yaml(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert message in str(caught.value)


def test_every_value_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, "rate: .nan\nseed: .inf\nseed: 1\n2: 3")
    assert [problem.message.partition(":")[0] for problem in caught.value.problems] == [
        f"line {n}" for n in (1, 2, 3, 4)
    ]


def test_extends_merges_and_blames_the_right_file(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("seed: 3\ninner: {width: 4, kind: constnt}")
    with pytest.raises(ConfigError, match=r"base\.yaml: inner\.kind"):
        read(tmp_path, "extends: base.yaml\ninner: {width: 5}")
    (tmp_path / "base.yaml").write_text("seed: 3\ninner: {width: 4, kind: constant}")
    assert read(tmp_path, "extends: base.yaml\ninner: {width: 5}") == Outer(
        seed=3, inner=Inner(width=5, kind="constant")
    )


def test_extends_in_a_circle_and_missing_file(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("extends: a.yaml")
    with pytest.raises(ConfigError, match="leads back to itself"):
        read(tmp_path, "extends: b.yaml")
    with pytest.raises(ConfigError, match=r"no such file; nearest is '.*b\.yaml'"):
        read(tmp_path, "extends: bb.yaml")


def test_overrides_win_and_are_blamed(tmp_path: Path) -> None:
    assert read(tmp_path, "seed: 1", "--seed=2", "--inner.width=9").inner.width == 9
    with pytest.raises(ConfigError, match=r"command line: inner\.width"):
        read(tmp_path, "seed: 1", "--inner.width=wide")
    with pytest.raises(ConfigError, match="overrides look like"):
        parse_overrides(["seed", "2"])
    with pytest.raises(ConfigError, match=r"seed=\.inf: line 1: \.inf is not a finite number\n.*rate=\.nan"):
        read(tmp_path, "seed: 1", "--seed=.inf", "--rate=.nan")


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=8))
def test_any_value_is_read_or_refused(value: Any) -> None:
    try:
        parse_yaml(dump_yaml({"seed": value}))
        from configs.reader import build

        build(Outer, {"seed": value, "inner": value}, "test")
    except (ConfigError, UnicodeEncodeError):
        pass


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ConfigError):
        parse_yaml(text)


@given(
    st.dictionaries(
        st.text("abcdefg_", min_size=1),
        st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.booleans() | st.text("ab 1e-5.:no"),
    )
)
def test_dumped_yaml_reads_back(tree: dict[str, Any]) -> None:
    assert parse_yaml(dump_yaml(tree)) == tree if tree else True


def shipped(kind: str) -> list[Path]:
    return sorted((ROOT / "configs" / kind).glob("*.yaml"))


@pytest.mark.parametrize("path", shipped("runs"), ids=lambda path: path.stem)
def test_every_shipped_run_loads_and_survives_printing(path: Path, tmp_path: Path) -> None:
    run = load_run(path)
    (tmp_path / "printed.yaml").write_text(dump_yaml(run))
    assert load_run(tmp_path / "printed.yaml") == run


def config_classes(cls: type, seen: set[type]) -> set[type]:
    import dataclasses

    seen.add(cls)
    for hint in get_type_hints(cls).values():
        for part in (hint, *getattr(hint, "__args__", ())):
            if dataclasses.is_dataclass(part) and part not in seen:
                config_classes(part, seen)  # type: ignore[arg-type]
    return seen


@pytest.mark.parametrize("cls", sorted(config_classes(RunConfig, set()), key=lambda c: c.__name__))
def test_every_field_is_documented_where_it_is_defined(cls: type) -> None:
    body = ast.parse(inspect.getsource(cls)).body[0].body  # type: ignore[attr-defined]
    for statement, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign):
            documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            assert documented, f"{cls.__name__}.{ast.unparse(statement.target)} has no docstring below it"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--model.n_head=5", "model.n_head: 5 does not divide d_model=32; nearest is 4"),
        ("--train.micro_batch_size=3", "train.micro_batch_size: 3 does not divide global_batch_size=16; nearest is 2"),
        ("--train.steps=null", "train.steps: give exactly one of train.steps and train.tokens"),
        ("--train.sequence_length=4096", "4096 is longer than model.context_length=128; nearest is 128"),
        ("--model.vocab_size=100", "model.vocab_size: 100 "),
        ("--parallel.pipeline_stages=3", "parallel.pipeline_stages: 3 stages for n_layer=2 blocks; nearest is 2"),
        ("--precision=bf17", "nearest is 'bf16'"),
        ("--optimizer.lr=-1", "optimizer.lr: -1"),
        ("--name=../x", "'../x' is not a safe name"),
        ("--schedule.warmup_fraction=2", "schedule.warmup_fraction: 2"),
    ],
)
def test_impossible_runs_name_key_value_and_way_out(override: str, message: str) -> None:
    overrides = [override] + (["--model.context_length=128"] if "sequence_length" in override else [])
    with pytest.raises(ConfigError) as caught:
        load_run(TINY, overrides)
    assert message in str(caught.value)


def test_zero_2_under_the_pipeline_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"2 does not work with pipeline_stages=2.*nearest is 1"):
        load_run(TINY, ["--parallel.pipeline_stages=2", "--parallel.zero_stage=2"])


def test_batch_must_divide_over_the_replicas() -> None:
    run = load_run(TINY, ["--train.global_batch_size=12", "--train.micro_batch_size=4"])
    assert batch_problem(run.train, 3) is None
    assert "does not divide over 5" in str(batch_problem(run.train, 5))
    assert "nearest is 3" in str(batch_problem(run.train, 4)) or "nearest is 1" in str(batch_problem(run.train, 4))


def test_tokens_on_the_command_line_displace_steps_in_the_file() -> None:
    assert load_run(TINY, ["--train.tokens=100_000"]).steps == 49
    with pytest.raises(ConfigError, match="give exactly one"):
        load_run(TINY, ["--train.tokens=100_000", "--train.steps=3"])


def test_a_sweep_is_not_a_run() -> None:
    with pytest.raises(ConfigError, match=r"axes: is a key of a sweep; scripts/sweep\.py runs it"):
        load_run(ROOT / "configs/sweeps/quickstart.yaml")
    with pytest.raises(
        ConfigError, match=r"tiny\.yaml: model: is a key of a run; .*, and a sweep names it as its base$"
    ):
        load_sweep(TINY)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["--model.style=modrn"], ["model.style: \"modrn\" is not one of gpt2, modern; nearest is 'modern'"]),
        (["--model.d_model=-32"], ["model.d_model: -32 must be at least 1"]),
        (["--model.d_model=wide"], ['model.d_model: "wide" is not a whole number']),
    ],
)
def test_what_is_derived_from_a_wrong_value_adds_no_problem(overrides: list[str], told: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_run(TINY, overrides)
    assert str(caught.value).splitlines() == [f"command line: {line}" for line in told]
