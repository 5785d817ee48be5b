"""Verification sets: the field's `.bin` files and CVLface's Arrow folders, read safely, written, and decoded to pixels.

A `.bin` is a pickle of (encoded images, same flags): pair i is images 2i and 2i + 1, and flag i says whether both show
one person. Such files travel between strangers, so they are read by an allow-list (`safe_pickle.py`), never by
`pickle.load`. Both layouts met in practice are read: images as bytes and as (N,) or (N, 1) uint8 arrays, flags as bool,
numpy bool or 0 and 1; pickles of Python 2 and 3.

CVLface keeps the same sets as folders that Hugging Face `datasets` saved, with columns image, index and is_same, one
row an image; `read_verification_set` takes either.
"""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from adadistill.loaders.atomic_file import atomic_file
from adadistill.loaders.first_bytes import what_it_is
from adadistill.loaders.pixels import ImageDecodeError, decode_image
from adadistill.loaders.records.arrow_images import ArrowImagesError, is_arrow_folder, open_arrow_images
from adadistill.loaders.safe_pickle import (
    PickleDamagedError,
    PickleRefusedError,
    StoredArray,
    load_plain_pickle,
)
from adadistill.loaders.usable_cpus import usable_cpus

MAX_FILE_BYTES = 2 << 30
"""Larger files are refused; the largest public set has some 200 MB."""

_MAX_ASPECT = 16
"""Longer side over shorter side of an image that is scaled. Faces, cropped or not, are nearly square."""
_LARGE_PIXELS = 1 << 20
_ONE_LARGE = threading.Lock()
"""Held while a large image is scaled: 2,048 x 2,048 pixels take 60 MB as float32, and eight threads decode."""

_JPEG = b"\xff\xd8"
_PNG = b"\x89PNG"
_PROTOCOL = 4  # fixed, so that a set has the same bytes whichever Python wrote it; insightface's `pickle.load` reads it


class VerificationSetError(ValueError):
    """A file is not a verification set, or not one that can be used."""


class UnsafePickleError(VerificationSetError):
    """A file asks the unpickler for more than a verification set needs: it may be an attack, and nothing of it ran."""


@dataclass(frozen=True, slots=True)
class VerificationPairs:
    """P pairs of encoded images with their flags."""

    name: str
    """File stem, or the folder's name: for example `lfw`."""
    images: list[bytes]
    """2P encoded images, JPEG or PNG; pair i is images 2i and 2i + 1."""
    same: npt.NDArray[np.bool_]
    """(P,) bool, True where both images show one person."""
    path: Path
    """The file or folder, named in errors."""
    sha256: str = ""
    """Of the file, or of a folder's Arrow files in order; empty for pairs that are not a whole set."""


def verification_set_name(path: str | Path) -> str:
    """What a set is called in reports: a file's name without `.bin`, a folder's name as it is."""
    return Path(path).name.removesuffix(".bin")


def read_verification_set(path: str | Path) -> VerificationPairs:
    """Read a set in either form: a `.bin` file, or a folder that Hugging Face `datasets` saved, as CVLface's are.

    Raises:
        OSError: it cannot be read.
        UnsafePickleError, VerificationSetError: as `read_verification_bin`; a folder that holds no such set.
        ImportError: a folder, and pyarrow is not installed.
    """
    return _read_arrow_folder(Path(path)) if Path(path).is_dir() else read_verification_bin(path)


def read_verification_bin(path: str | Path) -> VerificationPairs:
    """Read a verification set without executing anything it contains.

    Raises:
        OSError: the file cannot be read.
        UnsafePickleError: the file asks for anything but lists, bytes, flags and plain arrays of them, or declares
            lengths made to exhaust memory.
        VerificationSetError: incomplete or not a set; the message says which part of it is not what it should be.

    Memory: the file, and once more its content. Source: insightface's `.bin` format.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no verification set at {path}; check the recipe's `evaluation.sets`, or --sets")
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise VerificationSetError(f"{path}: larger than {MAX_FILE_BYTES:,} bytes; verification sets are not")
    try:
        content = load_plain_pickle(data)
    except (PickleRefusedError, PickleDamagedError) as error:
        # A pickle of protocol 0 is text too; its last byte is its last opcode.
        if (other := what_it_is(data, "pickle", *(["text"] if data.endswith(b".") else []))) is not None:
            raise VerificationSetError(f"{path} {other}") from None
        if isinstance(error, PickleDamagedError):
            raise VerificationSetError(f"{path}: not a verification set: {error}") from None
        raise UnsafePickleError(f"{path}: {error}. Hostile or damaged; nothing of it was run") from None
    if not isinstance(content, (tuple, list)) or len(content) != 2:
        raise VerificationSetError(f"{path}: holds {_described(content)}, not the pair (images, same flags)")
    same = _flags(content[1], path)
    images = _images(content[0], path)
    _check_counts(len(images), len(same), str(path))
    return VerificationPairs(
        name=verification_set_name(path), images=images, same=same, path=path, sha256=hashlib.sha256(data).hexdigest()
    )


def write_verification_bin(
    path: str | Path, images: Sequence[bytes], same: Sequence[bool] | npt.NDArray[np.bool_]
) -> None:
    """Write a set as insightface writes it: a pickle of (list of bytes, list of bool). The file appears whole or not.

    Args:
        path: ends in `.bin` by custom; its stem becomes the set's name.
        images: 2P encoded images, JPEG or PNG; pair i is images 2i and 2i + 1. The published ten-fold protocol cuts the
            pairs into contiguous tenths, so each tenth should hold same and different pairs.
        same: P flags.

    Raises:
        VerificationSetError: counts disagree, or an image is neither JPEG nor PNG.
    """
    path = Path(path)
    bodies = [_checked_image(bytes(body), index, path) for index, body in enumerate(images)]
    flags = [bool(flag) for flag in same]
    _check_counts(len(bodies), len(flags), str(path))
    with atomic_file(path) as file:
        pickle.dump((bodies, flags), file, protocol=_PROTOCOL)


def decode_pairs(
    pairs: VerificationPairs, image_size: int, *, first: int = 0, stop: int | None = None, threads: int | None = None
) -> npt.NDArray[np.uint8]:
    """Decode a set's images, or those in [first, stop), to RGB pixels of one size.

    Args:
        image_size: side in pixels. Images of another size are scaled (bilinear, antialiased) until their shorter side
            fits, then cropped about the centre; images of this size are taken as they are.
        first, stop: range of image indices, for example one rank's share.
        threads: that decode beside each other; default one per CPU, at most 8.

    Returns:
        (2P, image_size, image_size, 3) uint8, or (stop - first, ...).

    Raises:
        ImageDecodeError: an image is damaged; the message names set, image and pair.
    """
    stop = len(pairs.images) if stop is None else stop
    pixels = np.empty((stop - first, image_size, image_size, 3), dtype=np.uint8)

    def decode(index: int) -> None:
        where = f"{pairs.path} image {index} (pair {index // 2})"
        pixels[index - first] = fit_square(decode_image(pairs.images[index], where=where), image_size, where=where)

    with ThreadPoolExecutor(threads or min(8, usable_cpus())) as pool:
        for _ in pool.map(decode, range(first, stop)):  # the first error, by image order, is raised here
            pass
    return pixels


def fit_square(image: npt.NDArray[np.uint8], side: int, *, where: object = "image") -> npt.NDArray[np.uint8]:
    """(H, W, 3) uint8 -> (side, side, 3): shorter side scaled to `side`, then a centre crop. Its own size: unchanged.

    The public code scales likewise (without antialiasing, and bicubic) and then fails on images that are not square.

    Raises:
        ImageDecodeError: the image is a strip: one row of 2,048 pixels would be scaled to 300 MB.
    """
    height, width = image.shape[:2]
    if height == side and width == side:
        return image
    short = min(height, width)
    if max(height, width) > _MAX_ASPECT * short:
        raise ImageDecodeError(f"{where}: {height} x {width} pixels, one side more than {_MAX_ASPECT} times the other")
    size = [max(side, height * side // short), max(side, width * side // short)]
    with _ONE_LARGE if height * width > _LARGE_PIXELS else contextlib.nullcontext():
        planes = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()  # (1, 3, H, W)
        scaled = torch.nn.functional.interpolate(planes, size=size, mode="bilinear", antialias=True)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    square = scaled[0, :, top : top + side, left : left + side]  # (3, side, side)
    return square.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def _read_arrow_folder(folder: Path) -> VerificationPairs:
    """One row an image; column `index` numbers the images, and is_same says of both images of a pair the same."""
    if not is_arrow_folder(folder):
        raise VerificationSetError(
            f"{folder}: is a folder without state.json. A verification set is a .bin file, or a folder that Hugging "
            "Face datasets saved"
        )
    try:
        found = open_arrow_images(folder, columns=("index", "is_same"))
        assert found.index is not None
        assert found.is_same is not None
        images: list[bytes] = [b""] * len(found)
        same = np.zeros(len(found), dtype=np.bool_)
        same[found.index] = found.is_same
        for index, body in zip(found.index.tolist(), found.bodies(0, len(found)), strict=True):
            images[index] = _checked_image(body, index, folder)
        sha256 = found.sha256()
    except ArrowImagesError as error:
        raise VerificationSetError(f"{folder}: not a verification set: {error}") from None
    if len(images) % 2:
        raise VerificationSetError(f"{folder}: {len(images)} images; a pair is two images")
    unequal = np.flatnonzero(same[0::2] != same[1::2])
    if unequal.size:
        raise VerificationSetError(
            f"{folder}: column is_same says different things of the images of {unequal.size} pairs, the first is pair "
            f"{unequal[0]} (images {2 * unequal[0]} and {2 * unequal[0] + 1})"
        )
    return VerificationPairs(
        name=verification_set_name(folder), images=images, same=same[0::2].copy(), path=folder, sha256=sha256
    )


def _images(content: object, path: Path) -> list[bytes]:
    if not isinstance(content, (tuple, list)):
        raise VerificationSetError(f"{path}: the images are {_described(content)}, not a list of encoded images")
    return [_checked_image(_image_bytes(image, index, path), index, path) for index, image in enumerate(content)]


def _image_bytes(image: object, index: int, path: Path) -> bytes:
    if isinstance(image, bytes):
        return image
    if not isinstance(image, StoredArray) or image.dtype != np.uint8:
        raise VerificationSetError(f"{path}: image {index} is {_described(image)}, neither bytes nor a uint8 array")
    if not _is_vector(image.shape):
        raise VerificationSetError(
            f"{path}: image {index} is an array of shape {image.shape}; encoded images are (N,) or (N, 1)"
        )
    return image.body


def _checked_image(body: bytes, index: int, path: Path) -> bytes:
    if not body.startswith((_JPEG, _PNG)):
        starts = f"starts with {body[:4].hex() or 'nothing'}"
        raise VerificationSetError(
            f"{path}: image {index} ({len(body)} bytes, {starts}) is neither JPEG nor PNG"
            + (f"; it {other}" if (other := what_it_is(body, "empty")) is not None else "")
        )
    return body


def _flags(content: object, path: Path) -> npt.NDArray[np.bool_]:
    if isinstance(content, StoredArray) and _is_vector(content.shape):
        values = content.to_numpy().reshape(-1)
        if not np.isin(values, (0, 1)).all():
            raise VerificationSetError(f"{path}: the same flags are integers other than 0 and 1")
        return values.astype(np.bool_)
    if not isinstance(content, (tuple, list)):
        raise VerificationSetError(f"{path}: the same flags are {_described(content)}, not a list of flags")
    for index, flag in enumerate(content):
        if not isinstance(flag, int) or flag not in (0, 1):
            raise VerificationSetError(f"{path}: same flag {index} is {_described(flag)}, not a flag")
    return np.array(content, dtype=np.bool_)


def _check_counts(images: int, flags: int, where: str) -> None:
    if images != 2 * flags:
        raise VerificationSetError(f"{where}: {images} images for {flags} flags; a pair is two images and one flag")
    if flags == 0:
        raise VerificationSetError(f"{where}: holds no pairs")


def _is_vector(shape: tuple[int, ...]) -> bool:
    """True for (N,), (N, 1), (1, N) ...: one side at most is not 1."""
    return len(shape) >= 1 and sum(side != 1 for side in shape) <= 1


def _described(value: object) -> str:
    """A stranger's object in few words; its own text is not printed."""
    if isinstance(value, StoredArray):
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    if isinstance(value, int) and abs(value) < 1_000_000:
        return f"the number {int(value)}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"of type {type(value).__name__}"
