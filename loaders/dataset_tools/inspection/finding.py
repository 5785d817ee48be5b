"""What was found out about a file or folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from adadistill.loaders.json_text import JSON


@dataclass(slots=True)
class Finding:
    """One thing that was looked at; filled in while it is looked at."""

    path: Path
    kind: str
    """A short name that stays the same between versions, for programs: `records`, `image-folder` ..."""
    title: str
    """What it is, for people."""
    facts: dict[str, JSON] = field(default_factory=dict)
    """In the order of reading; a name, and what is so."""
    problems: list[str] = field(default_factory=list)
    """What is wrong with it, a sentence each."""
    next_steps: list[str] = field(default_factory=list)
    """What to do with it."""

    def to_json(self) -> dict[str, JSON]:
        """JSON values."""
        return {
            "path": str(self.path),
            "kind": self.kind,
            "title": self.title,
            "facts": self.facts,
            "problems": list(self.problems),
            "next": list(self.next_steps),
        }


def printable(text: str, most: int = 200) -> str:
    """A stranger's text on one line, without control characters, cut off."""
    plain = "".join(one if one.isprintable() else "?" for one in text[: most + 1])
    return plain if len(plain) <= most else plain[:most] + "..."


def read_start(path: Path, most: int) -> bytes:
    """The first bytes of a file."""
    with path.open("rb") as file:
        return file.read(most)
