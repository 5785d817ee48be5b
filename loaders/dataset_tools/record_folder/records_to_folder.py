"""A record file to a folder of images, `FOLDER/<identity>/<key>.jpg`, with the list that leads back to such records.

An image that is there already is compared with its record and left alone, so a conversion that was killed goes on when
it is started again. The list appears last, once all images are on disk; until then `.records.unfinished` says whose
folder this is. A file that is none of the conversion's own is never written over.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from adadistill.loaders.atomic_file import atomic_file, write_whole
from adadistill.loaders.dataset_tools.record_folder.image_lists import LIST_NAME, ListedImage, own_list, read_list
from adadistill.loaders.dataset_tools.rewrite import Progress
from adadistill.loaders.folders import UNFINISHED_NAME, ImageFolderError, is_litter
from adadistill.loaders.json_text import parse_json
from adadistill.loaders.records.record_index import RecordIndex, load_record_index
from adadistill.loaders.records.recordio import MAX_EXACT_FLOAT, BadBodyError, BadLabelError, RecordFile

_SUFFIXES = (
    (b"\xff\xd8", "jpg"),
    (b"\x89PNG", "png"),
    (b"RIFF", "webp"),
    (b"GIF8", "gif"),
    (b"II*\0", "tif"),
    (b"MM\0*", "tif"),
    (b"\0\0\0\x0cjP  ", "jp2"),
)
COPY_PREFIX = ".records."
"""Of copies of what lies beside the records, in the folder."""
_LARGEST_COPY = 1 << 30
_FILE_BLOCK, _SLACK_BYTES = 4096, 16 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordsUnpacked:
    """What became of a record file."""

    folder: Path
    images: int
    identities: int
    kept_images: int
    """Images that an earlier call had written."""


def records_to_folder(records: Path, folder: Path, *, progress: Progress | None = None) -> RecordsUnpacked:
    """Write the images of a record file and their list. The record file is only read.

    Args:
        records: the `.rec`; its `.idx`, `property` and `labels.json` lie beside it, if there are any.
        folder: new, empty, or of an earlier call for the same records.
        progress: called with images done and images in all; what it raises ends the conversion, and the same call goes
            on.

    Raises:
        RecordError: a record is damaged, has no image format, or a label that names no identity. Labels are looked at
            before anything is written.
        ImageFolderError: the folder holds something else, or the record file no images.
        OSError: there is no room on the disk.
    """
    file = RecordFile(records)
    index = load_record_index(file)
    if not len(index):
        raise ImageFolderError(f"{records} holds no image records; `adadistill data inspect` says what it is")
    labels = _labels(file, index)
    names = _identity_names(records, labels)
    _claim(folder, file, index, labels)
    kept = 0
    key_digits = len(str(max(int(index.keys.max(initial=0)), len(index))))
    with atomic_file(folder / LIST_NAME) as out:
        for number, (key, label) in enumerate(zip(index.keys.tolist(), labels.tolist(), strict=True)):
            values, body = _read(file, index, number)
            name = f"{names[label]}/{key:0{key_digits}d}.{_suffix(file, index, number, body)}"
            (folder / names[label]).mkdir(exist_ok=True)
            kept += _write_image(folder / name, body)
            out.write(ListedImage(key, values, name).line())
            if progress is not None:
                progress(number + 1, len(index))
        copy_side_files(records.parent, folder, to_prefix=COPY_PREFIX)
        os.sync()  # one for all images: an fsync of each would cost more than writing it
    (folder / UNFINISHED_NAME).unlink(missing_ok=True)
    return RecordsUnpacked(folder=folder, images=len(index), identities=len(names), kept_images=kept)


def copy_side_files(source: Path, target: Path, *, from_prefix: str = "", to_prefix: str = "") -> None:
    """Copy `property` and `labels.json`, those that there are, between records and a folder made of them."""
    for name in ("property", "labels.json"):
        path = source / f"{from_prefix}{name}"
        if path.is_file():
            if path.stat().st_size > _LARGEST_COPY:
                raise ImageFolderError(f"{path}: more than {_LARGEST_COPY} bytes are no such file")
            write_whole(target / f"{to_prefix}{name}", path.read_bytes())


def require_room(folder: Path, needed: int, *, files: int = 0) -> None:
    """Raise OSError where the disk has no room for so many bytes, or no names left for so many files."""
    place = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    free, disk = shutil.disk_usage(place).free, os.statvfs(place)
    if needed + _SLACK_BYTES > free:
        raise OSError(
            f"{folder}: {(needed + _SLACK_BYTES) / 1e9:.3f} GB are needed, the disk has {free / 1e9:.3f} GB free; make "
            "room, or name a folder on another disk"
        )
    if disk.f_files and files > disk.f_favail:
        raise OSError(f"{folder}: {files} files are to be written, the file system has room for {disk.f_favail}")


def _labels(file: RecordFile, index: RecordIndex) -> npt.NDArray[np.int64]:
    """(N,) identity of each image.

    Raises:
        RecordError: a record is damaged, or its label is no whole number that float32 can hold.
    """
    values, known = file.first_labels(index.offsets, index.limits)
    is_identity = (values >= 0) & (values < MAX_EXACT_FLOAT) & (values == np.floor(values))  # NaN fails
    for number in np.flatnonzero(~(known & is_identity)).tolist():
        label = _read(file, index, number)[0][0]
        reason = f"label {label!r} is not a whole number in [0, {MAX_EXACT_FLOAT}), and names no folder"
        raise BadLabelError(file.path, index.offsets.item(number), reason, index.keys.item(number), number)
    return values.astype(np.int64)


def _read(file: RecordFile, index: RecordIndex, number: int) -> tuple[tuple[float, ...], bytes]:
    """All labels of one image, and its bytes."""
    place = index.offsets.item(number), index.keys.item(number)
    record = file.read(place[0], key=place[1], record_id=number, limit=index.limits.item(number))
    if not all(map(math.isfinite, record.labels[1:])):
        raise BadLabelError(file.path, place[0], "one of its labels is no finite number", place[1], number)
    return tuple(record.labels), record.body


def _identity_names(records: Path, labels: npt.NDArray[np.int64]) -> dict[int, str]:
    """Folder name of each label: that of `labels.json` where it has good ones, else the number with leading zeros."""
    present = np.unique(labels).tolist()
    path = records.with_name("labels.json")
    if path.is_file() and path.stat().st_size <= _LARGEST_COPY:
        try:
            names = parse_json(path.read_text(encoding="utf-8-sig"))
        except (ValueError, OSError):
            names = None
        if isinstance(names, list) and present and present[-1] < len(names):
            chosen = [name for name in names if isinstance(name, str) and _is_plain_name(name)]
            if len(chosen) == len(names) == len({name.casefold() for name in chosen}):
                return {label: chosen[label] for label in present}
    digits = len(str(present[-1])) if present else 1
    return {label: f"{label:0{digits}d}" for label in present}


def _claim(folder: Path, file: RecordFile, index: RecordIndex, labels: npt.NDArray[np.int64]) -> None:
    """Make a folder ours, with a mark that it is unfinished.

    Raises:
        ImageFolderError: it is neither new, nor empty, nor of an earlier call for the same records.
        OSError: there is no room for the images.
    """
    digest = hashlib.sha256(f"{file.path.name} {file.size}".encode())
    for values in (index.offsets, index.keys, labels):
        digest.update(values.astype("<i8").tobytes())
    fields = {"format": "adadistill-unfinished-record-folder", "version": 2, "records": digest.hexdigest()}
    mark, marker = json.dumps(fields).encode() + b"\n", folder / UNFINISHED_NAME
    if folder.exists() and not folder.is_dir():
        raise ImageFolderError(f"{folder} is a file; name a new folder")
    if marker.is_file():
        with marker.open("rb") as opened:
            if opened.read(1 << 12) != mark:
                raise ImageFolderError(
                    f"{folder} holds an unfinished conversion of other records, or one that an earlier version began; "
                    "remove the folder, or name another"
                )
    elif (listed := own_list(folder)) is not None:
        wanted = itertools.zip_longest(index.keys.tolist(), labels.tolist())
        found = ((one.key, one.labels[0]) for one in read_list(listed))
        if any(pair != one for pair, one in itertools.zip_longest(wanted, found)):
            raise ImageFolderError(
                f"{folder} holds the images of other records, by its {listed.name}; name another folder"
            )
    elif folder.is_dir() and any(folder.iterdir()):
        raise ImageFolderError(
            f"{folder} holds files already, and none of them is written over: name a new or an empty folder"
        )
    else:
        require_room(folder, int((index.limits - index.offsets + _FILE_BLOCK).sum()), files=len(index))
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(marker, mark)


def _is_plain_name(name: str) -> bool:
    """Whether a text names a folder anywhere: printable, not hidden or litter, at most 200 bytes, no separator."""
    return (
        bool(name)
        and not is_litter(name)
        and name == name.strip()
        and name.isprintable()
        and not set(name) & set('/\\:*?"<>|')
        and len(name.encode("utf-8", "surrogatepass")) <= 200
    )


def _suffix(file: RecordFile, index: RecordIndex, number: int, body: bytes) -> str:
    for beginning, suffix in _SUFFIXES:
        if body.startswith(beginning):
            return suffix
    reason = f"its body begins like no image format: {body[:8].hex(' ')}"
    raise BadBodyError(file.path, index.offsets.item(number), reason, index.keys.item(number), number)


def _write_image(path: Path, body: bytes) -> bool:
    """Write one image; true where it was there already.

    Raises:
        ImageFolderError: a file of other content is there.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except FileExistsError:
        if path.is_symlink() or not path.is_file():
            raise ImageFolderError(f"{path} is no file of ours, and stays; move it away") from None
        with path.open("rb") as found:
            content = found.read(len(body) + 1)
        if content == body:
            return True
        if len(content) > len(body) or not body.startswith(content.rstrip(b"\0")):
            raise ImageFolderError(
                f"{path} holds another image than its record, and is not written over; move it away"
            ) from None
        handle = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW)  # torn by a kill
    with open(handle, "wb") as out:
        out.write(body)
    return False
