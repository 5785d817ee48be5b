"""Which blocks of a store are done, and whether their bytes are still what was written.

`blocks.bin` has one slot of 16 bytes for each block, in order, all zeros until the block is done:

    u32 crc32 of the block's bytes | u32 block | first 4 bytes of the header's sha256 | u32 crc32 of these 12 bytes

all numbers little-endian. The crc is zlib's (IEEE 802.3). Block and header are in the slot, so that a slot that was
copied to another place, or from another store, is not taken for one that belongs here.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adadistill.loaders.stored_blocks.kind import StoreKind

SLOTS_NAME = "blocks.bin"
SLOT_BYTES = 16
EMPTY_SLOT = bytes(SLOT_BYTES)

_SLOT = struct.Struct("<II4sI")
_CHUNK_BYTES = 1 << 20  # stays in the processor's own cache between reading and summing


@dataclass(frozen=True, slots=True)
class SlotState:
    """What a slot says: the crc32 of its block, or nothing; `damage` where it is neither done nor empty."""

    crc32: int | None
    damage: str = ""


class SlotFormat:
    """Makes and reads the slots of one store."""

    def __init__(self, header_sha256: str) -> None:
        self._tag = bytes.fromhex(header_sha256)[:4]

    def pack(self, block: int, crc32: int) -> bytes:
        """The slot of a block that is done."""
        first = _SLOT.pack(crc32, block, self._tag, 0)[:12]
        return first + zlib.crc32(first).to_bytes(4, "little")

    def read(self, block: int, slot: bytes) -> SlotState:
        """What the 16 bytes at the place of `block` say."""
        if len(slot) != SLOT_BYTES:
            return SlotState(None, "the file ends before it")
        if slot == EMPTY_SLOT:
            return SlotState(None)
        crc32, stated_block, tag, own_crc32 = _SLOT.unpack(slot)
        if own_crc32 != zlib.crc32(slot[:12]):
            return SlotState(None, "it does not fit its own checksum")
        if tag != self._tag:
            return SlotState(None, "it belongs to another header.json")
        if stated_block != block:
            return SlotState(None, f"it belongs to block {stated_block}")
        return SlotState(crc32)


def slot_of(slots: bytes, block: int) -> bytes:
    """The 16 bytes of one block."""
    return slots[SLOT_BYTES * block : SLOT_BYTES * (block + 1)]


def check_all_done(
    folder: Path, slots: bytes, num_blocks: int, header_sha256: str, describe: Callable[[int], str], kind: StoreKind
) -> None:
    """Refuse a store whose slots do not all say that their block is done.

    Args:
        describe: names a block and its rows in messages.

    Raises:
        kind.damaged: a slot is neither done nor empty.
        kind.incomplete: some are empty.
    """
    slot_format = SlotFormat(header_sha256)
    missing = []
    for block in range(num_blocks):
        state = slot_format.read(block, slot_of(slots, block))
        if state.damage:
            raise kind.damaged(
                f"{folder / SLOTS_NAME} is damaged: the slot of {describe(block)}, at byte {SLOT_BYTES * block}: "
                f"{state.damage}. To make such blocks anew: {kind.command}"
            )
        if state.crc32 is None:
            missing.append(block)
    if missing:
        raise kind.incomplete(
            f"{folder} is not complete: {num_blocks - len(missing)} of {num_blocks} blocks are done, the first missing "
            f"one is {describe(missing[0])}. Continue its {kind.making} with: {kind.command}"
        )


def crc32_of(handle: int, span: range, buffer: memoryview) -> int | None:
    """crc32 of bytes [start, stop) of a file, read into `buffer` piece by piece; None where the file ends before."""
    crc32, offset = 0, span.start
    while offset < span.stop:
        count = os.preadv(handle, [buffer[: span.stop - offset]], offset)
        if not count:
            return None
        crc32, offset = zlib.crc32(buffer[:count], crc32), offset + count
    return crc32


def chunk_buffer() -> memoryview:
    """Memory for `crc32_of`."""
    return memoryview(bytearray(_CHUNK_BYTES))
