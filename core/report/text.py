"""Text of strangers (file names, set names, notes) as nothing but text on one line, and figures as people read them."""

from __future__ import annotations

import math
import re

_LONGEST = 600
# An underscore within a word begins no emphasis, and names are full of them.
_MARKDOWN_SPECIAL = re.compile(r"[\\`*\[\]|~#!]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def one_line(text: str, *, longest: int = _LONGEST) -> str:
    """Printable characters on one line; what is longer than `longest` ends in three dots."""
    line = "".join(one if one.isprintable() else "?" for one in " ".join(text.split()))
    return line if len(line) <= longest else line[: longest - 3] + "..."


def markdown_text(text: str, *, longest: int = _LONGEST) -> str:
    """Safe in paragraphs and table cells: no HTML, links, emphasis, headings or cells of its own."""
    line = one_line(text, longest=longest).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN_SPECIAL.sub(lambda found: "\\" + found[0], line)


def short_number(value: float) -> str:
    """Three significant digits or more, thousands set apart: 46.7, 11,564, 0.00123, 5.6e-07."""
    if value == 0 or math.isnan(value):
        return "0" if value == 0 else "nan"
    size = abs(value)
    if size >= 1e15 or size < 1e-4:
        return f"{value:.2e}"
    if size >= 100:
        return f"{value:,.0f}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(size)))}f}".rstrip("0").rstrip(".")
