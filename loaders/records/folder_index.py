"""The index of a folder of images: its listing in one file, so that no rank has to list it, and checksums.

Why: to list a folder, every file has to be looked at, at each start and on each rank: on a network disk a round trip
for every image. And files, unlike records, have no place for checksums. `FOLDER.images.index` lies beside the folder,
and is used while the folder and those of its identities were last modified when it says, which is one look at each of
C folders and not at N files. docs/data.md specifies the file.
"""

from __future__ import annotations

import logging
import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from adadistill.loaders.atomic_file import write_whole
from adadistill.loaders.command_text import quoted
from adadistill.loaders.folders import (
    LISTING_THREADS,
    FolderListing,
    Links,
    PackedNames,
    folders_modified_ns,
    is_litter,
    list_folder,
)
from adadistill.loaders.records.image_source import SealUse
from adadistill.loaders.records.record_seal import SealError

logger = logging.getLogger(__name__)

INDEX_SUFFIX = ".images.index"
"""Not `.index` alone, which other programs write too."""
_MAGIC = b"ADFOLDR1"
_HEADER = struct.Struct("<8sQQQQQ")
_SEALED, _LEADS_OUT = 1, 2
_FILES_AT_ONCE = 1024
_PIECE = 1 << 20


class FolderIndexError(ValueError):
    """An index that is damaged. The message says which and what to do."""


@dataclass(frozen=True, slots=True, eq=False)
class FolderIndex:
    """A listing, and checksums where there are some."""

    listing: FolderListing
    crc32: npt.NDArray[np.uint32] | None
    """(N,) of each file."""


def folder_index_path(folder: Path) -> Path:
    """Where the index of a folder lies: beside it."""
    whole = Path(os.path.abspath(folder))  # `.` and `faces/..` have no name; links keep theirs
    return whole.parent / (whole.name + INDEX_SUFFIX)


def load_folder_index(
    folder: Path,
    path: Path | None = None,
    *,
    seal: SealUse = "auto",
    links: Links = "inside",
    list_anew: bool = False,
) -> FolderIndex:
    """The listing of a folder, from its index where that holds, else from the folder.

    Args:
        path: of the index; None takes the one beside the folder, if there is one.
        seal, links, list_anew: see `ImageFolder`.

    Raises:
        ImageFolderError: the folder has to be listed and is no set of identities.
        FolderIndexError: the index is damaged.
        SealError: its checksums are of other files, or there are none and they are required.
    """
    if list_anew and seal == "ignore":
        return FolderIndex(list_folder(folder, links), None)
    path = folder_index_path(folder) if path is None else path
    stored = read_folder_index(path) if path.is_file() else None
    remedy = f"adadistill data index {quoted(folder)}"
    if seal == "require" and (stored is None or stored.crc32 is None):
        raise SealError(
            f"{path} {'is not there' if stored is None else 'holds no checksums'}, and the images must be sealed. Copy "
            f"it beside them, or write it: adadistill data check --seal {quoted(folder)}"
        )
    if stored is None:
        return FolderIndex(list_folder(folder, links), None)
    crc32 = None if seal == "ignore" else stored.crc32
    found = None if list_anew else folders_modified_ns(folder, stored.listing.identities)
    may_lead = links == "anywhere" or not stored.listing.leads_out
    had_litter = any(is_litter(os.fsdecode(name)) for name in stored.listing.identities)  # by an earlier version
    if may_lead and not had_litter and found is not None and np.array_equal(found, stored.listing.modified_ns):
        return FolderIndex(stored.listing, crc32)
    listing = list_folder(folder, links)
    if listing.fingerprint() == stored.listing.fingerprint():
        if not list_anew:
            logger.warning(
                "%s holds other times than its folders have (a copy?); they were listed and hold the same images; "
                "to spare that, write it anew: %s",
                path,
                remedy,
            )
        return FolderIndex(listing, crc32)
    if crc32 is not None:
        raise SealError(
            f"{path} was made for {len(stored.listing.images)} images of {len(stored.listing.identities)} identities, "
            f"{folder} holds {len(listing.images)} of {len(listing.identities)}, or of other names or sizes. If that "
            f"was done on purpose, seal them anew: adadistill data check --seal --reseal {quoted(folder)}"
        )
    logger.warning("%s is stale: the folder was changed, and is listed. Write it anew: %s", path, remedy)
    return FolderIndex(listing, None)


def write_folder_index(
    folder: str | Path,
    path: str | Path | None = None,
    *,
    checksums: bool = False,
) -> Path:
    """List a folder and write its index, complete or not at all.

    Args:
        path: of the index; None writes `FOLDER.images.index` beside the folder.
        checksums: also read every file and keep its crc32.


    Returns:
        The path written.

    Raises:
        ImageFolderError: it is no set of identities.
        ValueError: the index would lie in the folder that it lists.
        OSError: a file cannot be read, or the index not be written; an old one stays.
    """
    folder = Path(folder)
    target = folder_index_path(folder) if path is None else Path(path)
    if folder.resolve() in target.resolve().parents:
        raise ValueError(f"{target} lies in the folder that it lists, which is left as it is; name another place")
    listing = list_folder(folder, "anywhere")  # whoever reads it says which may be followed
    crc32 = _checksums(folder, listing) if checksums else None
    body = _packed(FolderIndex(listing, crc32))
    write_whole(target, body + zlib.crc32(body).to_bytes(4, "little"))
    return target


def read_folder_index(path: Path) -> FolderIndex:
    """An index as it was written, whatever its folder holds now. Raises FolderIndexError where it is damaged."""
    with path.open("rb") as file:
        head = file.read(_HEADER.size)
        size = os.fstat(file.fileno()).st_size
        problem = _header_problem(head, size)
        body = b"" if problem else head + file.read(size - len(head))
    if not problem and zlib.crc32(memoryview(body)[:-4]) != int.from_bytes(body[-4:], "little"):
        problem = "it does not fit its own checksum"
    if problem:
        raise FolderIndexError(f"{path} is damaged: {problem}. Restore it, or remove it: it can be written anew")
    index = _unpacked(body)
    if index is None:
        raise FolderIndexError(f"{path} is damaged: its counts and names do not fit together. Remove it")
    return index


def _packed(index: FolderIndex) -> bytes:
    listing, crc32 = index.listing, index.crc32
    identities, images = listing.identities, listing.images
    sizes = len(identities), len(images), len(identities.block), len(images.block)
    return b"".join((
        _HEADER.pack(_MAGIC, *sizes, (_SEALED if crc32 is not None else 0) | (_LEADS_OUT if listing.leads_out else 0)),
        listing.modified_ns.astype("<i8").tobytes(),
        np.diff(listing.starts).astype("<u8").tobytes(),
        listing.sizes.astype("<u8").tobytes(),
        b"" if crc32 is None else crc32.astype("<u4").tobytes(),
        identities.block,
        images.block,
    ))  # fmt: skip


def _header_problem(head: bytes, size: int) -> str:
    """What is wrong with the beginning of an index of `size` bytes, before any of the rest is read."""
    if len(head) < _HEADER.size:
        return f"it has {size} bytes"
    magic, identities, images, identity_bytes, image_bytes, flags = _HEADER.unpack(head)
    if magic != _MAGIC:
        return f"it begins with {magic!r}, not {_MAGIC!r}"
    expected = _HEADER.size + 8 * (2 * identities + 1 + images) + identity_bytes + image_bytes + 4
    expected += 4 * images if flags & _SEALED else 0
    if flags > _SEALED | _LEADS_OUT or size != expected or not 1 <= identities <= images:
        return f"it has {size} bytes, its header makes {expected}"
    return ""


def _unpacked(body: bytes) -> FolderIndex | None:
    """None where the parts do not fit together; names that lead out of the folder do not."""
    _, identities, images, identity_bytes, image_bytes, flags = _HEADER.unpack_from(body)
    place = _HEADER.size

    def numbers(kind: str, count: int) -> npt.NDArray[np.int64]:
        nonlocal place
        found = np.frombuffer(body, kind, count, place)
        place += found.nbytes
        return found.astype(np.int64)

    modified, counts, sizes = numbers("<i8", identities + 1), numbers("<u8", identities), numbers("<u8", images)
    crc32 = numbers("<u4", images).astype(np.uint32) if flags & _SEALED else None
    names = body[place : place + identity_bytes], body[place + identity_bytes : place + identity_bytes + image_bytes]
    listing = FolderListing(
        PackedNames(names[0]),
        PackedNames(names[1]),
        np.concatenate([[0], np.cumsum(counts)]),
        sizes,
        modified,
        bool(flags & _LEADS_OUT),
    )
    fits = len(listing.identities) == identities and len(listing.images) == images and counts.min() >= 1
    fits = fits and counts.max() <= images
    fits = fits and int(listing.starts[-1]) == images and sizes.min() >= 0
    # A listing holds no name with a slash, none that begins with a dot, and no empty one.
    for block in names:
        starts = b"\0" + block
        fits = fits and block.endswith(b"\0") and b"/" not in block and b"\0." not in starts and b"\0\0" not in starts
    return FolderIndex(listing, crc32) if fits else None


def _checksums(folder: Path, listing: FolderListing) -> npt.NDArray[np.uint32]:
    root, labels = os.fsencode(folder), listing.labels()
    crc32 = np.empty(len(listing.images), np.uint32)

    def one(record_id: int) -> int:
        return _crc32(os.path.join(root, listing.identities[labels.item(record_id)], listing.images[record_id]))

    with ThreadPoolExecutor(LISTING_THREADS, thread_name_prefix="adadistill-seal") as threads:
        for first in range(0, len(crc32), _FILES_AT_ONCE):
            some = range(first, min(first + _FILES_AT_ONCE, len(crc32)))
            crc32[some.start : some.stop] = list(threads.map(one, some))
    return crc32


def _crc32(path: bytes) -> int:
    found = 0
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            found = zlib.crc32(piece, found)
    return found
