"""What the fitter's commands share: numbers such as 7B and 1_000_000, one sentence for a mistake, exit statuses."""

from __future__ import annotations

import argparse
import difflib
import math
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from scaling.errors import FitError

SUFFIXES = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
NUMBER = re.compile(r"([+-]?[0-9][0-9_]*(?:\.[0-9_]*)?(?:[eE][+-]?[0-9]+)?)\s*([kKMBT]?)")
NEGATIVE = re.compile(r"-[0-9.]")

MISTAKE, INTERRUPTED = 2, 130
EXIT_STATUS = (
    f"exit status: 0 done, {MISTAKE} a mistake in the input or a file that cannot be read or written, "
    f"{INTERRUPTED} interrupted."
)


class Parser(argparse.ArgumentParser):
    """A parser that answers a mistake with one sentence and status 2, and reads -7e9 as a value, not an option."""

    def __init__(self, description: str | None, epilog: str = EXIT_STATUS) -> None:
        super().__init__(
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def parse_args(self, args: Sequence[str] | None = None) -> argparse.Namespace:  # type: ignore[override]
        """As in argparse. argparse itself takes -7e9 for an option and says only that a value is missing."""
        words = list(sys.argv[1:] if args is None else args)
        joined: list[str] = []
        for word in words:
            if NEGATIVE.match(word) and joined and re.fullmatch(r"--[a-z-]+", joined[-1]):
                joined[-1] += f"={word}"
            else:
                joined.append(word)
        return super().parse_args(joined)

    def error(self, message: str) -> NoReturn:
        """Print one sentence, with the nearest choice where there is one, and exit."""
        if found := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            near = difflib.get_close_matches(found[1], re.findall(r"[\w.-]+", found[2]), n=1)
            message += f"; nearest is '{near[0]}'" if near else ""
        self.exit(MISTAKE, f"{self.prog}: {message} (--help lists the options)\n")


def parse_count(text: str) -> float:
    """A positive number of parameters, tokens or FLOPs: 7e9, 7B, 1.5T, 250k, 1_000_000.

    An argparse ``type``: raises ArgumentTypeError for anything else.
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


def pairs(items: list[str], option: str) -> dict[str, str]:
    """NAME=VALUE items as a dictionary. Raises FitError."""
    for item in items:
        if "=" not in item:
            raise FitError(f"{option} {item!r}: write NAME=VALUE")
    names = [item.split("=", 1)[0] for item in items]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise FitError(f"{option} names {twice[0]} twice")
    return dict(item.split("=", 1) for item in items)


def fixed_parameters(items: list[str]) -> dict[str, float]:
    """The pinned parameters. Raises FitError for a value that is not a number."""
    values = {}
    for name, text in pairs(items, "--fix").items():
        try:
            values[name] = float(text)
        except ValueError:
            raise FitError(f"--fix {name}={text}: {text!r} is not a number") from None
    return values


def run_command(name: str, mistakes: tuple[type[Exception], ...], action: Callable[[], None]) -> int:
    """Run a command's ``action``; return its exit status after one sentence on stderr for a mistake."""
    try:
        action()
    except mistakes as error:
        print(f"{name}: {error}", file=sys.stderr)
        return MISTAKE
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"{name}: {where}{error.strerror or error}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0
