"""`.records.jsonl`: what a folder of images does not tell about the record file it came from.

With it the folder becomes the very same bytes again: keys, order, labels and flags, ids, header and identity records.
Text, one JSON object a line:

    {"format": "adadistill-record-folder", "version": 1, "records": "train.rec"}
    {"key": 1, "file": "000/0001.jpg", "labels": [0, 1], "id": 1, "bytes": 5828, "crc32": "9ad9e3c1"}   in file order
    {"key": 4146, "labels": [1, 6], "id": 4146}                                  a record without an image has no file
    {"end": 4962, "images": 4145, "bytes": 21796620, "rec_sha256": ..., "index": "key", "index_sha256": ...,
     "copies": {"property": sha256}, "sha256": of all that precedes, this line's other fields included}

`label` is the float in the image header (flag 0), `labels` those behind it (their number is the flag); a `label` beside
`labels` is what the header holds although it does not count. Numbers that JSON has not are written by their bits,
"0x7fc00000". `parts` are the lengths that a record was cut into, where they are not the usual ones. `index` says how
the `.idx` is made again: lines by "key", by "file" order, from a "copy", or that there was "none". Copies lie beside
the manifest as `.records.<name>`.

A manifest may come from a stranger: lines are bounded, every field is checked, names are `identity/image` and nothing
else, and what it says of a folder is compared with the folder.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

from adadistill.loaders.dataset_tools.record_folder.errors import RecordFolderError
from adadistill.loaders.dataset_tools.record_folder.raw_records import RawRecord, bits_to_float, float_to_bits
from adadistill.loaders.folders import STORED_SUFFIXES, is_litter
from adadistill.loaders.json_text import parse_json
from adadistill.loaders.records.recordio import MAX_LABELS

MANIFEST_NAME = ".records.jsonl"
"""Hidden, so that whatever reads the folder as images looks past it."""
COPY_NAMES = ("idx", "property", "labels.json")
"""Files beside the records that may be copied into the folder, as `.records.<name>`."""

IndexOrder: TypeAlias = Literal["key", "file", "copy", "none"]

_FORMAT, _VERSION = "adadistill-record-folder", 1
_MAX_LINE = 4 << 20  # 65,536 labels take 1.4 MB
_RECORDS_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,120}\.rec")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_BITS = re.compile(r"0x[0-9a-f]{1,16}")
_ENTRY_FIELDS = {"key", "file", "label", "labels", "id", "id2", "bytes", "crc32", "parts"}
_END_FIELDS = {"end", "images", "bytes", "rec_sha256", "index", "index_sha256", "copies", "sha256"}


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """One record: everything but its image."""

    key: int | None
    """In the `.idx`; None where that does not list it."""
    file: str | None
    """`identity/image` in the folder; None where the record has no image."""
    record: RawRecord
    """With an empty body."""
    bytes: int = 0
    """Of the image."""
    crc32: int = 0
    """zlib's, of the image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ManifestEnd:
    """What the last line says of the whole."""

    records: int
    images: int
    bytes: int
    """Of the record file."""
    rec_sha256: str
    index: IndexOrder
    index_sha256: str | None
    copies: Mapping[str, str]
    """sha256 by name, one of `COPY_NAMES`."""


class ManifestWriter:
    """Writes the lines of a manifest to an open file, and the checksum of them at the end."""

    def __init__(self, out: BinaryIO, records_name: str) -> None:
        self._out, self._digest = out, hashlib.sha256()
        self._line({"format": _FORMAT, "version": _VERSION, "records": records_name})

    def add(self, entry: ManifestEntry) -> None:
        """Append one record, in file order."""
        record = entry.record
        fields: dict[str, Any] = {} if entry.key is None else {"key": entry.key}
        if entry.file is not None:
            fields["file"] = entry.file
        if record.flag == 0 or record.label_bits:
            fields["label"] = _number(record.label_bits)
        if record.flag:
            fields["labels"] = [_number(bits) for bits in record.labels]
        fields["id"] = record.id if record.id < 1 << 63 else hex(record.id)
        if record.id2:
            fields["id2"] = record.id2 if record.id2 < 1 << 63 else hex(record.id2)
        if entry.file is not None:
            fields |= {"bytes": entry.bytes, "crc32": f"{entry.crc32:08x}"}
        if record.cuts is not None:
            fields["parts"] = list(record.cuts)
        self._line(fields)

    def end(self, end: ManifestEnd) -> None:
        """Append the last line."""
        fields = {
            "end": end.records,
            "images": end.images,
            "bytes": end.bytes,
            "rec_sha256": end.rec_sha256,
            "index": end.index,
            "index_sha256": end.index_sha256,
            "copies": dict(end.copies),
        }
        self._digest.update(_text(fields))
        self._line({**fields, "sha256": self._digest.hexdigest()})

    def _line(self, fields: Mapping[str, Any]) -> None:
        line = _text(fields)
        self._digest.update(line)
        self._out.write(line)


class Manifest:
    """A manifest that was read to its end: whole, undamaged, of a version that is known."""

    def __init__(self, path: Path) -> None:
        """Read it all once, for its checksum and last line; entries are read again when they are asked for.

        Raises:
            FileNotFoundError: there is none.
            RecordFolderError: it is cut, damaged, or of another version.
        """
        self.path = path
        if not path.is_file():
            raise FileNotFoundError(f"no manifest at {path}")
        digest, last, count = hashlib.sha256(), b"", 0
        for line in _lines(path):
            if count == 0:
                self.records_name = self._read_first(line)
            digest.update(last)
            last, count = line, count + 1
        self.end = self._read_end(last, count)
        fields = self._object(last, count)
        stated = fields.pop("sha256")
        digest.update(_text(fields))
        if stated != digest.hexdigest():
            raise RecordFolderError(
                f"{path} does not fit its own checksum: it was edited or damaged. Restore it, or convert the folder "
                "without it (--ignore-manifest)"
            )
        self.sha256 = digest.hexdigest()

    def entries(self) -> Iterator[ManifestEntry]:
        """All records in file order.

        Raises:
            RecordFolderError: a line is not what a line must be.
        """
        for number, line in enumerate(_lines(self.path), start=1):
            if 1 < number < self.end.records + 2:
                yield self._entry(line, number)

    def copy_path(self, name: str) -> Path:
        """Where the copy of a file that lay beside the records is."""
        return self.path.with_name(f".records.{name}")

    def _read_first(self, line: bytes) -> str:
        fields = self._object(line, 1)
        if fields.get("format") != _FORMAT:
            raise RecordFolderError(f"{self.path} is no manifest of records: its first line names no {_FORMAT}")
        if fields.get("version") != _VERSION:
            raise RecordFolderError(
                f"{self.path} has version {fields.get('version')!r:.20}, this program reads {_VERSION}; use the "
                "program that wrote it"
            )
        name = fields.get("records")
        if set(fields) != {"format", "version", "records"} or not _is_text(name, _RECORDS_NAME):
            raise self._damaged(1, "its name of the record file is none")
        return str(name)

    def _read_end(self, line: bytes, count: int) -> ManifestEnd:
        fields = self._object(line, count) if count else {}
        if "end" not in fields:
            raise RecordFolderError(
                f"{self.path} has no last line: it was cut short. Restore it, or convert the folder without it "
                "(--ignore-manifest)"
            )
        copies, index = fields.get("copies"), fields.get("index")
        sound = (
            set(fields) == _END_FIELDS
            and all(_is_whole(fields[name], 1 << 62) for name in ("end", "images", "bytes"))
            and fields["end"] == count - 2
            and _is_text(fields["rec_sha256"], _SHA256)
            and _is_text(fields["sha256"], _SHA256)
            and index in ("key", "file", "copy", "none")
            and (fields["index_sha256"] is None if index == "none" else _is_text(fields["index_sha256"], _SHA256))
            and isinstance(copies, dict)
            and all(name in COPY_NAMES and _is_text(sha256, _SHA256) for name, sha256 in copies.items())
            and ("idx" in copies) == (index == "copy")
        )
        if not sound:
            raise self._damaged(count, f"its last line does not close {count - 2} records")
        return ManifestEnd(
            records=fields["end"],
            images=fields["images"],
            bytes=fields["bytes"],
            rec_sha256=fields["rec_sha256"],
            index=fields["index"],
            index_sha256=fields["index_sha256"],
            copies=fields["copies"],
        )

    def _entry(self, line: bytes, number: int) -> ManifestEntry:
        fields = self._object(line, number)
        unknown = set(fields) - _ENTRY_FIELDS
        if unknown:
            raise self._damaged(number, f"unknown field {min(unknown)[:40]!a}")
        file, key = fields.get("file"), fields.get("key")
        if key is not None and not _is_whole(key, 1 << 63):
            raise self._damaged(number, "its key is no whole number from 0 to 2^63")
        if file is not None and not (isinstance(file, str) and is_image_name(file)):
            raise self._damaged(number, f"its file {str(file)[:80]!a} is not `identity/image.jpg` within the folder")
        if (file is None) != ("bytes" not in fields) or (file is None) != ("crc32" not in fields):
            raise self._damaged(number, "an image has a file, its bytes and their crc32; a record without has none")
        size, crc32 = fields.get("bytes", 0), fields.get("crc32", "00000000")
        if not _is_whole(size, 1 << 29) or not _is_text(crc32, re.compile("[0-9a-f]{8}")):
            raise self._damaged(number, "its bytes or crc32 are no such numbers")
        labels = fields.get("labels", [])
        if not isinstance(labels, list) or len(labels) > MAX_LABELS or ("labels" in fields and not labels):
            raise self._damaged(number, f"labels must be 1 to {MAX_LABELS} numbers")
        if "label" not in fields and not labels:
            raise self._damaged(number, "it has neither label nor labels")
        cuts = fields.get("parts")
        if cuts is not None and not self._are_parts(cuts, 24 + 4 * len(labels) + size):
            raise self._damaged(number, "its parts do not make up the record")
        record = RawRecord(
            flag=len(labels),
            label_bits=self._bits(fields.get("label", 0), number),
            labels=tuple(self._bits(value, number) for value in labels),
            id=self._id(fields.get("id"), number),
            id2=self._id(fields.get("id2", 0), number),
            body=b"",
            cuts=None if cuts is None else tuple(cuts),
        )
        return ManifestEntry(key=key, file=file, record=record, bytes=size, crc32=int(crc32, 16))

    def _are_parts(self, cuts: Any, payload_bytes: int) -> bool:
        if not isinstance(cuts, list) or not cuts or not all(_is_whole(cut, 1 << 29) for cut in cuts):
            return False
        return sum(cuts) + 4 * (len(cuts) - 1) == payload_bytes and all(cut % 4 == 0 for cut in cuts[:-1])

    def _bits(self, value: Any, number: int) -> int:
        if isinstance(value, str) and _BITS.fullmatch(value) and int(value, 16) < 1 << 32:
            return int(value, 16)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            try:
                return float_to_bits(float(value))
            except (ValueError, OverflowError):
                pass
        raise self._damaged(number, f"label {str(value)[:40]!a} is no float32")

    def _id(self, value: Any, number: int) -> int:
        if isinstance(value, str) and _BITS.fullmatch(value):
            return int(value, 16)
        if not _is_whole(value, 1 << 63):
            raise self._damaged(number, "its id is no whole number of 64 bits")
        return int(value)

    def _object(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            fields = parse_json(line.decode("ascii"))
        except ValueError as error:
            raise self._damaged(number, f"no JSON: {str(error)[:120]}") from None
        if not isinstance(fields, dict):
            raise self._damaged(number, "no JSON object")
        return fields

    def _damaged(self, number: int, reason: str) -> RecordFolderError:
        return RecordFolderError(
            f"{self.path} line {number}: {reason}. Restore the manifest, or convert the folder without it "
            "(--ignore-manifest)"
        )


def is_image_name(name: str) -> bool:
    """Whether a text is `identity/image.jpg`: two plain names, which cannot lead out of a folder."""
    parts = name.split("/")
    return len(parts) == 2 and all(map(is_plain_name, parts)) and name.lower().endswith(STORED_SUFFIXES)


def is_plain_name(name: str) -> bool:
    """Whether a text names a file in any folder: printable, not hidden or litter, at most 200 bytes, no separator."""
    return (
        bool(name)
        and not is_litter(name)
        and name == name.strip()
        and name.isprintable()
        and not set(name) & set('/\\:*?"<>|')
        and len(name.encode("utf-8", "surrogatepass")) <= 200
    )


def _text(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, allow_nan=False).encode("ascii") + b"\n"


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(_MAX_LINE + 1):
            number += 1
            if len(line) > _MAX_LINE:
                raise RecordFolderError(f"{path} line {number}: longer than {_MAX_LINE:,} bytes; no manifest has such")
            yield line


def _number(bits: int) -> int | float | str:
    """float32 bits as JSON that reads back to the same bits."""
    value = bits_to_float(bits)
    if value != value or value in (float("inf"), float("-inf")):
        return f"0x{bits:08x}"
    return int(value) if value.is_integer() and abs(value) < 1 << 53 and bits != 1 << 31 else value


def _is_whole(value: Any, stop: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < stop


def _is_text(value: Any, pattern: re.Pattern[str]) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None
