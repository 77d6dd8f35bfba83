"""What every source of text is: a name, what identifies its content, and a way to iterate its texts."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any


class Texts:
    """The raw texts of a source, one after another, and the position reached, from where reading can go on."""

    def __init__(self, texts: Iterable[str], rows: int = 0, state: Callable[[], Any] = lambda: None) -> None:
        """Begin after `rows` texts; `state` returns what the source itself needs to find the place again."""
        self._texts, self.rows, self._state = texts, rows, state

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            self.rows += 1
            yield text

    def position(self) -> dict[str, Any]:
        """Return the place after the last text that was taken, in JSON's types."""
        return {"rows": self.rows, "state": self._state()}

    def map(self, function: Callable[[str], str]) -> "Texts":
        """Return the texts with a function applied to each."""
        return Texts((function(text) for text in self._texts), self.rows, self._state)


Position = dict[str, Any]


def skipping(texts: Callable[[], Iterable[str]]) -> Callable[[Position | None], Texts]:
    """Go on from a position by reading, and leaving out, what comes before it."""

    def begin(position: Position | None = None) -> Texts:
        rows = position["rows"] if position else 0
        return Texts(islice(texts(), rows, None), rows)

    return begin


@dataclass(frozen=True)
class Source:
    """Raw texts and where they come from.

    `identity` holds what determines the texts; a corpus's directory is named by a hash of it. `details` is
    provenance that is only known on reading (versions, commits) and goes into the manifest. `texts(position)` reads on
    from where an earlier reading was; without a position, from the beginning.
    """

    name: str
    identity: dict[str, Any]
    details: dict[str, Any]
    texts: Callable[..., Texts]
    max_bytes: int | None
