"""Every command: what --help says, what a misspelled option leads to, and how mistakes and interruptions end."""

import argparse
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.cli import DESCRIPTIONS, OF_EVERY_COMMAND, Parser, Status, numbers, parse_count, run_command
from configs.formatting import count
from configs.reader import UserError
from tests.conftest import ROOT

COMMANDS = {
    str(path.relative_to(ROOT / "scripts").with_suffix("")): path
    for folder in ("", "bench", "studies")
    for path in sorted((ROOT / "scripts" / folder).glob("*.py"))
}


def typed(name: str) -> str:
    """How a command is typed, at least in part, in its own example."""
    return f"study.py {Path(name).name}" if name.startswith("studies/") else f"scripts/{name}.py"


@pytest.fixture(params=COMMANDS)
def command(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """A command, to be called with its words; returns status, standard output and standard error."""
    main = runpy.run_path(str(COMMANDS[request.param]), run_name="tested")["main"]

    def call(*words: str) -> tuple[int, str, str]:
        try:
            status = main(list(words))
        except SystemExit as end:
            status = end.code
        return (status, *capsys.readouterr())

    call.name = request.param  # type: ignore[attr-defined]
    return call


def test_help_describes_shows_an_example_and_lists_the_statuses(command: Any) -> None:
    status, text, errors = command("--help")
    assert (status, errors) == (0, "")
    assert typed(command.name) in text
    description = text.partition("\n\n")[2].partition("\n\n")[0]
    assert description.rstrip(".") != description  # a sentence
    shown = {line.split()[0] for line in text.partition("exit status:\n")[2].splitlines() if line}
    assert shown >= {f"{status:d}" for status in OF_EVERY_COMMAND}


def test_a_misspelled_option_is_one_sentence_with_the_nearest(command: Any) -> None:
    status, text, errors = command("--hlep")
    assert (status, text) == (2, "")
    assert errors.count("\n") == 1
    assert "--hlep: is not understood; did you mean '--help'?" in errors


def test_commands_are_all_there() -> None:
    assert {"fit", "pretrain", "sweep", "bench/soak", "studies/ngram"} <= COMMANDS.keys()
    listing = subprocess.run([sys.executable, "scripts/study.py"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    for name in COMMANDS:
        assert not name.startswith("studies/") or f"\n    {Path(name).name} " in listing.stdout
    unknown = [sys.executable, "scripts/study.py", "desings"]
    done = subprocess.run(unknown, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "nearest is 'designs'" in done.stderr


def test_the_trainer_lists_every_status_and_asks_for_a_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    from train.__main__ import main

    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for status, meaning in DESCRIPTIONS.items():
        assert f"  {status:<8d}{meaning}\n" in text
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        "pretrain.py: one of the arguments --config --jobs is required (--help lists the options)"
    ]


WITHOUT_TORCH = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name in {"torch", "deepspeed", "transformers"}:
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
import runpy
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("name", ["fit", "predict", "plan", "prepare", "pretrain", "sweep", "export", "plan_cluster"])
def test_help_needs_no_torch(name: str) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, f"scripts/{name}.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_mistakes_in_a_configuration_are_told_before_torch_is_imported() -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, "scripts/pretrain.py", "--config", "configs/runs/tiny.yaml"]
    done = subprocess.run([*command, "--train.setps=5"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "train.setps: unknown key" in done.stderr


# --- the parser -------------------------------------------------------------------------------------------------


def parser(**keywords: Any) -> Parser:
    made = Parser("What it does.", prog="a.py", **keywords)
    made.add_argument("--params", type=parse_count)
    made.add_argument("--dry-run", action="store_true")
    return made


@pytest.mark.parametrize(
    ("words", "overrides", "sentence"),
    [
        (["--parms", "7B"], False, "--parms: is not understood; did you mean '--params'?"),
        (["--parms=7B"], False, "--parms: is not understood; did you mean '--params'?"),
        (["--dryrun"], True, "--dryrun: is not understood; did you mean '--dry-run'?"),
        (["--unlike-anything"], False, "--unlike-anything: is not understood"),
        (["more"], False, "more: is not understood"),
        (["--params", "-7e9"], False, "argument --params: '-7e9' is not a positive finite number"),
    ],
)
def test_mistakes_on_the_command_line(
    words: list[str], overrides: bool, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parser(overrides=overrides).parse_args(words)
    assert ended.value.code == Status.USER_ERROR
    assert capsys.readouterr().err == f"a.py: {sentence} (--help lists the options)\n"


def test_overrides_are_kept_for_who_knows_the_keys() -> None:
    options = parser(overrides=True).parse_args(["--params", "7B", "--model.size=tiny-3k", "--dryrun=1", "word"])
    assert options.params == 7e9
    assert options.overrides == ["--model.size=tiny-3k", "--dryrun=1", "word"]


def raising(error: BaseException) -> Callable[[argparse.Namespace], None]:
    def action(options: argparse.Namespace) -> None:
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (UserError("the table has no rows"), 2, "the table has no rows"),
        (FileNotFoundError(2, "No such file or directory", "x.csv"), 2, "x.csv: No such file or directory"),
        (PermissionError("runs cannot be written"), 2, "runs cannot be written"),
        (RuntimeError("no checkpoint"), 2, "no checkpoint"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_how_commands_end(error: BaseException, status: int, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(parser(), raising(error), [], (RuntimeError,)) == status
    assert capsys.readouterr().err == f"a.py: {sentence}\n"


def test_a_defect_is_not_taken_for_a_mistake() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(parser(), raising(ZeroDivisionError()), [])
    assert run_command(parser(), lambda options: None, []) == 0
    assert run_command(parser(), lambda options: 1, []) == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7e9", 7e9),
        ("7B", 7e9),
        ("2.12B", 2.12e9),
        ("1_000_000", 1e6),
        ("250k", 2.5e5),
        ("1.5T", 1.5e12),
        ("3e2M", 3e8),
    ],
)
def test_counts_are_read_as_they_are_printed(text: str, value: float) -> None:
    assert parse_count(text) == value


@given(value=st.floats(1.0, 9.9e15))
def test_what_the_tables_print_can_be_typed(value: float) -> None:
    assert parse_count(count(value).replace(",", "_")) == pytest.approx(value, rel=0.006)


@pytest.mark.parametrize("text", ["", "7Q", "B", "1__0", "1e", "nan", "inf", "0", "-3", "1e999", "7 B B"])
def test_other_counts_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        parse_count(text)


def test_named_numbers() -> None:
    assert numbers(["E=1.69", "alpha=.3"], "--fix") == {"E": 1.69, "alpha": 0.3}
    for items, sentence in ((["E"], "write NAME=VALUE"), (["E=1", "E=2"], "names E twice"), (["E=x"], "not a number")):
        with pytest.raises(UserError, match=sentence):
            numbers(items, "--fix")
