"""Reads teacher embeddings by record id from a finished cache: millions of rows a second, none held in memory."""

from __future__ import annotations

import hashlib
import mmap
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adadistill.loaders.stored_blocks.files import HEADER_NAME, open_sized, read_header_bytes, read_start
from adadistill.loaders.stored_blocks.header_text import stated_sha256
from adadistill.loaders.stored_blocks.slots import (
    SLOT_BYTES,
    SLOTS_NAME,
    SlotFormat,
    check_all_done,
    chunk_buffer,
    crc32_of,
    slot_of,
)
from adadistill.loaders.teacher_cache.binding import mismatches
from adadistill.loaders.teacher_cache.errors import CacheDamagedError, CacheMismatchError
from adadistill.loaders.teacher_cache.header import DATA_NAME, KIND, CacheHeader, CacheView

_SHOWN_IDS = 5  # of those out of range


class TeacherCache:
    """A finished cache: memory-mapped, so that all processes of a machine share its pages.

    Opening reads the header and the slots, not the rows: `verify` does that. A pickled copy opens the same files anew;
    threads and forked processes share this one. As with every map, a file that is cut while it is read kills the
    process: replace caches by renaming their folders, never in place.

    Attributes:
        folder: as given.
        header: what the cache holds.
    """

    def __init__(self, folder: str | Path) -> None:
        """Open a cache.

        Raises:
            CacheMissingError: there is none.
            CacheIncompleteError: its build has not finished; says how much of it is done.
            CacheDamagedError: header or slots do not fit their checksums, or a file is missing or of a wrong size.
            CacheFormatError: a format or version that is not ours.
            OSError: a file cannot be read; names it.
        """
        self.folder = Path(folder)
        text = read_header_bytes(self.folder, KIND)
        where = str(self.folder / HEADER_NAME)
        self.header = CacheHeader.from_bytes(text, where=where)
        header_sha256 = stated_sha256(text, where=where, kind=KIND)
        self._data = open_sized(self.folder / DATA_NAME, self.header.data_bytes, os.O_RDONLY, KIND)
        weakref.finalize(self, os.close, self._data)
        self._slots = self._read_slots()
        check_all_done(
            self.folder, self._slots, self.header.num_blocks, header_sha256, self.header.describe_block, KIND
        )
        self._slot_format = SlotFormat(header_sha256)
        self._digest = hashlib.sha256(text + self._slots).hexdigest()
        self._columns = {view: column for column, view in enumerate(self.header.views)}
        mapped = mmap.mmap(self._data, self.header.data_bytes, access=mmap.ACCESS_READ)
        self._rows = np.frombuffer(mapped, "<f2").reshape(-1, self.header.embedding_dim)  # (N * V, D)

    def __reduce__(self) -> tuple[Callable[[Path, str], TeacherCache], tuple[Path, str]]:
        return _open_again, (self.folder.absolute(), self._digest)

    def __repr__(self) -> str:
        return f"TeacherCache({str(self.folder)!r})"

    def __len__(self) -> int:
        """N."""
        return self.header.num_records

    def digest(self) -> str:
        """sha256 over header and block checksums, 64 hex digits: names this content, the rows included."""
        return self._digest

    def column(self, view: CacheView) -> int | None:
        """Column of a view, for `gather`; None where the cache does not hold it."""
        return self._columns.get(view)

    def gather(
        self,
        record_ids: npt.NDArray[np.integer[Any]],
        views: npt.NDArray[np.integer[Any]],
        out: npt.NDArray[np.float16] | None = None,
    ) -> npt.NDArray[np.float16]:
        """Copy out one stored row for each of n records.

        Args:
            record_ids: (n,) integers in [0, N), in any order, repeats allowed.
            views: (n,) integers in [0, V): the column of the view to take of each.
            out: (n, D) float16 to fill instead of a new array.

        Returns:
            (n, D) float16 unit rows; `out` where it was given.

        Raises:
            IndexError: an id or a column is out of range; they are named.
            ValueError: shapes or dtypes are wrong.
        """
        ids = _checked_index("record ids", record_ids, self.header.num_records)
        columns = _checked_index("view columns", views, self.header.num_views)
        if len(ids) != len(columns):
            raise ValueError(f"there must be one view for each record id, got {len(columns)} for {len(ids)}")
        shape = (len(ids), self.header.embedding_dim)
        if out is None:
            out = np.empty(shape, np.float16)
        elif out.shape != shape or out.dtype != np.float16 or not out.flags.writeable:
            access = "writeable" if out.flags.writeable else "read-only"
            raise ValueError(f"out must be writeable float16 {shape}, got {access} {out.dtype} {out.shape}")
        # Indices are in range, so nothing is clipped: numpy's checking mode would gather into a copy of `out` first.
        return np.take(self._rows, ids * self.header.num_views + columns, axis=0, out=out, mode="clip")

    def verify(
        self,
        first_block: int = 0,
        stop_block: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Read blocks [first_block, stop_block) and compare them with their checksums; ranks can share the blocks.

        Args:
            progress: called after each block with the number of blocks checked so far.

        Raises:
            CacheDamagedError: the first damaged block, with its records and bytes.
            IndexError: no such blocks.
            OSError: the disk failed.
        """
        stop = self.header.num_blocks if stop_block is None else stop_block
        if not 0 <= first_block <= stop <= self.header.num_blocks:
            raise IndexError(f"blocks must be in [0, {self.header.num_blocks}), got [{first_block}, {stop})")
        buffer = chunk_buffer()
        for block in range(first_block, stop):
            self._verify_block(block, buffer)
            if progress is not None:
                progress(block - first_block + 1)

    def require(
        self,
        *,
        teacher: Mapping[str, Any] | None,
        records: Mapping[str, Any],
        views: Sequence[CacheView],
    ) -> None:
        """Refuse this cache unless it is of this teacher, these records, and holds these views.

        Args:
            teacher: identity of the run's teacher as JSON values; its `sha256`, and of `arch`, `embedding_dim`,
                `image_size` and `preprocessing` what it states, must be the cache's. None: the cache's own will do.
            records: `fingerprint` and `num_records` must be the cache's; a `name` is only shown.
            views: those that training will ask for.

        Raises:
            CacheMismatchError: something differs; every mismatch is named, with both values.
        """
        problems = mismatches(self.header, teacher=teacher, records=records, views=views)
        if problems:
            listed = "\n  ".join(problems)
            raise CacheMismatchError(
                f"the cache at {self.folder} does not fit:\n  {listed}\n"
                f"Name another folder, or remove this one, and rebuild with: {KIND.command}"
            )

    def _read_slots(self) -> bytes:
        size = SLOT_BYTES * self.header.num_blocks
        handle = open_sized(self.folder / SLOTS_NAME, size, os.O_RDONLY, KIND)
        try:
            return read_start(handle, size)
        finally:
            os.close(handle)

    def _verify_block(self, block: int, buffer: memoryview) -> None:
        stated = self._slot_format.read(block, slot_of(self._slots, block)).crc32
        found = crc32_of(self._data, self.header.block_byte_range(block), buffer)
        if found != stated:
            what = "the file ends before" if found is None else f"crc32 {stated:08x} expected, found {found:08x}"
            place = self.header.describe_block(block)
            raise CacheDamagedError(
                f"{self.folder / DATA_NAME}: {place} is damaged: {what}. To make such blocks anew: {KIND.command}"
            )


def _open_again(folder: Path, digest: str) -> TeacherCache:
    """What unpickling does. Raises CacheMismatchError where the folder holds another cache by now."""
    cache = TeacherCache(folder)
    if cache.digest() != digest:
        raise CacheMismatchError(f"{folder} was replaced while it was in use: digest {cache.digest()}, was {digest}")
    return cache


def _checked_index(what: str, values: npt.NDArray[np.integer[Any]], bound: int) -> npt.NDArray[np.int64]:
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(f"{what} must be (n,) integers, got {array.dtype} {array.shape}")
    if array.size and (array.min() < 0 or array.max() >= bound):
        wrong = array[(array < 0) | (array >= bound)]
        listed = ", ".join(str(value) for value in wrong[:_SHOWN_IDS].tolist())
        more = f" and {wrong.size - _SHOWN_IDS} more" if wrong.size > _SHOWN_IDS else ""
        raise IndexError(f"{what} must be in [0, {bound}), got {listed}{more}")
    return array.astype(np.int64, copy=False)
