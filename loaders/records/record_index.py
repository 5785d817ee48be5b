"""Which records of a `.rec` file are images, where they lie, and what their record ids are.

Why: a record id is the ordinal, by byte offset, among all image records of the file. Sample order, teacher caches and
error messages are built on ids, so they must come out the same whether they were read from a complete `.idx`, from one
that lists only the images, or from a scan of the file; and they must never shift.

Images (insightface's conventions): the record with key 0 is a header where it has labels [H0, H1] and an empty body;
the images are then the keys 1 .. H0-1. Otherwise every record is an image, except records with labels and an empty body
that end the file: identity records whose header is not listed.

An `.idx` is a text file, one line `key<TAB>byte offset` per record, in any order. It is trusted after these checks:

* every line parses, offsets are distinct multiples of 4 inside the file, keys are distinct;
* the records it lists begin and end where it says: all of them in a file of up to 4,096, else a sample of about 2,300
  that contains the first, the last, the 256 longest and those beside holes in the keys;
* what it leaves out (before, between and after) is header and identity records only.

Where it is missing or fails, the index is rebuilt by walking the `.rec`, with a warning that says why. A damaged record
does not make an index stale: it keeps its id and raises when it is read. A walk, though, stops at a damaged frame with
an error, since how many records hide behind it is not known. A line missing outside the sample surfaces when the record
before it is read (`StaleIndexError`).
"""

from __future__ import annotations

import logging
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from adadistill.loaders.first_bytes import what_it_is
from adadistill.loaders.records.recordio import (
    HEADER_WORDS,
    MAGIC,
    MAX_EXACT_FLOAT,
    RecordError,
    RecordFile,
    ScannedRecord,
    write_text_atomically,
)

logger = logging.getLogger(__name__)

Int64Array = npt.NDArray[np.int64]

_LINE_BYTES = 64  # two numbers of 64 bits, and room for spaces; a record has 32 bytes at least
_CHECK_ALL = 4096
_SAMPLE_EVEN, _SAMPLE_HOLES, _SAMPLE_LONGEST = 1024, 1024, 256
_DAMAGED_RUN = 128
"""Longest run of damaged records between two sound ones that is still damage; beyond it the index is called stale."""
_IDENTITY_LABEL_BYTES = 8  # two labels; no image is so small


@dataclass(frozen=True, slots=True, eq=False)
class RecordIndex:
    """The image records of one file; element i belongs to record id i."""

    offsets: Int64Array
    """(N,) byte of each image record, ascending."""
    limits: Int64Array
    """(N,) byte where the next known record begins, or the file ends: the record may not reach further."""
    keys: Int64Array
    """(N,) the key in the `.idx`, or after a scan the id in the image header (the ordinal where ids repeat)."""
    num_records: int
    """Records known, header and identity records included."""
    num_identities: int | None
    """Number of identity records by insightface's header; None without one."""
    source: Literal["idx", "scan"]
    reason: str
    """The `.idx` that was read, or why the file was scanned."""
    identity_offsets: Int64Array
    """Of the identity records, by key; none without insightface's header."""

    def __len__(self) -> int:
        return len(self.offsets)

    def identity_ranges(self, file: RecordFile) -> Int64Array:
        """(n, 2) first key of an identity's images, and the key behind its last, of each sound identity record."""
        words = file.words_at(self.identity_offsets, HEADER_WORDS + 1)
        bounds = np.ascontiguousarray(words[:, 8:]).view(np.float32)
        sound = _is_whole(words) & (words[:, 2] == 2) & (words[:, 1] == 32)
        sound &= ((bounds >= 1) & (bounds < MAX_EXACT_FLOAT) & (bounds == np.floor(bounds))).all(axis=1)
        return bounds[sound].astype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    """insightface's header record: where identity records begin, or why that cannot be taken from it."""

    first_identity: int | None = None
    num_identities: int | None = None
    problem: str = ""
    images_are_missing: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class _Images:
    """(n,) bool, True for images, and what the header record said of it."""

    is_image: npt.NDArray[np.bool_]
    num_identities: int | None
    problem: str = ""
    images_are_missing: bool = False
    first_identity: int | None = None


class _UnusableIndexError(ValueError):
    """The `.idx` cannot be trusted; the text says why."""


def load_record_index(records: str | Path | RecordFile, index: str | Path | None = None) -> RecordIndex:
    """Read the `.idx` of a record file, or rebuild it by a scan where it cannot be trusted.

    Args:
        records: the `.rec` file.
        index: the `.idx`; the one beside the records where left out.

    Raises:
        FileNotFoundError: `records`, or an `index` that was named, does not exist.
        RecordError: a scan was needed and met a damaged frame.
    """
    file = records if isinstance(records, RecordFile) else RecordFile(records)
    path = file.path.with_suffix(".idx") if index is None else Path(index)
    if index is not None and not path.is_file():
        raise FileNotFoundError(f"no index at {path}; leave the index out to use the one beside {file.path}, or a scan")
    try:
        return _index_from_file(file, path)
    except _UnusableIndexError as problem:
        reason = str(problem)
    logger.warning("%s: rebuilding the index by scanning the record file, because %s", file.path, reason)
    return _index_from_scan(file, reason)


def write_record_index(index: RecordIndex, path: str | Path) -> None:
    """Write an `.idx` that lists the images only, as DALI's own reader needs it (`train.images.idx`); atomically."""
    pairs = zip(index.keys.tolist(), index.offsets.tolist(), strict=True)
    write_text_atomically(Path(path), (f"{key}\t{offset}\n" for key, offset in pairs))


def _index_from_file(file: RecordFile, path: Path) -> RecordIndex:
    size = file.size
    keys, offsets = _parse_idx(path, size)
    if offsets[0] < 0 or keys.min() < 0:
        raise _UnusableIndexError(f"{path} holds negative numbers")
    if offsets[-1] >= size:
        count = int((offsets >= size).sum())
        raise _UnusableIndexError(f"{path} lists {count} records past the end of the file at byte {size}")
    if (offsets % 4).any():
        raise _UnusableIndexError(f"{path} lists offsets that are not multiples of 4")
    if (np.diff(offsets) == 0).any():
        raise _UnusableIndexError(f"{path} lists one offset twice")
    if (np.diff(np.sort(keys)) == 0).any():
        raise _UnusableIndexError(f"{path} lists one key twice")
    limits = _verified_limits(file, path, keys, offsets)
    images = _find_images(file, keys, offsets)
    if images.images_are_missing:
        raise _UnusableIndexError(f"{path} does not fit the header record: {images.problem}")
    return _build(file, offsets, limits, keys, images, "idx", str(path))


def _index_from_scan(file: RecordFile, reason: str) -> RecordIndex:
    starts, ids = array("q"), array("Q")
    for record in file.scan():
        starts.append(record.offset)
        ids.append(record.id)
    offsets = np.frombuffer(starts, np.int64) if starts else np.zeros(0, np.int64)
    keys = np.arange(len(offsets), dtype=np.int64)
    header_ids = np.frombuffer(ids, np.uint64) if ids else np.zeros(0, np.uint64)
    distinct = np.sort(header_ids)
    if len(ids) and distinct[-1] < 1 << 63 and not (np.diff(distinct) == 0).any():
        keys = header_ids.astype(np.int64)
    limits = np.append(offsets[1:], file.size)
    images = _find_images(file, keys, offsets)
    return _build(file, offsets, limits, keys, images, "scan", reason)


def _build(
    file: RecordFile,
    offsets: Int64Array,
    limits: Int64Array,
    keys: Int64Array,
    images: _Images,
    source: Literal["idx", "scan"],
    reason: str,
) -> RecordIndex:
    if images.problem:
        logger.warning(
            "%s: the insightface header record is damaged (%s); by the records that end the file, %d are images",
            file.path,
            images.problem,
            images.is_image.sum(),
        )
    image_offsets, image_limits, image_keys = (values[images.is_image] for values in (offsets, limits, keys))
    of_identities = np.flatnonzero(keys >= images.first_identity) if images.first_identity is not None else keys[:0]
    identity_offsets = offsets[of_identities[np.argsort(keys[of_identities], kind="stable")]]
    for values in (image_offsets, image_limits, image_keys, identity_offsets):
        values.flags.writeable = False
    return RecordIndex(
        offsets=image_offsets,
        limits=image_limits,
        keys=image_keys,
        num_records=len(offsets),
        num_identities=images.num_identities,
        source=source,
        reason=reason,
        identity_offsets=identity_offsets,
    )


def _parse_idx(path: Path, records_bytes: int) -> tuple[Int64Array, Int64Array]:
    """(keys, offsets) of the `.idx` of a file of so many bytes, sorted by offset."""
    if not path.is_file():
        raise _UnusableIndexError(f"{path} does not exist")
    size, most = path.stat().st_size, _LINE_BYTES * (records_bytes // 32 + 2)
    if size == 0:
        raise _UnusableIndexError(f"{path} is empty")
    if size > most:  # before memory is taken for its numbers
        raise _UnusableIndexError(f"{path} has {size} bytes, a file of {records_bytes} holds fewer records than that")
    if (other := what_it_is(path, "text")) is not None:
        raise _UnusableIndexError(f"{path} {other}")
    try:
        # By name: an open file would be read line by line, three times slower (6 million lines: 0.9 s against 2.3 s).
        table = np.loadtxt(path, dtype=np.int64, comments=None, ndmin=2, encoding="ascii")
    except ValueError as error:  # UnicodeDecodeError is one
        raise _UnusableIndexError(f"{path} is not a list of `key<TAB>offset` lines ({error})") from error
    if table.shape[0] == 0:
        raise _UnusableIndexError(f"{path} is empty")
    if table.shape[1] != 2:
        raise _UnusableIndexError(f"{path} has {table.shape[1]} columns, expected `key<TAB>offset`")
    order = np.argsort(table[:, 1], kind="stable")
    return table[order, 0], table[order, 1]


def _verified_limits(file: RecordFile, path: Path, keys: Int64Array, offsets: Int64Array) -> Int64Array:
    """Check an `.idx` against the file; gives where each listed record must end (module docstring).

    Raises:
        _UnusableIndexError: it leaves out an image, or lists a byte where no record begins.
    """
    limits = np.append(offsets[1:], file.size)
    if offsets[0] > 0 and (unlisted := _first_image(file, 0, int(offsets[0]))) is not None:
        raise _UnusableIndexError(f"{path} leaves out the record at byte {unlisted}")
    sample = _sample(keys, limits - offsets)
    words = file.words_at(offsets[sample], HEADER_WORDS)
    sound = _is_whole(words) & (_frame_bytes(words) == limits[sample] - offsets[sample])
    for place in sample[~sound].tolist():
        end = _settle(file, path, offsets, place)
        if end is not None:
            limits[place] = end
    return limits


def _sample(keys: Int64Array, spans: Int64Array) -> Int64Array:
    """Ascending places of the records to check: see the module docstring."""
    count = len(keys)
    if count <= _CHECK_ALL:
        return np.arange(count)
    holes = np.flatnonzero(np.diff(keys) != 1)
    if len(holes) > _SAMPLE_HOLES:
        holes = holes[np.linspace(0, len(holes) - 1, _SAMPLE_HOLES).astype(np.int64)]
    longest = np.argpartition(spans, count - _SAMPLE_LONGEST)[-_SAMPLE_LONGEST:]
    even = np.linspace(0, count - 1, _SAMPLE_EVEN).astype(np.int64)
    return np.unique(np.concatenate([even, holes, longest]))


def _settle(file: RecordFile, path: Path, offsets: Int64Array, place: int) -> int | None:
    """Look closely at a listed record that does not simply end where the next one begins.

    Returns:
        Its end, where it is sound (several parts, or followed by unlisted records without images); None where it is
        damaged and its neighbours show that the index is right.
    """
    start = int(offsets[place])
    limit = int(offsets[place + 1]) if place + 1 < len(offsets) else file.size
    try:
        end = file.end_of(start)
    except RecordError:
        end = None
    if end is not None and end <= limit:
        if end == limit:
            return end
        if (unlisted := _first_image(file, end, limit)) is None:
            return end
        if _begins_record(file, end):
            raise _UnusableIndexError(f"{path} leaves out the record at byte {unlisted}")
    elif end is not None and not _begins_record(file, limit) and (end == file.size or _begins_record(file, end)):
        raise _UnusableIndexError(f"{path} lists byte {limit}, inside the record at byte {start}")
    _require_anchors(file, path, offsets, place)
    if limit == file.size and (unlisted := _image_after(file, start)) is not None:
        raise _UnusableIndexError(f"{path} ends before the record at byte {unlisted}")
    return None


def _require_anchors(file: RecordFile, path: Path, offsets: Int64Array, place: int) -> None:
    """Raise unless the record at `place` is damaged in a file that the index fits on both sides of the damage."""
    first = max(place - _DAMAGED_RUN, -1)
    for before in range(place, first, -1):
        start = int(offsets[before])
        if _begins_record(file, start) or before == 0:  # bytes before the first record were checked
            break
        try:
            end = file.end_of(int(offsets[before - 1]))
        except RecordError:
            continue
        if end == start:
            break
        if end == file.size or _begins_record(file, end):
            raise _UnusableIndexError(f"{path} lists byte {start}, where no record begins")
    else:
        raise _UnusableIndexError(f"{path} lists byte {int(offsets[place])}, where no record begins")
    after = offsets[place + 1 : place + 1 + _DAMAGED_RUN].tolist()
    if after and not any(_begins_record(file, start) for start in after):
        raise _UnusableIndexError(f"{path} lists byte {after[0]}, where no record begins")


def _begins_record(file: RecordFile, offset: int) -> bool:
    words = file.words_at(np.array([offset]), HEADER_WORDS)
    return bool(words[0, 0] == MAGIC and words[0, 1] >> 29 in (0, 1))


def _first_image(file: RecordFile, start: int, stop: int) -> int | None:
    """Byte of the first record in [start, stop) that is not a header or identity record, or of a damaged frame."""
    offset = start
    try:
        for record in file.scan(start, stop):
            offset = record.offset
            if not record.holds_no_image:
                return offset
            offset = record.next_offset
    except RecordError:
        return offset
    return None


def _image_after(file: RecordFile, damaged: int) -> int | None:
    """Byte of an image record somewhere behind the damaged last record of an index, None where there is none."""
    candidate = file.next_magic(damaged + 4)
    while candidate is not None:
        if _begins_record(file, candidate):
            try:
                record: ScannedRecord = next(file.scan(candidate))
            except RecordError:
                pass  # part of a damaged record, not a record
            else:
                if not record.holds_no_image:
                    return candidate
        candidate = file.next_magic(candidate + 4)
    return None


def _find_images(file: RecordFile, keys: Int64Array, offsets: Int64Array) -> _Images:
    """Tell images from header and identity records, for records sorted by offset (module docstring)."""
    at_zero = np.flatnonzero(keys == 0)
    header = _read_header(file, keys, offsets, int(at_zero[0])) if len(at_zero) else None
    if header is not None and header.first_identity is not None:
        is_image = (keys >= 1) & (keys < header.first_identity)
        return _Images(is_image, header.num_identities, first_identity=header.first_identity)
    is_image = np.ones(len(keys), np.bool_)
    if header is not None:
        is_image[at_zero] = False
    candidates = np.flatnonzero(is_image)
    is_image[candidates[_trailing_bodiless(file, offsets[candidates]) :]] = False
    if header is None:
        return _Images(is_image, None)
    return _Images(is_image, None, header.problem, header.images_are_missing)


def _read_header(file: RecordFile, keys: Int64Array, offsets: Int64Array, place: int) -> _Header | None:
    """Read the record with key 0; None where it is an ordinary image."""
    try:
        record = file.read(int(offsets[place]), key=0)
    except RecordError as error:
        problem = str(error)
    else:
        if record.flag > 0 and not record.body:
            return _parse_header(file, record.labels, keys, offsets)
        problem = f"its label count is {record.flag} with {len(record.body)} bytes behind the labels"
    # An image that cannot be read stays one; what ends the file behind identity records is a damaged header.
    ends_file = place > 0 and place == len(keys) - 1 and bool(_bodiless(file, offsets[place - 1 : place])[0])
    return _Header(problem=problem) if ends_file else None


def _parse_header(file: RecordFile, labels: tuple[float, ...], keys: Int64Array, offsets: Int64Array) -> _Header:
    """Check the labels [H0, H1] of a header record against the records there are."""
    bounds = np.array(labels[:2])
    if not (np.isfinite(bounds).all() and (bounds == np.floor(bounds)).all() and (bounds >= 1).all()):
        return _Header(problem=f"its labels {labels[:2]} are no keys")
    if (bounds >= MAX_EXACT_FLOAT).any():
        return _Header()  # such keys are rounded in float32: no fault, but no use either
    first = int(bounds[0])
    present = int(((keys >= 1) & (keys < first)).sum())
    if present != first - 1:
        return _Header(
            problem=f"it announces {first - 1} images, {present} of their keys exist", images_are_missing=True
        )
    last_image, identity = np.flatnonzero(keys == first - 1), np.flatnonzero(keys == first)
    if _bodiless(file, offsets[last_image]).any() or (
        len(identity) and _is_sound_image(file, offsets, int(identity[0]))
    ):
        return _Header(problem=f"it says that identity records begin with key {first}, which is not so")
    identities = np.flatnonzero(keys >= first)
    for place in identities[~_bodiless(file, offsets[identities])].tolist():
        if _is_sound_image(file, offsets, place):
            problem = f"key {keys[place]} is an identity's, but the record at byte {offsets[place]} is an image"
            return _Header(problem=problem, images_are_missing=True)
    num_identities = int(bounds[1]) - first if len(bounds) == 2 and bounds[1] > bounds[0] else None
    return _Header(first_identity=first, num_identities=num_identities)


def _is_sound_image(file: RecordFile, offsets: Int64Array, place: int) -> bool:
    """Whether a record can be read and is larger than an identity record, damaged or not, can be."""
    limit = int(offsets[place + 1]) if place + 1 < len(offsets) else file.size
    try:
        record = file.read(int(offsets[place]), limit=limit)
    except RecordError:
        return False
    return 4 * record.flag + len(record.body) > _IDENTITY_LABEL_BYTES and len(record.body) > 0


def _trailing_bodiless(file: RecordFile, offsets: Int64Array) -> int:
    """Place where the run of records with labels and without body that ends the list begins."""
    stop, chunk = len(offsets), 1
    while stop > 0:
        start = max(0, stop - chunk)
        has_body = np.flatnonzero(~_bodiless(file, offsets[start:stop]))
        if len(has_body):
            return start + int(has_body[-1]) + 1
        stop, chunk = start, min(chunk * 64, 1 << 16)
    return 0


def _bodiless(file: RecordFile, offsets: Int64Array) -> npt.NDArray[np.bool_]:
    """(n,) True for whole records with labels and nothing behind them."""
    words = file.words_at(offsets, HEADER_WORDS)
    flag = words[:, 2].astype(np.int64)
    return _is_whole(words) & (flag > 0) & (words[:, 1].astype(np.int64) == 24 + 4 * flag)


def _is_whole(words: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
    """(n,) True where the magic is right and the part flag says that the record has one part."""
    return (words[:, 0] == MAGIC) & (words[:, 1] >> 29 == 0)


def _frame_bytes(words: npt.NDArray[np.uint32]) -> Int64Array:
    """(n,) bytes from a whole record's magic to the next record."""
    return (words[:, 1].astype(np.int64) + 11) & ~3
