"""Decoded images on disk: every record decoded once, read by record id in every epoch, nothing left to decode.

A folder of `header.json`, the images in `shard-*.npy`, their labels in `labels.npy`, `blocks.bin`, and `damaged.json`
for people; docs/formats.md specifies them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adadistill.loaders.atomic_file import write_whole
from adadistill.loaders.block_store.errors import (
    StoreDamagedError,
    StoreError,
    StoreIncompleteError,
    StoreMissingError,
)
from adadistill.loaders.block_store.files import read_header
from adadistill.loaders.block_store.packed_header import (
    DAMAGED_LABEL,
    DAMAGED_PIXEL,
    HEAD_BYTES,
    KIND,
    LABELS_NAME,
    Layout,
    PackedHeader,
    image_bytes,
)
from adadistill.loaders.block_store.reader import BlockReader, checked_ids, checked_out, records_refusal, take_rows
from adadistill.loaders.block_store.writer import BlockWriter
from adadistill.loaders.json_text import dump_json

__all__ = [
    "DAMAGED_LABEL",
    "DAMAGED_PIXEL",
    "Layout",
    "PackWriter",
    "PackedHeader",
    "PackedStore",
    "image_bytes",
    "stored_header",
]

DAMAGED_NAME = "damaged.json"

_CHECKED_LABELS = 1 << 20  # at a time: a sparse file can claim more of them than fit into memory


class PackedStore(BlockReader[PackedHeader]):
    """A finished store of images, read by record id; see `BlockReader`. Opening it reads the labels too.

    Attributes:
        layout: planes or rgb.
        num_records: N.
        image_size: S, pixels.
        image_bytes: the bytes of one image; at 112 pixels 18,816 as planes and 37,632 as RGB.
        labels: (N,) int64 in [0, num_classes), -1 where the record was damaged; read-only.
    """

    header_type = PackedHeader

    def __init__(self, folder: str | Path) -> None:
        """Open a store; raises as `BlockReader` does, and StoreDamagedError where a label is no class."""
        super().__init__(folder)
        header = self.header
        self.layout: Layout = header.layout
        self.num_records, self.image_size, self.image_bytes = header.num_records, header.image_size, header.image_bytes
        *shards, labels = header.files()
        self.labels = self._checked_labels(self._map(labels, "<i8"))
        self._shards = [self._map(shard, "|u1").reshape(-1, header.image_bytes) for shard in shards]

    def gather(
        self, record_ids: npt.NDArray[np.integer[Any]] | Sequence[int], out: npt.NDArray[np.uint8] | None = None
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
        ids = checked_ids("record ids", record_ids, self.num_records)
        out = checked_out(out, (len(ids), self.image_bytes), np.uint8)
        if len(self._shards) == 1:
            return take_rows(self._shards[0], ids, out)
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
            StoreError: they differ; both sides are named.
        """
        if refusal := records_refusal(self.header.records, records, "was packed from"):
            raise StoreError(
                f"the packed store at {self.folder} is of {refusal}. "
                f"Pack these records into another folder: {KIND.command}"
            )

    def _checked_labels(self, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Labels index class centres on the GPU, where a wrong one cannot be reported; so they are checked here."""
        for start in range(0, len(labels), _CHECKED_LABELS):
            part = labels[start : start + _CHECKED_LABELS]
            wrong = np.flatnonzero((part < DAMAGED_LABEL) | (part >= self.header.num_classes))
            if wrong.size:
                raise StoreDamagedError(
                    f"{self.folder / LABELS_NAME}: record {start + wrong[0]} has label {part[wrong[0]]}, not in "
                    f"[0, {self.header.num_classes}) or -1. Restore it from a copy, or pack again: {KIND.command}"
                )
        return labels


class PackWriter(BlockWriter[PackedHeader]):
    """Writes the images of a store block by block; see `BlockWriter`."""

    def __init__(self, folder: str | Path, header: PackedHeader, *, main: bool) -> None:
        super().__init__(folder, header, main=main)
        if main:
            for stale in self.folder.glob(f".{DAMAGED_NAME}.partial-*"):  # of a packing that was killed as it ended
                stale.unlink(missing_ok=True)

    def write_block(self, block: int, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]) -> None:
        """Store one block, and mark it as done when it is on disk.

        Args:
            block: in [0, header.num_blocks). Two threads must not write the same one at the same time.
            images: (n, image_bytes) uint8 of the records `header.block_record_range(block)`, in that order.
            labels: (n,) int64 in [0, num_classes), or -1.

        Raises:
            IndexError: no such block. ValueError: wrong shapes, dtypes or labels, or the writer is closed.
            StoreWriteError: the disk refused the bytes. The block is then not marked as done.
        """
        header, count = self.header, len(self.header.block_record_range(block))
        if images.shape != (count, header.image_bytes) or images.dtype != np.uint8 or not images.flags.c_contiguous:
            raise ValueError(f"block {block} needs contiguous uint8 {(count, header.image_bytes)}, got {images.shape}")
        if labels.shape != (count,) or ((labels < DAMAGED_LABEL) | (labels >= header.num_classes)).any():
            raise ValueError(f"block {block} needs {count} labels in [0, {header.num_classes}) or -1, got {labels}")
        stored = np.ascontiguousarray(labels, "<i8").view(np.uint8)
        self._write(block, [memoryview(images.reshape(-1)), memoryview(stored)])  # type: ignore[arg-type]  # buffers

    def damaged_ids(self) -> npt.NDArray[np.int64]:
        """Record ids stored as damaged so far, ascending."""
        labels = np.fromfile(self.folder / LABELS_NAME, "<i8", self.header.num_records, offset=HEAD_BYTES)
        return np.flatnonzero(labels == DAMAGED_LABEL)

    def write_damaged_list(self) -> None:
        """Write `damaged.json` from the labels, once all blocks are done; the same bytes whoever writes it.

        Raises:
            StoreError: the disk refused it.
        """
        path = self.folder / DAMAGED_NAME
        text = dump_json({"header_sha256": self._header_sha256, "damaged": [*self.damaged_ids().tolist()]})
        try:
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                write_whole(path, text)
        except OSError as error:
            raise StoreError(f"{path} cannot be written: {error}. Start again to finish") from error


def stored_header(folder: Path) -> PackedHeader | None:
    """The header of what an earlier packing left in a folder; None where one has yet to begin there.

    Raises StoreError where it is damaged or of something else.
    """
    try:
        return read_header(folder, PackedHeader).header
    except (StoreMissingError, StoreIncompleteError):
        return None
