"""Makes a verification set (`.bin`) of a list of pairs and a folder of images.

Two kinds of list are read, told apart by the first line:

* LFW's `pairs.txt`. First line: number of folds and pairs of each kind in a fold (`10 300`), or the latter alone, which
  is one fold. Then for each fold first its same pairs, `name n1 n2`, then its different ones, `name1 n1 name2 n2`; the
  image of a name and a number is `name/name_0001.jpg` (or .jpeg, .png) in the folder.
* Plain lines `path1 path2 same`: paths relative to the folder, `same` 1 or 0.

Fields are separated by tabs where the line has one, else by white space. Pairs keep the order of the list, which is
what cuts them into folds. Images are aligned already, and then copied byte for byte, or are aligned here by five
landmarks each. Everything that is wrong is found before a file is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from adadistill.loaders.errors import WorkFailed
from adadistill.loaders.evaluation_sets.face_alignment import (
    TEMPLATE_SIZE,
    AlignmentError,
    aligned,
    similarities_to_template,
)
from adadistill.loaders.evaluation_sets.verification_pairs import write_verification_bin
from adadistill.loaders.orientation import UPRIGHT
from adadistill.loaders.pixels import MAX_IMAGE_BYTES, ImageDecodeError, PillowMissingError, decode_image, image_header

MAX_LIST_BYTES = 256 << 20
"""Of a list of pairs or landmarks; LFW's has 160 KB."""

_SUFFIXES = (".jpg", ".jpeg", ".png")
_SHOWN = 10
_SAME_PLACE = 1e-4
"""Of a similarity, beside none: moves no pixel of an aligned picture by more than a fiftieth."""
_JPEG_QUALITY = 100  # with full chroma: what was aligned is sampled, not compressed away


class PairListError(WorkFailed, ValueError):
    """A list, or an image that it names, cannot be used. The message has a line for each problem, the first ten."""


@dataclass(frozen=True, slots=True)
class PairList:
    """P pairs of images, in order."""

    paths: tuple[str, ...]
    """2P, relative to the folder of images, with `/`; pair i is paths 2i and 2i + 1."""
    same: npt.NDArray[np.bool_]
    """(P,)."""


@dataclass(frozen=True, slots=True)
class MadeSet:
    """What was written."""

    path: Path
    pairs: int
    same_pairs: int
    images: int
    """Different ones; a pair list may name an image many times."""
    aligned: int
    """Of these, those that were aligned and encoded anew; the others were copied byte for byte."""
    turned: int
    """Of these, those that EXIF turns; landmarks are read as those of the upright picture."""


def make_verification_bin(
    list_path: Path, folder: Path, target: Path, *, landmarks: Path | None = None, overwrite: bool = False
) -> MadeSet:
    """Write the set that a list of pairs describes.

    Args:
        list_path: either kind of list.
        folder: that the list's images lie in.
        target: ends in `.bin`.
        landmarks: lines `path x1 y1 ... x5 y5`: eyes, nose and mouth corners in pixels of the image as its EXIF turns
            it, which is how detectors on OpenCV see it, separated as in lists of pairs; a further number, IJB's
            detector score, is ignored. Every image is then aligned to ArcFace's template and encoded as JPEG of
            quality 100 and full chroma, unless it lies on the template already.
            None: images are aligned, 112 pixels a side.

    Raises:
        FileNotFoundError: a list or the folder is missing.
        FileExistsError: the target exists and `overwrite` is false.
        PairListError: a line, a count, an image or its landmarks are not what they must be; nothing is written.
    """
    if target.suffix != ".bin":
        raise ValueError(f"{target}: a verification set is named NAME.bin")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists; --overwrite replaces it")
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder of images at {folder}")
    pairs = read_pair_list(list_path, folder)
    distinct = list(dict.fromkeys(pairs.paths))
    places = _read_landmarks(landmarks, distinct) if landmarks is not None else None
    bodies: dict[str, bytes] = {}
    encoded = turned = 0
    problems: list[str] = []
    for number, name in enumerate(distinct):
        try:
            body = _read(folder / name)
            bodies[name], anew = _prepared(folder / name, body, None if places is None else places[number])
            encoded += anew
            turned += image_header(body, where=folder / name).orientation != UPRIGHT
        except PillowMissingError:
            raise
        except (PairListError, ImageDecodeError) as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(f"{folder / name}: cannot be read: {error.strerror or error}")
    _refuse(list_path, problems)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_verification_bin(target, [bodies[name] for name in pairs.paths], pairs.same)
    return MadeSet(
        path=target,
        pairs=len(pairs.same),
        same_pairs=int(pairs.same.sum()),
        images=len(distinct),
        aligned=encoded,
        turned=turned,
    )


def read_pair_list(path: Path, folder: Path) -> PairList:
    """Read a list of either kind.

    Args:
        folder: of the images; LFW's names are looked up in it, as lists do not say whether a file is .jpg or .png.

    Raises:
        FileNotFoundError: there is no list.
        PairListError: names line and problem.
    """
    lines = _lines(path)
    if not lines:
        raise PairListError(f"{path}: holds no pairs")
    header = lines[0][1].split()
    if len(header) <= 2 and all(_is_count(field) for field in header):
        return _lfw_pairs(path, folder, [int(field) for field in header], lines[1:])
    return _plain_pairs(path, lines)


def _lfw_pairs(path: Path, folder: Path, header: Sequence[int], lines: Sequence[tuple[int, str]]) -> PairList:
    folds, of_a_kind = header if len(header) == 2 else (1, header[0])
    expected = 2 * folds * of_a_kind
    if len(lines) != expected or expected == 0:
        raise PairListError(
            f"{path}: {len(lines)} pairs, but its first line says {folds} x ({of_a_kind} same + {of_a_kind} different)"
        )
    paths: list[str] = []
    problems: list[str] = []
    flags = np.tile(np.repeat([True, False], of_a_kind), folds)
    for (number, line), is_same in zip(lines, flags.tolist(), strict=True):
        fields = _fields(line)
        if len(fields) != (3 if is_same else 4):
            wanted = "same pair, `name n1 n2`" if is_same else "different pair, `name1 n1 name2 n2`"
            problems.append(f"{path} line {number}: has {len(fields)} fields where the fold has a {wanted}")
            continue
        named = [(fields[0], fields[1]), (fields[0], fields[2])] if is_same else [fields[:2], fields[2:]]
        for name, count in named:
            if not _is_count(count) or _escapes(name) or "/" in name:
                problems.append(f"{path} line {number}: {name[:80]!a} {count[:20]!a} is no name and number of an image")
                continue
            stem = f"{name}/{name}_{int(count):04d}"
            paths.append(
                next((stem + suffix for suffix in _SUFFIXES if (folder / (stem + suffix)).is_file()), stem + ".jpg")
            )
    _refuse(path, problems)
    return PairList(tuple(paths), flags)


def _plain_pairs(path: Path, lines: Sequence[tuple[int, str]]) -> PairList:
    paths: list[str] = []
    flags: list[bool] = []
    problems: list[str] = []
    for number, line in lines:
        fields = _fields(line)
        if len(fields) != 3 or fields[2] not in ("0", "1"):
            problems.append(f"{path} line {number}: {line[:120]!a} is not `path1 path2 same` with same 0 or 1")
            continue
        outside = [name for name in fields[:2] if _escapes(name)]
        if outside:
            problems.append(f"{path} line {number}: {outside[0][:120]!a} is not within the folder of images")
            continue
        paths += [PurePosixPath(name).as_posix() for name in fields[:2]]
        flags.append(fields[2] == "1")
    _refuse(path, problems)
    return PairList(tuple(paths), np.array(flags, dtype=np.bool_))


def _read_landmarks(path: Path, names: Sequence[str]) -> npt.NDArray[np.float64]:
    """(n, 2, 3) similarity of each named image; lines of other images are checked and left out."""
    found: dict[str, list[float]] = {}
    problems: list[str] = []
    for number, line in _lines(path):
        fields = _fields(line)
        try:
            values = [float(field) for field in fields[1:11]]
        except ValueError:
            values = []
        if len(fields) not in (11, 12) or not np.isfinite(values).all() or len(values) != 10:
            problems.append(f"{path} line {number}: {line[:120]!a} is not `path x1 y1 ... x5 y5`")
            continue
        name = PurePosixPath(fields[0]).as_posix()
        if found.setdefault(name, values) != values:
            problems.append(f"{path} line {number}: other landmarks of {name[:120]!a} than an earlier line")
    problems += [f"{path}: has no landmarks of {name}" for name in names if name not in found]
    _refuse(path, problems)
    points = np.array([found[name] for name in names]).reshape(-1, 5, 2)
    try:
        return similarities_to_template(points)
    except AlignmentError:
        for name, one in zip(names, points, strict=True):
            try:
                similarities_to_template(one[None])
            except AlignmentError:
                raise PairListError(f"{path}: the landmarks of {name} give no similarity to the template") from None
        raise


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise PairListError(f"{path}: is missing")
    with path.open("rb") as file:
        body = file.read(MAX_IMAGE_BYTES + 1)
    if len(body) > MAX_IMAGE_BYTES:
        raise PairListError(f"{path}: more than {MAX_IMAGE_BYTES:,} bytes")
    return body


def _prepared(path: Path, body: bytes, similarity: npt.NDArray[np.float64] | None) -> tuple[bytes, bool]:
    """What goes into the set, and whether it was made here: else it is the file's own bytes."""
    picture = decode_image(body, where=path)
    fits = picture.shape[:2] == (TEMPLATE_SIZE, TEMPLATE_SIZE)
    if similarity is None:
        if not fits:
            raise PairListError(
                f"{path}: is {picture.shape[0]} x {picture.shape[1]} pixels, and an aligned face has {TEMPLATE_SIZE} a "
                "side; align it with --landmarks"
            )
        return body, False
    if fits and np.abs(similarity - np.eye(2, 3)).max() < _SAME_PLACE:
        return body, False
    import simplejpeg

    square = np.ascontiguousarray(aligned(picture, similarity))
    return bytes(simplejpeg.encode_jpeg(square, quality=_JPEG_QUALITY, colorsubsampling="444")), True


def _lines(path: Path) -> list[tuple[int, str]]:
    """(number from 1, text) of the lines that are not blank."""
    if not path.is_file():
        raise FileNotFoundError(f"no list at {path}")
    with path.open("rb") as file:
        content = file.read(MAX_LIST_BYTES + 1)
    if len(content) > MAX_LIST_BYTES:
        raise PairListError(f"{path}: larger than {MAX_LIST_BYTES:,} bytes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PairListError(f"{path}: is no text in UTF-8 ({error.reason} at byte {error.start})") from None
    lines = text.replace("\r\n", "\n").split("\n")
    return [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]


def _fields(line: str) -> list[str]:
    return [field.strip() for field in line.split("\t")] if "\t" in line else line.split()


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 7


def _escapes(name: str) -> bool:
    """Whether a list's path is empty, absolute, leads out of the folder, or cannot be one."""
    return not name or name.startswith("/") or ".." in PurePosixPath(name).parts or "\0" in name or "\\" in name


def _refuse(path: Path, problems: Sequence[str]) -> None:
    if not problems:
        return
    shown = [*problems[:_SHOWN], *([f"... and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else [])]
    raise PairListError(f"{path}, {len(problems)} problem{'s' * (len(problems) > 1)}:\n  " + "\n  ".join(shown))
