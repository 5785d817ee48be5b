"""Where all records of a file lie, which of them have an image, of whom, and what the `.idx` calls them."""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adadistill.loaders.dataset_tools.record_folder.manifest import IndexOrder
from adadistill.loaders.dataset_tools.record_folder.raw_records import read_raw_record
from adadistill.loaders.records.recordio import (
    MAX_EXACT_FLOAT,
    BadLabelError,
    RecordFile,
    ScannedRecord,
    StaleIndexError,
)

_IDX_LINE_LIMIT = 64
_FILE_BLOCK = 4096


@dataclass(frozen=True, slots=True)
class RecordLayout:
    """All records of a file, in file order."""

    offsets: npt.NDArray[np.int64]
    """(N + 1,) first bytes, and the size of the file."""
    keys: npt.NDArray[np.int64]
    """(N,) by the `.idx`, -1 where it does not list the record."""
    labels: npt.NDArray[np.int64]
    """(N,) identity, -1 for records without an image."""
    image_bytes: int
    """Of all images, and what blocks of the file system round them up to."""
    index: IndexOrder
    index_sha256: str | None

    def __len__(self) -> int:
        return len(self.keys)


def read_record_layout(file: RecordFile) -> RecordLayout:
    """Walk the file; check all labels, many at once.

    Raises:
        RecordError: a frame or image header is damaged, or a label is no whole number that float32 can hold.
        StaleIndexError: the `.idx` is no list of keys and offsets, or lists a byte where no record begins.
    """
    starts, lengths = array("q"), array("q")
    for record in file.scan():
        starts.append(record.offset)
        lengths.append(record.body_bytes)
    offsets = np.array([*starts, file.size], np.int64)
    bodies = np.array(lengths, np.int64)
    keys, order, sha256 = _read_index(file, offsets[:-1])
    labels = np.full(len(bodies), -1, np.int64)
    has_image = bodies != 0
    values, known = file.first_labels(offsets[:-1], offsets[1:])
    for number in np.flatnonzero(has_image & ~known).tolist():  # read with all checks, to say what is wrong
        place = ScannedRecord(offsets.item(number), offsets.item(number + 1), 0, 0, 0)
        values[number] = read_raw_record(file, place).first_label
    is_identity = (values >= 0) & (values < MAX_EXACT_FLOAT) & (values == np.floor(values))  # NaN fails
    for number in np.flatnonzero(has_image & ~is_identity)[:1].tolist():
        raise BadLabelError(
            file.path,
            int(offsets[number]),
            f"label {float(values[number])!r} is not a whole number in [0, {MAX_EXACT_FLOAT}), and names no folder",
            int(keys[number]) if keys[number] >= 0 else None,
        )
    labels[has_image] = values[has_image].astype(np.int64)
    rounded = (bodies + _FILE_BLOCK - 1) // _FILE_BLOCK * _FILE_BLOCK
    return RecordLayout(offsets, keys, labels, int(rounded.sum()), order, sha256)


def _read_index(
    file: RecordFile, offsets: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], IndexOrder, str | None]:
    """(N,) keys by the `.idx` beside the file, how that is made again from them, and its sha256.

    Raises:
        StaleIndexError: it is no list of keys and offsets, or lists a byte where no record begins.
    """
    path = file.path.with_suffix(".idx")
    if not path.is_file():
        return np.arange(len(offsets), dtype=np.int64), "none", None
    digest, listed_keys, listed_offsets = hashlib.sha256(), array("q"), array("q")
    with path.open("rb") as lines:
        while line := lines.readline(_IDX_LINE_LIMIT + 1):
            digest.update(line)
            fields = line.split()
            if not fields and len(line) <= _IDX_LINE_LIMIT:
                continue
            if len(fields) != 2 or not all(field.isdigit() and len(field) < 19 for field in fields):
                raise _stale(file, f"{path} has a line {line[:40]!r}, expected `key<TAB>offset`")
            listed_keys.append(int(fields[0]))
            listed_offsets.append(int(fields[1]))
    held, places = np.array(listed_keys, np.int64), np.array(listed_offsets, np.int64)
    numbers = np.searchsorted(offsets, places)
    strange = places[(numbers == len(offsets)) | (np.append(offsets, -1)[numbers] != places)]
    if len(strange):
        raise _stale(file, f"{path} lists byte {strange[0]}, where no record begins")
    for name, values in (("byte", places), ("key", held)):
        distinct, times = np.unique(values, return_counts=True)
        if len(distinct) != len(values):
            raise _stale(file, f"{path} lists {name} {distinct[times > 1][0]} twice")
    keys = np.full(len(offsets), -1, np.int64)
    keys[numbers] = held
    in_file_order = np.flatnonzero(keys >= 0)
    by_key = in_file_order[np.argsort(keys[in_file_order], kind="stable")]
    sha256 = digest.hexdigest()
    order: IndexOrder
    for order, numbers_in_order in (("key", by_key), ("file", in_file_order)):
        text = hashlib.sha256()
        for number in numbers_in_order.tolist():
            text.update(b"%d\t%d\n" % (keys[number], offsets[number]))
        if text.hexdigest() == sha256:
            return keys, order, sha256
    return keys, "copy", sha256


def _stale(file: RecordFile, reason: str) -> StaleIndexError:
    return StaleIndexError(file.path, 0, reason)
