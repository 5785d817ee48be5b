"""The header of a packed store: how many images of which records, in which layout, cut into which files and blocks.

Why: rows of bytes look the same whoever wrote them. Training only believes rows whose header says that they are of the
records that the recipe names; and a packing that was killed only goes on where its header says the same again. See
docs/packed_format.md for the fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias, get_args

from adadistill.loaders.packed_store.errors import (
    PackDamagedError,
    PackFormatError,
    PackIncompleteError,
    PackMissingError,
)
from adadistill.loaders.pixels import MAX_SIDE
from adadistill.loaders.stored_blocks.header_text import (
    check_agrees,
    check_sha256,
    check_whole,
    checked_object,
    differences,
    header_fields,
    header_text,
    shown,
    stated_sha256,
)
from adadistill.loaders.stored_blocks.json_text import JSON
from adadistill.loaders.stored_blocks.kind import StoreKind

Layout: TypeAlias = Literal["planes", "rgb"]
"""planes: Y (S, S), then Cb and Cr (S/2, S/2), of one image; rgb: (S, S, 3)."""

FORMAT = "adadistill-packed-images"
VERSION = 1

DAMAGED_LABEL = -1
"""Stands where a record could not be read; the losses ignore it."""
DAMAGED_PIXEL = 128
"""Every byte of such a row: Y = Cb = Cr = 128 and R = G = B = 128 are the same mid-grey, 0.004 after normalisation."""

MAX_RECORDS = 1 << 40
MAX_SHARDS = 1 << 12
"""A reader maps every shard, and each map holds a file descriptor."""
MAX_BLOCKS = 1 << 20
"""So that the slots of all blocks, which a reader holds in memory, are 16 MiB at most."""

_BLOCK_RECORDS = 1024
_BLOCK_BYTES = 1 << 26
"""Records in a block: 1,024, fewer where these would be more than 64 MiB, as each thread holds a block in memory."""

KIND = StoreKind(
    name="packed store",
    making="packing",
    command="adadistill data pack RECORDS FOLDER",
    missing=PackMissingError,
    incomplete=PackIncompleteError,
    damaged=PackDamagedError,
    unknown_format=PackFormatError,
)


def image_bytes(layout: Layout, image_size: int) -> int:
    """Bytes of one stored image: 18,816 as planes and 37,632 as RGB at 112 pixels."""
    area = image_size * image_size
    return area * 3 // 2 if layout == "planes" else area * 3


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedHeader:
    """What a store holds: N images of S x S pixels, in shards (files), checked in blocks that never cross a shard.

    Making one checks it.

    Raises:
        ValueError: a value has a wrong type or is out of range, or the parts contradict each other.
    """

    layout: Layout
    num_records: int
    """N, at least 1."""
    image_size: int
    """S, pixels; even for planes."""
    shard_records: int
    """Images in a shard. The last shard holds what is left."""
    block_records: int
    """Images in a block. The last block of a shard holds what is left."""
    records: Mapping[str, JSON]
    """Of which record file: `fingerprint`, `num_records`, `num_classes`, `name`. Binds training."""

    def __post_init__(self) -> None:
        if self.layout not in get_args(Layout):
            raise ValueError(f"layout must be planes or rgb, got {shown(self.layout)}")
        check_whole("num_records", self.num_records, 1, MAX_RECORDS)
        check_whole("image_size", self.image_size, 1, MAX_SIDE)
        check_whole("shard_records", self.shard_records, 1, MAX_RECORDS)
        check_whole("block_records", self.block_records, 1, self.shard_records)
        if self.layout == "planes" and self.image_size % 2:
            raise ValueError(f"planes need an even image_size, got {self.image_size}")
        object.__setattr__(self, "records", checked_object("records", self.records))
        check_sha256("records.fingerprint", self.records.get("fingerprint"))
        check_whole("records.num_classes", self.records.get("num_classes"), 1, 1 << 24)
        check_agrees("records.num_records", self.records.get("num_records"), "num_records", self.num_records)
        if self.num_shards > MAX_SHARDS:
            raise ValueError(f"{self.num_shards} shards are more than {MAX_SHARDS}; take a larger shard_records")
        if self.num_blocks > MAX_BLOCKS:
            raise ValueError(f"{self.num_blocks} blocks are more than {MAX_BLOCKS}; take larger blocks")
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

    def shard_record_range(self, shard: int) -> range:
        """Record ids in a shard. Raises IndexError where there is no such shard."""
        if not 0 <= shard < self.num_shards:
            raise IndexError(f"shard must be in [0, {self.num_shards}), got {shard}")
        start = shard * self.shard_records
        return range(start, min(start + self.shard_records, self.num_records))

    def block_record_range(self, block: int) -> range:
        """Record ids in a block. Raises IndexError where there is no such block."""
        if not 0 <= block < self.num_blocks:
            raise IndexError(f"block must be in [0, {self.num_blocks}), got {block}")
        shard, place = divmod(block, self._shard_blocks)
        ids = self.shard_record_range(shard)
        return ids[place * self.block_records : (place + 1) * self.block_records]

    def block_shard(self, block: int) -> int:
        """The shard that a block is in. Raises IndexError where there is no such block."""
        return self.block_record_range(block).start // self.shard_records

    def describe_block(self, block: int) -> str:
        """Name a block and its records in messages."""
        ids = self.block_record_range(block)
        return f"block {block} (records [{ids.start}, {ids.stop}))"

    def differences(self, wanted: PackedHeader) -> list[str]:
        """One line for each field that is not as in `wanted`: its dotted name and both values."""
        stored_fields, wanted_fields = self._to_json(), wanted._to_json()
        return [line for name in stored_fields for line in differences(name, stored_fields[name], wanted_fields[name])]

    def to_bytes(self) -> bytes:
        """The text of `header.json`: sorted keys, no dates, no paths, so that equal headers are equal bytes.

        Raises ValueError where it is longer than a reader accepts.
        """
        return header_text(self._to_json())

    @classmethod
    def from_bytes(cls, text: bytes, *, where: str = "header.json") -> PackedHeader:
        """Read and check a header.

        Args:
            text: content of the file.
            where: names it in errors.

        Raises:
            PackDamagedError: the bytes do not fit their own sha256, or are no JSON.
            PackFormatError: another format, a version from the future, or fields that describe no store.
        """
        stated_sha256(text, where=where, kind=KIND)
        try:
            return cls(**_header_fields(text))
        except ValueError as error:
            raise PackFormatError(f"{where} describes no packed store that this version reads: {error}") from None

    @property
    def _shard_blocks(self) -> int:
        """Blocks in a full shard."""
        return -(-self.shard_records // self.block_records)

    def _to_json(self) -> dict[str, JSON]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "layout": self.layout,
            "num_records": self.num_records,
            "image_size": self.image_size,
            "shard_records": self.shard_records,
            "block_records": self.block_records,
            "records": dict(self.records),
        }


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


def _header_fields(text: bytes) -> dict[str, Any]:
    """The constructor's arguments from a header's text. Raises ValueError."""
    names = {field.name for field in fields(PackedHeader)}
    return dict(header_fields(text, format_name=FORMAT, version=VERSION, names=names))
