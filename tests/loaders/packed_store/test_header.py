"""Headers say what a store is, are the same bytes for the same store, and are believed only when all of it is right."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_cache import signed

from adadistill.loaders.packed_store import PackDamagedError, PackedHeader, PackFormatError, image_bytes
from adadistill.loaders.packed_store.header import packed_header
from adadistill.loaders.stored_blocks.header_text import MAX_HEADER_BYTES

RECORDS = {"fingerprint": "cd" * 32, "num_records": 23, "num_classes": 7, "name": "train.rec"}


def make_header(**changes: Any) -> PackedHeader:
    fields: dict[str, Any] = {
        "layout": "planes", "num_records": 23, "image_size": 32, "shard_records": 5, "block_records": 2,
    }  # fmt: skip
    fields |= changes
    return PackedHeader(**({"records": RECORDS | {"num_records": fields["num_records"]}} | fields))


def content_of(header: PackedHeader) -> dict[str, Any]:
    content = json.loads(header.to_bytes())
    del content["header_sha256"]
    return content


def test_a_face_has_half_the_bytes_as_planes():
    assert (image_bytes("planes", 112), image_bytes("rgb", 112)) == (18_816, 37_632)


def test_headers_come_back_as_they_were():
    header = make_header()
    assert PackedHeader.from_bytes(header.to_bytes()) == header
    assert header.to_bytes() == make_header(records=dict(reversed(RECORDS.items()))).to_bytes()


def test_headers_of_other_writers_are_read_in_any_style():
    header = make_header()
    assert PackedHeader.from_bytes(signed(content_of(header), indent=None, separators=(",", ":"))) == header


@given(
    num_records=st.integers(1, 300),
    shard_records=st.integers(1, 80),
    block_records=st.integers(1, 80),
)
def test_blocks_cut_all_records_in_order_and_never_cross_a_shard(num_records, shard_records, block_records):
    block_records = min(block_records, shard_records)
    header = make_header(num_records=num_records, shard_records=shard_records, block_records=block_records)
    ranges = [header.block_record_range(block) for block in range(header.num_blocks)]
    assert [record_id for ids in ranges for record_id in ids] == list(range(num_records))
    for block, ids in enumerate(ranges):
        assert 1 <= len(ids) <= block_records
        assert set(ids) <= set(header.shard_record_range(header.block_shard(block)))
    shards = [header.shard_record_range(shard) for shard in range(header.num_shards)]
    assert [record_id for ids in shards for record_id in ids] == list(range(num_records))
    with pytest.raises(IndexError, match="block must be in"):
        header.block_record_range(header.num_blocks)


def test_blocks_stay_small_however_large_the_images_are():
    assert (
        packed_header("planes", num_records=23, image_size=112, shard_records=65536, records=RECORDS).block_records
        == 1024
    )
    large = packed_header("rgb", num_records=23, image_size=2048, shard_records=65536, records=RECORDS)
    assert large.block_records * large.image_bytes <= 1 << 26
    assert large.block_records == 5


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"layout": "yuv"}, "layout must be planes or rgb"),
        ({"image_size": 31}, "even image_size"),
        ({"image_size": 4096}, "image_size must be a whole number"),
        ({"num_records": 0}, "num_records must be"),
        ({"num_records": True}, "num_records must be"),
        ({"block_records": 6}, r"block_records must be a whole number in \[1, 5\]"),
        ({"num_records": 10_000, "shard_records": 1, "block_records": 1}, "10000 shards are more than 4096"),
        ({"num_records": 1 << 22, "shard_records": 1 << 22, "block_records": 1}, "blocks are more than"),
        ({"shard_records": 1 << 20, "block_records": 1 << 20}, "blocks of 1048576 images have more than"),
        ({"records": RECORDS | {"num_records": 22}}, r"records.num_records must be num_records \(23\)"),
        ({"records": RECORDS | {"fingerprint": "no"}}, "records.fingerprint must be a sha256"),
        ({"records": RECORDS | {"num_classes": 0}}, "records.num_classes must be"),
        ({"records": RECORDS | {"name": float("nan")}}, "records cannot be stored"),
    ],
)
def test_what_no_store_could_be_is_refused(changes, reason):
    with pytest.raises(ValueError, match=reason):
        make_header(**changes)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": "adadistill-teacher-cache"}, "its format is 'adadistill-teacher-cache'"),
        ({"version": 2}, "version 2, from the future"),
        ({"colour": "yes"}, "unknown field 'colour'"),
        ({"layout": None}, "layout must be planes or rgb"),
        ({"image_size": "32"}, "image_size must be a whole number"),
        ({"num_records": 1 << 60}, "num_records must be a whole number"),
    ],
)
def test_signed_headers_of_strangers_are_checked_all_the_same(change, reason):
    with pytest.raises(PackFormatError, match=reason):
        PackedHeader.from_bytes(signed(content_of(make_header()) | change), where="a/header.json")


def test_a_missing_field_is_named():
    content = content_of(make_header())
    del content["layout"]
    with pytest.raises(PackFormatError, match="field 'layout' is missing"):
        PackedHeader.from_bytes(signed(content))


def test_every_edit_of_a_header_is_seen():
    text = make_header().to_bytes()
    for place in range(0, len(text), 3):
        broken = bytearray(text)
        broken[place] ^= 1
        with pytest.raises((PackDamagedError, PackFormatError)):
            PackedHeader.from_bytes(bytes(broken))
    with pytest.raises(PackDamagedError, match="is damaged"):
        PackedHeader.from_bytes(text[:-40])


@pytest.mark.parametrize("text", [b"{}", b"[1]", b" " * (MAX_HEADER_BYTES + 1)])
def test_what_is_no_header_is_refused(text):
    with pytest.raises(PackFormatError, match=r"no packed store|no header"):
        PackedHeader.from_bytes(text)


def test_differences_name_fields_and_both_values():
    other = make_header(image_size=64, records=RECORDS | {"fingerprint": "ef" * 32})
    assert make_header().differences(other) == [
        "image_size: 32 stored, 64 wanted",
        f"records.fingerprint: '{'cd' * 32}' stored, '{'ef' * 32}' wanted",
    ]
    assert make_header().differences(make_header()) == []
