"""A cache gives the rows that were written, by record and view, and takes unit vectors only."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_cache import block_rows, build, contents, signed, small_header, unit_rows

from adadistill.loaders.block_store.errors import StoreError
from adadistill.loaders.block_store.teacher_cache import MIRRORED, PLAIN, CacheView, CacheWriter, TeacherCache

ROWS = unit_rows(small_header())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("caches") / "cache")


@pytest.fixture(scope="module")
def cache(folder) -> TeacherCache:
    return TeacherCache(folder)


@given(picks=st.lists(st.tuples(st.integers(0, 22), st.integers(0, 1)), max_size=40), use_out=st.booleans())
def test_gathered_rows_are_those_of_plain_indexing(cache, picks, use_out):
    ids, views = (np.array([pick[axis] for pick in picks], np.int64) for axis in (0, 1))
    out = np.full((len(picks), 8), np.nan, np.float16) if use_out else None
    found = cache.gather(ids, views, out)
    assert found.dtype == np.float16
    assert found.shape == (len(picks), 8)
    assert (found is out) == use_out
    np.testing.assert_array_equal(found, ROWS[ids, views])


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint64])
def test_any_integers_are_taken_as_ids(cache, dtype):
    ids, views = np.array([22, 0, 7], dtype), np.array([1, 0, 1], dtype)
    np.testing.assert_array_equal(cache.gather(ids, views), ROWS[[22, 0, 7], [1, 0, 1]])


def test_rows_go_into_a_part_of_a_larger_array(cache):
    whole = np.zeros((6, 20), np.float16)
    cache.gather(np.array([3, 4]), np.array([0, 1]), out=whole[1:5:2, 4:12])
    np.testing.assert_array_equal(whole[1:5:2, 4:12], ROWS[[3, 4], [0, 1]])
    assert np.count_nonzero(whole) == 16


@pytest.mark.parametrize(
    ("ids", "views", "named"),
    [
        ([0, 23, 5], [0, 0, 0], r"record ids must be in \[0, 23\), got 23$"),
        ([-1, 3, 99], [0, 0, 0], r"record ids .*got -1, 99$"),
        (range(100, 109), [0] * 9, r"got 100, 101, 102, 103, 104 and 4 more"),
        ([1], [2], r"view columns must be in \[0, 2\), got 2$"),
        ([1], [-1], r"view columns .*got -1$"),
    ],
)
def test_ids_and_views_out_of_range_are_named_and_nothing_is_read(cache, ids, views, named):
    out = np.zeros((len(ids), 8), np.float16)
    with pytest.raises(IndexError, match=named):
        cache.gather(np.array(ids), np.array(views), out)
    assert not out.any()


def test_huge_unsigned_ids_do_not_wrap_around(cache):
    with pytest.raises(IndexError, match="18446744073709551615"):
        cache.gather(np.array([2**64 - 1], np.uint64), np.array([0]))


@pytest.mark.parametrize(
    ("ids", "views", "reason"),
    [
        (np.zeros((2, 2), np.int64), np.zeros(4, np.int64), r"record ids must be \(n,\) integers, got int64 \(2, 2\)"),
        (np.zeros(2), np.zeros(2, np.int64), "record ids .* got float64"),
        (np.zeros(2, np.int64), np.zeros(2, bool), "view columns .* got bool"),
        (np.zeros(2, np.int64), np.zeros(3, np.int64), "one view for each record id, got 3 for 2"),
    ],
)
def test_what_are_no_ids_is_refused(cache, ids, views, reason):
    with pytest.raises(ValueError, match=reason):
        cache.gather(ids, views)


def test_an_out_that_does_not_fit_is_refused(cache):
    ids = np.array([1, 2])
    locked = np.zeros((2, 8), np.float16)
    locked.flags.writeable = False
    for out in (np.zeros((2, 8), np.float32), np.zeros((3, 8), np.float16), np.zeros((2, 4), np.float16), locked):
        with pytest.raises(ValueError, match=r"out must be writeable float16 \(2, 8\)"):
            cache.gather(ids, ids % 2, out)


def test_rows_handed_out_are_copies(cache):
    first = cache.gather(np.array([4]), np.array([0]))
    first[:] = 0.0
    np.testing.assert_array_equal(cache.gather(np.array([4]), np.array([0])), ROWS[[4], [0]])


def test_columns_of_many_views_are_found_and_read(tmp_path):
    augmented = [CacheView(kind="augmented", seed=3, view=number, policy='{"crop":0.2}') for number in range(4)]
    header = small_header(views=(augmented[2], PLAIN, augmented[0], MIRRORED, augmented[1]))
    cache = TeacherCache(build(tmp_path / "cache", header))
    rows = unit_rows(header)
    assert [cache.column(view) for view in (PLAIN, MIRRORED, *augmented)] == [1, 3, 2, 4, 0, None]
    ids, views = np.arange(23), np.arange(23) % 5
    np.testing.assert_array_equal(cache.gather(ids, views), rows[ids, views])


def test_a_cache_can_be_read_by_the_page_on_the_format_alone(folder):
    files = contents(folder)
    header = json.loads(files["header.json"])
    blank = files["header.json"].replace(header["header_sha256"].encode(), b"0" * 64)
    assert hashlib.sha256(blank).hexdigest() == header["header_sha256"]
    n, v, d, block = header["num_records"], len(header["views"]), header["embedding_dim"], header["block_records"]
    assert len(files["embeddings.bin"]) == n * v * d * 2
    for index in range(-(-n // block)):
        crc32, number, tag, own = struct.unpack_from("<II4sI", files["blocks.bin"], 16 * index)
        assert number == index
        assert tag == bytes.fromhex(header["header_sha256"])[:4]
        assert own == zlib.crc32(files["blocks.bin"][16 * index : 16 * index + 12])
        assert crc32 == zlib.crc32(files["embeddings.bin"][index * block * v * d * 2 : (index + 1) * block * v * d * 2])
    np.testing.assert_array_equal(np.frombuffer(files["embeddings.bin"], "<f2").reshape(n, v, d), ROWS)


def test_a_cache_written_by_another_program_is_read_and_continued(tmp_path):
    """By the page on the format alone, its header in another style, one block left undone."""
    content = json.loads(small_header().to_bytes())
    del content["header_sha256"]
    text = signed(content, separators=(",", ":"))
    tag = bytes.fromhex(json.loads(text)["header_sha256"])[:4]
    data, slots = ROWS.tobytes(), b""
    for index in range(5):
        first = struct.pack("<II4s", zlib.crc32(data[160 * index : 160 * index + 160]), index, tag)
        slots += first + struct.pack("<I", zlib.crc32(first))
    folder = tmp_path / "cache"
    folder.mkdir()
    for name, body in (("header.json", text), ("embeddings.bin", data), ("blocks.bin", slots[:64] + bytes(16))):
        (folder / name).write_bytes(body)
    with CacheWriter(folder, small_header(), main=True) as writer:
        assert writer.pending().tolist() == [4]
        writer.write_block(4, ROWS[20:])
    assert (folder / "header.json").read_bytes() == text
    assert (folder / "blocks.bin").read_bytes() == slots
    TeacherCache(folder).check()


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (np.zeros((5, 2, 8), np.float32), r"float16 \(5, 2, 8\), got float32"),
        (np.zeros((3, 2, 8), np.float16), r"got float16 \(3, 2, 8\)"),
        (np.zeros((5, 16), np.float16), r"got float16 \(5, 16\)"),
        ([[1.0]], "got list"),
    ],
)
def test_rows_of_a_wrong_shape_or_dtype_are_refused(tmp_path, rows, reason):
    with (
        CacheWriter(tmp_path / "cache", small_header(), main=True) as cache,
        pytest.raises(ValueError, match=f"block 1 needs {reason}" if "float16 " in reason[:8] else reason),
    ):
        cache.write_block(1, rows)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (0.0, "has norm"),
        (2.0, "has norm"),
        (float("nan"), "holds values that are not finite"),
        (float("inf"), "holds values that are not finite"),
    ],
)
def test_rows_that_are_no_unit_vectors_are_refused_with_record_and_view(tmp_path, value, reason):
    header = small_header()
    rows = unit_rows(header)[5:10].copy()
    rows[3, 1] = 0.0
    rows[3, 1, 4] = value
    with CacheWriter(tmp_path / "cache", header, main=True) as cache:
        with pytest.raises(StoreError, match=rf"record 8, view 1 \(mirrored\) {reason}"):
            cache.write_block(1, rows)
        assert cache.pending().tolist() == [0, 1, 2, 3, 4]


def test_norms_may_be_off_by_their_tolerance_and_no_more(tmp_path):
    header = small_header(num_records=1, views=(PLAIN,))
    with CacheWriter(tmp_path / "cache", header, main=True) as cache:
        row = np.zeros((1, 1, 8), np.float16)
        for norm in (0.9955, 1.0045):
            row[0, 0, 0] = norm
            cache.write_block(0, row)
        for norm in (0.9945, 1.0055):
            row[0, 0, 0] = norm
            with pytest.raises(StoreError, match="has norm"):
                cache.write_block(0, row)


def test_every_row_of_a_large_block_is_checked(tmp_path):
    header = small_header(num_records=3000, block_records=3000)
    rows = unit_rows(header)
    rows[2999, 1] *= np.float16(0.5)
    with (
        CacheWriter(tmp_path / "cache", header, main=True) as cache,
        pytest.raises(StoreError, match="record 2999, view 1"),
    ):
        cache.write_block(0, rows)


def test_rows_need_not_be_contiguous_nor_little_endian_in_memory(tmp_path, folder):
    header = small_header()
    rows = np.asfortranarray(unit_rows(header))
    with CacheWriter(tmp_path / "cache", header, main=True) as cache:
        for block in range(5):
            cache.write_block(block, block_rows(header, rows, block))
    assert contents(tmp_path / "cache") == contents(folder)
