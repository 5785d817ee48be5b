"""Which blocks of a store are done, and whether their bytes are still what was written.

`blocks.bin` has one slot of 16 bytes for each block, zeros until the block is done. A slot names its block and its
header, so that one that was copied to another place, or from another store, is not taken for one that belongs here.
docs/formats.md specifies it.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adadistill.loaders.block_store.errors import StoreDamagedError, StoreIncompleteError
from adadistill.loaders.block_store.header import DataFile, Span, StoreHeader

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

    def read_all(self, slots: bytes) -> list[SlotState]:
        """What the slots of all blocks say."""
        blocks = range(len(slots) // SLOT_BYTES)
        return [self.read(block, slots[SLOT_BYTES * block : SLOT_BYTES * (block + 1)]) for block in blocks]


def slots_file(header: StoreHeader) -> DataFile:
    """The file of the slots."""
    return DataFile(SLOTS_NAME, SLOT_BYTES * header.num_blocks)


def crc32s_of_done(folder: Path, header: StoreHeader, states: Sequence[SlotState]) -> list[int]:
    """The checksum of every block of a finished store.

    Raises:
        StoreDamagedError: a slot is neither done nor empty.
        StoreIncompleteError: some are empty.
    """
    kind, missing = header.kind, []
    for block, state in enumerate(states):
        if state.damage:
            raise StoreDamagedError(
                f"{folder / SLOTS_NAME} is damaged: the slot of {header.describe_block(block)}, at byte "
                f"{SLOT_BYTES * block}: {state.damage}. To make such blocks anew: {kind.command}"
            )
        if state.crc32 is None:
            missing.append(block)
    if missing:
        raise StoreIncompleteError(
            f"{folder} is not complete: {len(states) - len(missing)} of {len(states)} blocks are done, the first "
            f"missing one is {header.describe_block(missing[0])}. Continue its {kind.making} with: {kind.command}"
        )
    return [state.crc32 for state in states if state.crc32 is not None]


def crc32_of_spans(handles: Mapping[str, int], spans: Sequence[Span], buffer: memoryview) -> int | None:
    """crc32 of parts of files, one after the other; None where a file ends before.

    Args:
        handles: descriptors by name of file.
        buffer: see `chunk_buffer`.
    """
    crc32 = 0
    for span in spans:
        found = crc32_of(handles[span.name], span.bytes, buffer, crc32)
        if found is None:
            return None
        crc32 = found
    return crc32


def crc32_of(handle: int, span: range, buffer: memoryview, crc32: int = 0) -> int | None:
    """crc32 of bytes [start, stop) of a file, read into `buffer` piece by piece; None where the file ends before."""
    offset = span.start
    while offset < span.stop:
        count = os.preadv(handle, [buffer[: span.stop - offset]], offset)
        if not count:
            return None
        crc32, offset = zlib.crc32(buffer[:count], crc32), offset + count
    return crc32


def chunk_buffer() -> memoryview:
    """Memory for `crc32_of`."""
    return memoryview(bytearray(_CHUNK_BYTES))
