"""A seal: checksums of every byte of a record file, by record, so that damage is named instead of trained on.

RecordIO holds no checksums: a flipped bit inside a JPEG mostly decodes, to other pixels. `train.rec.seal` lies beside
`train.rec` and is read when it is there; a record is then checked before anything else looks at it. That costs 5 us for
8 KB, 3 us for 5 KB (zlib's crc32, which lets go of the interpreter lock), where decoding takes 110 and 80 on that core.

Layout, all little-endian:

    b"ADRSEAL1" | u64 bytes of the record file | u64 M spans | u32 length of each span | u32 crc32 of each span
               | u8 kind of each span (1: an image record, 0: anything else) | u32 crc32 of all that precedes

The spans tile the file: each image record is one, and what lies between them (insightface's header and identity
records) is cut into pieces of at most 1 MiB. Record ids are the ordinals of the image spans.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from adadistill.loaders.errors import WorkFailed
from adadistill.loaders.command_text import quoted
from adadistill.loaders.records.record_index import RecordIndex
from adadistill.loaders.records.recordio import SEAL_SUFFIX, RecordError, RecordFile

_MAGIC = b"ADRSEAL1"
_HEADER = struct.Struct("<8sQQ")
_LARGEST_PIECE = 1 << 20


class SealError(WorkFailed, ValueError):
    """A seal that is damaged, or not of this record file. The message says which and what to do."""


class ChecksumError(RecordError):
    """A record whose bytes are not those that were sealed."""

    remedy = "Restore the file from its source, or leave such records out (data.on_damaged=skip)"


@dataclass(frozen=True, slots=True, eq=False)
class RecordSeal:
    """Checksums of one record file."""

    path: Path
    """Of the seal."""
    starts: npt.NDArray[np.int64]
    """(M + 1,) first byte of each span, and the size of the file."""
    crc32: npt.NDArray[np.uint32]
    """(M,)."""
    is_image: npt.NDArray[np.bool_]
    """(M,)."""
    image_spans: npt.NDArray[np.int64]
    """(N,) span of each record id."""

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.image_spans)

    @property
    def num_spans(self) -> int:
        """M."""
        return len(self.crc32)

    def require(self, file: RecordFile, index: RecordIndex) -> None:
        """Refuse a seal of other records.

        Raises:
            SealError: sizes or places of the images differ.
        """
        if file.size != int(self.starts[-1]):
            raise SealError(
                f"{self.path} was made for a file of {int(self.starts[-1])} bytes, {file.path} has {file.size}. If the "
                f"records were changed on purpose, seal them anew: adadistill data verify --seal {quoted(file.path)}"
            )
        if not np.array_equal(self.starts[self.image_spans], index.offsets):
            raise SealError(
                f"{self.path} was made for images at other places than the index of {file.path} says. One of them is "
                f"stale; if it is the seal: adadistill data verify --seal {quoted(file.path)}"
            )

    def matches(self, file: RecordFile, span: int) -> bool:
        """Whether the bytes of a span are those that were sealed."""
        return file.crc32(int(self.starts[span]), int(self.starts[span + 1])) == int(self.crc32[span])

    def check(self, file: RecordFile, record_id: int, key: int | None) -> None:
        """Raise ChecksumError unless a record's bytes are those that were sealed."""
        span = self.image_spans.item(record_id)
        start, stop = self.starts.item(span), self.starts.item(span + 1)
        found = file.crc32(start, stop)
        if found != self.crc32.item(span):
            reason = f"its {stop - start} bytes have crc32 {found:08x}, {self.crc32.item(span):08x} were sealed"
            raise ChecksumError(file.path, start, reason, key, record_id)

    def record_of(self, span: int) -> int | None:
        """Record id of an image's span, None for others."""
        return int(np.searchsorted(self.image_spans, span)) if self.is_image[span] else None


def seal_path(records: Path) -> Path:
    """Where the seal of a record file lies."""
    return records.with_name(records.name + SEAL_SUFFIX)


def open_seal(records: Path) -> RecordSeal | None:
    """The seal beside a record file, None where there is none.

    Raises:
        SealError: it is damaged.
    """
    path = seal_path(records)
    if not path.is_file():
        return None
    most = _HEADER.size + 9 * (records.stat().st_size // 8 + 2) + 4  # a span is 8 bytes at least
    with path.open("rb") as file:
        body = file.read(most + 1)
    problem = _problem(body) if len(body) <= most else f"it has more than the {most} bytes that so many records need"
    if problem:
        raise SealError(
            f"{path} is damaged: {problem}. Restore it, or remove it and, once the records are known to be good, seal "
            f"them anew: adadistill data verify --seal {quoted(records)}"
        )
    _, size, count = _HEADER.unpack_from(body)
    lengths = np.frombuffer(body, "<u4", count, _HEADER.size).astype(np.int64)
    crc32 = np.frombuffer(body, "<u4", count, _HEADER.size + 4 * count)
    is_image = np.frombuffer(body, np.uint8, count, _HEADER.size + 8 * count).astype(np.bool_)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    if starts[-1] != size:
        raise SealError(f"{path} is damaged: its spans cover {starts[-1]} bytes of {size}")
    return RecordSeal(path, starts, crc32, is_image, np.flatnonzero(is_image))


def write_seal(file: RecordFile, index: RecordIndex) -> RecordSeal:
    """Seal a record file as it is now; whoever calls this has found it good.

    Raises:
        RecordError: a record's frame is damaged.
        OSError: the seal cannot be written; an old one stays.
    """
    spans = list(_spans(file, index))
    lengths = np.array([stop - start for start, stop, _ in spans], dtype="<u4")
    sums = np.array([file.crc32(start, stop) for start, stop, _ in spans], dtype="<u4")
    kinds = np.array([kind for _, _, kind in spans], dtype=np.uint8)
    body = _HEADER.pack(_MAGIC, file.size, len(spans)) + lengths.tobytes() + sums.tobytes() + kinds.tobytes()
    path = seal_path(file.path)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("wb") as out:
            out.write(body + zlib.crc32(body).to_bytes(4, "little"))
            out.flush()
            os.fsync(out.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    seal = open_seal(file.path)
    assert seal is not None, "it was just written"
    return seal


def _problem(body: bytes) -> str:
    if len(body) < _HEADER.size + 4:
        return f"it has {len(body)} bytes"
    magic, _, count = _HEADER.unpack_from(body)
    if magic != _MAGIC:
        return f"it begins with {magic!r}, not {_MAGIC!r}"
    if len(body) != _HEADER.size + 9 * count + 4:
        return f"it has {len(body)} bytes, {count} spans make {_HEADER.size + 9 * count + 4}"
    if zlib.crc32(body[:-4]) != int.from_bytes(body[-4:], "little"):
        return "it does not fit its own checksum"
    return ""


def _spans(file: RecordFile, index: RecordIndex) -> Iterator[tuple[int, int, int]]:
    """(start, stop, kind) of all spans, in order."""
    place = 0
    for offset in index.offsets.tolist():
        yield from _pieces(place, offset)
        place = file.end_of(offset)
        yield offset, place, 1
    yield from _pieces(place, file.size)


def _pieces(start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    for first in range(start, stop, _LARGEST_PIECE):
        yield first, min(first + _LARGEST_PIECE, stop), 0
