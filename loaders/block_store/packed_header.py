"""The header of a packed store: how many images of which records, in which layout, cut into which files and blocks.

Images and labels are plain `.npy` files, so that numpy opens them without adadistill. Their heads are written here, not
by numpy, whose heads differ between its versions: the same images must be the same bytes. docs/formats.md
specifies the fields.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias, get_args

from adadistill.loaders.block_store.header import (
    MAX_RECORDS,
    DataFile,
    Span,
    StoreHeader,
    StoreKind,
    check_whole,
    shown,
)
from adadistill.loaders.json_text import JSON
from adadistill.loaders.pixels import MAX_SIDE

Layout: TypeAlias = Literal["planes", "rgb"]
"""planes: Y (S, S), then Cb and Cr (S/2, S/2), of one image; rgb: (S, S, 3)."""

LABELS_NAME = "labels.npy"
HEAD_BYTES = 128
"""The bytes of each `.npy` file before its data."""
DAMAGED_LABEL = -1
"""The label of a record that could not be read; the losses ignore it."""
DAMAGED_PIXEL = 128
"""Every byte of such a row: Y = Cb = Cr = 128 and R = G = B = 128 are the same mid-grey, 0.004 after normalisation."""

_MAX_SHARDS = 1 << 12  # a reader maps every shard, and each map holds a file descriptor
_BLOCK_RECORDS = 1024  # fewer where these would be more than `_BLOCK_BYTES`, as each thread holds a block in memory
_BLOCK_BYTES = 1 << 26
_NPY_MAGIC = b"\x93NUMPY\x01\x00"

KIND = StoreKind(
    name="packed store",
    making="packing",
    command="adadistill data pack RECORDS FOLDER",
    format="adadistill-packed-images",
    constants={},
    data_names=re.compile(rf"shard-\d{{5}}\.npy|{re.escape(LABELS_NAME)}"),
    ranks_lock=False,  # its ranks never speak to each other: one may join before the first one has come back
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedHeader(StoreHeader):
    """What a store holds: N images of S x S pixels, in shards (files), checked in blocks that never cross a shard.

    Making one checks it.

    Raises:
        ValueError: a value has a wrong type or is out of range, or the parts contradict each other.
    """

    kind: ClassVar[StoreKind] = KIND

    layout: Layout
    num_records: int
    """The number of records N, at least 1."""
    image_size: int
    """The side S of an image in pixels; even for planes."""
    shard_records: int
    """Images in a shard. The last shard holds what is left."""
    block_records: int
    """Images in a block. The last block of a shard holds what is left."""
    records: Mapping[str, JSON]
    """Of which record file: `fingerprint`, `num_records`, `num_classes`, `name`. Binds training."""

    def __post_init__(self) -> None:
        if self.layout not in get_args(Layout):
            raise ValueError(f"layout must be planes or rgb, got {shown(self.layout)}")
        check_whole("image_size", self.image_size, 1, MAX_SIDE)
        check_whole("shard_records", self.shard_records, 1, MAX_RECORDS)
        check_whole("block_records", self.block_records, 1, self.shard_records)
        if self.layout == "planes" and self.image_size % 2:
            raise ValueError(f"planes need an even image_size, got {self.image_size}")
        self.check_common_fields()
        check_whole("records.num_classes", self.records.get("num_classes"), 1, 1 << 24)
        if self.num_shards > _MAX_SHARDS:
            raise ValueError(f"{self.num_shards} shards are more than {_MAX_SHARDS}; take a larger shard_records")
        if self.block_records > 1 and self.block_records * self.image_bytes > _BLOCK_BYTES:
            raise ValueError(f"blocks of {self.block_records} images have more than {_BLOCK_BYTES} bytes")

    @property
    def image_bytes(self) -> int:
        """Bytes of one image."""
        return image_bytes(self.layout, self.image_size)

    @property
    def num_classes(self) -> int:
        """Number of identities C; labels are in [0, C), or -1."""
        count = self.records["num_classes"]
        assert isinstance(count, int), "checked when the header was made"
        return count

    @property
    def num_shards(self) -> int:
        """Number of shards, the short last one included."""
        return -(-self.num_records // self.shard_records)

    @property
    def num_blocks(self) -> int:
        """Number of blocks of all shards."""
        last_shard = self.num_records - (self.num_shards - 1) * self.shard_records
        return (self.num_shards - 1) * self._shard_blocks + -(-last_shard // self.block_records)

    @property
    def data_bytes(self) -> int:
        """Bytes of all images."""
        return self.num_records * self.image_bytes

    @property
    def sizes(self) -> str:
        """What the bytes come from, for people."""
        return f"{self.num_records:,} images x {self.image_bytes:,} bytes as {self.layout}"

    def files(self) -> list[DataFile]:
        """The shards (n, image_bytes) uint8, then the labels (N,) int64."""
        counts = [min(self.shard_records, self.num_records - first) for first in self._shard_starts()]
        shards = [
            _npy_file(_shard_name(shard), "|u1", (count, self.image_bytes), 1) for shard, count in enumerate(counts)
        ]
        return [*shards, _npy_file(LABELS_NAME, "<i8", (self.num_records,), 8)]

    def block_record_range(self, block: int) -> range:
        """Record ids in a block. Raises IndexError where there is no such block."""
        self.check_block(block)
        shard, place = divmod(block, self._shard_blocks)
        start = shard * self.shard_records + place * self.block_records
        shard_stop = min((shard + 1) * self.shard_records, self.num_records)
        return range(start, min(start + self.block_records, shard_stop))

    def block_spans(self, block: int) -> tuple[Span, ...]:
        """Where a block's images lie, then its labels. Raises IndexError where there is no such block."""
        ids = self.block_record_range(block)
        shard, first = divmod(ids.start, self.shard_records)
        start = HEAD_BYTES + first * self.image_bytes
        return (
            Span(_shard_name(shard), range(start, start + len(ids) * self.image_bytes)),
            Span(LABELS_NAME, range(HEAD_BYTES + 8 * ids.start, HEAD_BYTES + 8 * ids.stop)),
        )

    @property
    def _shard_blocks(self) -> int:
        """Blocks in a full shard."""
        return -(-self.shard_records // self.block_records)

    def _shard_starts(self) -> range:
        return range(0, self.num_records, self.shard_records)


def packed_header(
    layout: Layout, *, num_records: int, image_size: int, shard_records: int, records: Mapping[str, Any]
) -> PackedHeader:
    """The header of a store to be written, with blocks of the usual size. Raises ValueError as `PackedHeader` does."""
    check_whole("image_size", image_size, 1, MAX_SIDE)
    fitting = _BLOCK_BYTES // image_bytes(layout, image_size)
    return PackedHeader(
        layout=layout,
        num_records=num_records,
        image_size=image_size,
        shard_records=shard_records,
        block_records=max(1, min(_BLOCK_RECORDS, fitting, shard_records)),
        records=records,
    )


def image_bytes(layout: Layout, image_size: int) -> int:
    """Bytes of one stored image: 18,816 as planes and 37,632 as RGB at 112 pixels."""
    area = image_size * image_size
    return area * 3 // 2 if layout == "planes" else area * 3


def _shard_name(shard: int) -> str:
    return f"shard-{shard:05d}.npy"


def _npy_file(name: str, descr: str, shape: tuple[int, ...], item_bytes: int) -> DataFile:
    """A C-contiguous array in `.npy` format 1.0 with a head of 128 bytes."""
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape!r}, }}".encode()
    length = HEAD_BYTES - len(_NPY_MAGIC) - 2
    head = _NPY_MAGIC + length.to_bytes(2, "little") + text.ljust(length - 1) + b"\n"
    return DataFile(name, math.prod(shape) * item_bytes, head)
