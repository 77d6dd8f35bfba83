"""What a report page is made of: sections with sentences, pictures and tables."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure

from scaling.forecast.fitted_law import FittedLaw
from scaling.forecast.law_file import LawFile
from scaling.report.plot_style import Scale, png


@dataclass(frozen=True)
class Picture:
    """A figure, how to read it, and the name of its file."""

    name: str
    title: str
    caption: str
    image: bytes

    @property
    def uri(self) -> str:
        """The image as a data URI."""
        return "data:image/png;base64," + base64.b64encode(self.image).decode()


@dataclass(frozen=True)
class Grid:
    """A table of the page: column heads (a leading '#' marks numbers), rows, a note under it."""

    head: tuple[str, ...]
    rows: list[list[str]]
    note: str = ""
    folded: str = ""  # what is written on the fold that hides a long table


@dataclass(frozen=True)
class Section:
    """One heading of the page with its sentences, pictures and tables."""

    anchor: str
    title: str
    text: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)


@dataclass(frozen=True)
class ReportSource:
    """Everything that a section is made from."""

    view: FittedLaw
    runs_dir: Path | None
    scales: Mapping[str, Scale]

    @property
    def law(self) -> LawFile:
        """The content of law.json."""
        return self.view.law

    @property
    def level(self) -> str:
        """Level of the intervals, as text."""
        return f"{100 * self.view.level:g} %"


def picture(name: str, title: str, caption: str, drawn: Figure | None) -> list[Picture]:
    """A list of one picture, or of none where there was nothing to draw."""
    return [Picture(name, title, caption, png(drawn))] if drawn is not None else []


def pluralise(number: int, noun: str) -> str:
    """A number and its noun: 1 run, 2 runs."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
