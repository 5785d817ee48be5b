"""Records as they lie in a file, header and identity records included: taken apart and put together without loss.

`recordio.py` reads images; this reads everything, so that a file can be written again with the same bytes. Two things
beyond labels and image matter for that: the label in the image header where others replace it, and where a payload was
cut. Writers cut wherever the payload holds the magic at a multiple of 4; a file that was cut otherwise says so.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from adadistill.loaders.records.recordio import (
    MAGIC,
    MAX_LABELS,
    BadFlagError,
    BadLengthError,
    RecordFile,
    ScannedRecord,
    split_payload,
)

_FRAME = struct.Struct("<II")
_IMAGE_HEADER = struct.Struct("<IIQQ")  # the label as bits: a float would lose what kind of NaN it was
_LENGTH_MASK = (1 << 29) - 1
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)


@dataclass(frozen=True, slots=True)
class RawRecord:
    """One record, whatever it holds."""

    flag: int
    """Number of labels behind the image header; 0: the one in it counts."""
    label_bits: int
    """Of the float32 in the image header."""
    labels: tuple[int, ...]
    """(flag,) bits of the float32 labels behind it."""
    id: int
    id2: int
    body: bytes
    cuts: tuple[int, ...] | None = None
    """Lengths of its parts where they are not those that every writer makes."""

    @property
    def first_label(self) -> float:
        """The identity, by the field's conventions."""
        return bits_to_float(self.labels[0] if self.flag else self.label_bits)

    def to_bytes(self) -> bytes:
        """The record as it lies in a file, with frames and padding."""
        header = _IMAGE_HEADER.pack(self.flag, self.label_bits, self.id, self.id2)
        payload = header + struct.pack(f"<{self.flag}I", *self.labels) + self.body
        pieces = []
        for part_flag, start, stop in _given_parts(self.cuts) if self.cuts else split_payload(payload):
            pieces += [
                _FRAME.pack(MAGIC, part_flag << 29 | stop - start),
                payload[start:stop],
                bytes(-(stop - start) % 4),
            ]
        return b"".join(pieces)


def read_raw_record(file: RecordFile, place: ScannedRecord) -> RawRecord:
    """Take apart a record whose frame a scan has found sound.

    Raises:
        RecordError: the image header does not fit the record.
    """
    return parse_raw_record(file, place, file.bytes_at(place.offset, place.next_offset))


def parse_raw_record(file: RecordFile, place: ScannedRecord, stored: bytes) -> RawRecord:
    """`read_raw_record` of bytes that are in hand already."""
    parts, start = [], 0
    while start < len(stored):
        length = _FRAME.unpack_from(stored, start)[1] & _LENGTH_MASK
        parts.append(stored[start + 8 : start + 8 + length])
        start += 8 + ((length + 3) & ~3)
    payload = struct.pack("<I", MAGIC).join(parts)
    if len(payload) < _IMAGE_HEADER.size:
        reason = f"{len(payload)} bytes are too few for the image header of {_IMAGE_HEADER.size}"
        raise BadLengthError(file.path, place.offset, reason)
    flag, label_bits, id_, id2 = _IMAGE_HEADER.unpack_from(payload)
    first_byte = _IMAGE_HEADER.size + 4 * flag
    if flag > MAX_LABELS or first_byte > len(payload):
        raise BadFlagError(file.path, place.offset, f"label count {flag} does not fit a record of {len(payload)} bytes")
    lengths = tuple(map(len, parts))
    usual = tuple(stop - start for _, start, stop in split_payload(payload))
    return RawRecord(
        flag=flag,
        label_bits=label_bits,
        labels=struct.unpack_from(f"<{flag}I", payload, _IMAGE_HEADER.size),
        id=id_,
        id2=id2,
        body=payload[first_byte:],
        cuts=None if lengths == usual else lengths,
    )


def bits_to_float(bits: int) -> float:
    """The float32 of these 32 bits, as a Python float."""
    return float(struct.unpack("<f", struct.pack("<I", bits))[0])


def float_to_bits(value: float) -> int:
    """The 32 bits of a finite number rounded to float32. Raises ValueError where it is not finite in float32."""
    with np.errstate(over="ignore"):
        rounded = np.float32(value)
    if not np.isfinite(rounded):
        raise ValueError(f"{value!r} is no finite float32")
    return int(rounded.view(np.uint32))


def _given_parts(lengths: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """(part flag, start, stop) in the payload of parts of these lengths; the magic between two is not stored."""
    if len(lengths) == 1:
        return [(_WHOLE, 0, lengths[0])]
    flags = [_FIRST, *[_MIDDLE] * (len(lengths) - 2), _LAST]
    found, start = [], 0
    for part_flag, length in zip(flags, lengths, strict=True):
        found.append((part_flag, start, start + length))
        start += length + 4
    return found
