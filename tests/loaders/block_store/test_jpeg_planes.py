"""Planes lose nothing: upsampled and converted as libjpeg-turbo does, they are the pixels that decoding gives."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
from small_pack import SIDE, jpeg, saved

from adadistill.loaders.block_store import jpeg_planes
from adadistill.loaders.block_store.errors import StoreError
from adadistill.loaders.block_store.jpeg_planes import (
    PlaneDecoder,
    TurboJpegMissingError,
    planes_available,
    why_no_planes,
)
from adadistill.loaders.block_store.packed_images import image_bytes
from adadistill.loaders.pixels import ImageDecodeError
from adadistill.loaders.records.image_records import ImageRecords

needs_turbojpeg = pytest.mark.skipif(not planes_available(), reason="libturbojpeg is not installed")

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int32]


def upsampled(chroma: Bytes) -> Ints:
    """(n, h, w) -> (n, 2h, 2w), as `h2v2_fancy_upsample` of libjpeg-turbo's jdsample.c: a triangle filter."""
    near = chroma.astype(np.int32)
    above = np.concatenate([near[:, :1], near[:, :-1]], axis=1)
    below = np.concatenate([near[:, 1:], near[:, -1:]], axis=1)
    columns = np.stack([3 * near + above, 3 * near + below], axis=2).reshape(len(near), -1, near.shape[2])  # (n, 2h, w)
    left = np.concatenate([columns[:, :, :1], columns[:, :, :-1]], axis=2)
    right = np.concatenate([columns[:, :, 1:], columns[:, :, -1:]], axis=2)
    pairs = np.stack([(3 * columns + left + 8) >> 4, (3 * columns + right + 7) >> 4], axis=3)
    return pairs.reshape(*columns.shape[:2], -1)  # (n, 2h, 2w)


def rgb_of_planes(rows: Bytes, side: int) -> Bytes:
    """(n, image_bytes) -> (n, side, side, 3), with the fixed-point tables of libjpeg-turbo's jdcolor.c."""
    area, half = side * side, side // 2
    luma = rows[:, :area].reshape(-1, side, side).astype(np.int32)
    cb = upsampled(rows[:, area : area + area // 4].reshape(-1, half, half)) - 128
    cr = upsampled(rows[:, area + area // 4 :].reshape(-1, half, half)) - 128
    one_half = 1 << 15
    red = luma + ((91881 * cr + one_half) >> 16)  # 1.402
    green = luma + ((-22554 * cb - 46802 * cr + one_half) >> 16)  # 0.34414, 0.71414
    blue = luma + ((116130 * cb + one_half) >> 16)  # 1.772
    return np.stack([red, green, blue], axis=3).clip(0, 255).astype(np.uint8)


def decoded(bodies: list[bytes], side: int) -> Bytes:
    """(n, image_bytes) rows of planes."""
    rows = np.empty((len(bodies), image_bytes("planes", side)), np.uint8)
    decoder = PlaneDecoder(side)
    for body, row in zip(bodies, rows, strict=True):
        decoder.decode(body, row, where="a test's image")
    return rows


def assert_same_pixels(bodies: list[bytes], side: int) -> None:
    expected = np.stack([simplejpeg.decode_jpeg(body, colorspace="RGB") for body in bodies])
    np.testing.assert_array_equal(rgb_of_planes(decoded(bodies, side), side), expected)


@needs_turbojpeg
@pytest.mark.realdata
def test_planes_of_real_faces_give_their_pixels(data_dir: Path):
    records = ImageRecords(data_dir / "faces" / "train.rec")
    assert_same_pixels([records.read(record_id).body for record_id in range(0, len(records), 20)], 112)


# One and a half and two macroblocks of 16 pixels, a side that no block divides, and the smallest.
@needs_turbojpeg
@pytest.mark.parametrize("side", [24, 32, 30, 6])
def test_planes_of_all_kinds_of_jpegs_give_their_pixels(side):
    bodies = [jpeg(seed, side, quality=quality) for seed in range(2) for quality in (10, 50, 90, 100)]
    bodies.append(saved(0, "JPEG", side=side, quality=90, subsampling=2, progressive=True))
    bodies.append(saved(1, "JPEG", side=side, quality=80, subsampling=2, optimize=True))
    bodies.append(saved(2, "JPEG", side=side, mode="L", quality=90))
    assert_same_pixels(bodies, side)
    assert (decoded(bodies[-1:], side)[:, side * side :] == 128).all()


@needs_turbojpeg
def test_grey_jpegs_may_state_any_sampling_of_their_one_channel():
    body = bytearray(saved(0, "JPEG", mode="L", quality=90))
    factors = body.index(b"\xff\xc0") + 11  # marker, length, precision, height, width, count, id
    assert body[factors] == 0x11
    body[factors] = 0x22
    assert why_no_planes(bytes(body), where="it") is None
    assert_same_pixels([bytes(body)], SIDE)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (jpeg(0, sampling="444"), "4:4:4 chroma"),
        (jpeg(0, sampling="422"), "4:2:2 chroma"),
        (saved(0, "JPEG", keep_rgb=True), "in RGB"),
        (saved(0, "JPEG", mode="CMYK"), "in CMYK"),
        (saved(0, "PNG"), "no JPEG"),
    ],
    ids=["444", "422", "rgb", "cmyk", "png"],
)
def test_what_planes_cannot_hold_is_seen_in_the_header_and_refused_by_the_decoder(body, reason):
    assert reason in str(why_no_planes(body, where="it"))
    if planes_available():
        with pytest.raises((StoreError, ImageDecodeError), match=r"^it: "):
            PlaneDecoder(SIDE).decode(body, np.empty(image_bytes("planes", SIDE), np.uint8), where="it")


def test_what_is_no_image_is_named():
    for body in (b"", b"\xff\xd8", jpeg(0)[:40], b"GIF89a"):
        with pytest.raises(ImageDecodeError, match=r"^it: "):
            why_no_planes(body, where="it")


@needs_turbojpeg
def test_an_image_of_another_size_is_refused_before_a_byte_is_written():
    row = np.full(image_bytes("planes", SIDE), 7, np.uint8)
    for side in (SIDE // 2, SIDE + 16, 2 * SIDE):
        with pytest.raises(StoreError, match="is no 32 x 32 JPEG"):
            PlaneDecoder(SIDE).decode(jpeg(0, side), row, where="it")
    assert (row == 7).all()


@needs_turbojpeg
def test_damaged_jpegs_are_named_as_simplejpeg_would_and_touch_no_neighbour():
    whole, draw = jpeg(0), random.Random(0)
    decoder, refused = PlaneDecoder(SIDE), 0
    rows = np.full((3, image_bytes("planes", SIDE)), 7, np.uint8)
    for _ in range(150):
        body = bytearray(whole[: draw.randrange(2, len(whole))] if draw.random() < 0.3 else whole)
        for _ in range(draw.randrange(1, 4)):
            body[draw.randrange(len(body))] = draw.randrange(256)
        try:
            decoder.decode(bytes(body), rows[1], where="it")
        except (ImageDecodeError, StoreError):
            refused += 1
        else:
            simplejpeg.decode_jpeg(bytes(body), colorspace="RGB")  # raises where only one of the two reads it
        assert (rows[[0, 2]] == 7).all()
    assert 20 < refused < 150
    decoder.decode(whole, rows[1], where="it")
    np.testing.assert_array_equal(rows[1], decoded([whole], SIDE)[0])


@pytest.mark.parametrize("name", ["libthatisnotthere.so.9", "libc.so.6"])
def test_a_missing_or_strange_library_is_said_with_the_remedy(monkeypatch, name):
    jpeg_planes._checked_library.cache_clear()
    monkeypatch.setattr(jpeg_planes, "_LIBRARY_NAMES", (name,))
    try:
        assert not planes_available()
        with pytest.raises(TurboJpegMissingError, match="apt-get install libturbojpeg0"):
            PlaneDecoder(SIDE)
    finally:
        jpeg_planes._checked_library.cache_clear()
