"""Record files in the layouts that circulate, and their indices: damaged bytes, frames, labels and offsets that lie."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

import numpy as np

from adadistill.loaders.dataset_tools.record_check import check_images
from adadistill.loaders.pixels import ImageDecodeError
from adadistill.loaders.records.checked_records import CheckedRecords
from adadistill.loaders.records.image_records import ImageRecords
from adadistill.loaders.records.record_index import load_record_index
from adadistill.loaders.records.record_seal import SealError, write_seal
from adadistill.loaders.records.recordio import RecordError, RecordFile, RecordWriter, write_insightface_records
from trials.targets.damage import TEXT
from trials.targets.image_attacks import attacking_images, plain_jpeg
from trials.targets.target import (
    READ,
    REFUSED,
    BrokenPromiseError,
    Files,
    Lie,
    Material,
    Mutant,
    Original,
    attacks,
    read_files,
)

SIDE = 32
REFUSALS = (RecordError, ImageDecodeError, SealError)
_IMAGES, _IDENTITIES = 24, 6
_REC, _IDX = "train.rec", "train.idx"
_MAGIC, _PART, _LENGTH = 0xCED7230A, 1 << 29, (1 << 29) - 1
_WORDS = (0, 1, 7, 24, 1 << 16, 65_537, _LENGTH, _PART, 0x3FFFFFFF, 0x60000008, 0x7FFFFFFF, 0xE0000000, 0xFFFFFFFF)
_FLOATS = (float("nan"), float("inf"), -1.0, 0.5, 1e30, float(_IDENTITIES), 16777216.0, -0.0)


def record_originals(folder: Path) -> list[Original]:
    """One file of each layout, with index and seal: insightface's with header and identity records; im2rec's, images
    alone with one label (MXNet's tool, also what CVLface's shuffled sets are); and one whose images hold the magic, so
    that they have parts.
    """
    images = [(index * _IDENTITIES // _IMAGES, plain_jpeg(index, SIDE, SIDE)) for index in range(_IMAGES)]
    originals = []
    for layout in ("insightface", "im2rec", "parts"):
        place = folder / layout
        place.mkdir()
        if layout == "insightface":
            write_insightface_records(place, images, image_size=(SIDE, SIDE))
            (place / "property").unlink()
        else:
            with RecordWriter(place / _REC) as writer:
                for key, (label, body) in enumerate(images):
                    stored = _magic_comment(body) if layout == "parts" else body
                    writer.write(key, stored, labels=float(label) if layout == "im2rec" else [float(label), 0.0])
        write_seal(RecordFile(place / _REC), ImageRecords(place / _REC).index)
        files = {_REC: (place / _REC).read_bytes(), **read_files(place)}
        originals.append(Original(layout, files, _REC, hit=[_REC]))
    return originals


def record_files(folder: Path, *, sealed: bool) -> Material:
    """`.rec` files as training and `data check` read them, without a seal or with one."""
    originals = [
        replace(one, files=one.files if sealed else without_seal(one.files), lies=_frame_lies(one.name, folder))
        for one in record_originals(folder)
    ]
    contents = {one.name: _contents(folder / one.name / _REC) for one in originals}
    if sealed:
        return Material(originals, lambda mutant: _read_sealed(mutant, contents[mutant.original.name]))
    images = {f"image: {name}": _one_record(body, folder / "one.rec") for name, body in attacking_images().items()}
    return Material(originals, lambda mutant: _read(mutant, contents), attacks(images, _REC), every=7)


def index_files(folder: Path) -> Material:
    """`.idx` files beside sound records: whatever they say, record ids name the images that they always named."""
    sound = record_originals(folder)
    originals = [replace(one, files=without_seal(one.files), hit=[_IDX], lies=_LINE_LIES) for one in sound]
    offsets = {one.name: load_record_index(RecordFile(folder / one.name / _REC)).offsets.tolist() for one in sound}

    def read(mutant: Mutant) -> str:
        index = load_record_index(RecordFile(mutant.path))
        if index.offsets.tolist() != offsets[mutant.original.name]:
            raise BrokenPromiseError(f"{len(index)} images at other places, from {index.source}")
        return READ if index.source == "idx" else "rebuilt by a scan"

    return Material(originals, read, damages=TEXT)


def without_seal(files: Files) -> Files:
    """Records and index alone."""
    return {name: body for name, body in files.items() if name in (_REC, _IDX)}


def _magic_comment(jpeg: bytes) -> bytes:
    """A JPEG with comments that hold RecordIO's magic at multiples of 4, wherever the record's header ends."""
    comment = b"\xff\xfe\x00\x0a" + struct.pack("<I", _MAGIC) * 2
    return jpeg[:2] + b"\xff\xfe\x00\x04ab" + comment + jpeg[2:]


def _one_record(image: bytes, path: Path) -> bytes:
    with RecordWriter(path, overwrite=True) as writer:
        writer.write(0, image, labels=0.0)
    return path.read_bytes()


def _contents(path: Path) -> list[tuple[int, bytes]]:
    """(label, pixels) of every image as training reads it. Raises what reading raises."""
    checked = CheckedRecords(ImageRecords(path), SIDE)
    return [(label, pixels.tobytes()) for label, pixels in map(checked.decode, range(checked.num_records))]


def _read(mutant: Mutant, contents: dict[str, list[tuple[int, bytes]]]) -> str:
    if mutant.original.name not in contents:
        return _read_attack(mutant.path)
    expected = contents[mutant.original.name]
    records = ImageRecords(mutant.path)
    checked = CheckedRecords(records, SIDE)
    refused, changed = 0, len(records) != len(expected)
    for record_id in range(checked.num_records):
        try:
            label, pixels = checked.decode(record_id)
        except REFUSALS as error:
            if _REC not in str(error):
                raise
            refused += 1
            continue
        if not 0 <= label < checked.num_classes or pixels.shape != (SIDE, SIDE, 3) or pixels.dtype != np.uint8:
            raise BrokenPromiseError(f"record {record_id}: {label} of {checked.num_classes}, pixels {pixels.shape}")
        changed = changed or (label, pixels.tobytes()) != expected[record_id]
    return REFUSED if refused else "payload damage that no reader sees without a seal" if changed else READ


def _read_attack(path: Path) -> str:
    check_images(path, decode=True)
    for wrong_size in ("refuse", "resize"):
        _, pixels = CheckedRecords(ImageRecords(path), SIDE, wrong_size=wrong_size).decode(0)
        if pixels.shape != (SIDE, SIDE, 3):
            raise BrokenPromiseError(f"pixels of shape {pixels.shape}")
    return "decoded at the right size"


def _read_sealed(mutant: Mutant, expected: list[tuple[int, bytes]]) -> str:
    bad = bool(check_images(mutant.path).bad)
    if not mutant.changed:
        if bad or _contents(mutant.path) != expected:
            raise BrokenPromiseError("an unchanged file was refused, or read otherwise")
        return READ
    if not bad:
        raise BrokenPromiseError("the check found nothing")
    checked = CheckedRecords(ImageRecords(mutant.path), SIDE)
    for record_id in range(checked.num_records):
        try:
            label, pixels = checked.decode(record_id)
        except REFUSALS:
            continue
        if (label, pixels.tobytes()) != expected[record_id]:
            raise BrokenPromiseError(f"record {record_id} reads otherwise than it was sealed")
    return REFUSED


def _frame_lies(layout: str, folder: Path) -> dict[str, Lie]:
    """Lies about a record of the file: its frame, its labels, its parts."""
    offsets = ImageRecords(folder / layout / _REC).index.offsets.tolist()
    empty, last = struct.pack("<II", _MAGIC, 2 * _PART), struct.pack("<II", _MAGIC, 3 * _PART)
    firsts = b"".join(struct.pack("<II", _MAGIC, _PART | 8 * (999 - record)) for record in range(1000))

    def word(place: int, value: Callable[[Random, int], int], rng: Random, files: Files) -> None:
        body, offset = bytearray(files[_REC]), rng.choice(offsets)
        if layout == "insightface" and rng.random() < 0.2:
            offset = len(body) - 40  # the header record, the last one: what it says of images and identities
        (old,) = struct.unpack_from("<I", body, offset + place)
        struct.pack_into("<I", body, offset + place, value(rng, old))
        files[_REC] = bytes(body)

    def label(rng: Random, files: Files) -> None:
        (bits,) = struct.unpack("<I", struct.pack("<f", rng.choice(_FLOATS)))
        word(12 if layout == "im2rec" else 32 + 4 * rng.randrange(2), lambda *_: bits, rng, files)

    def insert(new: Callable[[Random, Files], bytes], rng: Random, files: Files) -> None:
        offset = rng.choice(offsets)
        files[_REC] = files[_REC][:offset] + new(rng, files) + files[_REC][offset:]

    def record(rng: Random, files: Files) -> slice:
        offset = rng.choice(offsets)
        (length,) = struct.unpack_from("<I", files[_REC], offset + 4)
        return slice(offset, offset + 8 + ((length & _LENGTH) + 3 & ~3))

    def remove(rng: Random, files: Files) -> None:
        gone = record(rng, files)
        files[_REC] = files[_REC][: gone.start] + files[_REC][gone.stop :]

    return {
        "part flag and length": partial(word, 4, lambda rng, _: rng.choice(_WORDS)),
        "length off by some": partial(word, 4, lambda rng, old: max(0, old + rng.randint(-16, 16)) & 0xFFFFFFFF),
        "label count": partial(word, 8, lambda rng, _: rng.choice(_WORDS)),
        "a first part without others": partial(word, 4, lambda _, old: _PART | old & _LENGTH),
        "label, or count in the header record": label,
        "a chain of empty parts": partial(
            insert, lambda rng, _: struct.pack("<II", _MAGIC, _PART) + empty * rng.randrange(20_000) + last
        ),
        "a thousand records over one chain of parts": partial(insert, lambda *_: firsts + empty * 20_000 + last),
        "a record doubled": partial(insert, lambda rng, files: files[_REC][record(rng, files)]),
        "a record removed": remove,
    }


def _lines(change: Callable[[Random, list[list[bytes]], int], object]) -> Lie:
    """A lie about lines of the index, given them as columns and the size of the records."""

    def lie(rng: Random, files: Files) -> None:
        rows = [line.split(b"\t") for line in files[_IDX].splitlines()]
        change(rng, rows, len(files[_REC]))
        files[_IDX] = b"".join(b"\t".join(row) + b"\n" for row in rows)

    return lie


def _set(column: int, value: Callable[[Random, list[list[bytes]], int], object]) -> Lie:
    """A lie in one column of one line."""

    def change(rng: Random, rows: list[list[bytes]], size: int) -> None:
        rows[rng.randrange(len(rows))][column] = str(value(rng, rows, size)).encode()

    return _lines(change)


def _swap(rng: Random, rows: list[list[bytes]], size: int) -> None:
    one, two = rng.sample(rows, 2)
    one[1], two[1] = two[1], one[1]


def _overlap(rng: Random, rows: list[list[bytes]], size: int) -> None:
    rows[:] = [[b"%d" % key, b"%d" % (4 * key)] for key in range(size // 4)]


_LINE_LIES: dict[str, Lie] = {
    "dropped": _lines(lambda rng, rows, _: rows.remove(rng.choice(rows))),
    "doubled": _lines(lambda rng, rows, _: rows.insert(rng.randrange(len(rows)), rng.choice(rows))),
    "shuffled": _lines(lambda rng, rows, _: rng.shuffle(rows)),
    "swapped": _lines(_swap),
    "overlapping": _lines(_overlap),
    "three columns": _lines(lambda rng, rows, _: rng.choice(rows).append(b"1")),
    "one column": _lines(lambda rng, rows, _: rng.choice(rows).pop()),
    "a negative key": _set(0, lambda *_: -4),
    "a negative offset": _set(1, lambda *_: -4),
    "key 0": _set(0, lambda *_: 0),
    "huge key": _set(0, lambda rng, *_: rng.choice((1 << 31, 1 << 53, (1 << 63) - 1))),
    "one key": _set(0, lambda rng, rows, _: rng.choice(rows)[0].decode()),
    "past the end": _set(1, lambda rng, _, size: rng.choice((size, size + 4, 1 << 40, (1 << 63) - 4))),
    "inside a record": _set(1, lambda rng, _, size: 4 * rng.randrange(size // 4)),
    "off by 4": _set(1, lambda rng, rows, _: int(rng.choice(rows)[1]) + 4),
}
