"""The text of `header.json`: written the same way always, stating its own sha256, read with every field checked.

The sha256 is of all bytes of the file with its own 64 digits as zeros. That rule holds in every version of every kind
of store, so that damage can be told from a version of the future.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from adadistill.loaders.stored_blocks.json_text import JSON, dump_json, parse_json, plain_json
from adadistill.loaders.stored_blocks.kind import StoreKind

MAX_HEADER_BYTES = 1 << 20

_MAX_SHOWN = 120  # characters of a value in messages
_SHA256 = re.compile(r"[0-9a-f]{64}")
# In JSON a quote inside a text is escaped, so this is only ever found where `header_sha256` is a key.
_OWN_SHA256 = re.compile(rb'"header_sha256"\s*:\s*"([0-9a-f]{64})"')


def header_text(content: Mapping[str, JSON]) -> bytes:
    """`header.json` of a store: sorted keys, no dates, no paths, so that equal headers are equal bytes.

    Raises ValueError where it is longer than a reader accepts.
    """
    blank = dump_json({**content, "header_sha256": "0" * 64}).encode()
    if len(blank) > MAX_HEADER_BYTES:
        raise ValueError(f"the header has {len(blank)} bytes, {MAX_HEADER_BYTES} are allowed; shorten its parts")
    match = _OWN_SHA256.search(blank)
    assert match is not None, "the field was just written"
    return blank[: match.start(1)] + hashlib.sha256(blank).hexdigest().encode() + blank[match.end(1) :]


def stated_sha256(text: bytes, *, where: str, kind: StoreKind) -> str:
    """The sha256 that a header states of itself, 64 hex digits, checked.

    Args:
        text: content of the file.
        where: names it in errors.

    Raises:
        kind.damaged: the sha256 is another one, or the text was cut short.
        kind.unknown_format: the text is too long or states no such sha256: no header of a store.
    """
    if len(text) > MAX_HEADER_BYTES:
        raise kind.unknown_format(f"{where} has more than a header's {MAX_HEADER_BYTES} bytes: no {kind.name}")
    matches = list(_OWN_SHA256.finditer(text))
    if len(matches) != 1:
        try:
            parse_json(text.decode())
        except ValueError as error:
            raise kind.damaged(f"{where} is damaged: {shown(str(error))}. {kind.remedy}") from None
        raise kind.unknown_format(
            f"{where} is no header of a {kind.name}: it states `header_sha256` {len(matches)} times, not once"
        )
    stated = matches[0].group(1).decode()
    found = hashlib.sha256(text[: matches[0].start(1)] + b"0" * 64 + text[matches[0].end(1) :]).hexdigest()
    if found != stated:
        raise kind.damaged(
            f"{where} is damaged or was edited: it states sha256 {stated} of itself, its bytes have {found}. "
            f"{kind.remedy}"
        )
    return stated


def header_fields(text: bytes, *, format_name: str, version: int, names: set[str]) -> dict[str, JSON]:
    """The fields `names` of a header whose sha256 was checked, and no others beside the ones that all headers have.

    Raises:
        ValueError: another format or version, a field that is missing or unknown, or no object.
    """
    content = parse_json(text.decode())
    if not isinstance(content, dict):
        raise ValueError("it is no object")
    if content.get("format") != format_name:
        raise ValueError(f"its format is {shown(content.get('format'))}, not {format_name!r}")
    stated = content.get("version")
    check_whole("version", stated, 1, 1 << 31)
    if stated != version:
        raise ValueError(f"it has version {stated}, from the future: this adadistill reads version {version}")
    wanted = names | {"format", "version", "header_sha256"}
    if unknown := sorted(set(content) - wanted):
        raise ValueError(f"unknown field {shown(unknown[0])}")
    if missing := sorted(wanted - set(content)):
        raise ValueError(f"field {missing[0]!r} is missing")
    return {name: content[name] for name in names}


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
