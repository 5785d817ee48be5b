"""What a report says, before it is HTML or Markdown: headings, paragraphs, tables, figures.

Texts are plain and may come from strangers; whoever writes the page escapes them. Figures are SVG made by
`line_chart.py`, which escapes its own labels, and stand beside a table of what they show, for readers who cannot see
them and for Markdown, which has no place for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
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
    """Of a section; level 2 or 3."""

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
    """Rows that stand out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A drawing, what it is, and its numbers."""

    svg: str
    caption: str
    key: Sequence[str]
    """Labels of its lines, in their order."""
    table: Table


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures that stand beside each other where there is room."""

    items: Sequence[Figure]


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A small image, embedded; HTML only."""

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
    blocks: Sequence[Block] = field(default_factory=tuple)
