"""Only text, bytes and small integers may become keys; everything else is told apart without unpickling."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from adadistill.loaders.allow_list_unpickler import (
    PickleDamagedError,
    PickleRefusedError,
    load_plain_pickle,
    scan_opcodes,
)

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "content",
    [
        {},
        {"a": 1},
        {"a": {"b": {"c": []}}, "d": {}},
        {"rows": [(1, "a"), (2, None)], "array": np.arange(3)},
        [{"same": "same"}] * 3,
        {f"key{index}": [index] * 3 for index in range(300)},
    ],
)
def test_dictionaries_of_names_are_read_under_every_protocol(content, protocol):
    found = load_plain_pickle(pickle.dumps(content, protocol), metadata=True)
    assert type(found) is type(content)
    assert len(found) == len(content)


def test_small_integers_may_be_keys():
    assert load_plain_pickle(pickle.dumps({3: "a", -7: 2.5, 1 << 20: []}, 2), metadata=True) == {
        3: "a",
        -7: 2.5,
        1 << 20: [],
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("key", [(1, 2), ((("a",),),), None, True, 1.5, 1 << 80, np.float64(2.0), np.int64(3)])
def test_other_keys_are_refused_wherever_they_stand(key, protocol):
    for content in ({key: 1}, {"a": 1, key: 2}, {"a": [{"b": {key: 3}}]}, [{"x": 1}, {key: key}]):
        if protocol == 0 and key == 1.5:
            continue  # FLOAT, which no metadata need, is refused as an opcode
        with pytest.raises(PickleRefusedError):
            load_plain_pickle(pickle.dumps(content, protocol), metadata=True)


def test_a_key_that_went_through_the_memo_is_followed():
    assert scan_opcodes(b"\x80\x02X\x01\x00\x00\x00aq\x00}h\x00K\x01s.", metadata=True)
    with pytest.raises(PickleRefusedError, match="a key at offset"):
        scan_opcodes(b"\x80\x02)q\x00}h\x00K\x01s.", metadata=True)


@pytest.mark.parametrize("body", [b"s.", b"}s.", b"u.", b"a.", b"\x85.", b"R.", b"h\x00.", b"\x94.", b"d."])
def test_taking_from_an_empty_stack_is_damage(body):
    with pytest.raises((PickleDamagedError, PickleRefusedError)):
        load_plain_pickle(b"\x80\x02" + body, metadata=True)


def test_sixty_thousand_keys_of_one_hash_are_refused_at_the_first():
    assert hash((-1, -2)) == hash((-2, -1))
    keys = b"".join(b"(" + (b"J\xff\xff\xff\xff" if bit else b"J\xfe\xff\xff\xff") * 2 + b"tN" for bit in (0, 1))
    with pytest.raises(PickleRefusedError, match="neither text nor a number"):
        scan_opcodes(b"\x80\x02}(" + keys * 30_000 + b"u.", metadata=True)
