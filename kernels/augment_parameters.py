"""The pixel operations of augmentation as integers: one row of parameters per image, and the tables they point into.

Why: the same augmentation runs in numpy on decode threads, in torch, and in one Triton launch, and a cached teacher
embedding is only right if all of them show the same image. So every operation is integer arithmetic whose result does
not depend on the order of summation, and an image's whole augmentation is one row of int32.

An image of S x S pixels goes through these steps; each ends in uint8, and its columns may say that it does nothing:

    crop         pixels outside the rectangle become black (the image keeps its size)
    low          resample to LOW_SIDE with table DOWN_TABLE, and back to S with UP_TABLE        (LOW_SIDE 0: off)
    blur         resample S -> S with BLUR_TABLE                                                (-1: off)
    matrix       out_c = clip((sum_k M_ck in_k + 2^15) >> 16), M in 1/65536, rows in order       (hue and saturation)
    grey         all channels become grey(r, g, b)                                               (0: off)
    photometric  three blends in the order FIRST, SECOND, THIRD (BRIGHTNESS 0, CONTRAST 1, SATURATION 2), factors in
                 1/65536: out = clip((65536 d + factor (in - d)) >> 16), d = 0, the image's mean grey, or the pixel's
    rules        those of pixel_rules.py, by six columns each, the first at RULES                (all 0: off)
    mirror       columns reversed

    grey(r, g, b) = (19595 r + 38470 g + 7471 b + 2^15) >> 16,   mean grey = (sum of grey + S S / 2) // (S S)

Resampling along an axis is `sum_t weight[t] * pixel[index[t]]` over 8 taps, weights in 1/2048 that sum to 2048. Columns
come first, kept with 3 fractional bits: (sum + 2^7) >> 8; then rows: clip((sum + 2^13) >> 14). All shifts round down
(arithmetic). No partial sum reaches 2^24, so float32 arithmetic gives the same integers.

Source  Resampling kinds after OpenCV's resize (nearest, bilinear, area, bicubic, Lanczos4; no antialiasing but in
        area; the same pixels within one level) and DALI's (triangular: bilinear with antialiasing); blends after
        Pillow's ImageEnhance; hue and saturation after DALI's hsv; the blur is DALI's gaussian_blur, which reflects
        at borders without repeating the edge.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from adadistill.kernels.pixel_rules import NUMBERS, PIXEL_RULES

TAPS = 8
WEIGHT_ONE = 2048
"""A tap weight of 1."""
FACTOR_ONE = 65536
"""A blend factor or matrix entry of 1."""
BLUR_WINDOWS = (3, 5)
MAX_AUGMENTED_SIDE = 512
"""Tables for larger images would take more than 80 MB."""


class Column(IntEnum):
    """Columns of the (B, len_columns()) int32 parameters."""

    MIRROR = 0
    CROP_TOP = 1
    CROP_LEFT = 2
    CROP_HEIGHT = 3
    CROP_WIDTH = 4
    LOW_SIDE = 5
    DOWN_TABLE = 6
    UP_TABLE = 7
    BLUR_TABLE = 8
    MATRIX = 9
    """First of nine."""
    GREY = 18
    FIRST = 19
    SECOND = 20
    THIRD = 21
    BRIGHTNESS = 22
    """First of the three factors: brightness, contrast, saturation."""
    CONTRAST = 23
    SATURATION = 24
    RULES = 25
    """First of six for each pixel rule, if there are any."""


class Interpolation(IntEnum):
    """Kinds of resampling."""

    NEAREST = 0
    BILINEAR = 1
    AREA = 2
    BICUBIC = 3
    LANCZOS4 = 4
    TRIANGULAR = 5


@dataclass(frozen=True, slots=True, eq=False)
class ResampleTables:
    """All ways of resampling that augmentation of S x S images may ask for; T tables."""

    index: npt.NDArray[np.int16]
    """(T, S, 8) source pixel of each tap; rows beyond a table's target length are zeros."""
    weight: npt.NDArray[np.int16]
    """(T, S, 8) in 1/2048; unused taps weigh 0."""
    least_side: int
    """Smallest low resolution; sides least_side ... S are there, for every kind."""
    size: int
    """S."""

    def down(self, kinds: npt.NDArray[np.int64], sides: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """(n,) numbers of the tables from S to `sides`."""
        return 2 * (kinds * (self.size + 1 - self.least_side) + sides - self.least_side)

    def up(self, kinds: npt.NDArray[np.int64], sides: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """(n,) numbers of the tables from `sides` back to S."""
        return self.down(kinds, sides) + 1

    def blur(self, windows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """(n,) numbers of the tables that blur with a Gaussian of 3 or 5 pixels."""
        return len(self.index) - len(BLUR_WINDOWS) + (windows - BLUR_WINDOWS[0]) // 2


def identity_parameters(count: int, size: int) -> npt.NDArray[np.int32]:
    """(count, len_columns()) int32 that leave images of `size` x `size` pixels as they are."""
    parameters = np.zeros((count, len_columns()), dtype=np.int32)
    parameters[:, Column.CROP_HEIGHT] = parameters[:, Column.CROP_WIDTH] = size
    parameters[:, Column.DOWN_TABLE] = parameters[:, Column.UP_TABLE] = parameters[:, Column.BLUR_TABLE] = -1
    parameters[:, Column.MATRIX : Column.MATRIX + 9 : 4] = FACTOR_ONE
    parameters[:, Column.FIRST : Column.THIRD + 1] = (0, 1, 2)
    parameters[:, Column.BRIGHTNESS : Column.SATURATION + 1] = FACTOR_ONE
    return parameters


def len_columns() -> int:
    """Number of columns, P."""
    return Column.RULES + NUMBERS * len(PIXEL_RULES)


def least_low_side(size: int) -> int:
    """Smallest side that low resolution may go down to, in pixels: a fifth, rounded down, as AdaFace draws it."""
    return max(1, size // 5)


@lru_cache(maxsize=4)
def resample_tables(size: int) -> ResampleTables:
    """The tables for images of `size` x `size` pixels; shared, read-only. 3.9 MB at 112, 80 MB at 512.

    Raises:
        ValueError: `size` is below 16, where a fifth of the side would need more than 8 taps, or above 512.
    """
    if not 16 <= size <= MAX_AUGMENTED_SIDE:
        raise ValueError(f"images that are augmented must be 16 to {MAX_AUGMENTED_SIDE} pixels a side, got {size}")
    least = least_low_side(size)
    tables: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]] = []
    for kind in Interpolation:
        for side in range(least, size + 1):
            # An antialiased kernel over a fifth of the side would need more taps; nothing asks for it below a half.
            down = kind if kind != Interpolation.TRIANGULAR or 2 * side >= size else Interpolation.AREA
            tables += [_taps(size, side, down), _taps(side, size, kind)]
    tables += [_gaussian_taps(size, window) for window in BLUR_WINDOWS]
    index = np.zeros((len(tables), size, TAPS), dtype=np.int16)
    weight = np.zeros((len(tables), size, TAPS), dtype=np.int16)
    for number, (indices, weights) in enumerate(tables):
        rows = len(indices)
        index[number, :rows, : indices.shape[1]] = indices
        weight[number, :rows, : indices.shape[1]] = _quantised(weights)
    index.flags.writeable = weight.flags.writeable = False
    return ResampleTables(index, weight, least, size)


def _taps(source: int, target: int, kind: Interpolation) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Source pixels (target, t) and their weights for resampling one axis."""
    scale = 1.0 / (target / source)  # as OpenCV rounds it: floors below fall on whole numbers
    places = np.arange(target)
    centres = (places + 0.5) * scale - 0.5
    if kind == Interpolation.NEAREST:
        return _clamped(np.floor(places * scale).astype(np.int64)[:, None], np.ones((target, 1)), source)
    if kind == Interpolation.AREA and scale >= 1.0:
        return _area_taps(source, target)
    if kind == Interpolation.AREA:
        first = np.floor(places * scale)
        # float32 as in OpenCV: what falls just short of a whole pixel is one
        share = ((places + 1) - (first + 1) * (target / source)).astype(np.float32)
        share = np.where(share <= 0.0, 0.0, share - np.floor(share)).astype(np.float64)
        return _clamped(first.astype(np.int64)[:, None] + [0, 1], np.stack([1.0 - share, share], axis=1), source)
    if kind == Interpolation.TRIANGULAR and scale > 1.0:
        first = np.ceil(centres - scale).astype(np.int64)[:, None] + np.arange(int(np.ceil(2 * scale)) + 1)
        weights = np.maximum(0.0, 1.0 - np.abs(first - centres[:, None]) / scale)
        return _clamped(first, weights, source)
    first = np.floor(centres).astype(np.int64)
    offset = (centres - first)[:, None]
    if kind in (Interpolation.BILINEAR, Interpolation.TRIANGULAR):
        return _clamped(first[:, None] + [0, 1], np.concatenate([1.0 - offset, offset], axis=1), source)
    if kind == Interpolation.BICUBIC:
        steps = np.arange(-1, 3)
        return _clamped(first[:, None] + steps, _cubic(np.abs(offset - steps)), source)
    steps = np.arange(-3, 5)
    return _clamped(first[:, None] + steps, np.sinc(offset - steps) * np.sinc((offset - steps) / 4.0), source)


def _area_taps(source: int, target: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Each target pixel is the mean of the stretch of source pixels that it covers."""
    edges = np.arange(target + 1) * (source / target)
    first = np.floor(edges[:-1] + 1e-9).astype(np.int64)[:, None]
    pixels = first + np.arange(int(np.ceil(source / target)) + 1)  # (target, t)
    covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return _clamped(pixels, np.maximum(covered, 0.0), source)


def _cubic(distance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Keys' kernel with OpenCV's a = -0.75."""
    a = -0.75
    near = ((a + 2.0) * distance - (a + 3.0)) * distance * distance + 1.0
    far = ((a * distance - 5.0 * a) * distance + 8.0 * a) * distance - 4.0 * a
    return np.where(distance <= 1.0, near, far)


def _gaussian_taps(size: int, window: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    sigma = 0.3 * ((window - 1) * 0.5 - 1.0) + 0.8  # DALI's choice for a window alone
    steps = np.arange(window) - window // 2
    pixels = np.abs(np.arange(size)[:, None] + steps)
    pixels = np.where(pixels >= size, 2 * (size - 1) - pixels, pixels)
    weights = np.exp(-0.5 * (steps / sigma) ** 2)
    return pixels, np.broadcast_to(weights, pixels.shape)


def _clamped(
    pixels: npt.NDArray[np.int64], weights: npt.NDArray[np.float64], source: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Taps beyond the border read the border pixel; taps that weigh nothing everywhere are dropped."""
    pixels = np.clip(pixels, 0, source - 1)
    used = np.flatnonzero((np.abs(weights) > 1e-12).any(axis=0))
    pixels, weights = pixels[:, used], weights[:, used]
    assert pixels.shape[1] <= TAPS, f"{pixels.shape[1]} taps are needed to resample from {source} pixels"
    return pixels, weights


def _quantised(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Weights in 1/2048 that sum to 2048 exactly: what rounding leaves goes to the largest."""
    whole = np.rint(weights / weights.sum(axis=1, keepdims=True) * WEIGHT_ONE).astype(np.int64)
    rows = np.arange(len(whole))
    whole[rows, np.abs(whole).argmax(axis=1)] += WEIGHT_ONE - whole.sum(axis=1)
    return whole
