"""The fields of a packed store's header that no other store has: layout, shards, and files that numpy opens."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_cache import signed
from small_stores import RECORDS, content_of, small_packed_header

from adadistill.loaders.block_store.errors import StoreError
from adadistill.loaders.block_store.packed_header import PackedHeader, image_bytes, packed_header


def test_a_face_has_half_the_bytes_as_planes():
    assert (image_bytes("planes", 112), image_bytes("rgb", 112)) == (18_816, 37_632)


@settings(max_examples=25)
@given(num_records=st.integers(1, 100), shard_records=st.integers(1, 40), block_records=st.integers(1, 40))
def test_blocks_cut_all_records_in_order_and_never_cross_a_shard(num_records, shard_records, block_records):
    header = small_packed_header(
        num_records=num_records, shard_records=shard_records, block_records=min(block_records, shard_records)
    )
    ranges = [header.block_record_range(block) for block in range(header.num_blocks)]
    assert [record_id for ids in ranges for record_id in ids] == list(range(num_records))
    sizes = {file.name: file.size for file in header.files()}
    assert len(sizes) == header.num_shards + 1
    ends = dict.fromkeys(sizes, 128)
    for block, ids in enumerate(ranges):
        assert 1 <= len(ids) <= header.block_records
        images, labels = header.block_spans(block)
        assert (images.name, len(images.bytes)) == (
            f"shard-{ids[0] // shard_records:05d}.npy",
            len(ids) * header.image_bytes,
        )
        assert (labels.name, len(labels.bytes)) == ("labels.npy", 8 * len(ids))
        for span in (images, labels):
            assert span.bytes.start == ends[span.name], "no byte lies between two blocks"
            ends[span.name] = span.bytes.stop
    assert ends == sizes


def test_blocks_stay_small_however_large_the_images_are():
    records = RECORDS | {"num_records": 23}
    usual = packed_header("planes", num_records=23, image_size=112, shard_records=65536, records=records)
    large = packed_header("rgb", num_records=23, image_size=2048, shard_records=65536, records=records)
    assert (usual.block_records, large.block_records) == (1024, 5)
    assert large.block_records * large.image_bytes <= 1 << 26


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"layout": "yuv"}, "layout must be planes or rgb"),
        ({"layout": "planes", "image_size": 31}, "even image_size"),
        ({"image_size": 4096}, "image_size must be a whole number"),
        ({"block_records": 11}, r"block_records must be a whole number in \[1, 10\]"),
        ({"num_records": 10_000, "shard_records": 1, "block_records": 1}, "10000 shards are more than 4096"),
        ({"num_records": 1 << 22, "shard_records": 1 << 22, "block_records": 1}, "blocks are more than"),
        ({"shard_records": 1 << 21, "block_records": 1 << 21}, "blocks of 2097152 images have more than"),
        ({"records": RECORDS | {"num_records": 23, "num_classes": 0}}, "records.num_classes must be"),
    ],
)
def test_what_no_store_could_be_is_refused(changes, reason):
    with pytest.raises(ValueError, match=reason):
        small_packed_header(**changes)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": "adadistill-teacher-cache"}, "its format is 'adadistill-teacher-cache'"),
        ({"layout": None}, "layout must be planes or rgb"),
    ],
)
def test_signed_headers_of_strangers_are_checked_all_the_same(change, reason):
    with pytest.raises(StoreError, match=reason):
        PackedHeader.from_bytes(signed(content_of(small_packed_header(), **change)))
