"""JPEG 4:2:0 planes to RGB in numpy, exactly as libjpeg-turbo does it: what gather threads do on the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

_HALF = 1 << 15
_CR_TO_R, _CB_TO_B, _CB_TO_G, _CR_TO_G = 91881, 116130, -22554, -46802


class PlaneConverter:
    """Converts up to `count` images at a time, in memory that it keeps; one for each thread.

    Fresh arrays of this size come from the kernel page by page, and two threads that ask for pages wait for each other:
    they were slower than one.
    """

    def __init__(self, image_size: int, count: int) -> None:
        half = image_size // 2
        self._size, self._half = image_size, half
        self._near = np.empty((count, half, half), dtype=np.int16)
        self._rows = np.empty((count, image_size, half + 2), dtype=np.int16)
        self._left, self._right = np.empty((2, count, image_size, half), dtype=np.int16)
        self._luma, self._blue, self._red, self._mixed = np.empty((4, count, image_size, image_size), dtype=np.int32)

    def convert(self, stored: npt.NDArray[np.uint8], out: npt.NDArray[np.uint8]) -> None:
        """(n, S S 3 / 2) uint8 planes (Y, Cb, Cr, each row by row) into (n, S, S, 3) uint8 RGB."""
        for channel, values in self.channels(stored):
            out[..., channel] = values

    def channels(self, stored: npt.NDArray[np.uint8]) -> Iterator[tuple[int, npt.NDArray[np.int32]]]:
        """The same, one channel after another: its number in RGB, and (n, S, S) int32 levels, good until the next."""
        count, size, half = len(stored), self._size, self._half
        pixels = size * size
        luma, blue, red, mixed = (a[:count] for a in (self._luma, self._blue, self._red, self._mixed))
        luma[...] = stored[:, :pixels].reshape(count, size, size)
        self._upsample(stored[:, pixels : pixels + half * half].reshape(count, half, half), blue)
        self._upsample(stored[:, pixels + half * half :].reshape(count, half, half), red)
        np.multiply(red, _CR_TO_R, out=mixed)
        yield 0, _finished(mixed, luma)
        np.multiply(blue, _CB_TO_B, out=mixed)
        yield 2, _finished(mixed, luma)
        blue *= _CB_TO_G
        red *= _CR_TO_G
        blue += red
        yield 1, _finished(blue, luma)

    def _upsample(self, chroma: npt.NDArray[np.uint8], out: npt.NDArray[np.int32]) -> None:
        """Fancy upsampling of (n, h, w) to (n, 2h, 2w), minus 128."""
        count = len(chroma)
        near, rows, left, right = (a[:count] for a in (self._near, self._rows, self._left, self._right))
        np.multiply(chroma, 3, out=near, casting="unsafe", dtype=np.int16)
        inner = rows[:, :, 1:-1]
        inner[:, 0::2] = near
        inner[:, 1::2] = near
        inner[:, 2::2] += chroma[:, :-1]
        inner[:, 0] += chroma[:, 0]
        inner[:, 1:-1:2] += chroma[:, 1:]
        inner[:, -1] += chroma[:, -1]
        rows[:, :, 0], rows[:, :, -1] = rows[:, :, 1], rows[:, :, -2]
        np.multiply(inner, 3, out=left)
        np.add(left, rows[:, :, 2:], out=right)
        left += rows[:, :, :-2]
        left += 8 - 128 * 16
        right += 7 - 128 * 16
        left >>= 4
        right >>= 4
        out[:, :, 0::2], out[:, :, 1::2] = left, right


def _finished(scaled: npt.NDArray[np.int32], luma: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Round a colour difference in 1/65536, add the luma and clip, in place."""
    scaled += _HALF
    scaled >>= 16
    scaled += luma
    return np.clip(scaled, 0, 255, out=scaled)
