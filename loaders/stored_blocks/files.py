"""The files of a store, opened with care: regular, of the size that the header implies, read whole, written whole."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from adadistill.loaders.stored_blocks.header_text import MAX_HEADER_BYTES
from adadistill.loaders.stored_blocks.kind import StoreKind

HEADER_NAME = "header.json"
PARTIAL_HEADER_NAME = "header.json.partial"
"""The header until the other files are there: a folder that holds it holds no rows yet."""


def read_header_bytes(folder: Path, kind: StoreKind) -> bytes:
    """Content of `header.json`, one byte more than allowed at most.

    Raises:
        kind.missing: there is no folder, or no store in it.
        kind.incomplete: the writing was killed before there was a header.
        kind.damaged: it is no regular file.
        OSError: it cannot be read; names it.
    """
    try:
        handle = open_regular(folder / HEADER_NAME, os.O_RDONLY, kind)
    except FileNotFoundError:
        if (folder / PARTIAL_HEADER_NAME).exists():
            raise kind.incomplete(
                f"{folder}: its {kind.making} was stopped as it began. Continue it with: {kind.command}"
            ) from None
        what = "holds no header.json" if folder.is_dir() else "is a file" if folder.exists() else "does not exist"
        raise kind.missing(f"no {kind.name} at {folder}: it {what}. Make it with: {kind.command}") from None
    except NotADirectoryError:
        raise kind.missing(f"no {kind.name} at {folder}: it is a file. Make it with: {kind.command}") from None
    try:
        return read_start(handle, MAX_HEADER_BYTES + 1)
    finally:
        os.close(handle)


def open_sized(path: Path, size: int, flags: int, kind: StoreKind) -> int:
    """Descriptor of a file of a store, which must have the size that the header implies.

    Raises:
        kind.damaged: it is missing, no regular file, or of another size.
        OSError: it cannot be opened; names it.
    """
    try:
        handle = open_regular(path, flags, kind)
    except FileNotFoundError:
        raise kind.damaged(f"{path} is missing beside its header.json. {kind.remedy}") from None
    found = os.fstat(handle).st_size
    if found != size:
        os.close(handle)
        verb = "was cut short" if found < size else "has grown"
        raise kind.damaged(f"{path} {verb}: it has {found} bytes, its header.json wants {size}. {kind.remedy}")
    return handle


def open_regular(path: Path, flags: int, kind: StoreKind) -> int:
    """Descriptor of a file that must be a regular one. Raises kind.damaged where it is not, and OSError."""
    handle = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a pipe would wait for its other end
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise kind.damaged(f"{path} is no regular file; those of a {kind.name} are")
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
