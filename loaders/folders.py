"""The one walker of folders: which of their files are images, whose they are, and in which order.

Why: record ids and labels must be a function of the folder alone, the same for training, conversion, inspection and
evaluation, on every rank and after every restart, so everything that could shift them without a word is settled here:

Order       Identities by name, and images by name within them, compared byte by byte: no locale and no natural order
            (`10` comes before `2`), the order of `LC_ALL=C ls`, and torchvision's for names in UTF-8. A label is the
            rank of its identity among those with images, a record id the rank of its image.
Left out    Names that begin with a dot, and `LITTER`: what desktops and file servers leave. Counted, never an image.
Others      All else that is no image in the folder of an identity, and identities without an image. Training refuses
            them (`list_folder`; the first are named), conversion and inspection leave them out and count them.
Links       To files and folders within the folder are followed; those that lead out of it are refused, as a set from
            elsewhere could name any file of this machine, unless they are asked for: subsets are often folders of
            links. The depth is fixed, so a loop is a folder within an identity.

A listing keeps names as bytes, whatever encoding they are in, in one block without an object for each: listing 400,000
images of 20,000 identities took 20 MiB.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

Int64Array: TypeAlias = npt.NDArray[np.int64]
Name = TypeVar("Name", str, bytes)
Links: TypeAlias = Literal["inside", "anywhere"]
"""Which links are followed: those that stay within the folder, or all."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
"""In any case. What all readers of folders take."""
STORED_SUFFIXES = (*IMAGE_SUFFIXES, ".webp", ".gif", ".tif", ".jp2")
"""Of images that a record file may hold, and so a folder made of one; pipelines refuse those that are not above."""
LITTER = frozenset((
    "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "lost+found", "$recycle.bin",
    "system volume information", "@eadir", "@recycle", "#recycle", "#snapshot", "network trash folder",
    "temporary items",
))  # fmt: skip
"""In any case. Left out, beside every name that begins with a dot (`._face.jpg`, `.DS_Store`, `.ipynb_checkpoints`)."""
UNFINISHED_NAME = ".records.unfinished"
"""Lies in a folder that a conversion makes until its manifest does."""
LISTING_THREADS = 8
"""They wait for the disk: on a network file system each folder and each size is a round trip."""

MAX_IDENTITIES = 1 << 24
"""As many as a record file can tell apart."""
_FOLDERS_AT_ONCE = 1024
_NAMED_PROBLEMS = 8
_LOOKED_INTO = 64


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


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One image of a folder of identities."""

    name: str
    """`identity/image`; bytes that are no UTF-8 as surrogates (`os.fsencode`)."""
    bytes: int
    modified_ns: int

    @property
    def file(self) -> str:
        """Its name without the identity's."""
        return self.name.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Identity:
    """What lies in the folder of one identity."""

    name: str
    modified_ns: int
    """When names were last added to or removed from it."""
    images: list[ImageFile]
    litter: list[str]
    """Names left out by `is_litter`."""
    others: list[str]
    """What is no image by its name, a sentence each."""
    no_files: list[str]
    """What is named like an image and is no regular file, a sentence each."""
    leading_out: list[str]
    """Paths of links out of the outer folder, the identity's own among them."""


class FolderWalk:
    """A folder of identities: their names at once, what each holds when it is asked for.

    Args:
        root: the folder.
        suffixes: that images have, in lower case.

    Attributes:
        names: of the sub-folders, in order.
        others: what else lies beside them, a sentence each.
        litter: names beside them that were left out.

    Raises:
        FileNotFoundError: there is no such folder.
        ImageFolderError: it cannot be listed.
    """

    def __init__(self, root: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> None:
        if not root.is_dir():
            raise FileNotFoundError(f"no folder at {shown(root)}")
        self._root, self._suffixes = root, suffixes
        self._real_root = os.path.join(os.path.realpath(root), "")
        self.names: list[str] = []
        self.others: list[str] = []
        entries, self.litter = entries_of(root)
        for entry in entries:
            try:
                is_folder = entry.is_dir()
            except OSError as error:  # links that go round in circles
                self.others.append(f"{shown(entry.path)} cannot be looked at: {error.strerror}")
                continue
            if is_folder:
                self.names.append(entry.name)
            elif entry.name.endswith((".rec", ".idx")):
                self.others.append(
                    f"{shown(entry.path)} is of a record file; to train from that, name it in data.records"
                )
            else:
                self.others.append(f"{shown(entry.path)} is no folder of an identity")

    def look_into(self, name: str) -> Identity:
        """All that one identity's folder holds; one that cannot be listed has that among its `no_files`."""
        folder = self._root / name
        leading_out = [str(folder)] if folder.is_symlink() and self._is_outside(folder) else []
        try:
            modified = _modified_ns(folder)  # before its names are read: what comes later makes the time another one
            entries, litter = entries_of(folder)
        except ImageFolderError as error:
            return Identity(name, 0, [], [], [], [str(error)], leading_out)
        images, others, no_files = list[ImageFile](), list[str](), list[str]()
        for entry in entries:
            is_named_so = entry.name.lower().endswith(self._suffixes)
            problem = "is no image by its suffix"
            try:
                status = entry.stat()
            except OSError as error:
                gone = entry.is_symlink() and isinstance(error, FileNotFoundError)
                problem = "is a link to nothing" if gone else f"cannot be looked at: {error.strerror}"
            else:
                if stat.S_ISREG(status.st_mode) and is_named_so:
                    images.append(ImageFile(f"{name}/{entry.name}", status.st_size, status.st_mtime_ns))
                    if entry.is_symlink() and self._is_outside(entry.path):
                        leading_out.append(entry.path)
                    continue
                if stat.S_ISDIR(status.st_mode):
                    problem = "is a folder within an identity"
                elif not stat.S_ISREG(status.st_mode):
                    problem = "is no regular file"
            (no_files if is_named_so else others).append(f"{shown(entry.path)} {problem}")
        return Identity(name, modified, images, litter, others, no_files, leading_out)

    def images_of(self, name: str, *, follow_links: bool = False) -> Identity:
        """`look_into` for those that leave out what is no image by its name.

        Raises:
            ImageFolderError: the folder cannot be listed, something in it is named like an image and is no file, or a
                link leads out of the outer folder and those are not followed.
        """
        found = self.look_into(name)
        if found.no_files:
            raise ImageFolderError(f"{found.no_files[0]}; move it away")
        if found.leading_out and not follow_links:
            raise ImageFolderError(
                f"{shown(found.leading_out[0])} is a link that leads out of {shown(self._root)}: --follow-links takes "
                "what is there, if you trust it"
            )
        return found

    def _is_outside(self, link: str | Path) -> bool:
        return not os.path.realpath(link).startswith(self._real_root)


def entries_of(folder: str | Path) -> tuple[list[os.DirEntry[str]], list[str]]:
    """What a folder holds by name, byte by byte, and names of what was left out as litter.

    Raises:
        ImageFolderError: it cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            found = list(entries)
    except OSError as error:
        raise ImageFolderError(f"{shown(folder)} cannot be listed: {error.strerror}") from None
    found.sort(key=lambda entry: os.fsencode(entry.name))
    litter = [entry.name for entry in found if is_litter(entry.name)]
    return [entry for entry in found if not is_litter(entry.name)], litter


def is_litter(name: str) -> bool:
    """Whether a name is not looked at: hidden, or what desktops and file servers leave."""
    return name.startswith(".") or name.lower() in LITTER


def leads_through_litter(path: str) -> bool:
    """Whether a member of an archive is litter, or lies in some; `..` is no name, but nothing to be silent about."""
    return any(is_litter(name) for name in PurePosixPath(path).parts if name != "..")


def images_below(folder: Path) -> list[str]:
    """Paths of all images at any depth within a folder, with `/`, by their bytes. Linked folders are not entered.

    Raises:
        ImageFolderError: a folder cannot be listed, or something is named like an image and is no file.
    """
    found, inner = list[str](), [""]
    while inner:
        place = inner.pop()
        for entry in entries_of(folder / place)[0]:
            if entry.is_dir(follow_symlinks=False):
                inner.append(f"{place}{entry.name}/")
            elif entry.name.lower().endswith(IMAGE_SUFFIXES):
                if not os.path.isfile(entry.path):
                    raise ImageFolderError(f"{shown(entry.path)} is named like an image and is no file; move it away")
                found.append(place + entry.name)
    return sorted(found, key=os.fsencode)


def read_image(root: Path, name: str, limit: int) -> bytes:
    """Bytes of one file. Raises ImageFolderError where it has more than `limit` bytes."""
    path = root / name
    with path.open("rb") as file:
        body = file.read(limit + 1)
    if len(body) > limit:
        raise ImageFolderError(f"{shown(path)}: more than {limit} bytes are not read as an image")
    return body


def shape_of(folder: Path) -> str:
    """Says of a folder that has its images one level too high, or too deep, where they are; of others nothing."""
    flat, places = "", deque([folder])
    for _ in range(_LOOKED_INTO):
        if not places:
            break
        place = places.popleft()
        try:
            entries = entries_of(place)[0]
        except ImageFolderError:
            continue
        depth = len(place.relative_to(folder).parts)
        if any(entry.name.lower().endswith(IMAGE_SUFFIXES) for entry in entries):
            if depth == 1:
                return ""
            if depth > 1:
                parent = shown(place.parent)
                return f"Its images lie deeper, as in {shown(place)}: name {parent}, if those are identities. "
            flat = "Its images lie in it directly: give each identity a sub-folder. "
        places.extend(Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))
    return flat


def list_folder(folder: Path, links: Links = "inside") -> FolderListing:
    """Look at every name and size below a folder of identities; no image is opened.

    Raises:
        ImageFolderError: it holds something else than identities and their images, or cannot be listed.
    """
    if os.path.lexists(folder / UNFINISHED_NAME):
        raise ImageFolderError(
            f"{shown(folder)} is being made by `adadistill data convert`, or that was interrupted, and lacks images; "
            "run the same command again, it goes on"
        )
    modified = array("q", [_modified_ns(folder)])
    walk = FolderWalk(folder)
    problems = _Problems()
    problems.add(walk.others)
    if len(walk.names) > MAX_IDENTITIES:
        raise ImageFolderError(
            f"{shown(folder)} holds {len(walk.names)} folders; at most {MAX_IDENTITIES} identities can be"
        )
    blocks, sizes, counts, leads_out = list[bytes](), array("q"), array("q"), False
    with ThreadPoolExecutor(LISTING_THREADS, thread_name_prefix="adadistill-list") as threads:
        for some in _some_at_a_time(walk.names):
            for found in threads.map(walk.look_into, some):
                blocks.extend(os.fsencode(image.file) + b"\0" for image in found.images)
                sizes.extend(image.bytes for image in found.images)
                counts.append(len(found.images))
                modified.append(found.modified_ns)
                problems.add(found.others + found.no_files)
                if not (found.images or found.others or found.no_files):
                    problems.add([f"{shown(folder / found.name)} holds no image; an identity has one at least"])
                leads_out = leads_out or bool(found.leading_out)
                if links == "inside":
                    advice = "is a link out of the folder; data.links=anywhere follows those"
                    problems.add(f"{shown(path)} {advice}" for path in found.leading_out)
    problems.raise_any(folder)
    if not walk.names:
        raise ImageFolderError(
            f"{shown(folder)} holds no identities: a sub-folder of images for each is expected in it"
        )
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.array(counts, np.int64))])
    return FolderListing(
        PackedNames.of(map(os.fsencode, walk.names)),
        PackedNames(b"".join(blocks)),
        starts,
        np.array(sizes, np.int64),
        np.array(modified, np.int64),
        leads_out,
    )


def folders_modified_ns(folder: Path, identities: PackedNames) -> Int64Array | None:
    """`FolderListing.modified_ns` of the folders as they are now; None where one of them is not there."""
    root = os.fsencode(folder)
    found = array("q", [_modified_ns(folder)])
    with ThreadPoolExecutor(LISTING_THREADS, thread_name_prefix="adadistill-list") as threads:
        for some in _some_at_a_time(list(identities)):
            try:
                found.extend(threads.map(lambda name: os.stat(os.path.join(root, name)).st_mtime_ns, some))
            except OSError:
                return None
    return np.array(found, np.int64)


def shown(path: str | bytes | Path) -> str:
    """A name in any encoding as text that can be printed on one line."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
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
                f"{shown(folder)} is not one sub-folder of images (.jpg, .jpeg, .png) for each identity, "
                f"{self.count} problem{'s' * (self.count > 1)}:\n  " + "\n  ".join(self.first) + f"{more}\n"
                f"  {shape_of(folder)}"
                "Mend them, move them out, or write what is wanted as a record file (adadistill data convert)"
            )


def _some_at_a_time(names: Sequence[Name]) -> Iterator[Sequence[Name]]:
    """A pool takes all that it is given at once, and there may be millions."""
    return (names[first : first + _FOLDERS_AT_ONCE] for first in range(0, len(names), _FOLDERS_AT_ONCE))


def _modified_ns(folder: Path) -> int:
    try:
        return os.stat(folder).st_mtime_ns
    except OSError as error:
        raise ImageFolderError(f"{shown(folder)} cannot be looked at: {error.strerror}") from None
