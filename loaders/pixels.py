"""Encoded image to pixels, pixels to network input: what every path that feeds a network does, in one place.

Decoding is simplejpeg (libjpeg-turbo, exact upsampling and IDCT). Dimensions are read from the header before anything
is allocated, so an 8 KB file that claims 20,000 x 20,000 pixels costs nothing but an error.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

MAX_SIDE = 2048
"""Larger images are refused: faces are 112 pixels wide, and header fields come from strangers."""

_IMAGES_AT_ONCE = 4
"""Images normalised by one call on the CPU: 600 KB of float32, which stays in cache over the three passes."""

_JPEG = b"\xff\xd8"
_PNG = b"\x89PNG\r\n\x1a\n"


class ImageDecodeError(ValueError):
    """An encoded image cannot be decoded, or is not what was asked for. The message says which and why."""


def image_size(body: bytes, *, where: str) -> tuple[int, int]:
    """(height, width) from the header of a JPEG or PNG, without decoding.

    Args:
        body: the encoded image.
        where: names the image in errors, for example `train.rec record 17 (key 18)`.

    Raises:
        ImageDecodeError: not a JPEG or PNG, or a header that cannot be read.
    """
    if body.startswith(_JPEG):
        import simplejpeg

        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(body)
        except ValueError as error:
            raise ImageDecodeError(f"{where}: JPEG header cannot be read: {error}") from None
        return height, width
    if body.startswith(_PNG):
        if len(body) < 24:
            raise ImageDecodeError(f"{where}: PNG of {len(body)} bytes is truncated")
        return int.from_bytes(body[20:24], "big"), int.from_bytes(body[16:20], "big")
    raise ImageDecodeError(
        f"{where}: neither JPEG nor PNG ({len(body)} bytes, starts with {body[:4].hex() or 'nothing'})"
    )


def decode_image(body: bytes, *, where: str, max_side: int = MAX_SIDE) -> npt.NDArray[np.uint8]:
    """Decode a JPEG (or, where Pillow is installed, a PNG) to RGB.

    Returns:
        (H, W, 3) uint8; grey images are spread over the three channels.

    Raises:
        ImageDecodeError: damaged, larger than `max_side` pixels a side, or of another kind.
    """
    height, width = image_size(body, where=where)
    if not (0 < height <= max_side and 0 < width <= max_side):
        raise ImageDecodeError(f"{where}: claims {height} x {width} pixels; at most {max_side} a side are read")
    if body.startswith(_PNG):
        return _decode_png(body, where)
    import simplejpeg

    try:
        return simplejpeg.decode_jpeg(body, colorspace="RGB")
    except ValueError as error:
        raise ImageDecodeError(f"{where}: JPEG cannot be decoded: {error}") from None


def to_network_input(
    images_u8: Tensor, *, device: torch.device, dtype: torch.dtype = torch.float32, channels_last: bool = False
) -> Tensor:
    """Move pixels to the device and normalise them there: (x - 127.5) / 127.5.

    Args:
        images_u8: (B, H, W, 3) or (B, 3, H, W) uint8 RGB, on any device.

    Returns:
        (B, 3, H, W) of `dtype` in [-1, 1], its own memory. Computed in float32 at least, then rounded once.
    """
    if images_u8.dtype != torch.uint8 or images_u8.ndim != 4:
        raise ValueError(f"images must be 4-D uint8, got {tuple(images_u8.shape)} {images_u8.dtype}")
    if images_u8.shape[-1] == 3:
        images_u8 = images_u8.permute(0, 3, 1, 2)
    compute_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    images = images_u8.to(device, non_blocking=True).to(
        compute_dtype, memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )
    return images.sub_(127.5).div_(127.5).to(dtype)


def write_network_input(images_u8: npt.NDArray[np.uint8], images: npt.NDArray[np.floating[Any]]) -> None:
    """`to_network_input` for a thread among many, bit for bit: (n, H, W, 3) into the memory of (n, 3, H, W).

    In numpy, because torch would start a team of OpenMP threads for each decode thread, and the teams fight over the
    cores: ten times slower on two busy ones. It also takes 25 us per image on one core where torch takes 70.
    """
    for first in range(0, len(images), _IMAGES_AT_ONCE):
        block = slice(first, first + _IMAGES_AT_ONCE)
        for channel in range(3):
            images[block, channel] = images_u8[block, :, :, channel]
        np.subtract(images[block], 127.5, out=images[block])
        np.divide(images[block], 127.5, out=images[block])


def _decode_png(body: bytes, where: str) -> npt.NDArray[np.uint8]:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise ImageDecodeError(f"{where}: is a PNG; reading those needs Pillow (pip install pillow)") from None
    try:
        with Image.open(io.BytesIO(body), formats=["PNG"]) as image:
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise ImageDecodeError(f"{where}: PNG cannot be decoded: {error}") from None
