"""What was found out about a file or folder, and about a sample of the images in it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from adadistill.loaders.json_text import JSON
from adadistill.loaders.orientation import UPRIGHT
from adadistill.loaders.pixels import ImageDecodeError, image_header

_MOST_KINDS = 12


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


@dataclass(slots=True)
class ImageSample:
    """Counts over images whose headers were read."""

    images: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """(height, width)."""
    progressive: int = 0
    four_colours: int = 0
    """CMYK and YCCK."""
    grey: int = 0
    turned: int = 0
    """By an EXIF orientation."""
    damaged: list[str] = field(default_factory=list)

    def add(self, body: bytes, where: object) -> None:
        """Read one image's header."""
        self.images += 1
        try:
            header = image_header(body, where=where)
        except ImageDecodeError as error:
            self.damaged.append(str(error))
            return
        self.kinds[header.coding] += 1
        self.sizes[header.height, header.width] += 1
        self.progressive += header.kind == "jpeg" and not header.is_baseline
        self.four_colours += header.colorspace in ("CMYK", "YCCK")
        self.grey += header.colorspace == "Gray"
        self.turned += header.orientation != UPRIGHT

    def facts(self) -> dict[str, JSON]:
        """For a finding."""
        sizes = self.sizes.most_common(_MOST_KINDS)
        return {
            "images looked at": self.images,
            "kinds": dict(self.kinds.most_common(_MOST_KINDS)),
            "height x width": {f"{height} x {width}": count for (height, width), count in sizes},
            "progressive": self.progressive,
            "CMYK or YCCK": self.four_colours,
            "grey": self.grey,
            "turned by EXIF orientation": self.turned,
        }

    def problems(self) -> list[str]:
        """For a finding."""
        if not self.damaged:
            return []
        return [f"{len(self.damaged)} of {self.images} images looked at cannot be read; the first: {self.damaged[0]}"]

    @property
    def needs_resizing(self) -> bool:
        """Whether not all are 112 x 112, which the field's networks take."""
        return bool(self.sizes) and set(self.sizes) != {(112, 112)}
