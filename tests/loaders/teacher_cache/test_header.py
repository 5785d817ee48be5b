"""Headers: equal headers are equal bytes, and what is not exactly a header is refused with its reason."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_cache import TEACHER, signed, small_header

from adadistill.loaders.teacher_cache import (
    MIRRORED,
    PLAIN,
    CacheDamagedError,
    CacheFormatError,
    CacheHeader,
    CacheView,
)

AUGMENTED = CacheView(kind="augmented", seed=3, view=0, policy='{"crop":0.2}')


def _content(**changes) -> dict:
    content = json.loads(small_header().to_bytes()) | changes
    del content["header_sha256"]
    return content


def test_a_header_is_read_back_as_it_was():
    header = small_header(views=(PLAIN, MIRRORED, AUGMENTED))
    again = CacheHeader.from_bytes(header.to_bytes())
    assert again == header
    assert again.to_bytes() == header.to_bytes()


@given(
    built=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers(-(2**63), 2**63 - 1)
            | st.floats(allow_nan=False, allow_infinity=False),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
            max_leaves=8,
        ),
        max_size=4,
    ),
    records=st.integers(1, 10**9),
    block=st.integers(2048, 4096),
)
def test_any_header_is_read_back_as_it_was(built, records, block):
    header = small_header(num_records=records, block_records=block, built=built)
    assert CacheHeader.from_bytes(header.to_bytes()) == header


def test_equal_headers_are_equal_bytes_whatever_the_order_of_their_keys():
    backwards = dict(reversed(TEACHER.items()))
    assert small_header(teacher=backwards).to_bytes() == small_header().to_bytes()


def test_tuples_and_lists_make_the_same_header():
    lists = TEACHER | {"preprocessing": {"color": "rgb", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}
    assert small_header(teacher=lists) == small_header()


def test_a_header_does_not_follow_later_changes_of_what_it_was_made_from():
    built = {"batch_size": 4}
    header = small_header(built=built)
    built["batch_size"] = 8
    assert header.built["batch_size"] == 4


def test_a_header_written_in_another_style_is_read():
    for style in ({"separators": (",", ":")}, {"indent": 7}, {"sort_keys": True, "ensure_ascii": False}):
        assert CacheHeader.from_bytes(signed(_content(), **style)) == small_header()


def test_sizes_follow_from_the_fields():
    header = small_header(num_records=23, embedding_dim=8, block_records=5)
    assert (header.num_views, header.num_blocks, header.row_bytes, header.record_bytes) == (2, 5, 16, 32)
    assert header.data_bytes == 23 * 32
    assert header.block_record_range(4) == range(20, 23)
    assert header.block_byte_range(4) == range(640, 736)
    assert small_header(num_records=25).block_record_range(4) == range(20, 25)
    assert small_header(num_records=1, block_records=100).num_blocks == 1


@pytest.mark.parametrize("block", [-1, 5])
def test_a_block_out_of_range_is_named(block):
    with pytest.raises(IndexError, match=rf"\[0, 5\), got {block}"):
        small_header().block_byte_range(block)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_records": 0}, "num_records"),
        ({"num_records": True}, "num_records"),
        ({"num_records": 23.0}, "num_records"),
        ({"num_records": 1 << 41}, "num_records"),
        ({"embedding_dim": 0}, "embedding_dim"),
        ({"embedding_dim": (1 << 16) + 1}, "embedding_dim"),
        ({"block_records": 0}, "block_records"),
        ({"block_records": "5"}, "block_records"),
        ({"num_records": 1 << 21, "block_records": 1}, "take larger blocks"),
        ({"num_records": 1 << 27, "block_records": 1 << 27}, "take smaller blocks"),
        ({"views": ()}, "1 to 1024 views, got 0"),
        ({"views": (PLAIN, PLAIN)}, "views 0 and 1 are the same: plain"),
        ({"views": (AUGMENTED, PLAIN, AUGMENTED)}, "views 0 and 2 are the same: augmented view 0 of seed 3"),
        ({"views": ("plain",)}, "CacheViews"),
        ({"teacher": {"name": "x"}}, "teacher.sha256"),
        ({"teacher": TEACHER | {"sha256": "AB" * 32}}, "teacher.sha256"),
        ({"teacher": TEACHER | {"embedding_dim": 16}}, r"teacher.embedding_dim must be embedding_dim \(8\), got 16"),
        ({"teacher": ["ab" * 32]}, "teacher must be an object"),
        ({"records": {"fingerprint": "cd" * 32, "num_records": 22}}, r"records.num_records must be num_records \(23\)"),
        ({"records": {"fingerprint": "cd" * 31, "num_records": 23}}, "records.fingerprint"),
        ({"built": {"loss": float("nan")}}, "built cannot be stored: nan"),
        ({"built": {"loss": float("inf")}}, "built cannot be stored: inf"),
        ({"built": {"text": "\ud800"}}, "half a surrogate pair"),
        ({"built": {"count": 1 << 63}}, "64 bits"),
        ({"built": {"set": {1}}}, "set is not a JSON value"),
        ({"built": {1: 2}}, "keys must be text"),
    ],
)
def test_a_header_that_makes_no_sense_is_refused_with_its_reason(changes, reason):
    with pytest.raises(ValueError, match=reason):
        small_header(**changes)


def test_deep_values_are_refused():
    deep: list = []
    for _ in range(20):
        deep = [deep]
    with pytest.raises(ValueError, match="deeper than 16"):
        small_header(built={"deep": deep})


def test_a_header_beyond_the_limit_is_refused_when_it_is_written_and_when_it_is_read():
    header = small_header(built={"text": "x" * (1 << 20)})
    with pytest.raises(ValueError, match="1048576 are allowed"):
        header.to_bytes()
    with pytest.raises(CacheFormatError, match="more than a header's 1048576"):
        CacheHeader.from_bytes(signed(_content(built={"text": "x" * (1 << 20)})))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (_content(format="numpy"), "format is 'numpy'"),
        (_content(version=2), "version 2, from the future"),
        (_content(version=2, new_field=1), "version 2, from the future"),
        (_content(version="1"), "version must be a whole number"),
        (_content(version=True), "version must be a whole number"),
        (_content(dtype="float32"), "dtype is 'float32'"),
        (_content(created="today"), "unknown field 'created'"),
        ({key: value for key, value in _content().items() if key != "built"}, "field 'built' is missing"),
        (_content(views={}), "views must be a list"),
        (_content(views=[]), "1 to 1024 views"),
        (_content(views=["plain"]), "a view has kind"),
        (_content(views=[{"kind": "plain", "angle": 3}]), "a view has kind"),
        (_content(views=[{"kind": "rotated"}]), "kind of a view"),
        (_content(views=[{"kind": "plain", "seed": 1}]), "a plain view has no seed"),
        (_content(views=[{"kind": "augmented", "seed": 1}]), "needs seed, view and policy"),
        (_content(views=[{"kind": "augmented", "seed": -1, "view": 0, "policy": "{}"}]), "seed of a view"),
        (_content(views=[{"kind": "augmented", "seed": 1, "view": 1.5, "policy": "{}"}]), "view of a view"),
        (_content(views=[{"kind": "augmented", "seed": 1, "view": 0, "policy": {}}]), "policy of a view"),
        (_content(views=[{"kind": "plain"}, {"kind": "plain"}]), "are the same"),
        (_content(num_records=0), "num_records"),
        (_content(num_records=None), "num_records"),
        (_content(built=[]), "built must be an object"),
        (_content(built={"loss": float("nan")}), "nan"),
        (_content(built={"loss": float("-inf")}), "-inf"),
    ],
)
def test_a_sound_file_that_describes_no_cache_is_refused_with_its_reason(content, reason):
    with pytest.raises(CacheFormatError, match=reason):
        CacheHeader.from_bytes(signed(content))


def test_a_repeated_key_is_refused():
    twice = small_header().to_bytes().replace(b'"version": 1', b'"version": 1, "version": 1')
    body = json.loads(twice)
    del body["header_sha256"]
    text = twice.decode().replace(json.loads(twice)["header_sha256"], "0" * 64)
    resigned = text.replace("0" * 64, hashlib.sha256(text.encode()).hexdigest()).encode()
    with pytest.raises(CacheFormatError, match="key 'version' is given twice"):
        CacheHeader.from_bytes(resigned)


def test_an_edited_header_is_damaged():
    edited = small_header().to_bytes().replace(b'"ir50.pth"', b'"ir99.pth"')
    with pytest.raises(CacheDamagedError, match=r"somewhere/header\.json is damaged or was edited"):
        CacheHeader.from_bytes(edited, where="somewhere/header.json")


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[1, 2", b"[" * 100_000])
def test_what_is_no_json_is_damaged(text):
    with pytest.raises(CacheDamagedError, match=r"header\.json is damaged"):
        CacheHeader.from_bytes(text)


@pytest.mark.parametrize("text", [b"{}", b"[]", b'{"header_sha256": "abc"}', b'"header_sha256"'])
def test_json_that_is_no_header_is_of_another_format(text):
    with pytest.raises(CacheFormatError, match="no header of a cache"):
        CacheHeader.from_bytes(text)


def test_a_second_sha256_of_the_header_is_refused():
    with pytest.raises(CacheFormatError, match="2 times"):
        CacheHeader.from_bytes(signed(_content(built={"header_sha256": "a" * 64})))


def test_a_text_that_looks_like_the_sha256_field_does_no_harm():
    header = small_header(built={"note": '"header_sha256": "' + "a" * 64 + '"'})
    assert CacheHeader.from_bytes(header.to_bytes()) == header


def test_differences_name_every_field_with_both_values():
    other = replace(
        small_header(),
        block_records=7,
        views=(PLAIN,),
        teacher=TEACHER | {"sha256": "99" * 32, "extra": 1},
        built={"precision": "bfloat16", "decoder": "cpu"},
    )
    lines = small_header().differences(other)
    assert len(lines) == 5
    assert "block_records: 5 stored, 7 wanted" in lines
    assert f"teacher.sha256: '{'ab' * 32}' stored, '{'99' * 32}' wanted" in lines
    assert "teacher.extra: nothing stored, 1 wanted" in lines
    assert "built.precision: 'float32' stored, 'bfloat16' wanted" in lines
    assert any(line.startswith("views: ") for line in lines)
    assert small_header().differences(small_header()) == []


def test_numbers_that_python_calls_equal_are_told_apart():
    assert small_header(built={"x": 1}).differences(small_header(built={"x": 1.0})) == ["built.x: 1 stored, 1.0 wanted"]


def test_views_are_told_apart_by_every_field():
    views = {
        PLAIN,
        MIRRORED,
        AUGMENTED,
        replace(AUGMENTED, seed=4),
        replace(AUGMENTED, view=1),
        replace(AUGMENTED, policy="{}"),
    }
    assert len(views) == 6
    assert small_header(views=tuple(views)).num_views == 6
