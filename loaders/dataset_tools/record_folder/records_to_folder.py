"""A record file to an image folder, `FOLDER/<identity>/<key>.jpg`, with the manifest that leads back to the same bytes.

Goes on where an earlier call was killed: every image that is there is compared with the record, not believed. A file
of other content is never written over, unless it is the torn beginning of the very image that belongs there. The
manifest appears last, once all images are on disk; until then `.records.unfinished` says whose folder this is.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adadistill.loaders.dataset_tools.record_folder.errors import RecordFolderError
from adadistill.loaders.dataset_tools.record_folder.manifest import (
    COPY_NAMES,
    MANIFEST_NAME,
    IndexOrder,
    Manifest,
    ManifestEnd,
    ManifestEntry,
    ManifestWriter,
    is_plain_name,
)
from adadistill.loaders.dataset_tools.record_folder.raw_records import RawRecord, parse_raw_record
from adadistill.loaders.dataset_tools.record_folder.record_layout import RecordLayout, read_record_layout
from adadistill.loaders.atomic_file import sync_folder
from adadistill.loaders.folders import UNFINISHED_NAME
from adadistill.loaders.records.recordio import BadBodyError, RecordFile, ScannedRecord
from adadistill.loaders.stored_blocks.json_text import parse_json

_SUFFIXES = (
    (b"\xff\xd8", "jpg"),
    (b"\x89PNG", "png"),
    (b"RIFF", "webp"),
    (b"GIF8", "gif"),
    (b"II*\0", "tif"),
    (b"MM\0*", "tif"),
    (b"\0\0\0\x0cjP  ", "jp2"),
)
_LARGEST_COPY = 1 << 30
_RECORD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,120}\.rec")


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordsUnpacked:
    """What became of a record file."""

    folder: Path
    images: int
    identities: int
    other_records: int
    """Without an image: insightface's header and identity records. The manifest keeps them."""
    kept_images: int
    """Found there, of an earlier call."""
    stopped: bool = False
    """Stopped on request; the same call goes on."""


def records_to_folder(
    records: Path,
    folder: Path,
    *,
    progress: Callable[[int, int], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> RecordsUnpacked:
    """Write the images of a record file and their manifest. The record file is only read.

    Args:
        records: the `.rec`; an `.idx`, `property` and `labels.json` beside it are taken along.
        folder: new, empty, or of an earlier call for the same records.
        progress: called with records done and records in all.
        stop: asked before each record; true returns, and the same call goes on.

    Raises:
        RecordError: a record is damaged, has no image format, or a label that names no identity; or the `.idx` lists
            what is no record. Found before anything is written, except for bodies.
        RecordFolderError: the folder holds something else.
        OSError: there is no room on the disk.
    """
    file = RecordFile(records)
    if not _RECORD_NAME.fullmatch(records.name):
        raise RecordFolderError(f"{records}: rename it so that the manifest can hold its name: letters, digits, .rec")
    layout = read_record_layout(file)
    names = _identity_names(records, layout)
    binding = _binding(file, layout)
    _begin(folder, binding, layout)
    key_digits = len(str(max(int(layout.keys.max(initial=0)), len(layout))))
    kept = images = 0
    digest = hashlib.sha256()
    partial = folder / f"{MANIFEST_NAME}.partial"
    made: set[str] = set()
    with partial.open("wb") as out:
        manifest = ManifestWriter(out, records.name)
        for number in range(len(layout)):
            if stop():
                return _unpacked(folder, layout, images, kept, stopped=True)
            offset, end = int(layout.offsets[number]), int(layout.offsets[number + 1])
            place = ScannedRecord(offset, end, 0, 0, 0)
            stored = file.bytes_at(offset, end)
            digest.update(stored)
            record = parse_raw_record(file, place, stored)
            key = int(layout.keys[number])
            name = None
            if layout.labels[number] >= 0:
                identity = names[int(layout.labels[number])]
                stem = f"{key:0{key_digits}d}" if key >= 0 else f"byte-{offset:015d}"
                name = f"{identity}/{stem}.{_suffix(file, offset, key, record)}"
                if identity not in made:
                    (folder / identity).mkdir(exist_ok=True)
                    made.add(identity)
                kept += _write_image(folder / name, record.body)
                images += 1
            bodiless = RawRecord(record.flag, record.label_bits, record.labels, record.id, record.id2, b"", record.cuts)
            manifest.add(
                ManifestEntry(None if key < 0 else key, name, bodiless, len(record.body), zlib.crc32(record.body))
            )
            if progress is not None:
                progress(number + 1, len(layout))
        manifest.end(
            ManifestEnd(
                records=len(layout),
                images=images,
                bytes=file.size,
                rec_sha256=digest.hexdigest(),
                index=layout.index,
                index_sha256=layout.index_sha256,
                copies=_copy_side_files(records, folder, layout.index),
            )
        )
        out.flush()
        os.fsync(out.fileno())
    os.sync()  # one for all images: an fsync of each would cost more than writing it
    os.replace(partial, folder / MANIFEST_NAME)
    sync_folder(folder)
    (folder / UNFINISHED_NAME).unlink(missing_ok=True)
    return _unpacked(folder, layout, images, kept, stopped=False)


def _identity_names(records: Path, layout: RecordLayout) -> dict[int, str]:
    """Folder name of each label: that of `labels.json` where it has good ones, else the number with leading zeros."""
    present = np.unique(layout.labels[layout.labels >= 0]).tolist()
    path = records.with_name("labels.json")
    if path.is_file() and path.stat().st_size <= _LARGEST_COPY:
        try:
            names = parse_json(path.read_text(encoding="utf-8-sig"))
        except (ValueError, OSError):
            names = None
        if isinstance(names, list) and present and present[-1] < len(names):
            chosen = [name for name in names if isinstance(name, str) and is_plain_name(name)]
            if len(chosen) == len(names) == len({name.casefold() for name in chosen}):
                return {label: chosen[label] for label in present}
    digits = len(str(present[-1])) if present else 1
    return {label: f"{label:0{digits}d}" for label in present}


def _binding(file: RecordFile, layout: RecordLayout) -> str:
    digest = hashlib.sha256(file.path.name.encode())
    for values in (layout.offsets, layout.keys, layout.labels):
        digest.update(values.astype("<i8").tobytes())
    return digest.hexdigest()


def _begin(folder: Path, binding: str, layout: RecordLayout) -> None:
    """Claim a new or empty folder, or recognise one of ours; see that there is room for a new one."""
    marker, manifest = folder / UNFINISHED_NAME, folder / MANIFEST_NAME
    if folder.exists() and not folder.is_dir():
        raise RecordFolderError(f"{folder} is a file; name a new folder")
    if marker.is_file():
        with marker.open("rb") as file:
            found = file.read(1 << 12)
        if found != _marker_text(binding):
            raise RecordFolderError(
                f"{folder} holds an unfinished conversion of other records; remove the folder, or name another"
            )
        return
    if manifest.is_file():
        _require_same(folder, Manifest(manifest), layout)
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise RecordFolderError(
            f"{folder} holds files already, and none of them is written over: name a new or an empty folder"
        )
    _require_room(folder, layout)
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{UNFINISHED_NAME}.partial"
    partial.write_bytes(_marker_text(binding))
    os.replace(partial, marker)
    sync_folder(folder)


def _require_same(folder: Path, manifest: Manifest, layout: RecordLayout) -> None:
    size, sha256 = manifest.end.bytes, manifest.end.index_sha256
    if size != int(layout.offsets[-1]) or manifest.end.records != len(layout) or sha256 != layout.index_sha256:
        raise RecordFolderError(
            f"{folder} holds the images of other records, by its {MANIFEST_NAME}; name another folder"
        )


def _require_room(folder: Path, layout: RecordLayout) -> None:
    """Raise OSError where the disk has no room for the files, or no names left for them."""
    parent = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    disk = os.statvfs(parent)
    needed, free = layout.image_bytes + (16 << 20), disk.f_bavail * disk.f_frsize
    count = int((layout.labels >= 0).sum())
    if needed > free:
        raise OSError(f"{folder}: {needed / 1e9:.3f} GB are needed, the disk has {free / 1e9:.3f} GB free")
    if disk.f_files and count > disk.f_favail:
        raise OSError(f"{folder}: {count} files are to be written, the file system has room for {disk.f_favail}")


def _marker_text(binding: str) -> bytes:
    return (
        json.dumps({"format": "adadistill-unfinished-record-folder", "version": 1, "records": binding}) + "\n"
    ).encode()


def _suffix(file: RecordFile, offset: int, key: int, record: RawRecord) -> str:
    for beginning, suffix in _SUFFIXES:
        if record.body.startswith(beginning):
            return suffix
    reason = f"its body begins like no image format: {record.body[:8].hex(' ')}"
    raise BadBodyError(file.path, offset, reason, key if key >= 0 else None)


def _write_image(path: Path, body: bytes) -> bool:
    """Write one image; true where it was there already.

    Raises:
        RecordFolderError: a file of other content is there.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except FileExistsError:
        if path.is_symlink() or not path.is_file():
            raise RecordFolderError(f"{path} is no file of ours, and stays; move it away") from None
        with path.open("rb") as found:
            content = found.read(len(body) + 1)
        if content == body:
            return True
        if len(content) > len(body) or not body.startswith(content.rstrip(b"\0")):
            raise RecordFolderError(
                f"{path} holds another image than its record, and is not written over; move it away"
            ) from None
        handle = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW)  # torn by a kill
    with open(handle, "wb") as out:
        out.write(body)
    return False


def _copy_side_files(records: Path, folder: Path, index: IndexOrder) -> dict[str, str]:
    """Copy what lies beside the records and cannot be made again; gives sha256 by name."""
    copied = {}
    for name in COPY_NAMES:
        source = records.with_suffix(".idx") if name == "idx" else records.with_name(name)
        if (name == "idx" and index != "copy") or not source.is_file():
            continue
        if source.stat().st_size > _LARGEST_COPY:
            raise RecordFolderError(f"{source}: more than {_LARGEST_COPY} bytes are no such file")
        content = source.read_bytes()
        partial = folder / f".records.{name}.partial"
        with partial.open("wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        os.replace(partial, folder / f".records.{name}")
        copied[name] = hashlib.sha256(content).hexdigest()
    return copied


def _unpacked(folder: Path, layout: RecordLayout, images: int, kept: int, *, stopped: bool) -> RecordsUnpacked:
    present = layout.labels[layout.labels >= 0]
    return RecordsUnpacked(
        folder=folder,
        images=images if stopped else len(present),
        identities=len(np.unique(present)),
        other_records=int((layout.labels < 0).sum()),
        kept_images=kept,
        stopped=stopped,
    )
