"""Slots: which block is done, in which cache, with which checksum."""

from __future__ import annotations

import os
import struct
import zlib

import pytest

from adadistill.loaders.block_store.slots import EMPTY_SLOT, SlotFormat, SlotState, chunk_buffer, crc32_of

DIGEST = "0badcafe" + "00" * 28


def test_a_slot_is_laid_out_as_the_page_on_the_format_says():
    slot = SlotFormat(DIGEST).pack(7, 0x12345678)
    crc32, block, tag, own = struct.unpack("<II4sI", slot)
    assert (crc32, block, tag) == (0x12345678, 7, b"\x0b\xad\xca\xfe")
    assert own == zlib.crc32(slot[:12])
    assert SlotFormat(DIGEST).read(7, slot) == SlotState(0x12345678)
    assert SlotFormat(DIGEST).read(7, EMPTY_SLOT) == SlotState(None)
    assert SlotFormat("00" * 32).pack(0, 0) != EMPTY_SLOT


def test_every_flipped_bit_is_found():
    slots = SlotFormat(DIGEST)
    for bit in range(128):
        slot = bytearray(slots.pack(7, 0x12345678))
        slot[bit // 8] ^= 1 << bit % 8
        assert slots.read(7, bytes(slot)) == SlotState(None, "it does not fit its own checksum")


def test_a_slot_of_another_block_or_cache_is_not_believed():
    slots = SlotFormat(DIGEST)
    assert slots.read(8, slots.pack(7, 5)).damage == "it belongs to block 7"
    assert SlotFormat("ff" * 32).read(7, slots.pack(7, 5)).damage == "it belongs to another header.json"
    assert slots.read(7, slots.pack(7, 5)[:10]).damage == "the file ends before it"


# Nothing, one byte, and around the size of the buffer.
@pytest.mark.parametrize("size", [0, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_the_checksum_of_a_span_is_that_of_its_bytes(tmp_path, size):
    body = os.urandom(size + 20)
    (tmp_path / "data").write_bytes(body)
    handle = os.open(tmp_path / "data", os.O_RDONLY)
    try:
        assert crc32_of(handle, range(10, 10 + size), chunk_buffer()) == zlib.crc32(body[10 : 10 + size])
        assert crc32_of(handle, range(10, 21 + size), chunk_buffer()) is None, "the file ends a byte before"
    finally:
        os.close(handle)
