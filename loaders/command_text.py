"""Paths as they stand in commands that messages tell people to type."""

from __future__ import annotations

import shlex
from pathlib import Path


def quoted(path: Path | str) -> str:
    """A path, or a word that holds one: one word for a shell, and neither an option nor a home folder for a verb."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith(("-", "~")) else text)
