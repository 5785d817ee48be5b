"""The labelled images of a record file, by record id.

Why: pipelines want `label, encoded bytes` for an id and nothing else. This is where a label becomes a class: it has to
be a whole number in [0, num_classes), and the body has to begin like an image, before a record reaches a decoder or a
GPU, where the same mistakes would surface as a hung kernel or not at all.
"""

from __future__ import annotations

import codecs
import hashlib
import logging
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from adadistill.loaders.command_text import quoted
from adadistill.loaders.first_bytes import what_it_is
from adadistill.loaders.records.image_source import EncodedImage, SealUse
from adadistill.loaders.records.record_index import RecordIndex, load_record_index
from adadistill.loaders.records.record_seal import RecordSeal, SealError, open_seal, seal_path
from adadistill.loaders.records.recordio import (
    HEADER_WORDS,
    MAGIC,
    MAX_EXACT_FLOAT,
    MAX_LABELS,
    BadBodyError,
    BadFlagError,
    BadLabelError,
    Record,
    RecordFile,
)

logger = logging.getLogger(__name__)

_JPEG = b"\xff\xd8\xff"
_IMAGE_BEGINNINGS = (_JPEG, b"\x89PNG", b"RIFF", b"GIF8", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ")
"""JPEG, PNG, WebP, GIF, TIFF, JPEG 2000. Not BMP: its two bytes are there by chance after a damaged label count."""
_JPEG_WORD = 0x00FFD8FF  # the first three bytes as a little-endian word
HEADER_RECORD = "the header record"
"""Of insightface, which counts identity records: the last to be believed in `ImageRecords.claims`."""
_CHUNK = 1 << 16
_PROPERTY_BYTES = 4096  # of a file that should have some twenty
_SAMPLED_RECORDS, _SAMPLED_BYTES = 256, 4096


class ImageRecords:
    """The image records of a `.rec` file by record id: the ordinal by byte offset among all its image records.

    An `ImageSource`. Where a seal lies beside the file (`train.rec.seal`), every record read is checked against it.

    The index is read on first use, the file is mapped on first use in each process. Threads may read concurrently; a
    pickled copy takes the index along and maps the file anew.
    """

    def __init__(
        self,
        records: str | Path,
        index: str | Path | None = None,
        *,
        num_classes: int | None = None,
        seal: SealUse = "auto",
    ) -> None:
        """Name the files; they are read later.

        Args:
            records: the `.rec` file.
            index: its `.idx`; the one beside it where left out, rebuilt by scanning where it cannot be trusted.
            num_classes: number of identities C; where left out it comes from the `property` file beside the records,
                else from the identity records, else from all labels.
            seal: check records against the seal beside the file: where there is one (auto), always (require), never
                (ignore).

        Raises:
            FileNotFoundError: a named file does not exist.
            ValueError: num_classes is not in [1, 2**24], all that float32 labels can tell apart.
        """
        self._file = RecordFile(records)
        self._index_path = None if index is None else Path(index)
        if self._index_path is not None and not self._index_path.is_file():
            raise FileNotFoundError(f"no index at {index}; leave it out to use the one beside {records}, or a scan")
        if num_classes is not None and not 1 <= num_classes <= MAX_EXACT_FLOAT:
            raise ValueError(f"num_classes must be in [1, {MAX_EXACT_FLOAT}], got {num_classes}")
        self._index: RecordIndex | None = None
        self._use_seal: SealUse = seal
        self._seal: RecordSeal | None = None
        self._labels: npt.NDArray[np.int64] | None = None
        self._stated = self._num_classes = num_classes
        self._classes_from = "given by the caller"

    def __repr__(self) -> str:
        return f"ImageRecords({str(self.path)!r})"

    def __len__(self) -> int:
        return len(self.index)

    @property
    def path(self) -> Path:
        """The `.rec` file."""
        return self._file.path

    @property
    def file(self) -> RecordFile:
        """The file, by bytes."""
        return self._file

    @property
    def index(self) -> RecordIndex:
        """Offsets and keys of the images.

        Raises:
            ValueError: the file holds none.
            SealError: the seal is damaged, of other records, or required and not there.
        """
        if self._index is None:
            index = load_record_index(self._file, self._index_path)
            if not len(index):
                raise ValueError(f"{self.path} holds no image records; check the recipe's `data.records`")
            seal = None if self._use_seal == "ignore" else open_seal(self.path)
            if seal is None and self._use_seal == "require":
                raise SealError(
                    f"{seal_path(self.path)} is not there, and the records must be sealed. Copy it beside them, or "
                    f"write it: adadistill data check --seal {quoted(self.path)}"
                )
            if seal is not None:
                seal.require(self._file, index)
            self._seal, self._index = seal, index
            (used, most), *others = list(self.claims().items()) or [("", 0)]
            for name, count in others:
                if count != most:
                    logger.warning(
                        "%s: %s says %d identities, %s says %d and is used", self.path, name, count, used, most
                    )
                    break
        return self._index

    @property
    def sealed(self) -> bool:
        """Whether every record is checked against its checksum when it is read."""
        return len(self.index) > 0 and self._seal is not None

    @property
    def num_classes(self) -> int:
        """Number of identities C; labels are in [0, C)."""
        if self._num_classes is None:
            self._num_classes, self._classes_from = self._find_num_classes()
        return self._num_classes

    def read(self, record_id: int) -> EncodedImage:
        """Label and encoded bytes of one image.

        Raises:
            IndexError: `record_id` is not in [0, len).
            RecordError: the record is damaged, has no image, or its label is not a class; ChecksumError where the file
                is sealed and the record's bytes are others.
        """
        return self._read(record_id, self._num_classes or self.num_classes, self._classes_from)

    def read_plain(
        self, record_ids: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], list[npt.NDArray[np.uint8] | None]]:
        """Labels (n,) int64 and JPEG bytes of many images, not copied: a tenth of the time of n calls of `read`.

        None stands for every record that is not plain: damaged, of several parts, no JPEG, no class. `read` it alone.
        Bytes are not compared with the seal, which reads all of them: see `matches_seal`.

        Raises:
            IndexError: an id is not in [0, len).
        """
        index, file = self.index, self._file
        if len(record_ids) and not (record_ids.min() >= 0 and record_ids.max() < len(index)):
            raise IndexError(f"record ids must be in [0, {len(index)}); {self.path} holds that many images")
        num_classes = self._num_classes or self.num_classes
        offsets, limits = index.offsets[record_ids], index.limits[record_ids]
        values, starts, lengths, plain = _plain_records(file, offsets, limits)
        plain &= (values >= 0) & (values < num_classes) & (values == np.floor(values))  # NaN fails
        labels = np.where(plain, values, -1).astype(np.int64)
        view = file.bytes_view()
        bodies: list[npt.NDArray[np.uint8] | None] = [
            view[start:stop] if sound else None
            for start, stop, sound in zip(starts.tolist(), (starts + lengths).tolist(), plain.tolist(), strict=True)
        ]
        return labels, bodies

    def matches_seal(self, record_id: int) -> bool:
        """Whether a record's bytes are those that were sealed; true where the file has no seal."""
        seal = self._seal
        return seal is None or seal.matches(self._file, seal.image_spans.item(record_id))

    def where(self, record_id: int) -> str:
        """Name one record in messages: file, id, key and byte."""
        index = self.index
        return f"{self.path}: record {record_id} (key {index.keys[record_id]}) at byte {index.offsets[record_id]}"

    def labels(self) -> npt.NDArray[np.int64]:
        """(N,) labels of all images, read from the whole file once and kept.

        Touches the beginning of every record, and checks it on the way: on a cold disk nearly the whole file is read.

        Raises:
            RecordError: the first damaged record.
        """
        if self._labels is None:
            self._labels = self._read_labels(self.num_classes, self._classes_from)
        return self._labels

    def claims(self) -> dict[str, int]:
        """Who says how many identities there are; the first is believed. Empty where only labels tell.

        Raises:
            ValueError: the `property` file is none, and the caller did not say the number.
        """
        properties, found = self.path.with_name("property"), dict[str, int]()
        if self._stated is not None:
            found["data.num_classes"] = self._stated
        if properties.is_file():
            try:
                found["property"] = read_property(properties)
            except ValueError:
                if self._stated is None:
                    raise
        if self.index.num_identities is not None:
            found[HEADER_RECORD] = self.index.num_identities
        return found

    def stored_labels(self, record_ids: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """(n,) first labels, classes or not, and whether each could be read; touches only beginnings of records."""
        return self._file.first_labels(self.index.offsets[record_ids], self.index.limits[record_ids])

    def fingerprint(self) -> str:
        """sha256 that tells whether ids still mean the same images, cheap for any size of file.

        Covers the file's size, the offsets of all images, and the first 4 KiB of 256 evenly spaced records (of all, in
        small files). It does not depend on the keys, nor on how the index was made; it does not see a change inside one
        of the other records that leaves every length as it was.
        """
        index = self.index
        digest = hashlib.sha256(struct.pack("<QQ", self._file.size, len(index)))
        digest.update(index.offsets.astype("<i8").tobytes())
        sample = np.unique(np.linspace(0, len(index) - 1, _SAMPLED_RECORDS).astype(np.int64))
        for offset, limit in zip(index.offsets[sample].tolist(), index.limits[sample].tolist(), strict=True):
            digest.update(self._file.bytes_at(offset, min(limit, offset + _SAMPLED_BYTES)))
        return digest.hexdigest()

    def _read(self, record_id: int, num_classes: int, classes_from: str) -> EncodedImage:
        index = self._index or self.index
        if not 0 <= record_id < len(index.offsets):
            raise IndexError(
                f"record id must be in [0, {len(index)}), got {record_id}; {self.path} holds that many images"
            )
        offset, limit = index.offsets.item(record_id), index.limits.item(record_id)
        if self._seal is not None:
            self._seal.check(self._file, int(record_id), index.keys.item(record_id))
        record = self._file.read(offset, key=index.keys.item(record_id), record_id=int(record_id), limit=limit)
        if not record.body.startswith(_JPEG):
            self._check_body(record_id, record)
        label = record.labels[0]
        if not (0.0 <= label < num_classes and label.is_integer()):  # a NaN fails the first
            reason = f"label {label!r} is not a whole number in [0, {num_classes}), {classes_from}"
            raise BadLabelError(self.path, offset, reason, index.keys.item(record_id), int(record_id))
        return EncodedImage(int(label), record.body)

    def _check_body(self, record_id: int, record: Record) -> None:
        """Refuse a body that is not JPEG and begins like no other image either."""
        if record.body.startswith(_IMAGE_BEGINNINGS):
            return
        index = self.index
        place = index.keys.item(record_id), int(record_id)
        if not record.body:
            raise BadBodyError(self.path, index.offsets.item(record_id), "it has no image (an empty body)", *place)
        payload = (struct.pack(f"<{record.flag}f", *record.labels) if record.flag else b"") + record.body[:64]
        for flag in range(17):
            if flag != record.flag and payload[4 * flag :].startswith(_IMAGE_BEGINNINGS):
                reason = f"its label count is {record.flag}, but an image begins after {flag} labels"
                raise BadFlagError(self.path, index.offsets.item(record_id), reason, *place)
        other = what_it_is(record.body)
        reason = f"its body begins like no image format: {record.body[:8].hex(' ')}" + (
            f"; it {other}" if other else ""
        )
        raise BadBodyError(self.path, index.offsets.item(record_id), reason, *place)

    def _find_num_classes(self) -> tuple[int, str]:
        for name, count in self.claims().items():
            return count, f"by {name}"
        labels = self._read_labels(MAX_EXACT_FLOAT, "all that float32 labels can tell apart")
        return int(labels.max()) + 1, "the largest label and 1"

    def _read_labels(self, num_classes: int, classes_from: str) -> npt.NDArray[np.int64]:
        """(N,) int64. Plain sound records are read many at once, all others one by one, in order."""
        index = self.index
        labels = np.empty(len(index), np.int64)
        for start in range(0, len(index), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            values, _, _, plain = _plain_records(self._file, index.offsets[chunk], index.limits[chunk])
            plain &= (values >= 0) & (values < num_classes) & (values == np.floor(values))  # NaN fails
            labels[chunk] = np.where(plain, values, -1).astype(np.int64)
            for record_id in (start + np.flatnonzero(~plain)).tolist():
                labels[record_id] = self._read(record_id, num_classes, classes_from).label
        labels.flags.writeable = False
        return labels


def _plain_records(
    file: RecordFile, offsets: npt.NDArray[np.int64], limits: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """First labels (n,), where bodies begin, their lengths, and whether each is a sound one-part record of a JPEG."""
    words = file.words_at(offsets, HEADER_WORDS)  # (n, 9)
    length, flag = words[:, 1].astype(np.int64), words[:, 2].astype(np.int64)
    plain = (words[:, 0] == MAGIC) & (offsets + ((length + 11) & ~3) == limits) & (24 + 4 * flag < length)
    plain &= flag <= MAX_LABELS
    starts = np.where(plain, offsets + 32 + 4 * flag, 0)
    plain &= (file.words_at(starts, 1)[:, 0] & 0x00FFFFFF) == _JPEG_WORD
    used = (8 * (length & 3)).astype(np.uint32)  # bits of the last word; the rest is padding, zero in a sound record
    plain &= (used == 0) | (file.words_at(limits - 4, 1)[:, 0] >> used == 0)
    stored = np.where(flag > 0, words[:, 8], words[:, 3]).astype(np.uint32)
    return stored.view(np.float32), starts, length - 24 - 4 * flag, plain


def read_property(path: Path) -> int:
    """Number of identities from insightface's `property` file: `num_classes,height,width`, further lines ignored."""
    with path.open("rb") as file:
        start = file.read(_PROPERTY_BYTES)
    encoding = "utf-16" if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    first_line = start.decode(encoding, "replace").partition("\n")[0]
    number = first_line.split(",")[0].strip()
    if not (number.isascii() and number.isdigit() and 1 <= int(number) <= MAX_EXACT_FLOAT):
        raise ValueError(
            f"{path} must begin with `num_classes,height,width`, got {first_line[:80]!r}; "
            "correct it, remove it, or set `data.num_classes` in the recipe"
        )
    return int(number)
