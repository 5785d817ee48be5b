"""A cache gives the rows that were written, takes unit vectors only, and is refused by whom it does not fit."""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_cache import TEACHER, build, signed, small_header, unit_rows

from adadistill.loaders.block_store.errors import StoreError
from adadistill.loaders.block_store.teacher_cache import MIRRORED, PLAIN, CacheView, CacheWriter, TeacherCache

ROWS = unit_rows(small_header())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("caches") / "cache")


@pytest.fixture(scope="module")
def cache(folder) -> TeacherCache:
    return TeacherCache(folder)


@settings(max_examples=30)
@given(picks=st.lists(st.tuples(st.integers(0, 22), st.integers(0, 1)), max_size=40), use_out=st.booleans())
def test_gathered_rows_are_those_of_plain_indexing(cache, picks, use_out):
    ids, views = (np.array([pick[axis] for pick in picks], np.int64) for axis in (0, 1))
    out = np.full((len(picks), 8), np.nan, np.float16) if use_out else None
    found = cache.gather(ids, views, out)
    assert found.dtype == np.float16
    assert found.shape == (len(picks), 8)
    assert (found is out) == use_out
    np.testing.assert_array_equal(found, ROWS[ids, views])


@pytest.mark.parametrize(
    ("ids", "views", "named"),
    [
        ([-1, 3, 99], [0, 0, 0], r"record ids must be in \[0, 23\), got -1, 99$"),
        (range(100, 109), [0] * 9, r"got 100, 101, 102, 103, 104 and 4 more"),
        (np.array([2**64 - 1], np.uint64), [0], "got 18446744073709551615"),
        ([1], [2], r"view columns must be in \[0, 2\), got 2$"),
    ],
)
def test_ids_and_views_out_of_range_are_named_and_nothing_is_read(cache, ids, views, named):
    out = np.zeros((len(ids), 8), np.float16)
    with pytest.raises(IndexError, match=named):
        cache.gather(np.array(ids), np.array(views), out)
    assert not out.any()


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


def test_columns_of_many_views_are_found_and_read(tmp_path):
    augmented = [CacheView(kind="augmented", seed=3, view=number, policy='{"crop":0.2}') for number in range(4)]
    header = small_header(views=(augmented[2], PLAIN, augmented[0], MIRRORED, augmented[1]))
    cache = TeacherCache(build(tmp_path / "cache", header))
    rows = unit_rows(header)
    assert [cache.column(view) for view in (PLAIN, MIRRORED, *augmented)] == [1, 3, 2, 4, 0, None]
    ids, views = np.arange(23), np.arange(23) % 5
    np.testing.assert_array_equal(cache.gather(ids, views), rows[ids, views])


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


def test_rows_of_a_wrong_shape_or_dtype_are_refused(tmp_path):
    with CacheWriter(tmp_path / "cache", small_header(), main=True) as cache:
        for rows, found in (
            (np.zeros((5, 2, 8), np.float32), "float32"),
            (np.zeros((3, 2, 8), np.float16), r"float16 \(3, 2, 8\)"),
            ([[1.0]], "list"),
        ):
            with pytest.raises(ValueError, match=rf"block 1 needs float16 \(5, 2, 8\), got {found}"):
                cache.write_block(1, rows)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (0.0, "has norm"),
        (float("nan"), "holds values that are not finite"),
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


RECORDS = {"fingerprint": "cd" * 32, "num_records": 23, "num_classes": 7, "name": "train.rec"}
POLICY = '{"crop":0.2}'


def augmented(view: int, seed: int = 3, policy: str = POLICY) -> CacheView:
    return CacheView(kind="augmented", seed=seed, view=view, policy=policy)


# ---- what it is bound to


def _refusal(cache, teacher=TEACHER, records=RECORDS, views=(PLAIN, MIRRORED)) -> str:
    with pytest.raises(StoreError) as refused:
        cache.require(teacher=teacher, records=records, views=views)
    text = str(refused.value)
    assert str(cache.folder) in text
    assert text.endswith("rebuild with: adadistill cache build RECIPE")
    return text


def test_what_is_not_stated_and_what_does_not_change_a_row_does_not_bind(cache):
    both = (PLAIN, MIRRORED)
    moved = RECORDS | {"name": "moved.rec", "num_classes": 8}
    for teacher, records, views in (
        (TEACHER, RECORDS, both),
        (TEACHER, RECORDS, (MIRRORED,)),
        (None, RECORDS, ()),
        (TEACHER | {"name": "other.pth", "kind": "cvlface"}, moved, ()),
        ({"sha256": TEACHER["sha256"]}, {"fingerprint": "cd" * 32, "num_records": 23}, (PLAIN,)),
    ):
        cache.require(teacher=teacher, records=records, views=views)


def test_another_teacher_is_named_with_both_hashes_and_nothing_else(cache):
    other = TEACHER | {"sha256": "99" * 32, "name": "ir101.pth", "arch": "ir101"}
    text = _refusal(cache, teacher=other)
    assert "another teacher: it was written by 'ir50.pth' with sha256 abab" in text
    assert f"this run loads 'ir101.pth' with sha256 {'99' * 32}" in text
    assert "another network" not in text


@pytest.mark.parametrize(
    ("teacher", "account"),
    [
        ({"image_size": 160}, "saw their images another way; image_size: 112 stored, 160 wanted"),
        ({"preprocessing": TEACHER["preprocessing"] | {"color": "bgr"}}, "preprocessing.color: 'rgb' stored, 'bgr'"),
        ({"preprocessing": TEACHER["preprocessing"] | {"mean": [0, 0, 0]}}, "preprocessing.mean: [0.5, 0.5, 0.5] "),
        ({"arch": "r50"}, "were read as another network; arch: 'ir50' stored, 'r50' wanted"),
    ],
)
def test_the_same_weights_used_in_another_way_have_their_own_account(cache, teacher, account):
    text = _refusal(cache, teacher=TEACHER | teacher)
    assert account in text
    assert "another teacher" not in text


def test_a_cache_that_does_not_say_how_its_teacher_sees_does_not_fit_a_teacher_that_does(tmp_path):
    cache = TeacherCache(build(tmp_path / "cache", small_header(teacher={"sha256": TEACHER["sha256"]})))
    assert "image_size: None stored, 112 wanted" in _refusal(cache)
    cache.require(teacher=None, records=RECORDS, views=(PLAIN,))


@pytest.mark.parametrize("change", [{"fingerprint": "ee" * 32}, {"num_records": 24}])
def test_other_records_are_named(cache, change):
    text = _refusal(cache, records=RECORDS | change | {"name": "other.rec"})
    assert "other records: it was made of 'train.rec' with 23 image records, fingerprint cdcd" in text
    assert "this run reads 'other.rec'" in text


@pytest.mark.parametrize(
    ("stored", "wanted", "account"),
    [
        ((PLAIN,), [PLAIN, MIRRORED], "missing view mirrored: the recipe mirrors images (data.mirror_probability > 0)"),
        ((MIRRORED,), [PLAIN, MIRRORED], "missing view plain: the recipe shows images as they are"),
        (
            (PLAIN, MIRRORED),
            [augmented(0), augmented(1)],
            "missing augmented view 0 of seed 3, policy '{\"crop\":0.2}' (and 1 more): the recipe augments images, and "
            "this cache holds plain and mirrored views only",
        ),
        ((augmented(0), augmented(1)), [augmented(2)], "this cache holds 2 views of that seed, 0 to 1"),
        ((augmented(0, seed=4),), [augmented(0)], "this cache's have another seed: 4"),
        (
            (augmented(0, policy='{"crop":0.3}'),),
            [augmented(0)],
            "augmented in another way: augmented view 0 of seed 3",
        ),
    ],
)
def test_a_view_that_is_missing_is_named_with_what_is_there_instead(tmp_path, stored, wanted, account):
    cache = TeacherCache(build(tmp_path / "cache", small_header(views=stored)))
    assert account in _refusal(cache, views=wanted)


def test_all_mismatches_are_told_at_once(tmp_path):
    header = replace(small_header(), views=(PLAIN,))
    cache = TeacherCache(build(tmp_path / "cache", header))
    text = _refusal(cache, teacher=TEACHER | {"image_size": 96, "arch": "r50"}, records=RECORDS | {"num_records": 9})
    for account in ("other preprocessing", "another network", "other records", "missing view mirrored"):
        assert account in text


@pytest.mark.parametrize(
    ("teacher", "records"),
    [({"name": "x"}, RECORDS), (TEACHER, {"fingerprint": "cd" * 32}), (TEACHER | {"x": float("nan")}, RECORDS)],
)
def test_a_caller_who_does_not_say_what_it_has_is_refused(cache, teacher, records):
    with pytest.raises(ValueError, match=r"must be an object with|nan") as refused:
        cache.require(teacher=teacher, records=records, views=())
    assert not isinstance(refused.value, StoreError)


def test_names_from_strangers_are_shown_without_their_control_characters(tmp_path):
    header = small_header(teacher=TEACHER | {"name": "\x1b[2Jevil\n" + "x" * 10_000})
    cache = TeacherCache(build(tmp_path / "cache", header))
    text = _refusal(cache, teacher=json.loads(json.dumps(TEACHER | {"sha256": "99" * 32})))
    assert "\x1b" not in text
    assert len(text) < 1500
