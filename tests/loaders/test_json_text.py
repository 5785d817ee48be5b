"""JSON without guesses: what Python's reader would let pass is refused."""

from __future__ import annotations

import json

import pytest

from adadistill.loaders.json_text import dump_json, parse_json, plain_json


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1, "a": 1}', "key 'a' is given twice"),
        ('{"b": [{"a": 1, "c": 2, "a": 3}]}', "key 'a' is given twice"),
        ('{"a": NaN}', "nan is not a number"),
        ('{"a": -Infinity}', "-inf is not a number"),
        ('{"a": 1e999}', "inf is not a number"),
        ('{"a": 9223372036854775808}', "64 bits"),
        ('"\\ud800"', "half a surrogate pair"),
        ('{"\\udfff": 1}', "half a surrogate pair"),
        ("[" * 50 + "]" * 50, "deeper than 16 levels"),
        ("[" * 200_000, "nested too deeply|Expecting value"),
        ("{'a': 1}", "Expecting property name"),
        ("1 2", "Extra data"),
        ("1" * 5000, "digits|64 bits"),
    ],
)
def test_what_other_readers_guess_at_is_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_json(text)


def test_values_are_written_the_same_way_whatever_order_they_came_in():
    first = dump_json({"b": [1, 2.5, None, True], "a": "café\n"})
    second = dump_json({"a": "café\n", "b": [1, 2.5, None, True]})
    assert first == second
    assert first.isascii()
    assert first.endswith("}\n")
    assert parse_json(first) == json.loads(first)


def test_plain_values_are_copies():
    inner = [1]
    plain = plain_json({"a": (inner, {"b": inner})})
    inner.append(2)
    assert plain == {"a": [[1], {"b": [1]}]}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"a": "\ud800"}, "half a surrogate pair"),
        ({"a": 1 << 63}, "64 bits"),
        ({"a": {1}}, "set is not a JSON value"),
        ({1: 2}, "keys must be text"),
        (json.loads("[" * 20 + "]" * 20), "deeper than 16"),
    ],
)
def test_what_cannot_be_read_back_is_not_written(value, reason):
    with pytest.raises(ValueError, match=reason):
        plain_json(value)
