"""The comment that a shipped recipe opens with, as data: what it is, how to launch it, what it needs and aims at.

    # What it is, in one sentence. More, where it takes more.
    #
    # Launch   torchrun ... -m adadistill.recipes.train NAME
    # Needs    records and teacher
    # Aims at  what was published, with the pooling of its templates. More figures, and what differs.
    # Result   not measured

The first sentences stand alone: lists and tables of recipes show them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_LABELLED = re.compile(r"# (Launch|Needs|Aims at|Result) {2,}(.*)")
_SENTENCE_END = re.compile(r"(?<=\.)\s")


@dataclass(frozen=True, slots=True)
class RecipeHeader:
    """The parts of the comment, each on one line; a part that is not there is empty."""

    text: str
    """What the recipe is and what for."""
    launch: str = ""
    needs: str = ""
    aims_at: str = ""
    result: str = ""

    @property
    def purpose(self) -> str:
        """What the recipe is, in one sentence."""
        return first_sentence(self.text)

    @property
    def aim(self) -> str:
        """What was published of such a run, in one sentence with the pooling mode."""
        return first_sentence(self.aims_at)


def read_recipe_header(path: Path) -> RecipeHeader:
    """The header of a recipe's file; the comment ends with the first line that is none.

    Raises:
        OSError, UnicodeDecodeError: the file cannot be read.
    """
    parts: dict[str, list[str]] = {"": []}
    part = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        labelled = _LABELLED.fullmatch(line)
        if labelled:
            part = labelled[1]
        parts.setdefault(part, []).append(labelled[2] if labelled else line.lstrip("#"))
    joined = {label: " ".join(" ".join(lines).split()) for label, lines in parts.items()}
    return RecipeHeader(
        joined[""],
        launch=joined.get("Launch", ""),
        needs=joined.get("Needs", ""),
        aims_at=joined.get("Aims at", ""),
        result=joined.get("Result", ""),
    )


def first_sentence(text: str) -> str:
    """Up to the first full stop that a space follows; the whole text where there is none."""
    return _SENTENCE_END.split(text, maxsplit=1)[0]
