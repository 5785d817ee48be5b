"""The files of a packed store: their names, the `.npy` heads before the data, and what must be true of each.

Images and labels are plain `.npy` files, so that numpy opens them without adadistill. Their heads are written here, not
by numpy, whose heads differ between its versions: the same images must be the same bytes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from adadistill.loaders.packed_store.errors import PackDamagedError, PackError
from adadistill.loaders.packed_store.header import KIND, PackedHeader
from adadistill.loaders.stored_blocks.files import open_sized, read_start
from adadistill.loaders.stored_blocks.slots import SLOT_BYTES, SLOTS_NAME

LABELS_NAME = "labels.npy"
DAMAGED_NAME = "damaged.json"

HEAD_BYTES = 128
"""Of each `.npy` file, before its data."""

_MAGIC = b"\x93NUMPY\x01\x00"


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file of a store: `head`, then `data_bytes` bytes."""

    name: str
    head: bytes
    data_bytes: int

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self.head) + self.data_bytes


def shard_file(header: PackedHeader, shard: int) -> DataFile:
    """The images of one shard: (n, image_bytes) uint8."""
    count = len(header.shard_record_range(shard))
    head = _npy_head("|u1", (count, header.image_bytes))
    return DataFile(f"shard-{shard:05d}.npy", head, count * header.image_bytes)


def labels_file(header: PackedHeader) -> DataFile:
    """The labels of all images: (N,) int64."""
    return DataFile(LABELS_NAME, _npy_head("<i8", (header.num_records,)), 8 * header.num_records)


def slots_file(header: PackedHeader) -> DataFile:
    """16 bytes for each block, see `loaders.stored_blocks.slots`."""
    return DataFile(SLOTS_NAME, b"", SLOT_BYTES * header.num_blocks)


def data_files(header: PackedHeader) -> Iterator[DataFile]:
    """All files of a store but the header and the list of damaged records."""
    yield from (shard_file(header, shard) for shard in range(header.num_shards))
    yield labels_file(header)
    yield slots_file(header)


def open_data(folder: Path, file: DataFile, flags: int) -> int:
    """Descriptor of one file of a store, which must have the size and the head that the header implies.

    Raises:
        PackDamagedError: it is missing, no regular file, of another size, or begins otherwise.
        PackError: the process has too many files open.
        OSError: it cannot be opened; names it.
    """
    path = folder / file.name
    try:
        handle = open_sized(path, file.size, flags, KIND)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        raise PackError(
            f"{path} cannot be opened: this process has too many files open. Raise the limit (ulimit -n), or pack "
            "with a larger --shard-records"
        ) from None
    if read_start(handle, len(file.head)) != file.head:
        os.close(handle)
        raise PackDamagedError(
            f"{path} is damaged: its first {HEAD_BYTES} bytes are not its `.npy` head. {KIND.remedy}"
        )
    return handle


def _npy_head(descr: str, shape: tuple[int, ...]) -> bytes:
    """128 bytes that describe a C-contiguous array in `.npy` format 1.0."""
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape!r}, }}".encode()
    length = HEAD_BYTES - len(_MAGIC) - 2
    return _MAGIC + length.to_bytes(2, "little") + text.ljust(length - 1) + b"\n"
