"""im2rec's lists: lines `key<TAB>label(s)<TAB>path`, as MXNet's tools write them beside their records."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from adadistill.loaders.dataset_tools.record_folder.errors import RecordFolderError
from adadistill.loaders.records.recordio import MAX_EXACT_FLOAT, MAX_LABELS

_MAX_LINE = 2 << 20


@dataclass(frozen=True, slots=True)
class ListedImage:
    """One line of a list."""

    key: int
    labels: tuple[float, ...]
    path: str
    """Relative to the folder of images, with `/`."""


def read_lst(path: Path) -> list[ListedImage]:
    """Read a list.

    Raises:
        FileNotFoundError: there is none.
        RecordFolderError: names the line and what it should be.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no list at {path}")
    listed: list[ListedImage] = []
    keys: set[int] = set()
    with path.open("rb") as file:
        number = 0
        while line := file.readline(_MAX_LINE + 1):
            number += 1
            if not line.strip():
                continue
            found = _parse(line, f"{path} line {number}")
            if found.key in keys:
                raise RecordFolderError(f"{path} line {number}: key {found.key} is used twice")
            keys.add(found.key)
            listed.append(found)
    if not listed:
        raise RecordFolderError(f"{path}: holds no lines `key<TAB>label<TAB>path`")
    return listed


def _parse(line: bytes, where: str) -> ListedImage:
    try:
        fields = line.decode("utf-8-sig").rstrip("\r\n").split("\t")
    except UnicodeDecodeError:
        raise RecordFolderError(f"{where}: is no text in UTF-8") from None
    try:
        if not 3 <= len(fields) <= MAX_LABELS + 2 or not (fields[0].isascii() and fields[0].isdigit()):
            raise ValueError
        key, labels = int(fields[0]), tuple(float(field) for field in fields[1:-1])
        if key >= 1 << 63 or not all(map(math.isfinite, labels)):
            raise ValueError
    except ValueError:
        raise RecordFolderError(
            f"{where}: {line[:80]!r} is no line `key<TAB>label(s)<TAB>path` of im2rec's lists (insightface's own "
            "order, aligned<TAB>path<TAB>label, is not read: swap the columns)"
        ) from None
    if not 0 <= labels[0] < MAX_EXACT_FLOAT or not labels[0].is_integer():
        raise RecordFolderError(f"{where}: label {labels[0]!r} is no whole number in [0, {MAX_EXACT_FLOAT})")
    name = PurePosixPath(fields[-1])
    if not fields[-1] or name.is_absolute() or ".." in name.parts or "\0" in fields[-1] or "\\" in fields[-1]:
        raise RecordFolderError(f"{where}: {fields[-1][:80]!a} is no path within the folder of images")
    return ListedImage(key, labels, name.as_posix())
