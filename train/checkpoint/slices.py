"""Where a piece of a parameter lies in it, and where the parts lie that tensor parallelism cuts a matrix into.

Column parallelism (Shoeybi et al. 2019, arXiv 1909.08053) cuts the output features of a matrix: a process has
consecutive rows of its weight (out, in), and where several matrices lie below each other, as queries, keys and values
do, rows of each. Row parallelism cuts the input features: a process has consecutive columns.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor


@dataclass(frozen=True)
class Place:
    """Entries of a flattened parameter: consecutive ones, or the same columns of consecutive rows."""

    start: int
    """The first entry."""
    shape: tuple[int, ...]
    """(count,) for consecutive entries, (rows, width) for some columns."""
    stride: int = 1
    """Entries from one row to the next; a consecutive entry is a row of its own."""

    @property
    def count(self) -> int:
        """Number of entries."""
        return prod(self.shape)

    @property
    def end(self) -> int:
        """The entry after the last one."""
        return self.row(self.shape[0] - 1) + prod(self.shape[1:])

    def row(self, index: int) -> int:
        """Return the first entry of a row."""
        return self.start + index * self.stride

    def rows_between(self, begin: int, end: int) -> tuple[int, int]:
        """Return the first row that begins at the entry `begin` or later, and the first that does so at `end`."""
        first, stop = (-(-(entry - self.start) // self.stride) for entry in (begin, end))
        return max(0, first), min(self.shape[0], stop)

    def of(self, flat: Tensor) -> Tensor:
        """Return the view of a flattened parameter that is here."""
        return flat[self.start :].as_strided(self.shape, (self.stride, 1)[: len(self.shape)])


def in_rows(parts: Sequence[tuple[int, int]], length: int, start: int, count: int) -> Iterator[Place]:
    """Yield where `count` entries from `start` on lie, of a process that has rows of a matrix.

    Args:
        parts: (first row, number of rows) of each stretch of rows that the process has.
        length: entries of a row.
        start: where the entries begin in what the process has, flattened.
        count: how many they are.
    """
    before = 0
    for row, rows in parts:
        begin, end = max(start, before), min(start + count, before + rows * length)
        if begin < end:
            yield Place(row * length + begin - before, (end - begin,))
        before += rows * length


def in_columns(first: int, width: int, length: int, start: int, count: int) -> Iterator[Place]:
    """Yield the same of a process that has the columns from `first` on of rows of `length` entries, `width` of each."""
    end = start + count
    while start < end:
        row, column = divmod(start, width)
        whole_rows = 0 if column else (end - start) // width
        shape = (whole_rows, width) if whole_rows else (min(width - column, end - start),)
        yield Place(row * length + first + column, shape, length if whole_rows else 1)
        start += prod(shape)
