"""Where the parts of a cut matrix lie in the whole: against the parts that torch cuts."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from train.checkpoint.slices import Place, in_columns, in_rows

ROWS, LENGTH = 12, 6
WHOLE = torch.arange(ROWS * LENGTH).view(ROWS, LENGTH)


def stretches(size: int) -> Iterator[tuple[int, int]]:
    return ((start, count) for start in range(size) for count in range(1, size - start + 1))


@pytest.mark.parametrize(
    ("part", "places"),
    [
        # The second of two processes, of three matrices of four rows each; the last of three processes.
        (WHOLE.view(3, 2, 2, LENGTH)[:, 1], lambda *stretch: in_rows([(2, 2), (6, 2), (10, 2)], LENGTH, *stretch)),
        (WHOLE[:, 4:], lambda *stretch: in_columns(4, 2, LENGTH, *stretch)),
        (WHOLE[:, 2:3], lambda *stretch: in_columns(2, 1, LENGTH, *stretch)),
    ],
)
def test_every_stretch_of_a_part_is_found_in_the_whole(
    part: Tensor, places: Callable[[int, int], Iterator[Place]]
) -> None:
    entries, whole = part.flatten(), WHOLE.flatten()
    for start, count in stretches(len(entries)):
        found = list(places(start, count))
        assert torch.equal(torch.cat([place.of(whole).flatten() for place in found]), entries[start : start + count])
        assert sum(place.count for place in found) == count
        assert found[-1].end == entries[start + count - 1] + 1
        assert len(found) <= 3
