"""Encoded image to pixels, pixels to network input: what every path that feeds a network does, in one place.

Decoding is simplejpeg (libjpeg-turbo, exact upsampling and IDCT). Dimensions are read from the header before anything
is allocated, so an 8 KB file that claims 20,000 x 20,000 pixels costs nothing but an error; and scans are counted,
since a file of a few megabytes can ask for thousands of passes. Sizes and pixels are those of the upright picture
(`orientation.py`).
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adadistill.loaders.errors import WorkFailed
from adadistill.loaders.first_bytes import what_it_is
from adadistill.loaders.orientation import EXIF_PREFIX, UPRIGHT, exif_orientation, png_orientation, upright

MAX_SIDE = 2048
"""Larger images are refused: faces are 112 pixels wide, and header fields come from strangers."""

_MAX_SCANS = 64
"""Passes over a JPEG that is not decoded in one. Encoders write about ten; each costs as much as the whole image."""

_IMAGES_AT_ONCE = 4
"""Images normalised by one call on the CPU: 600 KB of float32, which stays in cache over the three passes."""

_JPEG = b"\xff\xd8"
_SCAN = b"\xff\xda"  # in entropy-coded data 0xff is always followed by zero or a restart marker
_BASELINE = frozenset((0xC0, 0xC1))
_OTHER_FRAMES = frozenset(range(0xC2, 0xD0)) - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN, _APP1, _FILL = 0xDA, 0xE1, 0xFF
_PNG = b"\x89PNG\r\n\x1a\n"


class ImageDecodeError(WorkFailed, ValueError):
    """An encoded image cannot be decoded, or is not what was asked for. The message says which and why."""


class PillowMissingError(ImageDecodeError):
    """An image is sound, but Pillow, which reads or resizes it, is not installed: nothing that may be skipped."""


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What an encoded image may claim before it is decoded."""

    max_side: int = 1024
    """Pixels a side, 1 to 2048."""
    max_bytes: int = 4 << 20
    """Encoded bytes, at least 1024."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_side <= MAX_SIDE:
            raise ValueError(f"max_image_side must be in [1, {MAX_SIDE}], got {self.max_side}")
        if self.max_bytes < 1024:
            raise ValueError(f"max_image_bytes must be at least 1024, got {self.max_bytes}")


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What an encoded image says of itself."""

    kind: Literal["jpeg", "png"]
    height: int
    """Of the upright picture, as `width`."""
    width: int
    colorspace: str
    """Of a JPEG: YCbCr, Gray, RGB, CMYK or YCCK. Empty for a PNG."""
    subsampling: str
    """Of a JPEG's chroma: 420, 444 and so on, or Gray. Empty for a PNG."""
    orientation: int
    """As EXIF numbers it, 1 to 8; 1 turns nothing."""
    is_baseline: bool
    """Of a JPEG: decoded in one pass, as `jpeg_outline` tells. False for a PNG."""


def image_header(body: bytes, *, where: object) -> ImageHeader:
    """Read the header of a JPEG or PNG, without decoding.

    Args:
        body: the encoded image.
        where: names the image in errors, for example `train.rec record 17 (key 18)`: a text, or what becomes one.

    Raises:
        ImageDecodeError: not a JPEG or PNG, or a header that cannot be read.
    """
    if body.startswith(_JPEG):
        import simplejpeg

        try:
            height, width, colorspace, subsampling = simplejpeg.decode_jpeg_header(body)
        except ValueError as error:
            raise ImageDecodeError(f"{where}: JPEG header cannot be read: {error}") from None
        baseline, orientation = jpeg_outline(body)
        return ImageHeader(
            "jpeg", *_turned(height, width, orientation), colorspace, subsampling, orientation, is_baseline=baseline
        )
    if body.startswith(_PNG):
        if len(body) < 24:
            raise ImageDecodeError(f"{where}: PNG of {len(body)} bytes is truncated")
        height, width = int.from_bytes(body[20:24], "big"), int.from_bytes(body[16:20], "big")
        orientation = png_orientation(body)
        return ImageHeader("png", *_turned(height, width, orientation), "", "", orientation, is_baseline=False)
    raise ImageDecodeError(
        f"{where}: neither JPEG nor PNG ({len(body)} bytes); it {what_it_is(body) or f'starts with {body[:4].hex()}'}"
    )


def require_few_scans(body: bytes, *, where: object) -> None:
    """Refuse a JPEG of very many passes. Raises ImageDecodeError."""
    if not is_baseline(body) and body.count(_SCAN) > _MAX_SCANS:
        raise ImageDecodeError(f"{where}: has {body.count(_SCAN)} scans; at most {_MAX_SCANS} are read")


def is_baseline(body: bytes) -> bool:
    """Whether a JPEG's segments lead to a baseline frame and one scan of all its components; false where in doubt."""
    return jpeg_outline(body)[0]


def jpeg_outline(body: bytes) -> tuple[bool, int]:
    """Whether a JPEG is baseline of one scan, and its EXIF orientation: one walk over the segments before the pixels.

    The first frame header is the only one that libjpeg accepts, and where the first scan has all components it reads
    no second one; where it has not, a baseline file too may ask for any number of passes. Of several EXIF segments the
    first counts. Takes some 2 us, where counting scans takes 4 to 8, and a search for `Exif` 2 to 3.
    """
    place, size, components, doubtful, orientation = 2, len(body), 0, False, 0
    while place + 10 <= size and body[place] == _FILL:
        marker = body[place + 1]
        if marker == _START_OF_SCAN:
            return not doubtful and components != 0 and body[place + 4] == components, orientation or UPRIGHT
        if marker == _FILL:  # padding, which is rare
            doubtful, place = True, place + 1
            continue
        length = (body[place + 2] << 8) + body[place + 3]
        if marker in _BASELINE and not components:
            components = body[place + 9]
        elif marker in _BASELINE or marker in _OTHER_FRAMES:
            doubtful = True
        elif marker == _APP1 and not orientation and body.startswith(EXIF_PREFIX, place + 4):
            orientation = exif_orientation(body[place + 4 : place + 2 + length])
        place += 2 + length
    return False, orientation or UPRIGHT


def image_size(body: bytes, *, where: object) -> tuple[int, int]:
    """(height, width) of the upright picture, from the header of a JPEG or PNG; raises as `image_header`."""
    header = image_header(body, where=where)
    return header.height, header.width


def decode_image(body: bytes, *, where: object, max_side: int = MAX_SIDE) -> npt.NDArray[np.uint8]:
    """Decode a JPEG (or, where Pillow is installed, a PNG) to RGB, turned upright as its EXIF says.

    Returns:
        (H, W, 3) uint8; grey images are spread over the three channels, CMYK is converted as Pillow does.

    Raises:
        ImageDecodeError: damaged, larger than `max_side` pixels a side, of too many scans, or of another kind;
            PillowMissingError where it is a PNG that cannot be read here.
    """
    header = image_header(body, where=where)
    if not (0 < header.height <= max_side and 0 < header.width <= max_side):
        raise ImageDecodeError(
            f"{where}: claims {header.height} x {header.width} pixels; at most {max_side} a side are read"
        )
    if header.kind == "png":
        return upright(_decode_png(body, where), header.orientation)
    if not header.is_baseline:
        require_few_scans(body, where=where)
    import simplejpeg

    try:
        if header.colorspace in ("CMYK", "YCCK"):
            return upright(_from_cmyk(simplejpeg.decode_jpeg(body, colorspace="CMYK")), header.orientation)
        return upright(simplejpeg.decode_jpeg(body, colorspace="RGB"), header.orientation)
    except ValueError as error:
        raise ImageDecodeError(f"{where}: JPEG cannot be decoded: {error}") from None


def resized(pixels: npt.NDArray[np.uint8], size: int, *, where: object) -> npt.NDArray[np.uint8]:
    """The whole image at (size, size, 3), bilinear with antialiasing; other shapes of frame are stretched.

    Raises:
        PillowMissingError: Pillow, which does it, is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise PillowMissingError(f"{where}: resizing needs Pillow (pip install pillow)") from None
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR))


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
        normalise_(images[block])


def normalise_(images: npt.NDArray[np.floating[Any]]) -> None:
    """Levels 0 to 255 to [-1, 1], in place, with the operations of `to_network_input`."""
    np.subtract(images, 127.5, out=images)
    np.divide(images, 127.5, out=images)


def _turned(height: int, width: int, orientation: int) -> tuple[int, int]:
    """Height and width of the upright picture."""
    return (width, height) if orientation >= 5 else (height, width)


def _from_cmyk(cmyk: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """(H, W, 4) to RGB. As Adobe's programs write them, and Pillow reads them all, numbers are 255 minus the ink."""
    light = cmyk.astype(np.int32)
    product = light[:, :, :3] * light[:, :, 3:] + 128
    return ((product + (product >> 8)) >> 8).astype(np.uint8)  # divided by 255 and rounded


def _decode_png(body: bytes, where: object) -> npt.NDArray[np.uint8]:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise PillowMissingError(f"{where}: is a PNG; reading those needs Pillow (pip install pillow)") from None
    try:
        with Image.open(io.BytesIO(_critical_chunks(body)), formats=["PNG"]) as image:
            if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip to 255
                wide = np.asarray(image).astype(np.int64) >> 8
                return np.repeat(wide.clip(0, 255).astype(np.uint8)[:, :, None], 3, axis=2)
            return np.array(image.convert("RGB"))  # writable, as all others are: torch warns of arrays that are not
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise ImageDecodeError(f"{where}: PNG cannot be decoded: {error}") from None


def _critical_chunks(body: bytes) -> bytes:
    """The PNG without what its pixels do not need: comments and profiles can unpack to megabytes."""
    kept, place = [body[:8]], 8
    while place + 12 <= len(body):
        length, name = int.from_bytes(body[place : place + 4], "big"), body[place + 4 : place + 8]
        end = place + 12 + length
        if name in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            kept.append(body[place:end])
        place = end
    return b"".join(kept)
