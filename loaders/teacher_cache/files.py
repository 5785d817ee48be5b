"""The three files of a cache: their names, how they are opened, and what must be true of each before it is believed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from adadistill.loaders.teacher_cache.errors import CacheDamagedError, CacheIncompleteError, CacheMissingError
from adadistill.loaders.teacher_cache.header import MAX_HEADER_BYTES

HEADER_NAME = "header.json"
DATA_NAME = "embeddings.bin"
SLOTS_NAME = "blocks.bin"
PARTIAL_HEADER_NAME = "header.json.partial"
"""The header until the other two files are there: a folder that holds it holds no embeddings yet."""

BUILD_COMMAND = "adadistill cache build RECIPE"


def read_header_bytes(folder: Path) -> bytes:
    """Content of `header.json`, one byte more than allowed at most.

    Raises:
        CacheMissingError: there is no folder, or no cache in it.
        CacheIncompleteError: a build was killed before it had a header.
        CacheDamagedError: it is no regular file.
        OSError: it cannot be read; names it.
    """
    try:
        handle = _open_regular(folder / HEADER_NAME, os.O_RDONLY)
    except FileNotFoundError:
        if (folder / PARTIAL_HEADER_NAME).exists():
            raise CacheIncompleteError(
                f"{folder}: its build was stopped as it began. Continue it with: {BUILD_COMMAND}"
            ) from None
        what = "holds no header.json" if folder.is_dir() else "is a file" if folder.exists() else "does not exist"
        raise CacheMissingError(f"no cache at {folder}: it {what}. Build it with: {BUILD_COMMAND}") from None
    except NotADirectoryError:
        raise CacheMissingError(f"no cache at {folder}: it is a file. Build it with: {BUILD_COMMAND}") from None
    try:
        return read_start(handle, MAX_HEADER_BYTES + 1)
    finally:
        os.close(handle)


def open_sized(path: Path, size: int, flags: int) -> int:
    """Descriptor of one of the two other files, which must have the size that the header implies.

    Raises:
        CacheDamagedError: it is missing, no regular file, or of another size.
        OSError: it cannot be opened; names it.
    """
    remedy = f"Restore it from a copy, or remove the folder and build again: {BUILD_COMMAND}"
    try:
        handle = _open_regular(path, flags)
    except FileNotFoundError:
        raise CacheDamagedError(f"{path} is missing beside its header.json. {remedy}") from None
    found = os.fstat(handle).st_size
    if found != size:
        os.close(handle)
        verb = "was cut short" if found < size else "has grown"
        raise CacheDamagedError(f"{path} {verb}: it has {found} bytes, its header.json wants {size}. {remedy}")
    return handle


def read_start(handle: int, most: int) -> bytes:
    """The first bytes of a file, up to `most` of them."""
    pieces: list[bytes] = []
    offset = 0
    while offset < most and (piece := os.pread(handle, most - offset, offset)):
        pieces.append(piece)
        offset += len(piece)
    return b"".join(pieces)


def write_at(handle: int, body: memoryview, offset: int) -> None:
    """Write all of `body` at a byte of a file; the system may take it in several pieces (2 GiB at most in one)."""
    while body:
        written = os.pwrite(handle, body, offset)
        body, offset = body[written:], offset + written


def _open_regular(path: Path, flags: int) -> int:
    handle = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a pipe would wait for its other end
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise CacheDamagedError(f"{path} is no regular file; a cache's are")
    return handle
