"""Rows of text through the `datasets` library, and what goes wrong in them told in a sentence."""

import difflib
import re
from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any

from data.config import DataError


def load_rows(where: str, *args: Any, **options: Any) -> Any:
    """`datasets.load_dataset`; raises `DataError`, whose sentence begins with `where`, for what it cannot read."""
    try:
        import datasets
    except ImportError:
        raise DataError("reading files needs the 'datasets' library; install it with: pip install datasets") from None
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it logs as errors, it raises as well
    try:
        return datasets.load_dataset(*args, **options)
    except Exception as error:  # the library's loaders raise whatever their parsers raise
        raise DataError(f"{where} cannot be read: {reason_of(error)}") from error


def text_column(rows: Iterable[dict[str, Any]], field: str, where: str) -> Iterator[str]:
    """Yield the text of every row; a row without a value yields an empty text."""
    iterator = iter(rows)
    for row_number in count(1):
        try:
            row = next(iterator)
        except StopIteration:
            return
        except Exception as error:
            raise DataError(f"{where} cannot be read after row {row_number - 1}: {reason_of(error)}") from error
        if field not in row:
            near = difflib.get_close_matches(field, row, n=1, cutoff=0.3)
            hint = f"; nearest is '{near[0]}'" if near else ""
            raise DataError(
                f"data.text_field: {where} has no field '{field}' in row {row_number}, "
                f"only {', '.join(map(repr, row))}{hint}"
            )
        text = "" if row[field] is None else row[field]
        if not isinstance(text, str):
            kind = type(text).__name__
            raise DataError(f"data.text_field: '{field}' in row {row_number} of {where} is {kind}, not text")
        yield text


def reason_of(error: BaseException) -> str:
    """Return the innermost cause's message as one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = " ".join(str(error).split())
    return (lines or type(error).__name__)[:300]


def slug(text: str) -> str:
    """Letters and digits of a text, for the name of a directory."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")[:40] or "text"
