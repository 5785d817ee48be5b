"""RecordIO files of image records, read and written without mxnet.

Why: the field keeps its training sets as `.rec` files (MS1MV2/3, Glint360K, WebFace), and mxnet, the library that
defined them, no longer installs. A file is a row of records, all numbers little-endian:

    record  = u32 magic 0xCED7230A | u32 (part flag << 29 | length) | length bytes | zeros up to a multiple of 4
    payload = image header | body         the image header: u32 flag, f32 label, u64 id, u64 id2,
                                          then, where flag > 0, `flag` f32 labels that replace the one in the header

Part flag 0 is a whole record. A payload that holds the magic at a multiple of 4 is cut there (part flags 1, 2 ..., 3)
with those four bytes dropped; the reader puts them back. insightface's header and identity records are ordinary records
with labels and an empty body; which records are images is decided in `record_index.py`.

Nothing in a file is trusted: lengths, flags and label counts are checked against the file and the neighbouring records
before anything is read or allocated; what does not fit raises a `RecordError` that names file, record, key and byte.
Damage inside a body cannot be seen here (the format holds no checksums), nor a length that grew into its own padding.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from adadistill.loaders.errors import WorkFailed
from adadistill.loaders.first_bytes import LOOKED_AT, what_it_is

MAGIC = 0xCED7230A
MAX_LABELS = 1 << 16
"""Most labels a record may announce. Real files hold 1 to a few hundred; a damaged count must not cost gigabytes."""
SEAL_SUFFIX = ".seal"
"""Of the file of checksums that may lie beside a record file; see record_seal.py."""
MAX_PARTS = 1024
"""Most parts of one record. An honest record has one for each time that its payload holds the magic, which is almost
never; a chain of empty parts that many frames lead into would be walked again from each of them."""
_LABELS_AT_ONCE = 1 << 16
HEADER_WORDS = 9
"""Of a record that has several labels, up to the first of them."""
MAX_EXACT_FLOAT = 1 << 24
"""Labels are float32: whole numbers are exact below this only."""

_MAGIC_BYTES = struct.pack("<I", MAGIC)
_MAX_PAYLOAD = (1 << 29) - 1
_LENGTH_MASK = _MAX_PAYLOAD
_IMAGE_HEADER = struct.Struct("<IfQQ")
_FRAME = struct.Struct("<II")
_FRAME_AND_HEADER = struct.Struct("<IIIfQQ")
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)


class RecordError(WorkFailed, ValueError):
    """A record that cannot be trusted: `path`, `offset` in bytes, `key` and `record_id` (None: unknown), `reason`."""

    remedy = "Restore the file from its source; a copy with the right checksum has no such record"

    def __init__(
        self, path: str | Path, offset: int, reason: str, key: int | None = None, record_id: int | None = None
    ) -> None:
        self.path, self.offset, self.reason, self.key, self.record_id = Path(path), offset, reason, key, record_id
        named = "record" if record_id is None else f"record {record_id}"
        keyed = "" if key is None else f" (key {key})"
        super().__init__(f"{path}: {named}{keyed} at byte {offset}: {reason}. {self.remedy}.")

    def __reduce__(self) -> tuple[type[RecordError], tuple[Path, int, str, int | None, int | None]]:
        return type(self), (self.path, self.offset, self.reason, self.key, self.record_id)  # crosses worker processes


class BadMagicError(RecordError):
    """No record begins at this byte."""

    remedy = "Either the record is damaged (restore the file) or the .idx belongs to another file (delete it)"


class NotRecordsError(BadMagicError):
    """The file is of another kind altogether."""

    remedy = "Put the record file itself in its place"


class BadLengthError(RecordError):
    """The length disagrees with the records around it."""


class BadFlagError(RecordError):
    """The part flag is out of sequence, or the label count does not fit the record."""


class BadLabelError(RecordError):
    """A label is not a whole number in the allowed range."""

    remedy = "Restore the file, or correct `num_classes` if the record is right"


class BadBodyError(RecordError):
    """An image record whose body is empty or begins like no image format."""


class TruncatedRecordError(RecordError):
    """The file ends inside the record."""

    remedy = "The file was cut short (copy it again and compare sizes), or the record's length is damaged"


class StaleIndexError(RecordError):
    """The index leaves out an image record, so that every later record id would be wrong."""

    remedy = "Delete the .idx file (or name the right one); it is then rebuilt by scanning"


@dataclass(frozen=True, slots=True)
class Record:
    """One record: `labels` (one for flag 0), `id`, `id2`, the label count `flag` as stored, and the body's bytes."""

    labels: tuple[float, ...]
    id: int
    id2: int
    flag: int
    body: bytes


class ScannedRecord(NamedTuple):
    """Where a record lies and what its image header says.

    `body_bytes` is -1 where the image header does not fit the payload: such a record is damaged but keeps its place.
    """

    offset: int
    next_offset: int
    id: int
    flag: int
    body_bytes: int

    @property
    def holds_no_image(self) -> bool:
        """True for insightface's header and identity records: labels and no body."""
        return self.flag > 0 and self.body_bytes == 0


class _Place(NamedTuple):
    """The record being read, for errors."""

    path: Path
    offset: int
    key: int | None
    record_id: int | None

    def error(self, kind: type[RecordError], reason: str) -> RecordError:
        return kind(self.path, self.offset, reason, self.key, self.record_id)


class RecordFile:
    """Read-only view of one `.rec` file.

    The memory map is opened on first use in each process. It has no file position, so threads and forked processes
    share it safely; a pickled copy (spawned processes) opens its own. Pages are shared between all of them. As with
    every map, a file that is cut while it is read kills the process: replace record files by renaming, never in place.
    """

    def __init__(self, path: str | Path) -> None:
        """Raises FileNotFoundError where there is no such file; its content is not read yet."""
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"no record file at {self.path}; check the recipe's `data.records`")
        self._buffer: mmap.mmap | bytes | None = None

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "_buffer": None}

    def __repr__(self) -> str:
        return f"RecordFile({str(self.path)!r})"

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return len(self._open())

    def close(self) -> None:
        """Drop the memory map. The next read opens it again."""
        buffer, self._buffer = self._buffer, None
        if isinstance(buffer, mmap.mmap):
            buffer.close()

    def read(
        self, offset: int, *, key: int | None = None, record_id: int | None = None, limit: int | None = None
    ) -> Record:
        """Read and check the record that begins at byte `offset`.

        Args:
            offset: byte of the record's magic.
            key, record_id: only named in errors.
            limit: byte where the next known record begins, or the file ends. The record must end there, or be followed
                by header or identity records only: this finds lengths that were damaged downwards.

        Raises:
            RecordError: one of its kinds, where the record is damaged.
        """
        buffer = self._buffer or self._open()
        size = len(buffer)
        if 0 <= offset <= size - 32:
            magic, packed, flag, label, id_, id2 = _FRAME_AND_HEADER.unpack_from(buffer, offset)
            stop = offset + 8 + packed
            end = (stop + 3) & ~3
            first_byte = offset + 32 + 4 * flag
            fits = packed <= _LENGTH_MASK and first_byte <= stop and end <= size and (limit is None or end == limit)
            if magic == MAGIC and fits and flag <= MAX_LABELS and (stop == end or not any(buffer[stop:end])):
                labels = (label,) if flag == 0 else struct.unpack_from(f"<{flag}f", buffer, offset + 32)
                return Record(labels, id_, id2, flag, buffer[first_byte:stop])
        place = _Place(self.path, offset, key, record_id)
        payload, end = self._payload(place, limit)
        if limit is not None and end < limit:
            self._check_what_follows(place, end, limit)
        return _parse_payload(payload, place)

    def end_of(self, offset: int) -> int:
        """Byte after the record at `offset`, padding included. Raises RecordError where its frame is damaged."""
        return self._payload(_Place(self.path, offset, None, None), None)[1]

    def scan(self, start: int = 0, stop: int | None = None) -> Iterator[ScannedRecord]:
        """Walk the records of bytes [start, stop) from frame to frame; multi-part records count once.

        A damaged frame stops the walk with its error: how many records hide behind it is not known, so going on could
        shift every later record id. A damaged image header does not: its record is yielded with `body_bytes` -1.

        Raises:
            RecordError: a frame is damaged or the walk does not arrive at `stop`. `record_id` counts from `start`.
        """
        buffer = self._open()
        stop = len(buffer) if stop is None else stop
        offset, count = start, 0
        while offset < stop:
            end = 0
            if offset <= stop - 32:
                magic, packed, flag, _, id_, _ = _FRAME_AND_HEADER.unpack_from(buffer, offset)
                if magic == MAGIC and packed <= _LENGTH_MASK:
                    end = offset + ((packed + 11) & ~3)
                    body_bytes = packed - 24 - 4 * flag
            if not offset + 32 <= end <= stop or (packed & 3 and any(buffer[offset + 8 + packed : end])):
                place = _Place(self.path, offset, None, count)
                payload, end = self._payload(place, stop)
                flag, id_, body_bytes = _summarise_payload(payload)
            yield ScannedRecord(offset, end, id_, flag, body_bytes if body_bytes >= 0 else -1)
            offset, count = end, count + 1

    def words_at(self, offsets: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.uint32]:
        """`count` words from each of `offsets` (n,), multiples of 4, as (n, count) uint32; zeros past the end.

        A record begins with nine: magic, part flag and length, label count, label, id (2), id2 (2), first of several
        labels. Meant for checking very many records at once; nothing is checked here.
        """
        buffer = self._open()
        words = np.frombuffer(buffer, dtype="<u4", count=len(buffer) // 4)
        if not len(words):
            return np.zeros((len(offsets), count), np.uint32)
        places = (offsets >> 2)[:, None] + np.arange(count)  # (n, count)
        inside = (places >= 0) & (places < len(words))
        return np.where(inside, words[np.where(inside, places, 0)], np.uint32(0))

    def first_labels(
        self, offsets: npt.NDArray[np.int64], limits: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """(n,) first label of the records in [offset, limit), and which of them can be read. Only beginnings are."""
        values, known = np.zeros(len(offsets), np.float32), np.zeros(len(offsets), np.bool_)
        for start in range(0, len(offsets), _LABELS_AT_ONCE):
            some = slice(start, start + _LABELS_AT_ONCE)
            words = self.words_at(offsets[some], HEADER_WORDS)  # (n, 9)
            length, flag = words[:, 1].astype(np.int64), words[:, 2].astype(np.int64)
            values[some] = np.where(flag > 0, words[:, 8], words[:, 3]).astype(np.uint32).view(np.float32)
            # Of several parts, the length has other bits.
            known[some] = (words[:, 0] == MAGIC) & (flag <= MAX_LABELS) & (24 + 4 * flag <= length)
            known[some] &= offsets[some] + ((length + 11) & ~3) <= limits[some]
        for place in np.flatnonzero(~known).tolist():
            try:
                values[place] = self.read(offsets.item(place), limit=limits.item(place)).labels[0]
                known[place] = True
            except RecordError:
                pass
        return values, known

    def bytes_view(self) -> npt.NDArray[np.uint8]:
        """The whole file as (size,) uint8, read-only and not copied: slices of it are read when they are used."""
        return np.frombuffer(self._open(), dtype=np.uint8)

    def bytes_at(self, start: int, stop: int) -> bytes:
        """Raw bytes [start, stop) of the file, cut off at its end."""
        return self._open()[start:stop]

    def crc32(self, start: int, stop: int) -> int:
        """zlib's crc32 of bytes [start, stop) of the file, without copying them."""
        with memoryview(self._open()) as view, view[start:stop] as span:
            return zlib.crc32(span)

    def next_magic(self, start: int) -> int | None:
        """First byte at or after `start`, a multiple of 4, that holds the magic; None where there is none."""
        buffer = self._open()
        found = buffer.find(_MAGIC_BYTES, start)
        while found >= 0 and found % 4:
            found = buffer.find(_MAGIC_BYTES, found + 1)
        return found if found >= 0 else None

    def _open(self) -> mmap.mmap | bytes:
        if self._buffer is None:
            with self.path.open("rb") as file:
                empty = os.fstat(file.fileno()).st_size == 0  # an empty file cannot be mapped
                self._buffer = b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._buffer

    def _payload(self, place: _Place, limit: int | None) -> tuple[bytes, int]:
        """Payload of a record, its parts joined, and the byte after it."""
        parts: list[bytes] = []
        offset = place.offset
        while True:
            part_flag, start, stop = self._part(place, offset, limit, (_MIDDLE, _LAST) if parts else (_WHOLE, _FIRST))
            parts.append(self._open()[start:stop])
            if len(parts) > MAX_PARTS:
                raise place.error(BadFlagError, f"it has more than {MAX_PARTS} parts")
            offset = (stop + 3) & ~3
            if part_flag in (_WHOLE, _LAST):
                return _MAGIC_BYTES.join(parts), offset

    def _part(self, place: _Place, offset: int, limit: int | None, expected: tuple[int, int]) -> tuple[int, int, int]:
        """Check one part's frame; gives its part flag and the bytes [start, stop) of its content."""
        buffer = self._open()
        size = len(buffer)
        if offset == 0 and (other := what_it_is(buffer[:LOOKED_AT], "records", "empty")) is not None:
            raise place.error(NotRecordsError, f"{self.path.name} {other}")
        if not 0 <= offset <= size - 8:
            raise place.error(TruncatedRecordError, f"no room for a record at byte {offset}, the file has {size}")
        magic, packed = _FRAME.unpack_from(buffer, offset)
        if magic != MAGIC:
            raise place.error(BadMagicError, f"expected magic {MAGIC:#010x} at byte {offset}, found {magic:#010x}")
        part_flag, length = packed >> 29, packed & _LENGTH_MASK
        if part_flag not in expected:
            reason = f"part flag {part_flag} at byte {offset + 4}, expected {expected[0]} or {expected[1]}"
            raise place.error(BadFlagError, reason)
        start, stop = offset + 8, offset + 8 + length
        end = (stop + 3) & ~3
        limit = size if limit is None else min(limit, size)
        if end > limit:
            if limit == size:
                reason = f"{length} bytes announced at byte {offset + 4} reach to byte {end}, the file has {size}"
                raise place.error(TruncatedRecordError, reason)
            reason = f"{length} bytes announced at byte {offset + 4} reach past the next record at byte {limit}"
            raise place.error(BadLengthError, reason)
        if part_flag in (_FIRST, _MIDDLE) and length % 4:
            raise place.error(BadLengthError, f"part at byte {offset} has {length} bytes, not a multiple of 4")
        if any(buffer[stop:end]):
            raise place.error(BadLengthError, f"padding at bytes {stop}..{end} is not zero: length {length} is wrong")
        return part_flag, start, stop

    def _check_what_follows(self, place: _Place, end: int, limit: int) -> None:
        """Between a record's end and the next listed one only records without images may lie."""
        try:
            follower = next(self.scan(end, limit))
        except RecordError as error:
            reason = f"it ends at byte {end}, where no record follows (the next one is at {limit}): its length is wrong"
            raise place.error(BadLengthError, reason) from error
        if not follower.holds_no_image:
            raise place.error(StaleIndexError, f"the index does not list the image record that follows at byte {end}")


class RecordWriter:
    """Writes `<name>.rec` and `<name>.idx` together; a context manager.

    Both files appear under their names, complete and flushed to disk, when the block ends without an exception;
    otherwise nothing is left behind. The `.idx` is in key order, the `.rec` in the order of writing.
    """

    def __init__(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Raises ValueError where `path` does not end in .rec, FileExistsError where it exists without `overwrite`."""
        self.path = Path(path)
        self.index_path = self.path.with_suffix(".idx")
        if self.path.suffix != ".rec":
            raise ValueError(f"a record file must end in .rec, got {self.path}")
        if not overwrite and (self.path.exists() or self.index_path.exists()):
            raise FileExistsError(f"{self.path} or its .idx exists already; pass overwrite=True to replace both")
        self._partial = self.path.with_name(f".{self.path.name}.partial-{os.getpid()}")
        self._file: BinaryIO | None = None
        self._size = 0
        self._keys, self._offsets = array("q"), array("q")
        self._key_range: tuple[int, int] | None = None
        self._keys_seen: set[int] | None = None

    def __enter__(self) -> RecordWriter:
        self._file = self._partial.open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        file, self._file = self._file, None
        if file is None:
            return
        try:
            with file:
                if kind is None:
                    _flush_to_disk(file)
            if kind is None:
                self._publish()
        finally:
            self._partial.unlink(missing_ok=True)

    def write(
        self, key: int, body: bytes, *, labels: float | Sequence[float], id: int | None = None, id2: int = 0
    ) -> int:
        """Append one record and return its byte offset.

        Args:
            key: its key in the `.idx`, not used before.
            body: encoded image, or nothing.
            labels: one number is stored in the image header (flag 0), a sequence as a vector (flag = its length).
            id: id in the image header; the key where left out.
            id2: second id in the image header.

        Raises:
            ValueError: the key is negative or taken, `labels` is empty, too long or beyond float32, an id does not fit
                64 bits, or the record is too large.
        """
        if self._file is None:
            raise ValueError("RecordWriter.write works inside its `with` block only")
        try:
            payload = _build_payload(body, labels, key if id is None else id, id2)
        except (struct.error, OverflowError) as error:
            raise ValueError(
                f"record with key {key}: labels {labels}, id {id} or id2 {id2} do not fit: {error}"
            ) from error
        if len(payload) > _MAX_PAYLOAD:
            raise ValueError(f"record with key {key} has {len(payload)} bytes, RecordIO holds {_MAX_PAYLOAD} at most")
        parts = split_payload(payload)
        if len(parts) > MAX_PARTS:
            raise ValueError(
                f"record with key {key} holds the magic {len(parts) - 1} times, {MAX_PARTS - 1} are allowed"
            )
        self._claim(key)
        offset = self._size
        for part_flag, start, stop in parts:
            length = stop - start
            padding = -length % 4
            self._file.write(_FRAME.pack(MAGIC, part_flag << 29 | length))
            self._file.write(payload[start:stop])
            self._file.write(bytes(padding))
            self._size += 8 + length + padding
        self._keys.append(key)
        self._offsets.append(offset)
        return offset

    def _claim(self, key: int) -> None:
        """Refuse a key used before. Keys outside the range seen so far, the usual case, need no set."""
        if not 0 <= key < 1 << 63:
            raise ValueError(f"record keys must be in [0, 2**63), got {key}")
        if self._key_range is None:
            self._key_range = (key, key)
            return
        low, high = self._key_range
        if low <= key <= high:
            if self._keys_seen is None:
                self._keys_seen = set(self._keys)
            if key in self._keys_seen:
                raise ValueError(f"record key {key} is used twice")
        if self._keys_seen is not None:
            self._keys_seen.add(key)
        self._key_range = (min(low, key), max(high, key))

    def _publish(self) -> None:
        """Move both files to their names. An old index and seal go first: they are never seen beside new records."""
        keys, offsets = np.frombuffer(self._keys, np.int64), np.frombuffer(self._offsets, np.int64)
        order = np.argsort(keys, kind="stable")
        self.index_path.unlink(missing_ok=True)
        self.path.with_name(self.path.name + SEAL_SUFFIX).unlink(missing_ok=True)
        os.replace(self._partial, self.path)
        lines = (
            f"{key}\t{offset}\n" for key, offset in zip(keys[order].tolist(), offsets[order].tolist(), strict=True)
        )
        write_text_atomically(self.index_path, lines)


def write_insightface_records(
    folder: str | Path,
    samples: Iterable[tuple[int, bytes]],
    *,
    image_size: tuple[int, int],
    name: str = "train",
    overwrite: bool = False,
) -> Path:
    """Write `<name>.rec`, `<name>.idx` and `property` as insightface's tools lay them out.

    Images take the keys 1 .. H0-1 with labels [identity, 1.0], identity records the keys H0 .. H1-1 with labels
    [first key, key after the last] and no body, and the header record, key 0 with labels [H0, H1], comes last.

    Args:
        folder: existing folder.
        samples: (label, encoded image) with labels 0, 0, ..., 1, ... ascending without holes.
        image_size: (height, width) in pixels, for `property`.
        name: stem of the two record files.
        overwrite: replace existing files; otherwise they raise FileExistsError.

    Returns:
        Path of the `.rec` file.

    Raises:
        ValueError: labels are not ascending from 0 without holes, an image is empty, there are none, or there are more
            than the layout's float32 keys can count.
    """
    folder = Path(folder)
    property_path = folder / "property"
    if property_path.exists() and not overwrite:
        raise FileExistsError(f"{property_path} exists already; pass overwrite=True to replace it")
    first_keys: list[int] = []
    key = 0
    with RecordWriter(folder / f"{name}.rec", overwrite=overwrite) as writer:
        for key, (label, image) in enumerate(samples, start=1):
            if label == len(first_keys):
                first_keys.append(key)
            if label != len(first_keys) - 1:
                raise ValueError(f"labels must ascend from 0 without holes, got {label} for image {key}")
            if not image:
                raise ValueError(f"image {key} of identity {label} is empty")
            writer.write(key, image, labels=(float(label), 1.0))
        first_identity = key + 1
        header = (first_identity, first_identity + len(first_keys))
        if not first_keys or header[1] >= MAX_EXACT_FLOAT:
            raise ValueError(f"need 1 to {MAX_EXACT_FLOAT} images and identities together, got {header[1] - 1}")
        for identity, first in enumerate(first_keys):
            stop = first_keys[identity + 1] if identity + 1 < len(first_keys) else first_identity
            writer.write(first_identity + identity, b"", labels=(float(first), float(stop)))
        writer.write(0, b"", labels=(float(header[0]), float(header[1])))
        property_path.unlink(missing_ok=True)
    write_text_atomically(property_path, [f"{len(first_keys)},{image_size[0]},{image_size[1]}\n"])
    return folder / f"{name}.rec"


def write_text_atomically(path: Path, lines: Iterable[str]) -> None:
    """Write ASCII lines to a temporary name beside `path`, flush them to disk, and rename."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("wb") as file:
            for line in lines:
                file.write(line.encode("ascii"))
            _flush_to_disk(file)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # renames in this folder, the one above included, are on disk once this returns
    finally:
        os.close(folder)


def _flush_to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _parse_payload(payload: bytes, place: _Place) -> Record:
    if len(payload) < _IMAGE_HEADER.size:
        raise place.error(BadLengthError, f"{len(payload)} bytes are too few for the image header of 24")
    flag, label, id_, id2 = _IMAGE_HEADER.unpack_from(payload)
    if flag > MAX_LABELS or 24 + 4 * flag > len(payload):
        reason = f"label count {flag} does not fit a record of {len(payload)} bytes (at most {MAX_LABELS} labels)"
        raise place.error(BadFlagError, reason)
    labels = (label,) if flag == 0 else struct.unpack_from(f"<{flag}f", payload, 24)
    return Record(labels, id_, id2, flag, payload[24 + 4 * flag :])


def _summarise_payload(payload: bytes) -> tuple[int, int, int]:
    """(flag, id, body bytes) of a payload, with -1 body bytes where the image header does not fit."""
    if len(payload) < _IMAGE_HEADER.size:
        return 0, 0, -1
    flag, _, id_, _ = _IMAGE_HEADER.unpack_from(payload)
    return flag, id_, len(payload) - 24 - 4 * flag


def _build_payload(body: bytes, labels: float | Sequence[float], id_: int, id2: int) -> bytes:
    if not isinstance(labels, Sized):
        return _IMAGE_HEADER.pack(0, labels, id_, id2) + body
    if not 1 <= len(labels) <= MAX_LABELS:
        raise ValueError(f"a record holds 1 to {MAX_LABELS} labels, got {len(labels)}")
    return _IMAGE_HEADER.pack(len(labels), 0.0, id_, id2) + struct.pack(f"<{len(labels)}f", *labels) + body


def split_payload(payload: bytes) -> list[tuple[int, int, int]]:
    """Cut a payload where the magic stands at a multiple of 4: (part flag, start, stop) of each part."""
    cuts = []
    found = payload.find(_MAGIC_BYTES)
    while found >= 0:
        if found % 4 == 0:
            cuts.append(found)
        found = payload.find(_MAGIC_BYTES, found + 1)
    if not cuts:
        return [(_WHOLE, 0, len(payload))]
    starts, stops = [0, *(cut + 4 for cut in cuts)], [*cuts, len(payload)]
    flags = [_FIRST, *[_MIDDLE] * (len(cuts) - 1), _LAST]
    return list(zip(flags, starts, stops, strict=True))
