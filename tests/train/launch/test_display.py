"""What people see while a sweep runs and after it."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from configs.formatting import duration
from configs.run_record import parse_record
from train.config import load_run
from train.launch.devices import Devices
from train.launch.display import SweepProgress, result_table, seconds_left, show_table, status_table
from train.launch.plan import Plan
from train.launch.run_state import RunState, last_row, read_state
from train.sweep.config import SweepConfig
from train.sweep.run import Run, Sweep

TINY = Path(__file__).parents[3] / "configs" / "runs" / "tiny.yaml"
ROW = {"step": 100, "loss": 3.25, "tokens_per_second": 2048.0}
RECORD = {"complete": True, "N": 1000, "D": 640, "val_loss": 2.5, "bits_per_byte": 1.25, "seconds": 200.0}
STATES = {
    "done": RunState("complete", 300, {}, parse_record(json.dumps(RECORD), "record.json")),
    "half": RunState("running", 100, ROW),
    "young": RunState("running"),
    "broken": RunState("failed", 10, ROW, note="exit status 1: [red]the sky fell[/red]"),
    "later": RunState("pending"),
}


def make_plan(*names: str) -> Plan:
    runs = tuple(Run(load_run(TINY, [f"--name={name}"]), 1, Path("runs/x") / name) for name in names)
    sweep = Sweep(SweepConfig(name="ladder", base="b"), runs)
    return Plan(sweep, Devices("cpu", {"localhost": (0, 1)}), dict.fromkeys(names, 120.0), "")


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of 80 x 12 characters."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80, height=12, color_system=None)
    monkeypatch.setattr("train.launch.display.make_console", lambda width: console)
    return out


def test_live_table(terminal):
    with SweepProgress(make_plan(*STATES)) as progress:
        progress.update(STATES)
    shown = terminal.getvalue()
    for words in ("100/300", "3.2500", "2,048", "3m", "1 complete, 2 running, 1 failed, 1 pending"):
        assert words in shown
    # half has 80 of its 120 s left, young and later 120 s each, on two places.
    assert "about 3m left" in shown


def test_live_table_fits_the_screen_and_keeps_what_runs(terminal):
    names = [*STATES, *(f"more{i}" for i in range(30))]
    states = STATES | {name: RunState("pending") for name in names if name not in STATES}
    with SweepProgress(make_plan(*names)) as progress:
        table = progress._table(states)
        assert table.row_count == 6
        progress.update(states)
    assert all(name in terminal.getvalue() for name in ("half", "young", "broken"))


def test_lines_in_a_log(capsys):
    with SweepProgress(make_plan(*STATES)) as progress:
        assert not progress.due()
        progress.say("half: started [on] the CPU")
        progress.update(STATES)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "half: started [on] the CPU"
    assert lines[1] == "half: step 100/300, loss 3.2500, 2,048 tokens/s, 3m left"
    assert lines[2] == "young: starting"
    assert lines[3].startswith("ladder: 1 complete, 2 running")
    assert len(lines) == 4


def test_tables_of_states_and_results(capsys):
    runs = make_plan(*STATES).sweep.runs
    show_table(status_table(runs, STATES))
    show_table(result_table(runs, STATES))
    lines = capsys.readouterr().out.splitlines()
    assert "exit status 1: [red]the sky fell[/red]" in lines[4]
    assert lines[7].split() == ["done", "41.7k", "614.4k", "2.5000", "1.2500", "3m"]
    assert lines[8].split() == ["half", "41.7k", "614.4k", "running"]


def test_wide_tables_are_not_cut_on_a_narrow_terminal(terminal):
    from train.launch.plan import plan_table

    plan = make_plan(*STATES)
    show_table(plan_table(plan, dict.fromkeys(STATES, "pending")))
    assert "…" not in terminal.getvalue()
    row = next(line for line in terminal.getvalue().splitlines() if "young" in line)
    assert len(row.split()) == 14


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(3.4, "3s"), (119, "119s"), (150, "2m"), (7300, "2.0h"), (2.5 * 86_400, "2.5d"), (float("inf"), "?")],
)
def test_duration(seconds, words):
    assert duration(seconds) == words


def test_speed_gives_the_time_left():
    run = make_plan("a").sweep.runs[0]
    assert seconds_left(run, STATES["half"]) == (run.config.steps - 100) * run.config.tokens_per_step / 2048


def test_last_row_of_a_file_that_is_being_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert last_row(path) == {}
    rows = [{"step": step, "loss": 1.0, "filler": "x" * 500} for step in range(1, 101)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 101, "lo')
    assert last_row(path)["step"] == 100
    assert path.stat().st_size > 3 * 16_384


def test_state_of_a_directory(tmp_path):
    run = Run(load_run(TINY), 1, tmp_path)
    assert read_state(run, running=False, failure=None).state == "pending"
    assert read_state(run, running=True, failure=None).state == "running"
    (tmp_path / "metrics.jsonl").write_text(json.dumps(ROW) + "\n")
    (tmp_path / "checkpoints" / "step-00000080").mkdir(parents=True)
    (tmp_path / "checkpoints" / ".step-00000090.partial").mkdir()
    stopped = read_state(run, running=False, failure=None)
    assert (stopped.state, stopped.step, stopped.note) == ("resumable", 100, "continues from step 80")
    assert read_state(run, running=False, failure="exit status 1").note == "exit status 1; continues from step 80"
    broken = [RECORD | {"complete": complete} for complete in (False, "yes")]
    for text in ("", "[]", '{"complete": true}', *map(json.dumps, broken)):
        (tmp_path / "record.json").write_text(text)
        assert read_state(run, running=False, failure=None).state == "resumable"
    (tmp_path / "record.json").write_text(json.dumps(RECORD))
    assert read_state(run, running=False, failure="exit status 1").state == "complete"
