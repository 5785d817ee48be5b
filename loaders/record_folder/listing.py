"""The images of a folder with one subfolder for each identity, in the order that conversion gives them.

Identities and images are sorted by name, byte by byte; hidden entries are left out, and so is what is neither .jpg,
.jpeg nor .png, which is counted. One identity's names are in memory at a time: a folder of millions of images is listed
anew rather than held. A link that leads out of the folder is refused unless the caller follows links, since a folder
may come from a stranger.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from adadistill.loaders.record_folder.errors import RecordFolderError

PLAIN_SUFFIXES = (".jpg", ".jpeg", ".png")
IMAGE_SUFFIXES = (*PLAIN_SUFFIXES, ".webp", ".gif", ".tif", ".jp2")
"""Of images that a manifest may name; of a plain folder's the first three are taken, as pipelines refuse the others."""
_LITTER = ("Thumbs.db", "desktop.ini", "@eaDir")
"""Of desktops and file servers."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One image of a folder."""

    name: str
    """`identity/image`."""
    bytes: int
    modified_ns: int


@dataclass(frozen=True, slots=True)
class IdentityImages:
    """Images of one identity, and how much lies beside them."""

    images: list[ImageFile]
    left_out: int
    """Files and folders that are no image by their names."""


def identity_names(root: Path, *, follow_links: bool = False) -> list[str]:
    """Names of the subfolders, sorted.

    Raises:
        FileNotFoundError: there is no such folder.
        RecordFolderError: one is a link that leads elsewhere.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"no folder at {root}")
    with os.scandir(root) as entries:
        folders = [entry for entry in entries if not _is_hidden(entry.name) and entry.is_dir()]
    for entry in folders:
        _refuse_to_leave(root, entry, follow_links)
    return sorted((entry.name for entry in folders), key=os.fsencode)


def images_of(
    root: Path, identity: str, *, suffixes: tuple[str, ...] = PLAIN_SUFFIXES, follow_links: bool = False
) -> IdentityImages:
    """Images of one identity, sorted by name.

    Raises:
        RecordFolderError: one is a link that leads elsewhere, or no regular file.
    """
    images, left_out = [], 0
    with os.scandir(root / identity) as entries:
        for entry in entries:
            if _is_hidden(entry.name):
                continue
            if not entry.name.lower().endswith(suffixes):
                left_out += 1
                continue
            _refuse_to_leave(root, entry, follow_links)
            try:
                found = entry.stat()
            except OSError as error:
                raise RecordFolderError(f"{entry.path} cannot be looked at: {error.strerror}") from None
            if not stat.S_ISREG(found.st_mode):
                raise RecordFolderError(f"{entry.path} is named like an image and is no file; move it away")
            images.append(ImageFile(f"{identity}/{entry.name}", found.st_size, found.st_mtime_ns))
    return IdentityImages(sorted(images, key=lambda image: os.fsencode(image.name)), left_out)


def all_images(root: Path, *, suffixes: tuple[str, ...] = PLAIN_SUFFIXES) -> Iterator[ImageFile]:
    """All images, identity by identity."""
    for identity in identity_names(root):
        yield from images_of(root, identity, suffixes=suffixes).images


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


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _LITTER


def _refuse_to_leave(root: Path, entry: os.DirEntry[str], follow_links: bool) -> None:
    if not follow_links and entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(root.resolve()):
        raise RecordFolderError(
            f"{entry.path} is a link that leads out of {root}: --follow-links takes what is there, if you trust it"
        )
