"""What a report says, before it is HTML or Markdown: headings, paragraphs, tables, figures, small images.

Texts are plain and may come from strangers; whoever writes the page escapes them. A figure stands beside a table of
what it shows, for readers who cannot see it, for Markdown, and for places where nothing can draw it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Number:
    """A number in a cell: as it is, and as it is shown."""

    value: float
    text: str


Cell: TypeAlias = str | Number | None
"""None is an empty cell, shown as a dash."""


@dataclass(frozen=True, slots=True)
class Heading:
    """It opens a section; its level is 2 or 3."""

    level: int
    text: str


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Sentences."""

    text: str


@dataclass(frozen=True, slots=True)
class Bullets:
    """A list of sentences."""

    items: Sequence[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Rows under heads; the first cell of a row names it."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    strong: frozenset[int] = frozenset()
    """Places of the rows that stand out."""

    @property
    def numeric(self) -> list[bool]:
        """For each column, whether it holds numbers."""
        return [any(isinstance(row[column], Number) for row in self.rows) for column in range(len(self.heads))]


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A drawing, what it is, and its numbers."""

    svg: str | None
    """An SVG document of `charts.py`; None where matplotlib is missing."""
    caption: str
    table: Table | None = None
    """None where the same numbers stand in a table of the document."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures that stand beside each other where there is room."""

    items: Sequence[Figure]


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A small image, embedded in the HTML page only."""

    jpeg: bytes
    caption: str


@dataclass(frozen=True, slots=True)
class Pictures:
    """Images in a row."""

    items: Sequence[Picture]


Block: TypeAlias = Heading | Paragraph | Bullets | Table | Figures | Pictures


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A report."""

    title: str
    blocks: Sequence[Block] = ()

    @property
    def misses_drawings(self) -> bool:
        """Whether figures could not be drawn."""
        return any(figure.svg is None for block in self.blocks if isinstance(block, Figures) for figure in block.items)
