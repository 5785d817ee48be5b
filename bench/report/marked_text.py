"""The part of a document that is written by a command, between two lines that say so."""

from __future__ import annotations

import os
from pathlib import Path


def replace_marked(document: str, begin: str, end: str, body: str) -> str:
    """The document with what stands between its markers written anew.

    Args:
        begin: marker before it; `end`: marker after it.
        body: what goes between them, without empty lines around.

    Raises:
        ValueError: the document has not exactly one of each marker, in this order.
    """
    first, last = document.find(begin), document.find(end)
    if document.count(begin) != 1 or document.count(end) != 1 or last < first:
        raise ValueError(f"the figures go between two lines, each once and in this order:\n{begin}\n{end}")
    return f"{document[: first + len(begin)]}\n\n{body}\n{document[last:]}"


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is never half written. Raises OSError."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
