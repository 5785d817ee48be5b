"""Reads the original layout: `loose_crop/*.jpg`, and text files with templates, media, pairs and landmarks in `meta`.

`ijbX_face_tid_mid.txt`          image_name template_id media_id
`ijbX_name_5pts_score.txt`       image_name x1 y1 ... x5 y5 detector_score, line by line the same images
`ijbX_template_pair_label.txt`   template_id template_id label
`ijbX_1N_gallery_*.csv`, `ijbX_1N_probe_mixed.csv`   header, then template_id,subject_id,... (may be absent)

Blank lines, a byte-order mark and either end of line change nothing.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from adadistill.loaders.evaluation_sets.face_alignment import AlignmentError, aligned, similarities_to_template
from adadistill.loaders.evaluation_sets.ijb.annotations import (
    IjbAnnotations,
    Ints,
    TemplateSubjects,
    make_annotations,
    places_of,
)
from adadistill.loaders.evaluation_sets.image_sets import ImageFiles, ImageSetError, Pixels
from adadistill.loaders.first_bytes import what_it_is
from adadistill.loaders.folders import ImageFolderError, entries_of
from adadistill.loaders.pixels import MAX_IMAGE_BYTES, decode_image

MAX_TEXT_BYTES = 2 << 30
"""Of one text file; IJB-C's pairs have 220 MB."""

_PARSED_AT_ONCE = 1 << 26


@dataclass(frozen=True, slots=True)
class LooseCrops:
    """One file for each image, aligned here by five landmarks."""

    files: ImageFiles
    sizes: Ints
    """(N,) bytes of the files."""
    landmarks: npt.NDArray[np.float64]
    """(N, 5, 2)."""

    def __len__(self) -> int:
        return len(self.files)

    def readers(self, start: int, stop: int, image_size: int) -> Iterator[Callable[[], Pixels]]:
        """As `ImageSet.readers`; the files are read by the calls."""
        similarities = similarities_to_template(self.landmarks[start:stop], image_size)
        for row, similarity in enumerate(similarities, start=start):
            yield partial(self._pixels, row, similarity, image_size)

    def sha256(self) -> str:
        """Of every file's name and size, and of the landmarks; the contents of half a million files are not read."""
        digest = hashlib.sha256(np.ascontiguousarray(self.landmarks).tobytes())
        for name, size in zip(self.files.names, self.sizes.tolist(), strict=True):
            digest.update(f"{name}\n{size}\n".encode())
        return digest.hexdigest()

    def _pixels(self, row: int, similarity: npt.NDArray[np.float64], image_size: int) -> Pixels:
        picture = decode_image(self.files.body(row), where=self.files.where(row))
        return aligned(picture, similarity, image_size)


def find_set(folder: Path) -> str | None:
    """`ijbb` or `ijbc`, where a folder holds that set's original layout; None where it holds neither.

    Raises:
        ImageSetError: it holds both.
    """
    found = [name for name in ("ijbb", "ijbc") if (folder / "meta" / f"{name}_face_tid_mid.txt").is_file()]
    if len(found) > 1:
        raise ImageSetError(f"{folder}: holds both IJB-B and IJB-C; give each a folder of its own")
    return found[0] if found else None


def read_original(folder: Path, name: str) -> tuple[IjbAnnotations, LooseCrops]:
    """All annotations, checked, and the images, found but not read.

    Args:
        name: `ijbb` or `ijbc`, as its files begin.

    Raises:
        FileNotFoundError: a file or an image is missing.
        ImageSetError: a file is damaged, or two contradict each other.
    """
    meta = folder / "meta"
    templates_path, points_path = meta / f"{name}_face_tid_mid.txt", meta / f"{name}_name_5pts_score.txt"
    pairs_path = meta / f"{name}_template_pair_label.txt"
    names, template_columns, lines = _named_lines(templates_path, 2)
    point_names, points, _ = _named_lines(points_path, 11)
    if len(names) != len(point_names):
        raise ImageSetError(
            f"{templates_path} has {len(names)} lines, {points_path} {len(point_names)}; they belong together"
        )
    for line, one, other in zip(lines, names, point_names, strict=True):
        if one != other:
            raise ImageSetError(f"line {line} is {one[:80]!a} in {templates_path}, {other[:80]!a} in {points_path}")
    numbers = _whole(template_columns, templates_path, lines)
    _check_repeated_lines(names, numbers, templates_path, lines)
    pairs = _pairs(pairs_path)
    annotations = make_annotations(
        name=name.upper(),
        where=folder,
        templates=numbers[:, 0],
        medias=numbers[:, 1],
        detector_scores=points[:, 10],
        first=pairs[:, 0],
        second=pairs[:, 1],
        same=pairs[:, 2],
    )
    landmarks = points[:, :10].reshape(-1, 5, 2)
    try:
        similarities_to_template(landmarks)
    except AlignmentError as error:
        raise ImageSetError(f"{points_path}: {error} (picture 0 is the first line)") from None
    crops = folder / "loose_crop"
    images = LooseCrops(ImageFiles(crops, names), _sizes(crops, names), landmarks)
    return with_identification(annotations, meta, name), images


def with_identification(annotations: IjbAnnotations, meta: Path, name: str) -> IjbAnnotations:
    """The set with the galleries and probes of its 1:N protocol, where their files are there.

    Raises:
        FileNotFoundError: some of them are there, and others not.
        ImageSetError: one is damaged, or names templates without images.
    """
    galleries = {"ijbb": ("S1", "S2"), "ijbc": ("G1", "G2")}[name]
    paths = [*(meta / f"{name}_1N_gallery_{gallery}.csv" for gallery in galleries), meta / f"{name}_1N_probe_mixed.csv"]
    missing = [path for path in paths if not path.is_file()]
    if len(missing) == len(paths):
        return annotations
    if missing:
        raise FileNotFoundError(f"{missing[0]} is missing, while other files of the 1:N protocol are there")
    sides = [
        _subjects(path, side, annotations.template_ids)
        for path, side in zip(paths, (*galleries, "probe_mixed"), strict=True)
    ]
    for gallery in sides[:-1]:
        if len(np.unique(gallery.subjects)) != len(gallery):
            raise ImageSetError(f"{meta / f'{name}_1N_gallery_{gallery.name}.csv'}: a subject has two templates")
    return replace(annotations, galleries=tuple(sides[:-1]), probes=sides[-1])


def _blocks(path: Path) -> Iterator[bytes]:
    """A text file in blocks of whole lines."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise ImageSetError(f"{path}: larger than {MAX_TEXT_BYTES:,} bytes")
    if (other := what_it_is(path, "text", "empty")) is not None:
        raise ImageSetError(f"{path} {other}")
    with path.open("rb") as file:
        start = file.read(len(codecs.BOM_UTF8))
        if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise ImageSetError(f"{path}: is text in UTF-16; save it as UTF-8")
        file.seek(len(start) if start == codecs.BOM_UTF8 else 0)
        while block := file.read(_PARSED_AT_ONCE):
            yield block + file.readline(_PARSED_AT_ONCE)


def _named_lines(path: Path, columns: int) -> tuple[list[str], npt.NDArray[np.float64], list[int]]:
    """Names, (n, columns) numbers, and places in the file, from 1, of lines `name number ...`."""
    names: list[str] = []
    lines: list[int] = []
    number = 0
    values: list[npt.NDArray[np.float64]] = []
    for block in _blocks(path):
        parts = []
        for number, line in enumerate(block.splitlines(), start=number + 1):  # noqa: B020 (goes on where it was)
            cells = line.split()
            if not cells:
                continue
            if len(cells) != columns + 1:
                raise ImageSetError(
                    f"{path}, line {number}: {len(cells)} columns; a name and {columns} numbers are expected"
                )
            names.append(_file_name(cells[0], path, number))
            lines.append(number)
            parts.append(cells[1:])
        try:
            values.append(np.array(parts, dtype=np.float64).reshape(-1, columns))
        except ValueError as error:
            raise ImageSetError(f"{path}, up to line {number}: {str(error)[:120]}") from None
    if not names:
        raise ImageSetError(f"{path}: is empty")
    return names, np.concatenate(values), lines


def _file_name(cell: bytes, path: Path, line: int) -> str:
    try:
        name = cell.decode("utf-8")
    except UnicodeDecodeError:
        name = ""
    if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise ImageSetError(f"{path}, line {line}: {cell[:80]!r} names no file of loose_crop")
    return name


def _whole(values: npt.NDArray[np.float64], path: Path, lines: list[int]) -> Ints:
    wrong = np.flatnonzero((values != np.rint(values)).any(axis=1) | ~(np.abs(values) < 2**53).all(axis=1))
    if wrong.size:
        raise ImageSetError(f"{path}, line {lines[wrong[0]]}: template and medium must be whole numbers")
    return values.astype(np.int64)


def _check_repeated_lines(names: list[str], numbers: Ints, path: Path, lines: list[int]) -> None:
    seen: set[tuple[str, int, int]] = set()
    for line, *key_parts in zip(lines, names, *numbers.T.tolist(), strict=True):
        key = tuple(key_parts)
        if key in seen:
            raise ImageSetError(
                f"{path}, line {line}: image {key[0]} is listed twice for template {key[1]}, medium {key[2]}"
            )
        seen.add(key)


def _pairs(path: Path) -> Ints:
    """(P, 3) of lines of three whole numbers, parsed in blocks: Python's loop would take a minute for IJB-C."""
    parts = []
    lines = 0
    for block in _blocks(path):
        rows = block.count(b"\n") + (not block.endswith(b"\n"))
        if re.search(rb"[^0-9 \t\r\n]", block) or not _three_on_each_line(block):
            at = lines + _first_wrong_line(block)
            raise ImageSetError(f"{path}, line {at}: is not two templates and a label, three whole numbers")
        values = (
            np.fromstring(block.decode("ascii"), dtype=np.int64, sep=" ") if block.strip() else np.zeros(0, np.int64)
        )
        parts.append(values.reshape(-1, 3))
        lines += rows
    if not sum(map(len, parts)):
        raise ImageSetError(f"{path}: is empty")
    return np.concatenate(parts)


def _three_on_each_line(block: bytes) -> bool:
    text = np.frombuffer(block, dtype=np.uint8)
    digit = text >= ord("0")
    begins = np.flatnonzero(digit & ~np.append(False, digit[:-1]))  # of numbers
    before_end = np.searchsorted(begins, np.flatnonzero(text == ord("\n")))  # numbers up to each line's end
    if not block.endswith(b"\n"):
        before_end = np.append(before_end, len(begins))
    return bool(np.isin(np.diff(before_end, prepend=0), (0, 3)).all())  # or none on a blank one


def _first_wrong_line(block: bytes) -> int:
    for number, line in enumerate(block.splitlines(), start=1):
        cells = line.split()
        if cells and (len(cells) != 3 or not all(cell.isdigit() for cell in cells)):
            return number
    return 1


def _sizes(folder: Path, names: list[str]) -> Ints:
    """Bytes of each image's file. One walk over the folder tells them all."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing; the images lie there")
    try:
        sizes = {entry.name: entry.stat().st_size for entry in entries_of(folder)[0] if entry.is_file()}
    except ImageFolderError as error:
        raise ImageSetError(str(error)) from None
    missing = [name for name in names if name not in sizes]
    if missing:
        raise FileNotFoundError(f"{folder / missing[0]} is missing; {len(missing)} of {len(names)} images are")
    found = np.array([sizes[name] for name in names], dtype=np.int64)
    wrong = np.flatnonzero((found == 0) | (found > MAX_IMAGE_BYTES))
    if wrong.size:
        raise ImageSetError(
            f"{folder / names[wrong[0]]}: has {found[wrong[0]]:,} bytes, not 1 to {MAX_IMAGE_BYTES:,}; {wrong.size} of "
            f"{len(names)} images are such"
        )
    return found


def _subjects(path: Path, side: str, template_ids: Ints) -> TemplateSubjects:
    """Templates and subjects of a file that has one line for each image of a template."""
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise ImageSetError(f"{path}: larger than {MAX_TEXT_BYTES:,} bytes")
    found: dict[int, int] = {}
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        rows = csv.reader(file)
        try:
            header = [cell.strip().lower() for cell in next(rows, [])]
            if header[:2] != ["template_id", "subject_id"]:
                began = ",".join(header[:3])[:60]
                raise ImageSetError(f"{path}: begins with {began!a}, not with a header template_id,subject_id,...")
            for line, cells in enumerate(rows, start=2):
                if not any(cell.strip() for cell in cells):
                    continue
                if len(cells) < 2 or not (cells[0].strip().isdecimal() and cells[1].strip().isdecimal()):
                    raise ImageSetError(f"{path}, line {line}: does not begin with two whole numbers")
                template, subject = int(cells[0].strip()[:19]), int(cells[1].strip()[:19])
                if found.setdefault(template, subject) != subject:
                    raise ImageSetError(
                        f"{path}, line {line}: template {template} has subjects {found[template]}, {subject}"
                    )
        except csv.Error as error:
            raise ImageSetError(f"{path}: {error}") from None
    if not found:
        raise ImageSetError(f"{path}: holds no templates")
    numbers = np.array(sorted(found), dtype=np.int64)
    subjects = np.array([found[number] for number in numbers.tolist()], dtype=np.int64)
    return TemplateSubjects(name=side, templates=places_of(numbers, template_ids, str(path)), subjects=subjects)
