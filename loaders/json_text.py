"""JSON as caches store it: plain values, one way of writing them, nothing that a reader has to guess about.

Python's reader is lenient: the last of two equal keys wins, NaN is a number, half a surrogate pair is text. A header
comes from strangers and binds what training believes, so here all of these are errors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, TypeAlias

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"

_MAX_DEPTH = 16
_MAX_INT = 1 << 63  # what other languages read as a whole number


def parse_json(text: str) -> JSON:
    """Read one JSON document. Raises ValueError where `plain_json` would, or where a key is given twice."""
    try:
        return plain_json(json.loads(text, object_pairs_hook=_distinct_keys))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def dump_json(value: JSON) -> str:
    """Write a plain value for people and for comparing bytes: ASCII, sorted keys, two spaces, a last line break."""
    return json.dumps(value, allow_nan=False, ensure_ascii=True, sort_keys=True, indent=2) + "\n"


def plain_json(value: Any, depth: int = 0) -> JSON:
    """The value as it will be when it is read back: mappings become dicts, tuples become lists, all of them copies.

    Raises:
        ValueError: it is not JSON, or holds NaN, an infinity, a number beyond 64 bits, half a surrogate pair, or more
            than 16 levels.
    """
    if depth > _MAX_DEPTH:
        raise ValueError(f"nested deeper than {_MAX_DEPTH} levels")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _plain_text(value)
    if isinstance(value, int):
        if not -_MAX_INT <= value < _MAX_INT:
            raise ValueError("a whole number does not fit 64 bits")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} is not a number that JSON has")
        return float(value)
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise ValueError("keys must be text")
        return {_plain_text(key): plain_json(entry, depth + 1) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(entry, depth + 1) for entry in value]
    raise ValueError(f"{type(value).__name__} is not a JSON value")


def _plain_text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{text[:40]!a} holds half a surrogate pair") from None
    return str(text)


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key[:40]!a} is given twice")
        found[key] = value
    return found
