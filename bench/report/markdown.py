"""Tables as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence

from adadistill.bench.report.tables import Machine, Table
from adadistill.bench.report.targets import Standing
from adadistill.core.report.text import one_line

_LONGEST = 160
_SPECIAL = re.compile(r"([\\`*\[\]|])")


def escaped(text: str) -> str:
    """Text of a stranger's row as nothing but text: one line, no HTML, no table cells, links or emphasis of its own."""
    line = one_line(text, longest=_LONGEST)
    return _SPECIAL.sub(r"\\\1", line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))


def markdown_report(listed: Sequence[Machine], standings: Sequence[Standing]) -> str:
    """Everything, machine by machine, then the targets."""
    parts = ["# Measured", "", "Medians, with p20 - p80 in brackets; a star marks a commit with uncommitted changes."]
    for machine in listed:
        parts += ["", f"## {escaped(machine.name)}"]
        for table in machine.tables:
            parts += ["", f"### {escaped(table.title)}", "", escaped_caption(table), "", table_text(table)]
    parts += ["", "## Targets", "", targets_text(standings), ""]
    return "\n".join(parts)


def escaped_caption(table: Table) -> str:
    """The caption, which may be long, part by part."""
    return "; ".join(escaped(part) for part in table.caption.split("; "))


def table_text(table: Table) -> str:
    """One table."""
    return grid(table.heads, table.lines, table.numeric)


def grid(heads: Sequence[str], lines: Sequence[Sequence[str]], numeric: Sequence[bool]) -> str:
    """Heads and cells as a Markdown table; figures to the right."""
    rule = "|".join(" ---: " if right else " --- " for right in numeric)
    rows = [f"| {' | '.join(map(escaped, heads))} |", f"|{rule}|"]
    return "\n".join(rows + [f"| {' | '.join(map(escaped, line))} |" for line in lines])


def targets_text(standings: Sequence[Standing]) -> str:
    """What the project set out to reach, and where it stands."""
    lines = [[one.what, one.reach, one.measured, one.where] for one in standings]
    return grid(["What", "To reach", "Measured", "On"], lines, [False] * 4)
