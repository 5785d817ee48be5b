"""Reads a whole record file, or a folder of identities, and reports every image that is bad, rather than the first.

A sealed file is compared with its checksums, span by span, which finds any changed bit and names its record, whatever
the change did to the frames around it. An unsealed one is checked for what can be known without checksums: frames,
labels, image headers, and the images themselves where they are decoded.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from adadistill.loaders.pixels import ImageDecodeError, ImageLimits, decode_image, image_header
from adadistill.loaders.records.checked_records import ImageSizeError
from adadistill.loaders.records.image_folder import ImageFolder
from adadistill.loaders.records.image_records import ImageRecords
from adadistill.loaders.records.image_source import ImageSource, SealUse
from adadistill.loaders.records.label_check import check_labels
from adadistill.loaders.records.record_index import RecordIndex
from adadistill.loaders.records.record_seal import RecordSeal, SealError, open_seal
from adadistill.loaders.records.recordio import RecordError, RecordFile

logger = logging.getLogger(__name__)

_RECORDS_AT_ONCE = 2048


@dataclass(frozen=True, slots=True)
class BadRecord:
    """One thing that is wrong with a record file."""

    kind: str
    """checksum, or the name of the error that reading raises."""
    reason: str
    """For people."""
    offset: int | None = None
    """First byte of the record or of the span without images; None for the file as a whole."""
    record_id: int | None = None
    """None for what is no image."""
    key: int | None = None
    """In the `.idx`; None where there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """What a check found."""

    records: int
    """Images in the file."""
    bytes: int
    """Bytes that were read."""
    bad: tuple[BadRecord, ...]
    """Everything that is wrong, in the order of the file."""
    sealed: bool
    """Whether checksums were compared."""


def check_images(
    path: str | Path,
    index: str | Path | None = None,
    *,
    decode: bool = False,
    image_size: int | None = None,
    num_classes: int | None = None,
    workers: int = 4,
    use_seal: bool = True,
) -> Checked:
    """Check a whole record file, or every image of a folder of identities.

    Args:
        path: the `.rec` file, or the folder; `index`: its `.idx` or `.images.index`, the one beside it where left out.
        decode: also decode every image.
        image_size: side that images must have; None takes any.
        num_classes: labels must be in [0, num_classes); None takes the number from the data set.
        workers: threads.
        use_seal: compare with the checksums beside it, where there are some.

    Raises:
        FileNotFoundError: a named file does not exist.
        SealError, FolderIndexError: the checksums are damaged, or of other files.
        RecordError: there is no index to go by and a scan met a damaged frame.
        ImageFolderError: a folder is no set of identities, or not of `num_classes`.
    """
    seal: SealUse = "auto" if use_seal else "ignore"
    check = _ImageCheck(decode=decode, image_size=image_size)
    with ThreadPoolExecutor(workers, thread_name_prefix="adadistill-check") as threads:
        if not Path(path).is_dir():
            return _check_records(RecordFile(path), index, num_classes, seal, check, threads, workers)
        folder = ImageFolder(path, index, num_classes=num_classes, seal=seal, links="anywhere", list_anew=True)
        bad = tuple(check.all_bad(folder, None, threads))
    return Checked(records=len(folder), bytes=int(folder.listing.sizes.sum()), bad=bad, sealed=folder.sealed)


def _check_records(
    file: RecordFile,
    index: str | Path | None,
    num_classes: int | None,
    use_seal: SealUse,
    check: _ImageCheck,
    threads: ThreadPoolExecutor,
    workers: int,
) -> Checked:
    seal = open_seal(file.path) if use_seal == "auto" else None
    bad = [] if seal is None else _against_seal(file, seal, threads, workers)
    try:
        records = ImageRecords(file.path, index, num_classes=num_classes, seal=use_seal)
        len(records)  # reads the index
    except (RecordError, SealError):
        if not bad:
            raise  # nothing else has told what is wrong
        return Checked(records=seal.num_images if seal else 0, bytes=file.size, bad=tuple(bad), sealed=True)
    bad += _of_whole_file(records, num_classes)
    known = {one.record_id for one in bad}
    if seal is None or check.asks_more_than_a_seal:  # what was sealed had been found good, and is what it was
        bad += [one for one in check.all_bad(records, records.index, threads) if one.record_id not in known]
    bad.sort(key=lambda one: -1 if one.offset is None else one.offset)
    return Checked(records=len(records), bytes=file.size, bad=tuple(bad), sealed=seal is not None)


def damaged_spans(file: RecordFile, seal: RecordSeal, spans: range) -> Iterator[BadRecord]:
    """Those of the spans whose bytes are not what was sealed."""
    for span in spans:
        if not seal.matches(file, span):
            start, stop = int(seal.starts[span]), int(seal.starts[span + 1])
            record_id = seal.record_of(span)
            what = "header or identity records" if record_id is None else f"record {record_id}"
            yield BadRecord("checksum", f"bytes [{start}, {stop}) of {what} have changed", start, record_id)


def _against_seal(file: RecordFile, seal: RecordSeal, threads: ThreadPoolExecutor, workers: int) -> list[BadRecord]:
    if file.size != int(seal.starts[-1]):
        raise SealError(
            f"{seal.path} was made for a file of {int(seal.starts[-1])} bytes, {file.path} has {file.size}: it "
            "was cut, added to, or replaced. Restore it, or remove the seal"
        )
    bounds = np.linspace(0, seal.num_spans, 8 * workers + 1).astype(int).tolist()
    runs = [range(first, stop) for first, stop in itertools.pairwise(bounds)]
    return [one for found in threads.map(lambda run: list(damaged_spans(file, seal, run)), runs) for one in found]


def _of_whole_file(records: ImageRecords, num_classes: int | None) -> list[BadRecord]:
    """Where `property`, identity records, recipe and labels do not agree; what is no fault is logged."""
    claims = records.claims()
    bad = []
    if len(set(claims.values())) > 1:
        listed = ", ".join(f"{count} by {name}" for name, count in claims.items())
        bad.append(BadRecord("num_classes", f"the number of identities is {listed}"))
    found = check_labels(records, stated=num_classes, needs_several=False)
    for text in found.warnings:
        logger.warning("%s: %s", records.path, text)
    return bad + [BadRecord("labels", text) for text in (found.beyond, *found.refused) if text]


class _ImageCheck:
    """What is checked of each image."""

    def __init__(self, *, decode: bool, image_size: int | None) -> None:
        self._decode, self._image_size, self._limits = decode, image_size, ImageLimits()
        self.asks_more_than_a_seal = decode or image_size is not None

    def all_bad(
        self, images: ImageSource, index: RecordIndex | None, threads: ThreadPoolExecutor
    ) -> Iterator[BadRecord]:
        """The bad ones, in order. Threads take long runs of images: decoding lets go of the interpreter lock.

        Args:
            index: tells where records lie; None for a folder.
        """
        starts = range(0, len(images), _RECORDS_AT_ONCE)
        runs = (range(start, min(start + _RECORDS_AT_ONCE, len(images))) for start in starts)
        one = partial(self._one, images, index)
        for found in threads.map(lambda run: list(map(one, run)), runs):
            yield from (bad for bad in found if bad is not None)

    def _one(self, images: ImageSource, index: RecordIndex | None, record_id: int) -> BadRecord | None:
        try:
            body = images.read(record_id).body
            where = images.where(record_id)
            if len(body) > self._limits.max_bytes:
                raise ImageDecodeError(f"{where}: {len(body)} encoded bytes; at most {self._limits.max_bytes} are read")
            header = image_header(body, where=where)
            size = header.height, header.width
            if self._image_size is not None and size != (self._image_size, self._image_size):
                raise ImageSizeError(where, record_id, size, (self._image_size, self._image_size))
            if self._decode:
                decode_image(body, where=where, max_side=self._limits.max_side)
        except (RecordError, ImageDecodeError) as error:
            if index is None:
                return BadRecord(type(error).__name__, str(error), None, record_id)
            offset, key = index.offsets.item(record_id), index.keys.item(record_id)
            return BadRecord(type(error).__name__, str(error), offset, record_id, key)
        return None
