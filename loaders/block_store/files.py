"""The files of a store, opened with care: regular, of the size and with the head that the header implies."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

from adadistill.loaders.block_store.errors import (
    StoreDamagedError,
    StoreError,
    StoreIncompleteError,
    StoreMissingError,
)
from adadistill.loaders.block_store.header import MAX_HEADER_BYTES, DataFile, H, StoreKind, stated_sha256

HEADER_NAME = "header.json"
PARTIAL_HEADER_NAME = "header.json.partial"
"""The header until the other files are there: a folder that holds it holds no rows yet."""


@dataclass(frozen=True, slots=True)
class StoredHeader(Generic[H]):
    """What `header.json` of a folder says."""

    header: H
    text: bytes
    sha256: str
    """The sha256 that the header states of itself."""


def read_header(folder: Path, header_type: type[H]) -> StoredHeader[H]:
    """Read `header.json` of a folder.

    Raises:
        StoreMissingError: there is no folder, or no store in it.
        StoreIncompleteError: the writing was killed before there was a header.
        StoreDamagedError: it is no regular file, or does not fit its own sha256.
        StoreError: it describes no such store.
        OSError: it cannot be read; names it.
    """
    kind, path = header_type.kind, folder / HEADER_NAME
    try:
        handle = open_regular(path, os.O_RDONLY, kind)
    except (FileNotFoundError, NotADirectoryError):
        if (folder / PARTIAL_HEADER_NAME).exists():
            raise StoreIncompleteError(
                f"{folder}: its {kind.making} was stopped as it began. Continue it with: {kind.command}"
            ) from None
        what = "holds no header.json" if folder.is_dir() else "is a file" if folder.exists() else "does not exist"
        raise StoreMissingError(f"no {kind.name} at {folder}: it {what}. Make it with: {kind.command}") from None
    try:
        text = read_start(handle, MAX_HEADER_BYTES + 1)
    finally:
        os.close(handle)
    header = header_type.from_bytes(text, where=str(path))
    return StoredHeader(header, text, stated_sha256(text, where=str(path), kind=kind))


def open_data(folder: Path, file: DataFile, flags: int, kind: StoreKind) -> int:
    """Descriptor of a file of a store, which must have the size and the head that the header implies.

    Raises:
        StoreDamagedError: it is missing, no regular file, of another size, or begins otherwise.
        StoreError: the process has too many files open.
        OSError: it cannot be opened; names it.
    """
    path = folder / file.name
    try:
        handle = open_regular(path, flags, kind)
    except FileNotFoundError:
        raise StoreDamagedError(f"{path} is missing beside its header.json. {kind.remedy}") from None
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        raise StoreError(
            f"{path} cannot be opened: this process has too many files open. Raise the limit (ulimit -n), or make a "
            f"{kind.name} of fewer files"
        ) from None
    try:
        found = os.fstat(handle).st_size
        if found != file.size:
            verb = "was cut short" if found < file.size else "has grown"
            raise StoreDamagedError(
                f"{path} {verb}: it has {found} bytes, its header.json wants {file.size}. {kind.remedy}"
            )
        if read_start(handle, len(file.head)) != file.head:
            raise StoreDamagedError(
                f"{path} is damaged: its first {len(file.head)} bytes are not its `.npy` head. {kind.remedy}"
            )
    except BaseException:
        os.close(handle)
        raise
    return handle


def open_regular(path: Path, flags: int, kind: StoreKind) -> int:
    """Descriptor of a file that must be a regular one. Raises StoreDamagedError where it is not, and OSError."""
    handle = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a pipe would wait for its other end
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise StoreDamagedError(f"{path} is no regular file; those of a {kind.name} are")
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
