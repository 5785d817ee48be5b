"""Damage that needs no knowledge of a format: what disks, cables, editors and fuzzers do to bytes and to text; and
values of other kinds in the JSON trees and tensor headers of which several formats are made.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

BytesDamage = Callable[[Random, bytes, Sequence[bytes]], bytes]
"""Given a file's bytes and others to splice them with; may return what it was given, as zeros do in zeros."""

_LENGTHS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, (1 << 64) - 1)
_ENCODINGS = ("utf-16", "utf-16-le", "utf-32", "utf-7", "cp037")
_ODD_NUMBERS = (b"nan", b"inf", b"-inf", b"1e999", b"-0", b"0x10", b"1_0", b"+1", b"1.5", b"-1", b"null", b"true")
ODD_VALUES: tuple[Any, ...] = (
    *(-1, 0, 1, 1 << 31, 1 << 62, (1 << 64) - 1, 1 << 64, 10**18, 10**400, 1.5, float("nan"), float("inf"), True),
    *(None, "1", [], {}, "../x", "x" * 10_000, "x" * 100_000),
)
_DTYPES = ("F8_E4M3", "F8_E8M0", "F4", "F6_E2M3", "C64", "F64", "U64", "BOOL", "I128", "f32", "", 3)


def spoil(rng: Random, tree: Any) -> Any:
    """A JSON tree with one value replaced by another kind of value, or gone; changed in place."""
    target = tree
    while True:
        key = rng.choice(sorted(target) if isinstance(target, dict) else range(len(target)))
        if not isinstance(target[key], (dict, list)) or not target[key] or rng.random() < 0.3:
            break
        target = target[key]
    if rng.random() < 0.2:
        del target[key]
    else:
        target[key] = rng.choice(ODD_VALUES)
    return tree


def safetensors(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A file of tensors with this header, as it is or spelt as JSON, which may lie about its own length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def lying_tensors(rng: Random, body: bytes) -> bytes:
    """A `.safetensors` file whose header lies about one of its tensors."""
    length = int.from_bytes(body[:8], "little")
    header, data = json.loads(body[8 : 8 + length]), body[8 + length :]
    slot = header[rng.choice(sorted(set(header) - {"__metadata__"}))]
    kind = rng.choice(("dtype", "shape", "data_offsets", "no elements", "long name", "metadata", "length"))
    if kind == "dtype":
        slot[kind] = rng.choice((*_DTYPES, *ODD_VALUES))
    elif kind in ("shape", "data_offsets"):
        slot[kind] = [rng.choice(ODD_VALUES)] * 2 if rng.random() < 0.3 else rng.choices(ODD_VALUES, k=rng.randrange(4))
    elif kind == "no elements":
        slot.update(shape=[0, 1 << 40, 1 << 40], data_offsets=[0, 0])
    elif kind == "long name":
        header["x" * rng.randrange(1, 10_000)] = slot
    elif kind == "metadata":
        header["__metadata__"] = rng.choice(ODD_VALUES)
    else:
        return rng.choice(((1 << 63) - 1, len(body))).to_bytes(8, "little") + body[8:]
    return safetensors(header, data)


def _place(rng: Random, body: bytes) -> int:
    return rng.randrange(max(1, len(body)))


def _replace(rng: Random, body: bytes, length: int, new: bytes) -> bytes:
    """So many bytes somewhere are replaced."""
    place = _place(rng, body)
    return body[:place] + new + body[place + length :]


def _overwrite(rng: Random, body: bytes, new: bytes, *, word: int = 1) -> bytes:
    place = _place(rng, body) // word * word
    return (body[:place] + new)[: len(body)] + body[place + len(new) :]


def flip_bits(rng: Random, body: bytes, places: Sequence[int], count: int = 1) -> bytes:
    """Bits flipped at some of the places given; empty bytes stay empty."""
    flipped = bytearray(body)
    for _ in range(count if body else 0):
        flipped[rng.choice(places)] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def _edit(rng: Random, body: bytes, _: Sequence[bytes]) -> bytes:
    for _index in range(rng.randint(1, 3)):
        body = _overwrite(rng, body, rng.randbytes(1))
    return body


def _double(rng: Random, body: bytes, _: Sequence[bytes]) -> bytes:
    place = _place(rng, body)
    return body[:place] + body[place : place + rng.randint(1, 64)] + body[place:]


def _add(rng: Random, body: bytes, _: Sequence[bytes]) -> bytes:
    count = rng.randint(1, 100)
    return body + rng.choice((bytes(count), rng.randbytes(count)))


def _zero_the_rest(rng: Random, body: bytes, _: Sequence[bytes]) -> bytes:
    """What some file systems leave after a power cut: the right length, no content."""
    place = rng.randrange(max(1, len(body.rstrip(b"\0"))))
    return body[:place] + bytes(len(body) - place)


def _splice(rng: Random, body: bytes, others: Sequence[bytes]) -> bytes:
    other = rng.choice(others)
    return body[: _place(rng, body)] + other[_place(rng, other) :]


def _swap_parts(rng: Random, body: bytes, _: Sequence[bytes]) -> bytes:
    one, two = sorted((_place(rng, body), _place(rng, body)))
    return body[one:two] + body[:one] + body[two:]


def _extreme_length(rng: Random, body: bytes, _: Sequence[bytes]) -> bytes:
    width = rng.choice((1, 2, 4, 8))
    value = rng.choice(_LENGTHS) & ((1 << 8 * width) - 1)
    return _overwrite(rng, body, value.to_bytes(width, "little" if rng.random() < 0.7 else "big"), word=4)


BYTES: dict[str, BytesDamage] = {
    "one bit flipped": lambda rng, body, _: flip_bits(rng, body, range(len(body))),
    "8 bits flipped": lambda rng, body, _: flip_bits(rng, body, range(len(body)), 8),
    "bytes edited": _edit,
    "cut off": lambda rng, body, _: body[: _place(rng, body)],
    "cut off at a word": lambda rng, body, _: body[: _place(rng, body) & ~3],
    "emptied": lambda rng, body, _: b"",
    "bytes inserted": lambda rng, body, _: _replace(rng, body, 0, rng.randbytes(rng.randint(1, 32))),
    "bytes added": _add,
    "bytes doubled": _double,
    "bytes removed": lambda rng, body, _: _replace(rng, body, rng.randint(1, 64), b""),
    "zero fill": lambda rng, body, _: _overwrite(rng, body, bytes(rng.randint(1, 64))),
    "zeros from some byte on": _zero_the_rest,
    "two files spliced": _splice,
    "halves swapped": _swap_parts,
    "extreme length": _extreme_length,
}


def _lookalike_digits(rng: Random, body: bytes, _: Sequence[bytes]) -> bytes:
    zero = rng.choice((0x660, 0x966, 0xFF10, 0x1D7CE))  # Arabic, Devanagari, full width, mathematical bold
    return body.decode("latin-1").translate({ord("0") + digit: zero + digit for digit in range(10)}).encode()


def _for_a_digit(rng: Random, body: bytes, new: bytes) -> bytes:
    place = rng.choice([index for index, byte in enumerate(body) if 48 <= byte <= 57] or [0])
    return body[:place] + new + body[place + 1 :]


def _long_number(rng: Random, body: bytes, _: Sequence[bytes]) -> bytes:
    return _for_a_digit(rng, body, rng.choice((b"", b"", b"-")) + b"9" * rng.choice((10, 20, 400, 5000, 100_000)))


TEXT: dict[str, BytesDamage] = {
    **BYTES,
    "another encoding": lambda rng, body, _: body.decode("latin-1").encode(rng.choice(_ENCODINGS), "replace"),
    "byte order mark": lambda rng, body, _: b"\xef\xbb\xbf" + body,
    "Windows line ends": lambda rng, body, _: body.replace(b"\n", b"\r\n"),
    "old Mac line ends": lambda rng, body, _: body.replace(b"\n", b"\r"),
    "a NUL": lambda rng, body, _: _replace(rng, body, 0, b"\0"),
    "look-alike digits": _lookalike_digits,
    "a number of many digits": _long_number,
    "an odd number": lambda rng, body, _: _for_a_digit(rng, body, rng.choice(_ODD_NUMBERS)),
    "lines joined": lambda rng, body, _: body.replace(b"\n", b" "),
    "a long line": lambda rng, body, _: body + rng.choice((b"1" * 10_000_000, b"\t" * 100_000)),
    "blank lines": lambda rng, body, _: body.replace(b"\n", b"\n\n"),
    "half a character": lambda rng, body, _: _replace(rng, body, 0, b"\xe2\x82"),
}
