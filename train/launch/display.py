"""Show a sweep while it runs: a live table on a terminal, lines in a log."""

import time
from collections.abc import Mapping
from typing import Self

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.live import Live
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from configs.cli import make_console, make_table
from configs.formatting import duration, short_count
from model.counts import count_parameters
from train.launch.plan import Plan
from train.launch.run_state import RunState
from train.sweep.run import Run

_STYLES = {"complete": "green", "running": "cyan", "resumable": "yellow", "failed": "bold red", "pending": "dim"}
_STYLES |= {"not needed": "dim"}
_LINES_EVERY = 30.0  # seconds between lines in a log
_LOG_WIDTH = 240  # characters of a line in a log: so many that nothing is folded


def show_table(table: Table) -> None:
    """Print a table: ruled on a terminal, plain aligned text in a log, and never with its figures cut off."""
    out = make_console(_LOG_WIDTH)
    table.box = SIMPLE_HEAD if out.is_terminal else None
    needed = Measurement.get(out, out.options.update(max_width=1000), table).minimum
    out.width = max(out.width, needed)
    out.print(table, crop=False)


class SweepProgress:
    """Shows the states of all runs; `update` may be called as often as one likes."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.console = make_console(_LOG_WIDTH)
        self._live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, line: str) -> None:
        """Print a line for good."""
        self.console.print(Text(line), soft_wrap=True)

    def due(self) -> bool:
        """Return whether it is time for an update."""
        return time.monotonic() - self._last >= (1.0 if self._live is not None else _LINES_EVERY)

    def update(self, states: Mapping[str, RunState]) -> None:
        """Show the states."""
        self._last = time.monotonic()
        if self._live is not None:
            self._live.update(Group(self._table(states), Text(self._footer(states))), refresh=True)
            return
        for run in self.plan.sweep.runs:
            if states[run.name].state == "running":
                self.say(f"{run.name}: {_progress_words(run, states[run.name])}")
        self.say(self._footer(states))

    def _table(self, states: Mapping[str, RunState]) -> Table:
        table = make_table(None, "run", "state", "#step", "#loss", "#tokens/s", "#left")
        table.box = SIMPLE_HEAD
        for run in _most_telling(self.plan.sweep.runs, states, self.console.height - 6):
            state = states[run.name]
            table.add_row(
                run.name,
                Text(state.state, style=_STYLES[state.state]),
                f"{state.step:,}/{run.config.steps:,}" if state.step else "",
                _number(state.row.get("val_loss") or state.row.get("loss"), ".4f"),
                _number(state.row.get("tokens_per_second"), ",.0f") if state.state == "running" else "",
                duration(seconds_left(run, state)) if state.state == "running" and state.step else "",
            )
        return table

    def _footer(self, states: Mapping[str, RunState]) -> str:
        counts = {word: sum(state.state == word for state in states.values()) for word in _STYLES}
        words = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
        left = {run.name: self._expected(run, states[run.name]) for run in self.plan.sweep.runs}
        return f"{self.plan.sweep.config.name}: {words}; about {duration(self.plan.wall_seconds(left))} left"

    def _expected(self, run: Run, state: RunState) -> float:
        if state.state in ("complete", "failed", "not needed"):
            return 0.0
        own = run.config.steps - run.config.first_step
        return self.plan.seconds[run.name] * min(1.0, (run.config.steps - state.step) / max(1, own))


def _most_telling(runs: tuple[Run, ...], states: Mapping[str, RunState], room: int) -> list[Run]:
    """Return the runs that fit on the screen, in their order, leaving out the complete and the pending first."""
    rank = {"running": 0, "failed": 1, "resumable": 2, "pending": 3, "not needed": 4, "complete": 5}
    chosen = sorted(runs, key=lambda run: rank[states[run.name].state])[: max(room, 1)]
    return [run for run in runs if run in chosen]


def seconds_left(run: Run, state: RunState) -> float:
    """Return the training time that a running run still needs, at its present speed."""
    speed = state.row.get("tokens_per_second")
    return (run.config.steps - state.step) * run.config.tokens_per_step / speed if speed else float("inf")


def _progress_words(run: Run, state: RunState) -> str:
    if not state.step:
        return "starting"
    loss, speed = _number(state.row.get("loss"), ".4f"), _number(state.row.get("tokens_per_second"), ",.0f")
    words = f"step {state.step:,}/{run.config.steps:,}, loss {loss}"
    return words + (f", {speed} tokens/s, {duration(seconds_left(run, state))} left" if speed else "")


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def status_table(runs: tuple[Run, ...], states: Mapping[str, RunState]) -> Table:
    """Return the state of every run, as `sweep.py --status` prints it."""
    table = make_table(None, "run", "state", "#step", "#loss")
    table.add_column("remark")
    for run in runs:
        state = states[run.name]
        loss = state.record.result.val_loss if state.record is not None else state.row.get("loss")
        step = f"{state.step:,}/{run.config.steps:,}"
        table.add_row(run.name, Text(state.state, _STYLES[state.state]), step, _number(loss, ".4f"), Text(state.note))
    return table


def result_table(runs: tuple[Run, ...], states: Mapping[str, RunState]) -> Table:
    """Return what was measured: the loss of every complete run."""
    table = make_table(None, "run", "#N", "#D", "#val_loss", "#bits/byte", "#time")
    for run in runs:
        size = (short_count(count_parameters(run.config.model).total), short_count(run.config.tokens))
        record = states[run.name].record
        if record is None:
            table.add_row(run.name, *size, states[run.name].state, "", "")
            continue
        loss, bits, seconds = record.result.val_loss, record.result.bits_per_byte, record.compute.seconds
        time = "" if seconds is None else duration(seconds)
        table.add_row(run.name, *size, f"{loss:.4f}", _number(bits, ".4f"), time)
    return table
