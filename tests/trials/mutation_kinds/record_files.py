"""Trials of `.rec` files: damaged bytes, frames and headers that lie, and images inside that attack the decoder."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from adadistill.loaders.dataset_tools.record_check import check_images
from adadistill.loaders.records.checked_records import CheckedRecords
from adadistill.loaders.records.image_records import ImageRecords
from adadistill.loaders.records.recordio import RecordWriter
from trials.mutation_kinds.damage import Rng, damage_bytes
from trials.mutation_kinds.image_attacks import attacking_images
from trials.mutation_kinds.records import (
    IDENTITIES,
    REFUSALS,
    SIDE,
    Original,
    contents,
    record_originals,
)
from trials.mutation_kinds.trial import READ, REFUSED, BrokenPromiseError, Ending, judge

_PAYLOAD_DAMAGE = "payload damage that no reader sees without a seal"
_WORDS = (
    0,
    1,
    7,
    24,
    0x10000,
    0x10001,
    0x1FFFFFFF,
    0x20000000,
    0x3FFFFFFF,
    0x60000008,
    0x7FFFFFFF,
    0xE0000000,
    0xFFFFFFFF,
)
_FLOATS = (float("nan"), float("inf"), -1.0, 0.5, 1e30, float(IDENTITIES), 16777216.0, -0.0)


class RecordFiles:
    """`.rec` files as training and `data check` read them, without a seal or with one."""

    def __init__(self, *, sealed: bool) -> None:
        self.group = "record file with a seal" if sealed else "record file"
        self.damage = "bit flips, edits, cuts, splices, fields that lie, part chains, images that attack"
        self.promise = (
            "every change is found by verify, and no record reads otherwise than it was"
            if sealed
            else "a RecordError or ImageDecodeError names the file, or images of the right size with labels in range"
        )
        self._sealed = sealed
        self._originals: list[Original] = []
        self._attacks: list[tuple[str, bytes]] = []

    def prepare(self, folder: Path) -> None:
        self._originals = record_originals(folder)
        self._attacks = list(attacking_images().items())

    def trial(self, rng: Rng, number: int, folder: Path) -> Ending:
        original = self._originals[number % len(self._originals)]
        choice = rng.random()
        if choice < 0.15 and not self._sealed:
            return self._attack(rng, number, folder)
        if choice < 0.55:
            damage, body = _lying_field(rng, original)
        else:
            damage, body = damage_bytes(rng, original.rec, [one.rec for one in self._originals])
        path = original.write(folder, rec=body, sealed=self._sealed)
        damage = f"{original.layout}: {damage}"
        if self._sealed:
            return judge(damage, lambda: _read_sealed(path, original, body), REFUSALS, named="train.rec")
        return judge(damage, lambda: _read(path, original, body), REFUSALS, named="train.rec")

    def _attack(self, rng: Rng, number: int, folder: Path) -> Ending:
        name, image = self._attacks[number % len(self._attacks)]
        path = folder / "train.rec"
        with RecordWriter(path) as writer:
            writer.write(0, image, labels=0.0)
        resizes = rng.random() < 0.5

        def read() -> str:
            check_images(path, decode=True)
            checked = CheckedRecords(ImageRecords(path), SIDE, wrong_size="resize" if resizes else "refuse")
            _, pixels = checked.decode(0)
            if pixels.shape != (SIDE, SIDE, 3):
                raise BrokenPromiseError(f"pixels of shape {pixels.shape}")
            return "decoded at the right size"

        return judge(f"image: {name}", read, REFUSALS, named="train.rec")


def _read(path: Path, original: Original, body: bytes) -> str:
    records = ImageRecords(path)
    checked = CheckedRecords(records, SIDE)
    refused, changed = 0, len(records) != len(original.labels)
    for record_id in range(checked.num_records):
        try:
            label, pixels = checked.decode(record_id)
        except REFUSALS as error:
            if path.name not in str(error):
                raise
            refused += 1
            continue
        if not 0 <= label < checked.num_classes or pixels.shape != (SIDE, SIDE, 3) or pixels.dtype != np.uint8:
            raise BrokenPromiseError(
                f"record {record_id}: label {label} of {checked.num_classes}, pixels {pixels.shape}"
            )
        changed = changed or (label, pixels.tobytes()) != (original.labels[record_id], original.pixels[record_id])
    if refused:
        return REFUSED
    return _PAYLOAD_DAMAGE if changed else READ


def _read_sealed(path: Path, original: Original, body: bytes) -> str:
    found = check_images(path)
    if body == original.rec:
        if found.bad or contents(path) != list(zip(original.labels, original.pixels, strict=True)):
            raise BrokenPromiseError("an unchanged file was refused, or read otherwise")
        return READ
    if not found.bad:
        raise BrokenPromiseError("verify found nothing")
    checked = CheckedRecords(ImageRecords(path), SIDE)
    for record_id in range(checked.num_records):
        try:
            label, pixels = checked.decode(record_id)
        except REFUSALS:
            continue
        if (label, pixels.tobytes()) != (original.labels[record_id], original.pixels[record_id]):
            raise BrokenPromiseError(f"record {record_id} reads otherwise than it was sealed")
    return REFUSED


def _lying_field(rng: Rng, original: Original) -> tuple[str, bytes]:
    body = bytearray(original.rec)
    offset = int(original.offsets[int(rng.integers(len(original.offsets)))])
    if original.layout == "insightface" and rng.random() < 0.2:
        offset = len(body) - 40  # the header record, the last one: what it says of images and identities
    kind = int(rng.integers(9))
    word = _WORDS[int(rng.integers(len(_WORDS)))]
    if kind == 0:
        struct.pack_into("<I", body, offset + 4, word)
        return "part flag and length", bytes(body)
    if kind == 1:
        (old,) = struct.unpack_from("<I", body, offset + 4)
        struct.pack_into("<I", body, offset + 4, max(0, old + int(rng.integers(-16, 17))) & 0xFFFFFFFF)
        return "length off by some", bytes(body)
    if kind == 2:
        struct.pack_into("<I", body, offset + 8, word)
        return "label count", bytes(body)
    if kind == 3:
        place = offset + (12 if original.layout == "im2rec" else 32 + 4 * int(rng.integers(2)))
        struct.pack_into("<f", body, place, _FLOATS[int(rng.integers(len(_FLOATS)))])
        return "label, or count in the header record", bytes(body)
    if kind == 4:
        chain = b"".join(
            struct.pack("<II", 0xCED7230A, flag << 29) for flag in (1, *[2] * int(rng.integers(20_000)), 3)
        )
        return "a chain of empty parts", bytes(body[:offset]) + chain + bytes(body[offset:])
    if kind == 5:
        firsts = b"".join(struct.pack("<II", 0xCED7230A, 1 << 29 | 8 * (999 - k)) for k in range(1000))
        chain = firsts + struct.pack("<II", 0xCED7230A, 2 << 29) * 20_000 + struct.pack("<II", 0xCED7230A, 3 << 29)
        return "a thousand records over one chain of parts", bytes(body[:offset]) + chain + bytes(body[offset:])
    if kind == 6:
        struct.pack_into(
            "<I", body, offset + 4, 0x20000000 | (struct.unpack_from("<I", body, offset + 4)[0] & 0x1FFFFFFF)
        )
        return "a first part without others", bytes(body)
    other = int(original.offsets[int(rng.integers(len(original.offsets)))])
    size = 8 + ((struct.unpack_from("<I", body, other + 4)[0] & 0x1FFFFFFF) + 3 & ~3)
    if kind == 7:
        return "a record doubled", bytes(body[:offset] + body[other : other + size] + body[offset:])
    return "a record removed", bytes(body[:other] + body[other + size :])
