"""JPEG to the Y, Cb and Cr planes that it holds, before upsampling and colour conversion, by libjpeg-turbo.

Why: a 4:2:0 JPEG has one chroma sample for four pixels, so its planes are half the bytes of its RGB, and nothing is
lost: upsampling them and converting them as libjpeg does gives the very pixels that decoding gives. A grey JPEG is
planes too, with no colour (Cb = Cr = 128).

The library is libjpeg-turbo's TurboJPEG, called through ctypes by the functions that its versions 2 and 3 share, as
Debian's libturbojpeg0 is version 2 and PyTurboJPEG 2 only takes version 3. Its accurate IDCT is asked for; that it
agrees with simplejpeg, which decodes everything else, is checked once in each process.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from adadistill.loaders.block_store.errors import StoreError
from adadistill.loaders.block_store.packed_header import image_bytes
from adadistill.loaders.orientation import UPRIGHT
from adadistill.loaders.pixels import ImageDecodeError, image_header

TURBOJPEG_REMEDY = "install libjpeg-turbo's TurboJPEG library (Debian and Ubuntu: apt-get install libturbojpeg0)"

_LIBRARY_NAMES = ("libturbojpeg.so.0", "libturbojpeg.0.dylib", "libturbojpeg.so")

# Numbers of turbojpeg.h, the same in versions 2 and 3.
_SAMP_420, _SAMP_GRAY = 2, 3
_CS_YCBCR, _CS_GRAY = 1, 2
_ACCURATE_DCT, _STOP_ON_WARNING, _LIMIT_SCANS = 4096, 8192, 32768
# Warnings are errors for simplejpeg too: a truncated image must not be half a face on grey. Scans stop at 500.
_FLAGS = _ACCURATE_DCT | _STOP_ON_WARNING | _LIMIT_SCANS

_NEUTRAL_CHROMA = 128
_CHECKED_SIDE = 32


class TurboJpegMissingError(StoreError):
    """Planes are asked for and libjpeg-turbo's TurboJPEG library is not there."""


def why_no_planes(body: bytes, *, where: str) -> str | None:
    """Why an image cannot be stored as 4:2:0 planes without loss, from its header; None where it can.

    Args:
        body: an encoded image whose size is right.
        where: names the image in errors.

    Raises:
        ImageDecodeError: the header cannot be read.
    """
    header = image_header(body, where=where)
    if header.kind != "jpeg":
        return "is no JPEG"
    colours, subsampling = header.colorspace, header.subsampling
    if header.orientation != UPRIGHT:
        return "is turned by its EXIF orientation, and turned planes give other pixels than a turned picture"
    if colours == "Gray" or (colours == "YCbCr" and subsampling == "420"):
        return None
    if colours != "YCbCr":
        return f"is a JPEG in {colours}, not in YCbCr"
    sampled = ":".join(subsampling) if subsampling.isdigit() else f"{subsampling} sampling"
    return f"is a JPEG with {sampled} chroma, not 4:2:0"


def planes_available() -> bool:
    """Whether the TurboJPEG library is there. Raises StoreError where it decodes other pixels than simplejpeg."""
    try:
        _checked_library()
    except TurboJpegMissingError:
        return False
    return True


class PlaneDecoder:
    """Decodes JPEGs of one size to rows of planes. Threads may share it.

    Args:
        size: side of the images in pixels, even.

    Raises:
        TurboJpegMissingError: there is no such library.
        StoreError: it decodes other pixels than simplejpeg does.
    """

    def __init__(self, size: int) -> None:
        self._library = _checked_library()
        self._size = size

    def decode(self, body: bytes, row: npt.NDArray[np.uint8], *, where: str) -> None:
        """Decode one JPEG into a row of a block.

        Args:
            body: the encoded image.
            row: (image_bytes,) uint8, contiguous: Y, then Cb, then Cr; overwritten.
            where: names the image in errors.

        Raises:
            ImageDecodeError: it is damaged.
            StoreError: its planes are not 4:2:0 of this size.
        """
        assert row.size == image_bytes("planes", self._size), "a row of the block"
        assert row.flags.c_contiguous, "a row of the block"
        with _decompressor(self._library) as handle:
            is_grey = self._check_header(handle, body, where)
            if not _decode_planes(self._library, handle, body, row, self._size):
                raise ImageDecodeError(f"{where}: JPEG cannot be decoded: {self._reason(handle)}")
        if is_grey:
            row[self._size * self._size :] = _NEUTRAL_CHROMA

    def _check_header(self, handle: int, body: bytes, where: str) -> bool:
        """Whether the image is grey. By the library that fills the row: two parsers may read one header differently."""
        width, height, sampling, colours = (ctypes.c_int() for _ in range(4))
        if self._library.tjDecompressHeader3(handle, body, len(body), width, height, sampling, colours):
            raise ImageDecodeError(f"{where}: JPEG header cannot be read: {self._reason(handle)}")
        found = (colours.value, sampling.value)
        fits = found in ((_CS_YCBCR, _SAMP_420), (_CS_GRAY, _SAMP_GRAY))
        if not fits or (height.value, width.value) != (self._size, self._size):
            raise StoreError(
                f"{where}: is no {self._size} x {self._size} JPEG with 4:2:0 chroma or in grey; pack with --layout rgb"
            )
        return found[0] == _CS_GRAY

    def _reason(self, handle: int) -> str:
        return self._library.tjGetErrorStr2(handle).decode("ascii", "replace")


@contextmanager
def _decompressor(library: Any) -> Iterator[int]:
    """A decompressor for one image. One that is used again keeps its tables: after a damaged image, version 2 refuses
    sound ones, and an image without tables of its own would be decoded with those of the image before it."""
    handle = library.tjInitDecompress()
    if not handle:
        raise MemoryError("libjpeg-turbo could not make a decompressor")
    try:
        yield handle
    finally:
        library.tjDestroy(handle)


@cache
def _checked_library() -> Any:
    """The library, loaded once, after decoding one noisy image as simplejpeg does."""
    import simplejpeg

    library = _declared(_load())
    pixels = np.random.default_rng(0).integers(0, 256, (_CHECKED_SIDE, _CHECKED_SIDE, 3), dtype=np.uint8)
    body = simplejpeg.encode_jpeg(pixels, quality=90, colorspace="RGB", colorsubsampling="420")
    row = np.empty(image_bytes("planes", _CHECKED_SIDE), np.uint8)
    with _decompressor(library) as handle:
        decodes = _decode_planes(library, handle, body, row, _CHECKED_SIDE)
    luma = simplejpeg.decode_jpeg(body, colorspace="GRAY")[..., 0]
    if not decodes or not np.array_equal(row[: luma.size].reshape(luma.shape), luma):
        raise StoreError(
            f"{library._name} decodes other pixels than simplejpeg; pack with --layout rgb, or {TURBOJPEG_REMEDY}"
        )
    return library


def _decode_planes(library: Any, handle: int, body: bytes, row: npt.NDArray[np.uint8], size: int) -> bool:
    """Fill a row; whether that went well. The header must have been checked: nothing else bounds what is written."""
    area, first = size * size, row.ctypes.data
    planes = (ctypes.c_void_p * 3)(first, first + area, first + area + area // 4)
    strides = (ctypes.c_int * 3)(size, size // 2, size // 2)
    return not library.tjDecompressToYUVPlanes(handle, body, len(body), planes, size, strides, size, _FLAGS)


def _load() -> Any:
    for folder in ("", f"{sys.prefix}/lib/"):
        for name in _LIBRARY_NAMES:
            try:
                return ctypes.CDLL(folder + name)
            except OSError:
                continue
    raise TurboJpegMissingError(f"planes need libjpeg-turbo's TurboJPEG library; {TURBOJPEG_REMEDY}")


def _declared(library: Any) -> Any:
    """The library with the types of what is called; a wrong one would write to a wrong place."""
    pointer, size, number = ctypes.c_void_p, ctypes.c_ulong, ctypes.c_int
    numbers = ctypes.POINTER(number)
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "tjInitDecompress": (pointer, []),
        "tjDestroy": (number, [pointer]),
        "tjGetErrorStr2": (ctypes.c_char_p, [pointer]),
        "tjDecompressHeader3": (number, [pointer, ctypes.c_char_p, size, numbers, numbers, numbers, numbers]),
        "tjDecompressToYUVPlanes": (
            number,
            [pointer, ctypes.c_char_p, size, ctypes.POINTER(pointer), number, numbers, number, number],
        ),
    }
    for name, (result, arguments) in signatures.items():
        try:
            function = getattr(library, name)
        except AttributeError:
            raise TurboJpegMissingError(
                f"{library._name} has no {name}: it is not libjpeg-turbo 2 or 3; {TURBOJPEG_REMEDY}"
            ) from None
        function.restype, function.argtypes = result, arguments
    return library
