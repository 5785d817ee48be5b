"""Where the bytes of a block of a packed store lie, and what they sum to: its images, then its labels."""

from __future__ import annotations

import os
import zlib

from adadistill.loaders.packed_store.files import HEAD_BYTES
from adadistill.loaders.packed_store.header import PackedHeader
from adadistill.loaders.stored_blocks.slots import crc32_of


def image_span(header: PackedHeader, block: int) -> range:
    """Bytes of a block's images in the file of its shard."""
    ids = header.block_record_range(block)
    first = ids.start % header.shard_records
    start = HEAD_BYTES + first * header.image_bytes
    return range(start, start + len(ids) * header.image_bytes)


def label_span(header: PackedHeader, block: int) -> range:
    """Bytes of a block's labels in `labels.npy`."""
    ids = header.block_record_range(block)
    return range(HEAD_BYTES + 8 * ids.start, HEAD_BYTES + 8 * ids.stop)


def block_crc32(header: PackedHeader, block: int, shard: int, labels: int, buffer: memoryview) -> int | None:
    """crc32 of a block as it is on disk, or None where a file ends before it.

    Args:
        shard: descriptor of the block's shard; `labels`: of `labels.npy`.
        buffer: see `stored_blocks.slots.chunk_buffer`.
    """
    images = crc32_of(shard, image_span(header, block), buffer)
    span = label_span(header, block)
    body = os.pread(labels, len(span), span.start)
    if images is None or len(body) != len(span):
        return None
    return zlib.crc32(body, images)
