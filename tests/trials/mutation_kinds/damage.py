"""Damage to bytes that needs no knowledge of the format: what disks, cables, editors and fuzzers do."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Rng = np.random.Generator

_LENGTHS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, (1 << 64) - 1)
_ENCODINGS = ("utf-16", "utf-16-le", "utf-32", "utf-7", "cp037")


def damage_bytes(rng: Rng, original: bytes, others: Sequence[bytes]) -> tuple[str, bytes]:
    """One mutation, drawn from all kinds of damage, of a file's bytes.

    Args:
        others: files to splice with; the original may be among them.

    Returns:
        What was done, and the bytes; they may equal the original's, as a zero fill of zeros does.
    """
    kinds = list(_DAMAGES)
    kind = kinds[int(rng.integers(len(kinds)))]
    return kind, _DAMAGES[kind](rng, bytearray(original), others)


def damage_text(rng: Rng, original: bytes, others: Sequence[bytes]) -> tuple[str, bytes]:
    """As `damage_bytes`, and half of the time what only happens to text: encodings, line ends, look-alike digits."""
    if rng.random() < 0.5:
        return damage_bytes(rng, original, others)
    kinds = list(_TEXT_DAMAGES)
    kind = kinds[int(rng.integers(len(kinds)))]
    return kind, _TEXT_DAMAGES[kind](rng, original)


def _place(rng: Rng, body: bytes | bytearray) -> int:
    return int(rng.integers(max(1, len(body))))


def _span(rng: Rng, body: bytes | bytearray) -> slice:
    first = _place(rng, body)
    return slice(first, first + int(rng.integers(1, 65)))


def _flip_bits(count: int) -> Callable[[Rng, bytearray, Sequence[bytes]], bytes]:
    def flip(rng: Rng, body: bytearray, _: Sequence[bytes]) -> bytes:
        for _index in range(count if body else 0):
            body[_place(rng, body)] ^= 1 << int(rng.integers(8))
        return bytes(body)

    return flip


def _edit(rng: Rng, body: bytearray, _: Sequence[bytes]) -> bytes:
    for _index in range(int(rng.integers(1, 4))):
        body[_place(rng, body)] = int(rng.integers(256))
    return bytes(body)


def _truncate(rng: Rng, body: bytearray, _: Sequence[bytes]) -> bytes:
    return bytes(body[: _place(rng, body)])


def _truncate_by_words(rng: Rng, body: bytearray, _: Sequence[bytes]) -> bytes:
    return bytes(body[: _place(rng, body) & ~3])


def _insert(rng: Rng, body: bytearray, _: Sequence[bytes]) -> bytes:
    place = _place(rng, body)
    body[place:place] = rng.bytes(int(rng.integers(1, 33)))
    return bytes(body)


def _append(rng: Rng, body: bytearray, _: Sequence[bytes]) -> bytes:
    return bytes(body) + (
        bytes(int(rng.integers(1, 65))) if rng.random() < 0.5 else rng.bytes(int(rng.integers(1, 65)))
    )


def _duplicate(rng: Rng, body: bytearray, _: Sequence[bytes]) -> bytes:
    span = _span(rng, body)
    body[span.stop : span.stop] = body[span]
    return bytes(body)


def _remove(rng: Rng, body: bytearray, _: Sequence[bytes]) -> bytes:
    del body[_span(rng, body)]
    return bytes(body)


def _zero(rng: Rng, body: bytearray, _: Sequence[bytes]) -> bytes:
    span = _span(rng, body)
    body[span] = bytes(len(body[span]))
    return bytes(body)


def _splice(rng: Rng, body: bytearray, others: Sequence[bytes]) -> bytes:
    other = others[int(rng.integers(len(others)))]
    return bytes(body[: _place(rng, body)]) + other[_place(rng, other) :]


def _swap(rng: Rng, body: bytearray, _: Sequence[bytes]) -> bytes:
    one, two = sorted((_place(rng, body), _place(rng, body)))
    return bytes(body[one:two] + body[:one] + body[two:])


def _length_field(rng: Rng, body: bytearray, _: Sequence[bytes]) -> bytes:
    width = (1, 2, 4, 8)[int(rng.integers(4))]
    value = _LENGTHS[int(rng.integers(len(_LENGTHS)))] & ((1 << 8 * width) - 1)
    place = _place(rng, body) & ~3
    body[place : place + width] = value.to_bytes(width, "little" if rng.random() < 0.7 else "big")
    return bytes(body)


_DAMAGES: dict[str, Callable[[Rng, bytearray, Sequence[bytes]], bytes]] = {
    "one bit flipped": _flip_bits(1),
    "8 bits flipped": _flip_bits(8),
    "bytes edited": _edit,
    "cut": _truncate,
    "cut at a word": _truncate_by_words,
    "bytes inserted": _insert,
    "bytes appended": _append,
    "bytes doubled": _duplicate,
    "bytes removed": _remove,
    "zero fill": _zero,
    "two files spliced": _splice,
    "halves swapped": _swap,
    "extreme length": _length_field,
}


def _reencode(rng: Rng, body: bytes) -> bytes:
    encoding = _ENCODINGS[int(rng.integers(len(_ENCODINGS)))]
    return body.decode("latin-1").encode(encoding, "replace")


def _lookalike_digits(rng: Rng, body: bytes) -> bytes:
    zero = (0x660, 0x966, 0xFF10, 0x1D7CE)[int(rng.integers(4))]  # Arabic, Devanagari, full width, mathematical bold
    table = {ord("0") + digit: zero + digit for digit in range(10)}
    return body.decode("latin-1").translate(table).encode()


def _long_number(rng: Rng, body: bytes) -> bytes:
    digits = b"9" * (10, 20, 400, 5000, 100_000)[int(rng.integers(5))]
    places = [index for index, byte in enumerate(body) if 48 <= byte <= 57] or [0]
    place = places[int(rng.integers(len(places)))]
    return body[:place] + (b"-" if rng.random() < 0.3 else b"") + digits + body[place + 1 :]


def _odd_number(rng: Rng, body: bytes) -> bytes:
    numbers = (b"nan", b"inf", b"-inf", b"1e999", b"-0", b"0x10", b"1_0", b"+1", b"1.5", b"-1", b"null", b"true")
    places = [index for index, byte in enumerate(body) if 48 <= byte <= 57] or [0]
    place = places[int(rng.integers(len(places)))]
    return body[:place] + numbers[int(rng.integers(len(numbers)))] + body[place + 1 :]


_TEXT_DAMAGES: dict[str, Callable[[Rng, bytes], bytes]] = {
    "another encoding": _reencode,
    "byte order mark": lambda rng, body: b"\xef\xbb\xbf" + body,
    "Windows line ends": lambda rng, body: body.replace(b"\n", b"\r\n"),
    "old Mac line ends": lambda rng, body: body.replace(b"\n", b"\r"),
    "a NUL": lambda rng, body: (place := _place(rng, body)) * b"" + body[:place] + b"\0" + body[place:],
    "look-alike digits": _lookalike_digits,
    "a number of many digits": _long_number,
    "an odd number": _odd_number,
    "lines joined": lambda rng, body: body.replace(b"\n", b" "),
    "a line of 10 MB": lambda rng, body: body + b"1" * 10_000_000 if rng.random() < 0.3 else body + b"\t" * 100_000,
    "blank lines": lambda rng, body: body.replace(b"\n", b"\n\n"),
    "half a character": lambda rng, body: body[: (place := _place(rng, body))] + b"\xe2\x82" + body[place:],
}
