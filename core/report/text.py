"""Text of strangers (file names, set names, notes) as nothing but text, in HTML and in Markdown."""

from __future__ import annotations

import re
from html import escape

_LONGEST = 600
_MARKDOWN_SPECIAL = re.compile(r"([\\`*_\[\]|~#!])")


def one_line(text: str, *, longest: int = _LONGEST) -> str:
    """Printable characters on one line; what is longer than `longest` ends in three dots."""
    line = "".join(one if one.isprintable() else "?" for one in " ".join(text.split()))
    return line if len(line) <= longest else line[: longest - 3] + "..."


def html_text(text: str, *, longest: int = _LONGEST) -> str:
    """Safe between tags and inside quoted attributes."""
    return escape(one_line(text, longest=longest), quote=True)


def markdown_text(text: str) -> str:
    """Safe in paragraphs and table cells: no HTML, links, emphasis, headings or cells of its own."""
    line = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN_SPECIAL.sub(r"\\\1", line)
