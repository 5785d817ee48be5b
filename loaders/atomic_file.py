"""The one way to write a file whole: to a temporary name beside it, flushed to disk, renamed into its place.

Whoever reads the path meanwhile finds the old file or the new one, and after a power cut too. On an error the temporary
file is removed and the old one stays.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str], *, durable: bool = True) -> Iterator[BinaryIO]:
    """Open a new binary file that takes the place of `path` when the block ends without an error.

    Args:
        path: the file to write. Permissions of a file that is there stay; a pipe or a device is written to in place.
        durable: whether file and name are flushed to disk, which survives a power cut and costs milliseconds. Without,
            the file is still never seen half written.

    Raises:
        OSError: the file cannot be written; it names the file.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        with path.open("wb") as stream:
            yield stream
        return
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("wb") as file:
            if path.exists():
                os.fchmod(file.fileno(), path.stat().st_mode & 0o7777)
            yield cast(BinaryIO, file)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    if durable:
        sync_folder(path.parent)


def write_whole(path: str | os.PathLike[str], content: str | bytes, *, durable: bool = True) -> None:
    """Write text (UTF-8) or bytes through `atomic_file`."""
    with atomic_file(path, durable=durable) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


def sync_folder(folder: Path) -> None:
    """fsync a directory, so that the names in it survive a power cut. File systems that cannot do it are let off."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise OSError(error.errno, error.strerror, str(folder)) from error
    finally:
        os.close(handle)
