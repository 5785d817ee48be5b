"""Encoded images made to cost more than they hold: sides, passes, components and depths beyond what faces have."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache

import numpy as np


def plain_jpeg(seed: int, height: int = 32, width: int = 32, *, subsampling: str = "420") -> bytes:
    """A smooth coloured picture, like none of another seed."""
    import simplejpeg

    rows, columns = np.mgrid[:height, :width]
    waves = [
        128 + 100 * np.sin((seed + 1) * (channel + 1) / 7 + rows / 9 + columns / (5 + channel)) for channel in range(3)
    ]
    pixels = np.stack(waves, axis=-1).astype(np.uint8)
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=85, colorsubsampling=subsampling)


@cache
def attacking_images() -> dict[str, bytes]:
    """Name -> encoded image. None is 32 x 32 pixels of plain colour, most are refused, all must be cheap."""
    plain, zeros = plain_jpeg(0), zlib.compress(bytes(100_000_000), 1)
    attacks = {
        "20,000 x 20,000": _with_size(plain, 20_000, 20_000),
        "1 x 65,535": _with_size(plain, 1, 65_535),
        "65,535 x 1": _with_size(plain, 65_535, 1),
        "0 x 0": _with_size(plain, 0, 0),
        "2,048 x 2,048 of nothing": _with_size(plain, 2048, 2048),
        "12 bits": _with_frame(plain, 0xC1, precision=12),
        "lossless frame": _with_frame(plain, 0xC3),
        "arithmetic frame": _with_frame(plain, 0xC9),
        "hierarchical frame": _with_frame(plain, 0xC5),
        "progressive frame": _with_frame(plain, 0xC2),
        "two frames": plain[:2] + _segment(plain, 0xC0) + plain[2:],
        "no tables": plain[:2] + _segment(plain, 0xC0) + plain[_find(plain, 0xDA) :],
        "30,000 scans of a baseline file": _many_scans(0xC0, 30_000, 1024),
        "30,000 scans of a progressive file": _many_scans(0xC2, 30_000, 1024),
        "100,000 application segments": plain[:2] + b"\xff\xe1\x00\x04ab" * 100_000 + plain[2:],
        "EXIF that points at itself": plain[:2] + _exif_loop() + plain[2:],
        "a segment of no length": plain[:2] + b"\xff\xe1\x00\x00" + plain[2:],
        "one column, 2,048 high": plain_jpeg(1, 2048, 1, subsampling="444"),
        "one row, 2,048 wide": plain_jpeg(1, 1, 2048, subsampling="444"),
        "PNG of 20,000 x 20,000": _png(20_000, 20_000, bytes(100)),
        "PNG whose data unpacks to 100 MB": _png(32, 32, zeros * 2),
        "PNG with a comment of 100 MB": _png(32, 32, bytes(32 * 97), comment=zeros),
        "PNG of no chunks": b"\x89PNG\r\n\x1a\n" + bytes(24),
        "half a PNG header": b"\x89PNG\r\n\x1a\n" + bytes(4),
    }
    try:
        from PIL import Image
    except ImportError:  # these are left out, as are PNGs by the reader
        return attacks
    pixels = np.zeros((32, 32, 4), np.uint8)
    plain_image, grey = Image.fromarray(pixels[:, :, :3]), Image.fromarray(pixels[:, :, 0])
    exif = {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"}
    for name, image, kind, options in (
        ("CMYK", Image.fromarray(pixels, "CMYK"), "JPEG", {}),
        ("grey", grey, "JPEG", {}),
        ("GIF", grey, "GIF", {}),
        ("WebP", plain_image, "WEBP", {}),
        ("TIFF", plain_image, "TIFF", {}),
        ("rotated by EXIF", plain_image, "JPEG", exif),
        ("PNG of 16 bits", Image.fromarray(np.zeros((32, 32), np.uint16)), "PNG", {}),
    ):
        out = io.BytesIO()
        image.save(out, kind, **options)
        attacks[name] = out.getvalue()
    return attacks


def _find(body: bytes, marker: int) -> int:
    place = 2
    while body[place + 1] != marker:
        place += 2 + int.from_bytes(body[place + 2 : place + 4], "big")
    return place


def _segment(body: bytes, marker: int) -> bytes:
    place = _find(body, marker)
    return body[place : place + 2 + int.from_bytes(body[place + 2 : place + 4], "big")]


def _with_size(body: bytes, height: int, width: int) -> bytes:
    place = _find(body, 0xC0)
    return body[: place + 5] + struct.pack(">HH", height, width) + body[place + 9 :]


def _with_frame(body: bytes, marker: int, *, precision: int = 8) -> bytes:
    place = _find(body, 0xC0)
    return body[: place + 1] + bytes([marker]) + body[place + 2 : place + 4] + bytes([precision]) + body[place + 5 :]


def _many_scans(marker: int, count: int, side: int) -> bytes:
    """Each scan is 11 bytes, of the first component alone, and costs a pass over the whole image."""
    plain = plain_jpeg(0, side, side, subsampling="444")
    head = _with_frame(plain, marker)[: _find(plain, 0xDA)] if marker != 0xC0 else plain[: _find(plain, 0xDA)]
    last = 0 if marker == 0xC2 else 0x3F
    return head + (b"\xff\xda\x00\x08\x01\x01\x00\x00" + bytes([last]) + b"\x00\x00") * count + b"\xff\xd9"


def _exif_loop() -> bytes:
    body = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\x08\0\0\0"
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


def _png(height: int, width: int, data: bytes, *, comment: bytes = b"") -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    if not data.startswith(b"x"):
        data = zlib.compress(data)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    text = chunk(b"zTXt", b"a\0\0" + comment) if comment else b""
    return b"\x89PNG\r\n\x1a\n" + header + text + chunk(b"IDAT", data) + chunk(b"IEND", b"")
