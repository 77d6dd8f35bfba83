"""What a table may hold: its columns, what is a number in a cell, and which rows must not be fitted."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

REQUIRED = ("N", "D", "loss")
# Columns that some law, weight or switch reads; other columns of a table are ignored.
OPTIONAL = (
    *("C", "U", "S", "weight", "stderr", "score", "N_non_embedding", "N_head", "warmup", "seed", "lr"),
    "entropy_rate",
)
TEXT = ("run", "cluster", "complete", "tainted")
MAY_BE_ZERO = ("weight", "score", "warmup", "seed", "stderr", "N_head")
MIN_VALUE, MAX_VALUE = 1e-30, 1e40  # of any number in a table; products and powers of these stay finite


def as_number(value: object) -> float | None:
    """The number in a cell, or None. Text such as "7e9" or "1_000_000" counts; "7B", true and null do not."""
    if isinstance(value, bool | np.bool_) or value is None:
        return None
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None


def cell_problem(name: str, value: object) -> str | None:
    """What is wrong with a cell of column ``name``, or None."""
    number = as_number(value)
    if number is None:
        return f"{value!r} is not a number" if value not in (None, "") else "it is empty"
    if not math.isfinite(number):
        return f"{value!r} is not a finite number"
    if number < 0 or (number == 0 and name not in MAY_BE_ZERO):
        return f"{value!r} is not positive"
    if number and not MIN_VALUE <= number <= MAX_VALUE:
        return f"{value!r} is beyond any plausible value"
    return None


def unfit_reason(record: Mapping[str, Any]) -> str | None:
    """Why a measured run must not be fitted although its numbers are readable."""
    if _flag(record, "complete") is False:
        return "the schedule has not finished (complete is false): its loss is that of another schedule"
    if _flag(record, "tainted"):
        return "tainted: the run had a loss spike or skipped steps"
    return None


def _flag(record: Mapping[str, Any], name: str) -> bool | None:
    """The yes/no field of a record or a table's row; None where it is absent or empty."""
    value = record.get(name)
    if isinstance(value, str):
        value = {"true": True, "1": True, "false": False, "0": False}.get(value.strip().lower())
    return None if value is None or value != value else bool(value)


def first_line(error: BaseException) -> str:
    """What an error says first, or its name where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
