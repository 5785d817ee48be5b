"""The images of a folder with one subfolder for each identity, in the order that conversion gives them.

Identities and images are sorted by name, hidden entries are left out, and so is what is neither .jpg, .jpeg nor .png.
One identity's names are in memory at a time: a folder of millions of images is listed anew rather than held. A link
that leads out of the folder is refused, since a folder may come from a stranger.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from adadistill.loaders.record_folder.errors import RecordFolderError

PLAIN_SUFFIXES = (".jpg", ".jpeg", ".png")
OTHER_SUFFIXES = (".webp", ".gif", ".tif", ".jp2")
"""Of images that a manifest may name; a plain folder's are left out, as pipelines refuse them."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One image of a folder."""

    name: str
    """`identity/image`."""
    bytes: int
    modified_ns: int


def identity_names(root: Path) -> list[str]:
    """Names of the subfolders, sorted.

    Raises:
        FileNotFoundError: there is no such folder.
        RecordFolderError: one is a link that leads elsewhere.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"no folder at {root}")
    with os.scandir(root) as entries:
        folders = [entry for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    for entry in folders:
        _refuse_to_leave(root, entry)
    return sorted(entry.name for entry in folders)


def images_of(root: Path, identity: str, *, suffixes: tuple[str, ...] = PLAIN_SUFFIXES) -> list[ImageFile]:
    """Images of one identity, sorted by name.

    Raises:
        RecordFolderError: one is a link that leads elsewhere, or no regular file.
    """
    images = []
    with os.scandir(root / identity) as entries:
        for entry in entries:
            if entry.name.startswith(".") or not entry.name.lower().endswith(suffixes):
                continue
            _refuse_to_leave(root, entry)
            found = entry.stat()
            if not stat.S_ISREG(found.st_mode):
                raise RecordFolderError(f"{entry.path} is named like an image and is no file; move it away")
            images.append(ImageFile(f"{identity}/{entry.name}", found.st_size, found.st_mtime_ns))
    return sorted(images, key=lambda image: image.name)


def all_images(root: Path, *, suffixes: tuple[str, ...] = PLAIN_SUFFIXES) -> Iterator[ImageFile]:
    """All images, identity by identity."""
    for identity in identity_names(root):
        yield from images_of(root, identity, suffixes=suffixes)


def read_image(root: Path, name: str, limit: int) -> bytes:
    """Bytes of one file.

    Raises:
        RecordFolderError: it has more than `limit` bytes.
    """
    path = root / name
    with path.open("rb") as file:
        body = file.read(limit + 1)
    if len(body) > limit:
        raise RecordFolderError(f"{path}: more than {limit} bytes are not read as an image")
    return body


def _refuse_to_leave(root: Path, entry: os.DirEntry[str]) -> None:
    if entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(root.resolve()):
        raise RecordFolderError(
            f"{entry.path} is a link that leads out of {root}; copy what it leads to, or convert that folder itself"
        )
