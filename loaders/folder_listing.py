"""Which images a folder of identities holds, and in which order: `FOLDER/<identity>/<image>.jpg`, `.jpeg` or `.png`.

Why: record ids and labels must be a function of the folder alone, the same on every rank and after every restart, so
everything that could shift them without a word is settled here:

Order       Identities by name, and images by name within them, compared byte by byte: no locale and no natural order
            (`10` comes before `2`), the order of `LC_ALL=C ls`, and torchvision's for names in UTF-8. A label is the
            rank of its identity, a record id the rank of its image.
Left out    Names that begin with a dot, `Thumbs.db`, `desktop.ini`, `@eaDir`, `__MACOSX`, `lost+found`: what desktops
            and file servers leave.
Refused     Everything else that is no image in the folder of an identity: files beside those folders, folders within
            them, other suffixes, pipes and devices, links to nothing, and identities without an image (leaving them out
            would move every later label). All are collected; the first are named.
Links       To files and folders within the folder are followed; those that lead out of it are refused, as a set from
            elsewhere could name any file of this machine, unless they are asked for: subsets are often folders of
            links. The depth is fixed, so a loop is a folder within an identity and refused as one.

Names are kept as bytes, whatever encoding they are in, in one block without an object for each: listing 400,000 images
of 20,000 identities took 20 MiB.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from adadistill.loaders.record_folder.manifest import UNFINISHED_NAME

Int64Array: TypeAlias = npt.NDArray[np.int64]
Links: TypeAlias = Literal["inside", "anywhere"]
"""Which links are followed: those that stay within the folder, or all."""

IMAGE_SUFFIXES = (b".jpg", b".jpeg", b".png")
"""In any case."""
LEFT_OUT = (b"Thumbs.db", b"desktop.ini", b"@eaDir", b"__MACOSX", b"lost+found")
"""Beside every name that begins with a dot."""
LISTING_THREADS = 8
"""They wait for the disk: on a network file system each folder and each size is a round trip."""

MAX_IDENTITIES = 1 << 24
"""As many as a record file can tell apart."""
_FOLDERS_AT_ONCE = 1024
_NAMED_PROBLEMS = 8


class ImageFolderError(ValueError):
    """A folder that is no set of identities. The message names what is in the way, and what to do."""


class PackedNames:
    """File names without their folders, as bytes: a NUL, which no name can hold, ends each of them in one block."""

    def __init__(self, block: bytes) -> None:
        self.block = block
        self._ends: Int64Array = np.flatnonzero(np.frombuffer(block, np.uint8) == 0)

    @staticmethod
    def of(names: Iterable[bytes]) -> PackedNames:
        """Pack names that hold no NUL."""
        return PackedNames(b"".join(name + b"\0" for name in names))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, place: int) -> bytes:
        start = self._ends.item(place - 1) + 1 if place else 0
        return self.block[start : self._ends.item(place)]

    def __iter__(self) -> Iterator[bytes]:
        return (self[place] for place in range(len(self)))


@dataclass(frozen=True, slots=True, eq=False)
class FolderListing:
    """C identities and their N images, in order."""

    identities: PackedNames
    """C names of folders; the place of one is its label."""
    images: PackedNames
    """N names of files; the place of one is its record id."""
    starts: Int64Array
    """(C + 1,) first record id of each identity, and N."""
    sizes: Int64Array
    """(N,) bytes of each file."""
    modified_ns: Int64Array
    """(C + 1,) when names were last added to or removed from the folder, and from each identity's."""
    leads_out: bool
    """Whether a link leads out of the folder."""

    def labels(self) -> Int64Array:
        """(N,) label of each record id."""
        return np.repeat(np.arange(len(self.identities)), np.diff(self.starts))

    def label_of(self, record_id: int) -> int:
        """Label of one record id."""
        return int(np.searchsorted(self.starts, record_id, side="right")) - 1

    def fingerprint(self) -> str:
        """sha256 of all names and sizes.

        Neither where the folder lies nor when its files were written counts, so a copy has the same. A file whose bytes
        change and whose length does not is not seen; checksums see it (`folder_index.py`).
        """
        digest = hashlib.sha256(struct.pack("<16sQQ", b"image folder 1", len(self.identities), len(self.images)))
        for part in (self.starts, self.sizes):
            digest.update(part.astype("<i8").tobytes())
        digest.update(self.identities.block)
        digest.update(self.images.block)
        return digest.hexdigest()


def list_folder(folder: Path, links: Links = "inside") -> FolderListing:
    """Look at every name and size below a folder of identities; no image is opened.

    Raises:
        ImageFolderError: it holds something else than identities and their images, or cannot be listed.
    """
    root = os.fsencode(folder)
    if os.path.lexists(os.path.join(root, os.fsencode(UNFINISHED_NAME))):
        raise ImageFolderError(
            f"{shown(root)} is being made by `adadistill data convert`, or that was interrupted, and lacks images; run "
            "the same command again, it goes on"
        )
    problems = _Problems()
    modified = array("q", [_modified_ns(root)])
    identities = list(_identities(root, problems))
    if len(identities) > MAX_IDENTITIES:
        raise ImageFolderError(
            f"{shown(root)} holds {len(identities)} folders; at most {MAX_IDENTITIES} identities can be"
        )
    blocks, sizes, counts, leads_out = list[bytes](), array("q"), array("q"), False
    real_root = os.path.realpath(root)
    with ThreadPoolExecutor(LISTING_THREADS, thread_name_prefix="adadistill-list") as threads:
        for some in _some_at_a_time(identities):
            for found in threads.map(lambda name: _images(os.path.join(root, name), real_root), some):
                blocks.append(found.names)
                sizes.extend(found.sizes)
                counts.append(len(found.sizes))
                modified.append(found.modified_ns)
                problems.add(found.problems)
                leads_out = leads_out or bool(found.leading_out)
                if links == "inside":
                    problems.add(found.leading_out)
    problems.raise_any(folder)
    if not identities:
        raise ImageFolderError(
            f"{shown(root)} holds no identities: one sub-folder of images for each is expected in it"
        )
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.array(counts, np.int64))])
    return FolderListing(
        PackedNames.of(identities),
        PackedNames(b"".join(blocks)),
        starts,
        np.array(sizes, np.int64),
        np.array(modified, np.int64),
        leads_out,
    )


def folders_modified_ns(folder: Path, identities: PackedNames) -> Int64Array | None:
    """`FolderListing.modified_ns` of the folders as they are now; None where one of them is not there."""
    root = os.fsencode(folder)
    found = array("q", [_modified_ns(root)])
    with ThreadPoolExecutor(LISTING_THREADS, thread_name_prefix="adadistill-list") as threads:
        for some in _some_at_a_time(list(identities)):
            try:
                found.extend(threads.map(lambda name: os.stat(os.path.join(root, name)).st_mtime_ns, some))
            except OSError:
                return None
    return np.array(found, np.int64)


def shown(path: bytes) -> str:
    """A name in any encoding as text that can be printed on one line."""
    text = path.decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


@dataclass(slots=True)
class _Problems:
    """All are counted, the first are kept."""

    first: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, problems: Iterable[str]) -> None:
        for problem in problems:
            self.count += 1
            if len(self.first) < _NAMED_PROBLEMS:
                self.first.append(problem)

    def raise_any(self, folder: Path) -> None:
        if self.count:
            more = f"\n  ... and {self.count - len(self.first)} more" if self.count > len(self.first) else ""
            raise ImageFolderError(
                f"{shown(os.fsencode(folder))} is not one sub-folder of images (.jpg, .jpeg, .png) for each identity, "
                f"{self.count} problem{'s' * (self.count > 1)}:\n  " + "\n  ".join(self.first) + f"{more}\n"
                "  Mend them, move them out, or write what is wanted as a record file (adadistill data convert)"
            )


@dataclass(frozen=True, slots=True)
class _Images:
    """Of one identity."""

    names: bytes
    """Each ended by a NUL."""
    sizes: list[int]
    modified_ns: int
    problems: list[str]
    leading_out: list[str]
    """Links that are no problem where all are followed."""


def _some_at_a_time(names: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """A pool takes all that it is given at once, and there may be millions."""
    return (names[first : first + _FOLDERS_AT_ONCE] for first in range(0, len(names), _FOLDERS_AT_ONCE))


def _identities(root: bytes, problems: _Problems) -> Iterator[bytes]:
    for entry in _entries(root):
        try:
            is_folder = entry.is_dir()
        except OSError as error:  # links that go round in circles
            problems.add([f"{shown(entry.path)} cannot be looked at: {error.strerror}"])
            continue
        if is_folder:
            yield entry.name
        elif entry.name.endswith((b".rec", b".idx")):
            problems.add([f"{shown(entry.path)} is of a record file; to train from that, name it in data.records"])
        else:
            problems.add([f"{shown(entry.path)} is no folder of an identity"])


def _images(folder: bytes, real_root: bytes) -> _Images:
    try:
        modified = _modified_ns(folder)  # before its names are read: what comes later makes the time another one
        entries = _entries(folder)
    except ImageFolderError as error:
        return _Images(b"", [], 0, [str(error)], [])
    names, sizes, problems = list[bytes](), list[int](), list[str]()
    leading_out = [folder] if os.path.islink(folder) and _is_outside(folder, real_root) else []
    for entry in entries:
        problem = "is no image by its suffix"
        try:
            status = entry.stat()
        except OSError as error:
            problem = "is a link to nothing" if entry.is_symlink() else f"cannot be looked at: {error.strerror}"
        else:
            if stat.S_ISDIR(status.st_mode):
                problem = "is a folder within an identity"
            elif not stat.S_ISREG(status.st_mode):
                problem = "is no regular file"
            elif entry.name.lower().endswith(IMAGE_SUFFIXES):
                names.append(entry.name + b"\0")
                sizes.append(status.st_size)
                if entry.is_symlink() and _is_outside(entry.path, real_root):
                    leading_out.append(entry.path)
                continue
        problems.append(f"{shown(entry.path)} {problem}")
    if not entries:
        problems.append(f"{shown(folder)} holds no image; an identity has one at least")
    advice = "is a link out of the folder; data.links=anywhere follows those"
    return _Images(b"".join(names), sizes, modified, problems, [f"{shown(path)} {advice}" for path in leading_out])


def _is_outside(link: bytes, real_root: bytes) -> bool:
    return not os.path.realpath(link).startswith(os.path.join(real_root, b""))


def _entries(folder: bytes) -> list[os.DirEntry[bytes]]:
    """What is looked at in a folder, by name."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not _is_left_out(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        raise ImageFolderError(f"{shown(folder)} cannot be listed: {error.strerror}") from None


def _modified_ns(folder: bytes) -> int:
    try:
        return os.stat(folder).st_mtime_ns
    except OSError as error:
        raise ImageFolderError(f"{shown(folder)} cannot be looked at: {error.strerror}") from None


def _is_left_out(name: bytes) -> bool:
    """Whether a name is not looked at: hidden, or known litter."""
    return name.startswith(b".") or name in LEFT_OUT
