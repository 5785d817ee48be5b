"""Opens a finished store: its header and slots are checked, its files mapped into memory, its blocks read on request.

As with every map, a file that is cut while it is read kills the process: replace stores by renaming their folders,
never in place.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from adadistill.loaders.block_store.errors import StoreDamagedError, StoreError
from adadistill.loaders.block_store.files import open_data, open_regular, read_header, read_start
from adadistill.loaders.block_store.header import DataFile, H
from adadistill.loaders.block_store.slots import SlotFormat, chunk_buffer, crc32_of_spans, crc32s_of_done, slots_file

_SHOWN_IDS = 5  # of those out of range

R = TypeVar("R", bound="BlockReader[Any]")


class BlockReader(Generic[H]):
    """A finished store: memory-mapped, so that all processes of a machine share its pages.

    Opening reads the header and the slots, not the rows: `check` does that. A pickled copy opens the same files anew;
    threads and forked processes share this one.

    Attributes:
        folder: as given.
        header: what the store holds.
    """

    header_type: type[H]

    def __init__(self, folder: str | Path) -> None:
        """Open a store.

        Raises:
            StoreMissingError: there is none.
            StoreIncompleteError: its writing has not finished; says how much of it is done.
            StoreDamagedError: header or slots do not fit their checksums, or a file is missing, of a wrong size or
                begins otherwise.
            StoreError: a format or version that is not ours, or more files than this process may open.
            OSError: a file cannot be read; names it.
        """
        self.folder = Path(folder)
        stored = read_header(self.folder, self.header_type)
        self.header: H = stored.header
        slots = self._read_slots()
        self._crc32s = crc32s_of_done(self.folder, self.header, SlotFormat(stored.sha256).read_all(slots))
        self._digest = hashlib.sha256(stored.text + slots).hexdigest()

    def __reduce__(self: R) -> tuple[Callable[[type[R], Path, str], R], tuple[type[R], Path, str]]:
        return _open_again, (type(self), self.folder.absolute(), self._digest)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.folder)!r})"

    def __len__(self) -> int:
        """N."""
        return self.header.num_records

    def digest(self) -> str:
        """sha256 over header and block checksums, 64 hex digits: names this content, the rows included."""
        return self._digest

    def check(
        self, first_block: int = 0, stop_block: int | None = None, progress: Callable[[int], None] | None = None
    ) -> None:
        """Read blocks [first_block, stop_block) and compare them with their checksums; ranks can share the blocks.

        Args:
            progress: called after each block with the number of blocks checked so far.

        Raises:
            StoreDamagedError: the first damaged block, with its records.
            IndexError: no such blocks.
            OSError: the disk failed.
        """
        blocks = self.header.checked_blocks(first_block, stop_block)
        buffer = chunk_buffer()
        for place, block in enumerate(blocks):
            self._check_block(block, buffer)
            if progress is not None:
                progress(place + 1)

    def _check_block(self, block: int, buffer: memoryview) -> None:
        kind, spans, stated = self.header.kind, self.header.block_spans(block), self._crc32s[block]
        with contextlib.ExitStack() as opened:
            handles = {span.name: open_regular(self.folder / span.name, os.O_RDONLY, kind) for span in spans}
            for handle in handles.values():
                opened.callback(os.close, handle)
            found = crc32_of_spans(handles, spans, buffer)
        if found != stated:
            what = "the file ends before" if found is None else f"crc32 {stated:08x} expected, found {found:08x}"
            beside = "".join(f" or beside it in {span.name}" for span in spans[1:])
            raise StoreDamagedError(
                f"{self.folder / spans[0].name}: {self.header.describe_block(block)}{beside} is damaged: {what}. "
                f"To make such blocks anew: {kind.command}"
            )

    def _read_slots(self) -> bytes:
        file = slots_file(self.header)
        handle = open_data(self.folder, file, os.O_RDONLY, self.header.kind)
        try:
            return read_start(handle, file.size)
        finally:
            os.close(handle)

    def _map(self, file: DataFile, dtype: str) -> npt.NDArray[Any]:
        """The data of a file, mapped into memory, read-only and flat."""
        handle = open_data(self.folder, file, os.O_RDONLY, self.header.kind)
        try:
            mapped = mmap.mmap(handle, file.size, access=mmap.ACCESS_READ)
        finally:
            os.close(handle)
        return np.frombuffer(mapped, dtype, offset=len(file.head))


def take_rows(rows: npt.NDArray[Any], places: npt.NDArray[np.int64], out: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Copy rows of places that are known to be in range into `out`; numpy's checking mode would copy them twice."""
    return np.take(rows, places, axis=0, out=out, mode="clip")


def checked_ids(what: str, values: npt.NDArray[np.integer[Any]] | Sequence[int], bound: int) -> npt.NDArray[np.int64]:
    """Numbers of rows as int64; raises IndexError for the first out of [0, bound), ValueError for what are none."""
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"{what} must be (n,) integers, got {array.dtype} {array.shape}")
    if array.size and (array.min() < 0 or array.max() >= bound):
        wrong = array[(array < 0) | (array >= bound)]
        listed = ", ".join(str(value) for value in wrong[:_SHOWN_IDS].tolist())
        more = f" and {wrong.size - _SHOWN_IDS} more" if wrong.size > _SHOWN_IDS else ""
        raise IndexError(f"{what} must be in [0, {bound}), got {listed}{more}")
    return array.astype(np.int64, copy=False)


def checked_out(out: npt.NDArray[Any] | None, shape: tuple[int, int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Where rows go: `out`, or a new array. Raises ValueError where `out` does not fit."""
    dtype = np.dtype(dtype)
    if out is None:
        return np.empty(shape, dtype)
    if out.shape != shape or out.dtype != dtype or not out.flags.writeable:
        access = "writeable" if out.flags.writeable else "read-only"
        raise ValueError(f"out must be writeable {dtype} {shape}, got {access} {out.dtype} {out.shape}")
    return out


def records_refusal(stored: Mapping[str, Any], wanted: Mapping[str, Any], made: str) -> str | None:
    """Why rows of the records `stored` must not be used for the records `wanted`; None where both are the same.

    Args:
        made: how the rows came from their records, for example "was packed from".
    """
    if all(stored[name] == wanted[name] for name in ("fingerprint", "num_records")):
        return None
    sides = [
        f"{named(side)} with {side['num_records']} image records, fingerprint {side['fingerprint']}"
        for side in (stored, wanted)
    ]
    return f"other records: it {made} {sides[0]}, this run reads {sides[1]}. Record ids would name other images"


def named(side: Mapping[str, Any]) -> str:
    """The name that a header gives something, which may be a stranger's text."""
    name = side.get("name")
    return f"{name[:120]!a}" if isinstance(name, str) else "an unnamed one"


def _open_again(reader: type[R], folder: Path, digest: str) -> R:
    """What unpickling does. Raises StoreError where the folder holds another store by now."""
    opened = reader(folder)
    if opened.digest() != digest:
        raise StoreError(f"{folder} was replaced while it was in use: digest {opened.digest()}, was {digest}")
    return opened
