"""EXIF orientation: how a picture's stored rows and columns are turned to stand upright.

One rule for every picture that is decoded here: it is turned as its EXIF says, as OpenCV, mxnet, DALI and Hugging
Face's `datasets` do, so that landmarks and training meet the picture that other tools showed. What contradicts itself
turns nothing. The readers below look at bytes from strangers: no offset is followed twice, and entries are capped.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

UPRIGHT = 1
"""Rows and columns as stored; what a picture without EXIF has."""

_TAG = 0x0112
_SIZES = {3: 2, 4: 4}  # bytes of SHORT, which the tag is, and of LONG, which some write
_MAX_ENTRIES = 1000  # entries are sorted and this one comes early; cameras write some dozen
EXIF_PREFIX = b"Exif\0\0"
"""Begins the APP1 segment of a JPEG that holds EXIF, and not XMP or something else."""
_ORDERS: dict[bytes, Literal["little", "big"]] = {b"II*\0": "little", b"MM\0*": "big"}


def exif_orientation(exif: bytes) -> int:
    """1 to 8 of an EXIF block, with or without its `Exif` prefix; 1 where it says nothing, or nothing sound."""
    tiff = exif[len(EXIF_PREFIX) :] if exif.startswith(EXIF_PREFIX) else exif
    order = _ORDERS.get(tiff[:4])
    if order is None:
        return UPRIGHT
    first = int.from_bytes(tiff[4:8], order)
    count = min(int.from_bytes(tiff[first : first + 2], order), _MAX_ENTRIES)
    for place in range(first + 2, min(first + 2 + 12 * count, len(tiff) - 11), 12):
        if int.from_bytes(tiff[place : place + 2], order) == _TAG:
            size = _SIZES.get(int.from_bytes(tiff[place + 2 : place + 4], order), 0)
            value = int.from_bytes(tiff[place + 8 : place + 8 + size], order)
            return value if 1 <= value <= 8 else UPRIGHT
    return UPRIGHT


def png_orientation(body: bytes) -> int:
    """1 to 8 of a PNG's eXIf chunk, which may stand behind the pixels."""
    place = 8
    while place + 12 <= len(body):
        length = int.from_bytes(body[place : place + 4], "big")
        if body.startswith(b"eXIf", place + 4):
            return exif_orientation(body[place + 8 : place + 8 + length])
        place += 12 + length
    return UPRIGHT


def upright(pixels: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """(H, W, 3) as stored -> turned; (W, H, 3) for 5 to 8. Contiguous; the same array where there is nothing to do."""
    if orientation == UPRIGHT:
        return pixels
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(pixels[::rows, ::columns])
