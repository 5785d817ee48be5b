"""Pixels are decoded once and for all the same way, and hostile headers cost an error, not memory."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import simplejpeg
import torch

from adadistill.loaders.pixels import ImageDecodeError, decode_image, image_size, to_network_input

PIXELS = np.random.RandomState(0).randint(0, 256, (48, 32, 3), dtype=np.uint8)
JPEG = simplejpeg.encode_jpeg(PIXELS, quality=95)


def _claiming(height: int, width: int) -> bytes:
    """The JPEG above with other dimensions in its frame header."""
    start = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:start] + struct.pack(">HH", height, width) + JPEG[start + 4 :]


def test_size_is_read_without_decoding():
    assert image_size(JPEG, where="test") == (48, 32)


def test_a_jpeg_decodes_to_rgb():
    pixels = decode_image(JPEG, where="test")
    assert pixels.shape == (48, 32, 3)
    assert pixels.dtype == np.uint8
    flat = np.full((16, 16, 3), (200, 100, 50), dtype=np.uint8)
    decoded = decode_image(simplejpeg.encode_jpeg(flat, quality=100), where="test")
    assert np.abs(decoded.astype(int) - flat.astype(int)).max() <= 3


def test_damage_and_claims_are_errors_that_say_where():
    claims = [_claiming(*size) for size in ((20000, 20000), (1, 65535), (65535, 1), (0, 10))]
    for body in (b"", b"\xff\xd8", JPEG[:100], b"GIF89a", JPEG[: len(JPEG) // 2], b"\x89PNG\r\n\x1a\n", *claims):
        with pytest.raises(ImageDecodeError, match="record 3"):
            decode_image(body, where="record 3")


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_network_input_is_normalised_in_any_layout(dtype: torch.dtype, channels_last: bool):
    images_u8 = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 16, 16, 3)

    images = to_network_input(images_u8, device=torch.device("cpu"), dtype=dtype, channels_last=channels_last)

    truth = (images_u8.permute(0, 3, 1, 2).double() - 127.5) / 127.5
    assert images.shape == (1, 3, 16, 16)
    assert torch.equal(images, truth.to(torch.float64 if dtype == torch.float64 else torch.float32).to(dtype))
    assert images.is_contiguous(memory_format=torch.channels_last) == channels_last
    images_u8.fill_(255)
    assert images.min() == -1.0, "it owns its memory"
    assert images.max() == 1.0


def test_planar_and_interleaved_pixels_give_the_same_input():
    images_u8 = torch.from_numpy(PIXELS)[None]
    planar = to_network_input(images_u8.permute(0, 3, 1, 2).contiguous(), device=torch.device("cpu"))
    assert torch.equal(planar, to_network_input(images_u8, device=torch.device("cpu")))


def test_other_pixels_are_refused():
    with pytest.raises(ValueError, match="4-D uint8"):
        to_network_input(torch.zeros(1, 3, 4, 4), device=torch.device("cpu"))
