"""im2rec's lists, lines `key<TAB>label(s)<TAB>path`.

MXNet's tools write them beside their records, and `adadistill data convert` beside the images of a record file.

A list may come from a stranger: lines are bounded, every field is checked, and no path leads out of the folder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from adadistill.loaders.folders import ImageFolderError
from adadistill.loaders.json_text import parse_json
from adadistill.loaders.records.recordio import MAX_EXACT_FLOAT, MAX_LABELS

LIST_NAME = ".records.lst"
"""In a folder that was made of a record file. Hidden, so that whatever reads the folder as images looks past it."""
_OLD_LIST_NAME, _OLD_START = ".records.jsonl", b'{"format": "adadistill-record-folder", "version": 1,'
_MAX_LINE = 4 << 20  # 65,536 labels take 1.4 MB


@dataclass(frozen=True, slots=True)
class ListedImage:
    """One line of a list."""

    key: int
    """In the `.idx`."""
    labels: tuple[float, ...]
    """The identity first."""
    path: str
    """In the folder of images, with `/`."""

    def line(self) -> bytes:
        """The line, which reads back to the same float32 labels."""
        return "\t".join((str(self.key), *(f"{label:.9g}" for label in self.labels), f"{self.path}\n")).encode()


def own_list(folder: Path) -> Path | None:
    """The list in a folder that was made of a record file, if it is one."""
    return next((folder / name for name in (LIST_NAME, _OLD_LIST_NAME) if (folder / name).exists()), None)


def read_list(path: Path) -> Iterator[ListedImage]:
    """The images of a list, in its order; also of a folder's list from when it was lines of JSON.

    Raises:
        FileNotFoundError: there is no list.
        ImageFolderError: a line is none of such a list, or there are none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no list at {path}")
    parse: Callable[[bytes, str], ListedImage | None] = _parse
    is_empty = True
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE + 1), b""), start=1):
            where = f"{path} line {number}"
            if len(line) > _MAX_LINE:
                raise ImageFolderError(f"{where}: longer than {_MAX_LINE:,} bytes; no list has such a line")
            if number == 1 and line.startswith(_OLD_START):
                parse = _parse_old
            elif line.strip() and (found := parse(line, where)) is not None:
                yield found
                is_empty = False
    if is_empty:
        raise ImageFolderError(f"{path}: holds no lines `key<TAB>label<TAB>path`")


def _parse(line: bytes, where: str) -> ListedImage:
    try:
        key, *labels, path = line.decode("utf-8-sig").rstrip("\r\n").split("\t")
        numbers = int(key), tuple(map(float, labels))
    except ValueError:
        raise ImageFolderError(
            f"{where}: {line[:80]!r} is no line `key<TAB>label(s)<TAB>path` of im2rec's lists (insightface's own "
            "order, aligned<TAB>path<TAB>label, is not read: swap the columns)"
        ) from None
    return _checked(*numbers, path, where)


def _parse_old(line: bytes, where: str) -> ListedImage | None:
    """A JSON line; None for those that name no image."""
    try:
        fields: Any = parse_json(line.decode("ascii"))
        if "file" not in fields:
            return None
        labels = fields.get("labels", [fields.get("label")])
        numbers = int(str(fields["key"])), tuple(float(str(label)) for label in labels)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ImageFolderError(f"{where}: {line[:80]!r} is no line of a list of records") from None
    return _checked(*numbers, str(fields["file"]), where)


def _checked(key: int, labels: tuple[float, ...], path: str, where: str) -> ListedImage:
    if not (0 <= key < 1 << 63 and 1 <= len(labels) <= MAX_LABELS and all(map(math.isfinite, labels))):
        raise ImageFolderError(
            f"{where}: is no line of a list: its key is a whole number from 0, its labels are 1 to {MAX_LABELS} numbers"
        )
    if not 0 <= labels[0] < MAX_EXACT_FLOAT or not labels[0].is_integer():
        raise ImageFolderError(f"{where}: label {labels[0]!r} is no whole number in [0, {MAX_EXACT_FLOAT})")
    name = PurePosixPath(path)
    if not path or name.is_absolute() or ".." in name.parts or "\0" in path or "\\" in path:
        raise ImageFolderError(f"{where}: {path[:80]!a} is no path within the folder of images")
    return ListedImage(key, labels, name.as_posix())
