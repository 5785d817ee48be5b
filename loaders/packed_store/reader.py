"""Reads decoded images by record id from a finished packed store: one copy of bytes each, nothing to decode."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adadistill.loaders.packed_store.block_sums import block_crc32
from adadistill.loaders.packed_store.errors import PackDamagedError, PackMismatchError
from adadistill.loaders.packed_store.files import (
    HEAD_BYTES,
    LABELS_NAME,
    DataFile,
    labels_file,
    open_data,
    shard_file,
    slots_file,
)
from adadistill.loaders.packed_store.header import DAMAGED_LABEL, KIND, Layout, PackedHeader
from adadistill.loaders.stored_blocks.files import HEADER_NAME, read_header_bytes, read_start
from adadistill.loaders.stored_blocks.header_text import stated_sha256
from adadistill.loaders.stored_blocks.slots import SLOT_BYTES, SlotFormat, check_all_done, chunk_buffer, slot_of

_SHOWN_IDS = 5  # of those out of range
_CHECKED_LABELS = 1 << 20  # at a time: a sparse file can claim more of them than fit into memory


class PackedStore:
    """A finished store: memory-mapped, so that all processes of a machine share its pages.

    Opening reads the header, the slots and the labels, not the images: `verify` does that. A pickled copy opens the
    same files anew; threads and forked processes share this one. As with every map, a file that is cut while it is
    read kills the process: replace stores by renaming their folders, never in place.

    Attributes:
        folder: as given.
        header: what the store holds.
        layout: planes or rgb.
        num_records: N.
        image_size: S, pixels.
        image_bytes: of one image; at 112 pixels 18,816 as planes and 37,632 as RGB.
        labels: (N,) int64 in [0, num_classes), -1 where the record was damaged; read-only.
    """

    def __init__(self, folder: str | Path) -> None:
        """Open a store.

        Raises:
            PackMissingError: there is none.
            PackIncompleteError: its packing has not finished; says how much of it is done.
            PackDamagedError: header or slots do not fit their checksums, a file is missing, of a wrong size or begins
                otherwise, or a label is no class.
            PackFormatError: a format or version that is not ours.
            PackError: there are more shards than this process may open files.
            OSError: a file cannot be read; names it.
        """
        self.folder = Path(folder)
        text = read_header_bytes(self.folder, KIND)
        where = str(self.folder / HEADER_NAME)
        self.header = PackedHeader.from_bytes(text, where=where)
        self._slot_format = SlotFormat(digest := stated_sha256(text, where=where, kind=KIND))
        self._slots = self._read_slots()
        check_all_done(self.folder, self._slots, self.header.num_blocks, digest, self.header.describe_block, KIND)
        self._digest = hashlib.sha256(text + self._slots).hexdigest()

        self.layout: Layout = self.header.layout
        self.num_records, self.image_size = self.header.num_records, self.header.image_size
        self.image_bytes = self.header.image_bytes
        self.labels = self._map_labels()
        self._shards = [self._map_shard(shard) for shard in range(self.header.num_shards)]

    def __reduce__(self) -> tuple[Callable[[Path, str], PackedStore], tuple[Path, str]]:
        return _open_again, (self.folder.absolute(), self._digest)

    def __repr__(self) -> str:
        return f"PackedStore({str(self.folder)!r})"

    def __len__(self) -> int:
        """N."""
        return self.num_records

    def digest(self) -> str:
        """sha256 over header and block checksums, 64 hex digits: names this content, images and labels included."""
        return self._digest

    def gather(
        self,
        record_ids: npt.NDArray[np.integer[Any]] | Sequence[int],
        out: npt.NDArray[np.uint8] | None = None,
    ) -> npt.NDArray[np.uint8]:
        """Copy out the bytes of n images. Threads may call it at the same time, each with its own `out`.

        Args:
            record_ids: (n,) integers in [0, N), in any order, repeats allowed.
            out: (n, image_bytes) uint8 to fill instead of a new array, for example a view of pinned memory.

        Returns:
            (n, image_bytes) uint8, `out` where it was given. A row of planes is Y (S, S), Cb (S/2, S/2), Cr (S/2, S/2),
            one after the other; a row of rgb is (S, S, 3); all row by row of the image.

        Raises:
            IndexError: an id is out of range; it is named.
            ValueError: shapes or dtypes are wrong.
        """
        ids = _checked_ids(record_ids, self.num_records)
        shape = (len(ids), self.image_bytes)
        if out is None:
            out = np.empty(shape, np.uint8)
        elif out.shape != shape or out.dtype != np.uint8 or not out.flags.writeable:
            access = "writeable" if out.flags.writeable else "read-only"
            raise ValueError(f"out must be writeable uint8 {shape}, got {access} {out.dtype} {out.shape}")
        if len(self._shards) == 1:
            # Ids are in range, so nothing is clipped: numpy's checking mode would gather into a copy of `out` first.
            return np.take(self._shards[0], ids, axis=0, out=out, mode="clip")
        # One by one: a batch of a shuffled epoch finds few of its images in the same shard. At 18,816 bytes a row this
        # gives 0.75 of the rows per second that one shard gives (0.46 against 0.61 million on one core of an EPYC).
        shards, rows = np.divmod(ids, self.header.shard_records)
        for place, (shard, row) in enumerate(zip(shards.tolist(), rows.tolist(), strict=True)):
            out[place] = self._shards[shard][row]
        return out

    def require(self, *, records: Mapping[str, Any]) -> None:
        """Refuse this store unless it was packed from these records.

        Args:
            records: `fingerprint` and `num_records` must be the store's; a `name` is only shown.

        Raises:
            PackMismatchError: they differ; both sides are named.
        """
        stored = self.header.records
        if all(stored[name] == records[name] for name in ("fingerprint", "num_records")):
            return
        sides = [
            f"{side.get('name')!a} with {side['num_records']} image records, fingerprint {side['fingerprint']}"
            for side in (stored, records)
        ]
        raise PackMismatchError(
            f"the packed store at {self.folder} is of other records: it was packed from {sides[0]}, this run reads "
            f"{sides[1]}. Record ids would name other images. Pack these records into another folder: {KIND.command}"
        )

    def verify(
        self,
        first_block: int = 0,
        stop_block: int | None = None,
        *,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Read blocks [first_block, stop_block) and compare them with their checksums; ranks can share the blocks.

        Args:
            progress: called after each block with the number of blocks checked so far.

        Raises:
            PackDamagedError: the first damaged block, with its records.
            IndexError: no such blocks.
            OSError: the disk failed.
        """
        stop = self.header.num_blocks if stop_block is None else stop_block
        if not 0 <= first_block <= stop <= self.header.num_blocks:
            raise IndexError(f"blocks must be in [0, {self.header.num_blocks}), got [{first_block}, {stop})")
        buffer = chunk_buffer()
        labels = open_data(self.folder, labels_file(self.header), os.O_RDONLY)
        try:
            for block in range(first_block, stop):
                self._verify_block(block, labels, buffer)
                if progress is not None:
                    progress(block - first_block + 1)
        finally:
            os.close(labels)

    def _verify_block(self, block: int, labels: int, buffer: memoryview) -> None:
        file = shard_file(self.header, self.header.block_shard(block))
        shard = open_data(self.folder, file, os.O_RDONLY)
        try:
            found = block_crc32(self.header, block, shard, labels, buffer)
        finally:
            os.close(shard)
        stated = self._slot_format.read(block, slot_of(self._slots, block)).crc32
        if found != stated:
            what = "the file ends before" if found is None else f"crc32 {stated:08x} expected, found {found:08x}"
            raise PackDamagedError(
                f"{self.folder / file.name}: {self.header.describe_block(block)} or its labels in {LABELS_NAME} "
                f"are damaged: {what}. To make such blocks anew: {KIND.command}"
            )

    def _read_slots(self) -> bytes:
        handle = open_data(self.folder, slots_file(self.header), os.O_RDONLY)
        try:
            return read_start(handle, SLOT_BYTES * self.header.num_blocks)
        finally:
            os.close(handle)

    def _map(self, file: DataFile) -> mmap.mmap:
        handle = open_data(self.folder, file, os.O_RDONLY)
        try:
            return mmap.mmap(handle, file.size, access=mmap.ACCESS_READ)
        finally:
            os.close(handle)

    def _map_shard(self, shard: int) -> npt.NDArray[np.uint8]:
        """(n, image_bytes) images of a shard, read-only."""
        mapped = self._map(shard_file(self.header, shard))
        return np.frombuffer(mapped, np.uint8, offset=HEAD_BYTES).reshape(-1, self.image_bytes)

    def _map_labels(self) -> npt.NDArray[np.int64]:
        """(N,), checked: labels index class centres on the GPU, where a wrong one cannot be reported."""
        labels = np.frombuffer(self._map(labels_file(self.header)), "<i8", offset=HEAD_BYTES)
        for start in range(0, len(labels), _CHECKED_LABELS):
            part = labels[start : start + _CHECKED_LABELS]
            wrong = np.flatnonzero((part < DAMAGED_LABEL) | (part >= self.header.num_classes))
            if wrong.size:
                raise PackDamagedError(
                    f"{self.folder / LABELS_NAME}: record {start + wrong[0]} has label {part[wrong[0]]}, not in "
                    f"[0, {self.header.num_classes}) or -1. Restore it from a copy, or pack again: {KIND.command}"
                )
        return labels


def _open_again(folder: Path, digest: str) -> PackedStore:
    """What unpickling does. Raises PackMismatchError where the folder holds another store by now."""
    store = PackedStore(folder)
    if store.digest() != digest:
        raise PackMismatchError(f"{folder} was replaced while it was in use: digest {store.digest()}, was {digest}")
    return store


def _checked_ids(values: npt.NDArray[np.integer[Any]] | Sequence[int], bound: int) -> npt.NDArray[np.int64]:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"record ids must be (n,) integers, got {array.dtype} {array.shape}")
    if array.size and (array.min() < 0 or array.max() >= bound):
        wrong = array[(array < 0) | (array >= bound)]
        listed = ", ".join(str(value) for value in wrong[:_SHOWN_IDS].tolist())
        more = f" and {wrong.size - _SHOWN_IDS} more" if wrong.size > _SHOWN_IDS else ""
        raise IndexError(f"record ids must be in [0, {bound}), got {listed}{more}")
    return array.astype(np.int64, copy=False)
