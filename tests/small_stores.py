"""The two faces of the block store, small and alike, for tests of what they share.

Both hold 23 records in blocks of five, so that block 2 is [10, 15) in either; the packed store has its images in three
shards of ten and its labels in a file of their own.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from small_cache import block_rows, small_header, unit_rows

from adadistill.loaders.block_store.packed_header import PackedHeader
from adadistill.loaders.block_store.packed_images import PackedStore, PackWriter
from adadistill.loaders.block_store.teacher_cache import CacheWriter, TeacherCache

RECORDS = {"fingerprint": "cd" * 32, "num_classes": 7, "name": "train.rec"}


def small_packed_header(**changes: Any) -> PackedHeader:
    """23 images of 4 x 4 pixels in RGB, in shards of 10 and blocks of 5, unless changed."""
    fields: dict[str, Any] = {
        "layout": "rgb", "num_records": 23, "image_size": 4, "shard_records": 10, "block_records": 5,
    }  # fmt: skip
    fields |= changes
    return PackedHeader(**({"records": RECORDS | {"num_records": fields["num_records"]}} | fields))


class CacheFace:
    """A cache of teacher embeddings."""

    name, making, command = "cache", "build", "adadistill cache build RECIPE"
    reader, writer = TeacherCache, CacheWriter
    header = staticmethod(small_header)
    files = ("blocks.bin", "embeddings.bin", "header.json")
    rows_file, other = "embeddings.bin", "shard-00000.npy"
    begun_anew = ({}, {"num_records": 100})
    byte_of_block_2 = 2 * 5 * 32 + 7
    two_blocks = MappingProxyType({"num_records": 7})

    def write(self, writer: CacheWriter, block: int, seed: int = 0) -> None:
        """Write one block."""
        writer.write_block(block, block_rows(writer.header, unit_rows(writer.header, seed), block))

    def finish(self, writer: CacheWriter) -> None:
        """What comes after the last block."""

    def gathered(self, reader: TeacherCache, ids: Any) -> np.ndarray:
        """Rows of record ids."""
        return reader.gather(np.asarray(ids), np.ones(len(ids), np.int64))

    def expected(self, ids: Any, seed: int = 0) -> np.ndarray:
        """What `gathered` has to give."""
        return unit_rows(small_header(), seed)[ids, 1]


class PackedFace:
    """A packed store of images."""

    name, making, command = "packed store", "packing", "adadistill data pack RECORDS FOLDER"
    reader, writer = PackedStore, PackWriter
    header = staticmethod(small_packed_header)
    files = ("blocks.bin", "damaged.json", "header.json", "labels.npy", *(f"shard-{n:05d}.npy" for n in range(3)))
    rows_file, other = "shard-00001.npy", "embeddings.bin"
    begun_anew = ({}, {"shard_records": 5})
    byte_of_block_2 = 128 + 7
    two_blocks = MappingProxyType({"num_records": 7, "shard_records": 5})
    """In two shards."""

    def write(self, writer: PackWriter, block: int, seed: int = 0) -> None:
        """Write one block."""
        ids = np.array(writer.header.block_record_range(block))
        writer.write_block(block, self._images(ids, seed), ids % 7)

    def finish(self, writer: PackWriter) -> None:
        """What comes after the last block."""
        writer.write_damaged_list()

    def gathered(self, reader: PackedStore, ids: Any) -> np.ndarray:
        """Rows of record ids."""
        return reader.gather(ids)

    def expected(self, ids: Any, seed: int = 0) -> np.ndarray:
        """What `gathered` has to give."""
        return self._images(np.asarray(ids), seed)

    def _images(self, ids: np.ndarray, seed: int) -> np.ndarray:
        return np.stack([np.random.default_rng([seed, record]).integers(0, 256, 48, np.uint8) for record in ids])


Face = CacheFace | PackedFace


def build(face: Face, folder: Path, header: Any = None, *, seed: int = 0) -> Path:
    """Build a store, or finish one, in this process."""
    with face.writer(folder, header or face.header(), main=True) as writer:
        for block in writer.pending().tolist():
            face.write(writer, block, seed)
        face.finish(writer)
    return folder


def content_of(header: Any, **changes: Any) -> dict[str, Any]:
    """The fields of a header, ready to be signed anew."""
    content: dict[str, Any] = json.loads(header.to_bytes()) | changes
    del content["header_sha256"]
    return content


def block_2(text: str) -> bool:
    """Whether a message names block 2."""
    return re.search(r"block 2 \(records \[10, 15\)\)", text) is not None
