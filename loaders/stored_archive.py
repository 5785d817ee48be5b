"""The zip archives that `torch.save` writes, looked at before anything in them is read.

Why: an archive of a megabyte can hold a gigabyte of zeros, one member under a thousand names, or a directory of a
million entries. `torch.save` compresses nothing and writes one member after the other, so that what an archive holds
is never larger than its file; any other archive is refused here.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path

_MAX_DIRECTORY_BYTES = 4 << 20
"""Of the list of members, some 80 bytes each; the largest public networks have a thousand tensors."""

_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError, LookupError),
    *(OverflowError, MemoryError),
)
"""What zipfile raises on damaged bytes (found by changing and cutting bytes of small files)."""


class ArchiveError(ValueError):
    """A file is no archive as `torch.save` writes it; the text says why, without the path."""


def pickle_in_archive(path: Path, *, max_members: int, max_bytes: int) -> bytes:
    """The `data.pkl` of an archive, of which every member is stored as it is, in a place of its own.

    Raises:
        ArchiveError: damaged, compressed, overlapping, too many members, no `data.pkl` or several, or one of more than
            `max_bytes`.
    """
    try:
        with _BoundedDirectory(path, "rb") as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if any("/code/__torch__" in member.filename for member in members):
                raise ArchiveError("a TorchScript program, whose code is not run")
            pickles = [member for member in members if member.filename.rpartition("/")[2] == "data.pkl"]
            if len(pickles) != 1:
                held = ", ".join(ascii(member.filename)[:60] for member in members[:4])
                raise ArchiveError(f"an archive without one data.pkl; torch.save writes one, and here is {held}")
            _check_members(members, max_members)
            if pickles[0].file_size > max_bytes:
                raise ArchiveError(f"its data.pkl has more than {max_bytes:,} bytes ({pickles[0].file_size:,})")
            file.has_directory = True
            with archive.open(pickles[0]) as body:
                return body.read(max_bytes)
    except ArchiveError:
        raise
    except _DAMAGE as error:
        raise ArchiveError(
            f"is no archive as torch.save writes it, or was cut short: {ascii(str(error))[:120]}"
        ) from None


class _BoundedDirectory(io.FileIO):
    """A file of which zipfile may read the directory, at whatever size that is stated, up to a limit."""

    has_directory = False

    def read(self, size: int | None = -1, /) -> bytes:
        if not self.has_directory and size is not None and size > _MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"a list of members of {size:,} bytes")
        return super().read(-1 if size is None else size)


def _check_members(members: list[zipfile.ZipInfo], max_members: int) -> None:
    if len(members) > max_members:
        raise ArchiveError(f"an archive of {len(members):,} members; at most {max_members:,} are expected")
    end = 0
    for member in sorted(members, key=lambda member: member.header_offset):
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise ArchiveError(
                f"an archive whose {ascii(member.filename)[:80]} is compressed; torch.save compresses nothing"
            )
        if member.header_offset < end or (not end and member.header_offset):
            raise ArchiveError("an archive whose members do not lie one after the other, as torch.save writes them")
        end = member.header_offset + member.file_size + 1
