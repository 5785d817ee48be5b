"""Checks of single values of a header, and how they are shown in messages."""

from __future__ import annotations

import re
from typing import Any

from adadistill.loaders.json_text import JSON, dump_json, plain_json

_MAX_SHOWN = 120  # characters of a value in messages
_SHA256 = re.compile(r"[0-9a-f]{64}")


def checked_object(name: str, value: Any) -> dict[str, JSON]:
    """A copy of a mapping in JSON's own types, so that it equals what is read back. Raises ValueError."""
    try:
        plain = plain_json(value)
    except ValueError as error:
        raise ValueError(f"{name} cannot be stored: {error}") from None
    if not isinstance(plain, dict):
        raise ValueError(f"{name} must be an object, got {shown(value)}")
    return plain


def check_whole(name: str, value: Any, least: int, most: int) -> None:
    """Raise ValueError unless `value` is a whole number in [least, most]."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} must be a whole number in [{least}, {most}], got {shown(value)}")


def check_sha256(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is 64 lower-case hex digits."""
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise ValueError(f"{name} must be a sha256, 64 lower-case hex digits, got {shown(value)}")


def check_agrees(name: str, value: Any, field: str, expected: int) -> None:
    """Raise ValueError unless `value` is the number that another field holds."""
    if type(value) is not int or value != expected:
        raise ValueError(f"{name} must be {field} ({expected}), got {shown(value)}")


def differences(name: str, stored: JSON, wanted: JSON) -> list[str]:
    """One line for each place where two values differ: its dotted name below `name`, what is stored, what is wanted."""
    if dump_json(stored) == dump_json(wanted):  # 1, 1.0 and true are equal in Python and other bytes in the file
        return []
    if isinstance(stored, dict) and isinstance(wanted, dict):
        lines = []
        for key in sorted(set(stored) | set(wanted)):
            if key in stored and key in wanted:
                lines += differences(f"{name}.{key}", stored[key], wanted[key])
            else:
                found, asked = (shown(side[key]) if key in side else "nothing" for side in (stored, wanted))
                lines.append(f"{name}.{key}: {found} stored, {asked} wanted")
        return lines
    return [f"{name}: {shown(stored)} stored, {shown(wanted)} wanted"]


def shown(value: Any) -> str:
    """A value for messages: on one line, ASCII, not longer than people read."""
    text = ascii(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}... ({len(text)} characters)"
