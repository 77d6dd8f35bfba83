"""What all commands share: how they read a command line, tell a mistake in one sentence, and end."""

import argparse
import difflib
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, NoReturn

from configs.reader import UserError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


class Status(IntEnum):
    """Exit status of a command; the `deepspeed` launcher passes on that of the first rank that failed."""

    COMPLETE = 0
    CRASHED = 1
    USER_ERROR = 2
    DIVERGED = 3
    NO_CHECKPOINT = 4
    STOPPED = 5
    HUNG = 6
    FOREIGN_RANK = 7
    OUT_OF_MEMORY = 8
    DISK_FULL = 9
    INTERRUPTED = 130


DESCRIPTIONS = {
    Status.COMPLETE: "done",
    Status.CRASHED: "an error without a status of its own; see the log, run again",
    Status.USER_ERROR: "a mistake in the input, or a file that cannot be read or written",
    Status.DIVERGED: "the loss stopped being a number, or spikes came back after every rollback",
    Status.NO_CHECKPOINT: "checkpoints exist but none can be continued from",
    Status.STOPPED: "asked to end, and saved; run again to continue",
    Status.HUNG: "a rank was silent for too long; run again to continue",
    Status.FOREIGN_RANK: "a process of another run joined; nothing was trained",
    Status.OUT_OF_MEMORY: "the device or the machine has too little memory for the run",
    Status.DISK_FULL: "a file could not be written; make room, run again to continue",
    Status.INTERRUPTED: "ended by Ctrl-C before there was anything to save, or by a second one",
}

OF_EVERY_COMMAND = (Status.COMPLETE, Status.USER_ERROR, Status.INTERRUPTED)

SUFFIXES = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
NUMBER = re.compile(r"([+-]?[0-9][0-9_]*(?:\.[0-9_]*)?(?:[eE][+-]?[0-9]+)?)\s*([kKMBT]?)")
NEGATIVE = re.compile(r"-[0-9.]")


class Parser(argparse.ArgumentParser):
    """A parser that answers a mistake with one sentence and status 2, and reads -7e9 as a value, not an option."""

    def __init__(
        self,
        description: str | None,
        statuses: Mapping[str, str] | None = None,
        overrides: bool = False,
        prog: str | None = None,
    ) -> None:
        """Make a parser without arguments.

        Args:
            description: what the command does, its units and an example; the docstring of its file.
            statuses: what statuses mean that only this command has; the others are OF_EVERY_COMMAND.
            overrides: whether words such as --a.b=c are kept, in `overrides` of the parsed options.
            prog: name of the command, where it is not that of the file that runs.
        """
        shown = {f"{status:d}": DESCRIPTIONS[status] for status in OF_EVERY_COMMAND}
        shown |= statuses or {}
        lines = [f"  {status:<8}{shown[status]}" for status in sorted(shown, key=lambda s: (len(s), s))]
        super().__init__(
            prog=prog,
            description=description,
            epilog="\n".join(["exit status:", *lines]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self._keeps_overrides = overrides

    def parse_args(self, args: Sequence[str] | None = None) -> argparse.Namespace:  # type: ignore[override]
        """As in argparse, which by itself takes -7e9 for an option, and a missing one for worse than a misspelled."""
        words: list[str] = []
        for word in sys.argv[1:] if args is None else args:
            if NEGATIVE.match(word) and words and re.fullmatch(r"--[a-z-]+", words[-1]):
                words[-1] += f"={word}"
            else:
                words.append(word)
        for word in words:
            self._refuse_misspelled(word)
        options, rest = self.parse_known_args(words)
        if self._keeps_overrides:
            options.overrides = rest
        elif rest:
            self.error(f"{rest[0]}: is not understood")
        return options

    def _refuse_misspelled(self, word: str) -> None:
        """End with a sentence for a word that looks like an option and is none."""
        option, given, _ = word.partition("=")
        known = self._option_string_actions
        if not re.match(r"--?[A-Za-z]", option) or option in known or (self._keeps_overrides and given):
            return
        if near := difflib.get_close_matches(option, known, n=1):
            self.error(f"{option}: is not understood; did you mean '{near[0]}'?")
        if not self._keeps_overrides:
            self.error(f"{option}: is not understood")

    def error(self, message: str) -> NoReturn:
        """Print one sentence, with the nearest choice where there is one, and exit."""
        if found := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            near = difflib.get_close_matches(found[1], re.findall(r"[\w.-]+", found[2]), n=1)
            message += f"; nearest is '{near[0]}'" if near else ""
        self.exit(Status.USER_ERROR, f"{self.prog}: {message} (--help lists the options)\n")


def run_command(
    parser: Parser,
    action: Callable[[argparse.Namespace], int | None],
    words: Sequence[str] | None = None,
    mistakes: tuple[type[Exception], ...] = (),
    interrupted: str = "interrupted",
) -> int:
    """Parse the command line and act on it; return the exit status, after one sentence on stderr for a mistake.

    Args:
        parser: of the command.
        action: takes the parsed options and returns a status; None stands for 0.
        words: the command line; that of the process where it is None.
        mistakes: what `action` raises for a mistake, beside UserError and OSError.
        interrupted: what is said on Ctrl-C.
    """
    options = parser.parse_args(words)
    told: tuple[type[Exception], ...] = (UserError, *mistakes)
    try:
        return action(options) or Status.COMPLETE
    except told as error:
        message, status = str(error), Status.USER_ERROR
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        message, status = f"{where}{error.strerror or error}", Status.USER_ERROR
    except KeyboardInterrupt:
        message, status = interrupted, Status.INTERRUPTED
    print(f"{parser.prog}: {message}", file=sys.stderr, flush=True)
    return status


def make_console(width: int = 120) -> "Console":
    """A console for standard output; in a log, `width` characters wide."""
    from rich.console import Console  # not needed by a command that prints JSON

    return Console(width=None if sys.stdout.isatty() else width)


def make_table(title: str | None, *headings: str) -> "Table":
    """A table whose columns are never folded; numbers, in columns whose heading begins with '#', stand at the right."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading.lstrip("#"), justify="right" if heading.startswith("#") else "left", no_wrap=True)
    return table


def parse_count(text: str) -> float:
    """A positive number of parameters, tokens or FLOPs: 7e9, 7B, 1.5T, 250k, 1_000_000.

    An argparse `type`: raises ArgumentTypeError for anything else.
    """
    found = NUMBER.fullmatch(text.strip())
    try:
        value = float(found[1]) * SUFFIXES.get(found[2].replace("K", "k"), 1.0) if found else math.nan
    except ValueError:  # an underscore where no digit follows
        value = math.nan
    if math.isnan(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number such as 7e9, 7B or 1_000_000 (k, M, B, T)")
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive finite number")
    return value


def pairs(items: Sequence[str], option: str) -> dict[str, str]:
    """NAME=VALUE items as a dictionary. Raises UserError."""
    for item in items:
        if "=" not in item:
            raise UserError(f"{option} {item!r}: write NAME=VALUE")
    names = [item.split("=", 1)[0] for item in items]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"{option} names {twice[0]} twice")
    return dict(item.split("=", 1) for item in items)


def numbers(items: Sequence[str], option: str) -> dict[str, float]:
    """NAME=NUMBER items as a dictionary. Raises UserError."""
    values = {}
    for name, text in pairs(items, option).items():
        try:
            values[name] = float(text)
        except ValueError:
            raise UserError(f"{option} {name}={text}: {text!r} is not a number") from None
    return values
