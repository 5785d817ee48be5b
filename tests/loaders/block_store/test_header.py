"""Headers: equal headers are equal bytes, and what is not exactly a header is refused with its reason."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from small_cache import signed
from small_stores import RECORDS, Face, content_of

from adadistill.loaders.block_store.errors import StoreDamagedError, StoreError
from adadistill.loaders.block_store.header import MAX_HEADER_BYTES

FINGERPRINT = "cd" * 32


def _read(face: Face, text: bytes, **where: str) -> Any:
    return type(face.header()).from_bytes(text, **where)


def _records(**changes: Any) -> dict[str, Any]:
    return RECORDS | {"num_records": 23} | changes


def test_a_header_is_read_back_as_it_was_in_any_style_and_order_of_keys(face):
    header = face.header()
    again = _read(face, header.to_bytes())
    assert again == header
    assert again.to_bytes() == header.to_bytes()
    for style in ({"separators": (",", ":")}, {"indent": 7}, {"sort_keys": True, "ensure_ascii": False}):
        assert _read(face, signed(content_of(header), **style)) == header
    assert face.header(records=dict(reversed(_records().items()))).to_bytes() == header.to_bytes()


def test_blocks_out_of_range_are_named(face):
    for block in (-1, 5):
        for ask in (face.header().block_record_range, face.header().block_spans):
            with pytest.raises(IndexError, match=rf"\[0, 5\), got {block}"):
                ask(block)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_records": 0}, "num_records"),
        ({"num_records": True}, "num_records"),
        ({"num_records": 1 << 41}, "num_records"),
        ({"block_records": "5"}, "block_records"),
        ({"records": _records(num_records=22)}, r"records.num_records must be num_records \(23\)"),
        ({"records": _records(fingerprint="CD" * 32)}, "records.fingerprint must be a sha256"),
        ({"records": _records(loss=float("nan"))}, "records cannot be stored: nan"),
        ({"records": ["train.rec"]}, "records must be an object"),
    ],
)
def test_a_header_that_makes_no_sense_is_refused_with_its_reason(face, changes, reason):
    with pytest.raises(ValueError, match=reason):
        face.header(**changes)


def test_a_header_beyond_the_limit_is_refused_when_it_is_written_and_when_it_is_read(face):
    long = _records(text="x" * MAX_HEADER_BYTES)
    with pytest.raises(ValueError, match="1048576 are allowed"):
        face.header(records=long).to_bytes()
    with pytest.raises(StoreError, match="more than a header's 1048576"):
        _read(face, signed(content_of(face.header(), records=long)))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": "numpy"}, "format is 'numpy'"),
        ({"version": 2, "new_field": 1}, "version 2, from the future"),
        ({"version": True}, "version must be a whole number"),
        ({"created": "today"}, "unknown field 'created'"),
        ({"num_records": 1 << 60}, "num_records must be a whole number"),
        ({"records": _records(loss=float("-inf"))}, "-inf"),
    ],
)
def test_a_sound_file_that_describes_no_store_is_refused_with_its_reason(face, changes, reason):
    with pytest.raises(StoreError, match=rf"a/header.json describes no {face.name}.*{reason}"):
        _read(face, signed(content_of(face.header(), **changes)), where="a/header.json")
    content = content_of(face.header())
    del content["block_records"]
    with pytest.raises(StoreError, match="field 'block_records' is missing"):
        _read(face, signed(content))


def test_a_repeated_key_is_refused(face):
    twice = face.header().to_bytes().replace(b'"version": 1', b'"version": 1, "version": 1')
    text = twice.decode().replace(json.loads(twice)["header_sha256"], "0" * 64)
    resigned = text.replace("0" * 64, hashlib.sha256(text.encode()).hexdigest()).encode()
    with pytest.raises(StoreError, match="key 'version' is given twice"):
        _read(face, resigned)


def test_every_edit_of_a_header_is_seen(face):
    text = face.header().to_bytes()
    for place in range(0, len(text), 23):
        broken = bytearray(text)
        broken[place] ^= 1
        with pytest.raises(StoreError):
            _read(face, bytes(broken))
    with pytest.raises(StoreDamagedError, match=r"somewhere/header\.json is damaged or was edited"):
        _read(face, text.replace(b'"train.rec"', b'"other.rec"'), where="somewhere/header.json")


def test_what_is_no_json_is_damaged_and_json_that_is_no_header_of_another_format(face):
    for text in (b"", b"{", b"\xff\xfe", b"[1, 2", b"[" * 100_000):
        with pytest.raises(StoreDamagedError, match=r"header\.json is damaged"):
            _read(face, text)
    for text in (b"{}", b"[]", b'{"header_sha256": "abc"}', b'"header_sha256"'):
        with pytest.raises(StoreError, match=f"no header of a {face.name}"):
            _read(face, text)
    with pytest.raises(StoreError, match="2 times"):
        _read(face, signed(content_of(face.header(), records=_records(header_sha256="a" * 64))))


def test_differences_name_every_field_with_both_values(face):
    other = face.header(block_records=4, records=_records(fingerprint="99" * 32, extra=1))
    assert face.header().differences(other) == sorted(
        [
            "block_records: 5 stored, 4 wanted",
            "records.extra: nothing stored, 1 wanted",
            f"records.fingerprint: '{FINGERPRINT}' stored, '{'99' * 32}' wanted",
        ]
    )
    assert face.header().differences(face.header()) == []
    one, float_one = (face.header(records=_records(x=value)) for value in (1, 1.0))
    assert one.differences(float_one) == ["records.x: 1 stored, 1.0 wanted"]
