"""Which blocks of a packed store are done, and whether their bytes are still what was written.

`blocks.bin` holds a slot of 16 bytes for each block, as in a teacher cache (`loaders.teacher_cache.blocks`). The crc32
in it is of the block's images, then of its labels.
"""

from __future__ import annotations

import os
import zlib

from adadistill.loaders.packed_store.errors import PackDamagedError, PackIncompleteError
from adadistill.loaders.packed_store.files import HEAD_BYTES, PACK_COMMAND, SLOTS_NAME
from adadistill.loaders.packed_store.header import PackedHeader
from adadistill.loaders.teacher_cache.blocks import SLOT_BYTES, SlotFormat, crc32_of
from adadistill.loaders.teacher_cache.files import read_start


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
        buffer: see `chunk_buffer` of the teacher cache's blocks.
    """
    images = crc32_of(shard, image_span(header, block), buffer)
    span = label_span(header, block)
    body = os.pread(labels, len(span), span.start)
    if images is None or len(body) != len(span):
        return None
    return zlib.crc32(body, images)


def read_slots(handle: int, header: PackedHeader) -> bytes:
    """All slots of an open `blocks.bin`."""
    return read_start(handle, SLOT_BYTES * header.num_blocks)


def slot_of(slots: bytes, block: int) -> bytes:
    """The 16 bytes of one block."""
    return slots[SLOT_BYTES * block : SLOT_BYTES * (block + 1)]


def check_all_done(where: str, header: PackedHeader, header_sha256: str, slots: bytes) -> None:
    """Refuse a store whose slots do not all say that their block is done.

    Args:
        where: the folder, for messages.

    Raises:
        PackDamagedError: a slot is neither done nor empty.
        PackIncompleteError: some are empty.
    """
    slot_format = SlotFormat(header_sha256)
    missing = []
    for block in range(header.num_blocks):
        state = slot_format.read(block, slot_of(slots, block))
        if state.damage:
            raise PackDamagedError(
                f"{where}/{SLOTS_NAME} is damaged: the slot of {header.describe_block(block)}, at byte "
                f"{SLOT_BYTES * block}: {state.damage}. To pack such blocks anew: {PACK_COMMAND}"
            )
        if state.crc32 is None:
            missing.append(block)
    if missing:
        raise PackIncompleteError(
            f"{where} is not complete: {header.num_blocks - len(missing)} of {header.num_blocks} blocks are done, "
            f"the first missing one is {header.describe_block(missing[0])}. Continue with: {PACK_COMMAND}"
        )
