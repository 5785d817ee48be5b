"""The pixel operations of augmentation for one image, in numpy: what decode threads do before they normalise.

The operations are defined in kernels/augment_parameters.py; every result here is that integer, whatever the order of
summation. No torch and no BLAS: either would start threads of its own in each decode thread.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from adadistill.kernels.augment_parameters import FACTOR_ONE, Column, ResampleTables
from adadistill.kernels.pixel_rules import NUMBERS, PixelRule, rules_from

Pixels = npt.NDArray[np.uint8]

_IDENTITY = np.eye(3, dtype=np.int32).reshape(9) * FACTOR_ONE
_GREY_WEIGHTS = (19595, 38470, 7471)
_BRIGHTNESS, _CONTRAST, _SATURATION = range(3)


def augment_image(pixels: Pixels, parameters: npt.NDArray[np.int32], tables: ResampleTables, out: Pixels) -> None:
    """Apply one row of parameters, mirroring included.

    Args:
        pixels: (S, S, 3) uint8; not changed.
        parameters: (P,) int32, see `kernels.augment_parameters.Column`.
        tables: of side S.
        out: (S, S, 3) uint8, other memory than `pixels`.
    """
    image = _cropped(pixels, parameters)
    if parameters[Column.LOW_SIDE]:
        image = _resampled(image, tables, int(parameters[Column.DOWN_TABLE]), int(parameters[Column.LOW_SIDE]))
        image = _resampled(image, tables, int(parameters[Column.UP_TABLE]), tables.size)
    if parameters[Column.BLUR_TABLE] >= 0:
        image = _resampled(image, tables, int(parameters[Column.BLUR_TABLE]), tables.size)
    matrix = parameters[Column.MATRIX : Column.MATRIX + 9]
    if (matrix != _IDENTITY).any():
        image = _recoloured(image, matrix)
    if parameters[Column.GREY]:
        image = np.broadcast_to(_grey(image).astype(np.uint8)[:, :, None], image.shape)
    for operation in parameters[Column.FIRST : Column.THIRD + 1].tolist():
        factor = int(parameters[Column.BRIGHTNESS + operation])
        if factor != FACTOR_ONE:
            image = _blended(image, operation, factor)
    for first, rule in rules_from(Column.RULES):
        if parameters[first : first + NUMBERS].any():
            image = _ruled(image, rule, parameters[first : first + NUMBERS])
    if parameters[Column.MIRROR]:
        for channel in range(3):
            out[:, :, channel] = image[:, ::-1, channel]
    else:
        out[...] = image


def _ruled(image: Pixels, rule: PixelRule, numbers: npt.NDArray[np.int32]) -> Pixels:
    row, column = np.indices(image.shape[:2], dtype=np.int32)
    channels = rule.apply(*image.transpose(2, 0, 1).astype(np.int32), row, column, *numbers)
    return np.clip(np.stack(np.broadcast_arrays(*channels, row)[:3], axis=2), 0, 255).astype(np.uint8)


def _cropped(pixels: Pixels, parameters: npt.NDArray[np.int32]) -> Pixels:
    size = len(pixels)
    top, left, height, width = parameters[Column.CROP_TOP : Column.CROP_WIDTH + 1].tolist()
    if (height, width) == (size, size):
        return pixels
    canvas = np.zeros_like(pixels)
    canvas[top : top + height, left : left + width] = pixels[top : top + height, left : left + width]
    return canvas


def _resampled(image: Pixels, tables: ResampleTables, table: int, target: int) -> Pixels:
    """Columns first, then rows; the axis resampled is made the first one, so that a tap is a gather of whole rows."""
    index, weight = tables.index[table, :target], tables.weight[table, :target]
    columns = _tap_sums(image.transpose(1, 0, 2), index, weight)  # (target, H, 3) int32
    columns += 1 << 7
    columns >>= 8
    rows = _tap_sums(columns.transpose(1, 0, 2), index, weight)  # (target, target, 3)
    rows += 1 << 13
    rows >>= 14
    return np.clip(rows, 0, 255, out=rows).astype(np.uint8)


def _tap_sums(
    values: npt.NDArray[np.integer], index: npt.NDArray[np.int16], weight: npt.NDArray[np.int16]
) -> npt.NDArray[np.int32]:
    """(target, ...) sums over the taps of the first axis of (source, ...) values."""
    values = np.ascontiguousarray(values, dtype=np.int32)
    used = np.flatnonzero(weight.any(axis=0)).tolist()
    shape = (len(index), *(1,) * (values.ndim - 1))
    first, *others = used
    sums = values[index[:, first]] * weight[:, first].astype(np.int32).reshape(shape)
    for tap in others:
        sums += values[index[:, tap]] * weight[:, tap].astype(np.int32).reshape(shape)
    return sums


def _grey(image: Pixels) -> npt.NDArray[np.int32]:
    """(S, S) int32."""
    grey = image[:, :, 0].astype(np.int32) * _GREY_WEIGHTS[0]
    grey += image[:, :, 1].astype(np.int32) * _GREY_WEIGHTS[1]
    grey += image[:, :, 2].astype(np.int32) * _GREY_WEIGHTS[2]
    grey += 1 << 15
    grey >>= 16
    return grey


def _recoloured(image: Pixels, matrix: npt.NDArray[np.int32]) -> Pixels:
    channels = [image[:, :, channel].astype(np.int32) for channel in range(3)]
    result = np.empty_like(image)
    for channel in range(3):
        mixed = channels[0] * matrix[3 * channel]
        mixed += channels[1] * matrix[3 * channel + 1]
        mixed += channels[2] * matrix[3 * channel + 2]
        mixed += 1 << 15
        mixed >>= 16
        result[:, :, channel] = np.clip(mixed, 0, 255, out=mixed)
    return result


def _blended(image: Pixels, operation: int, factor: int) -> Pixels:
    """Brightness and contrast are one table of 256 levels; saturation blends with the pixel's own grey."""
    if operation == _SATURATION:
        grey = _grey(image)[:, :, None]  # (S, S, 1)
        blended = image.astype(np.int32)
        blended -= grey
        blended *= factor
        blended += grey << 16
        blended >>= 16
        return np.clip(blended, 0, 255, out=blended).astype(np.uint8)
    towards = 0
    if operation == _CONTRAST:
        count = image.shape[0] * image.shape[1]
        towards = (int(_grey(image).sum(dtype=np.int64)) + count // 2) // count
    levels = np.clip((towards * FACTOR_ONE + factor * (np.arange(256) - towards)) >> 16, 0, 255).astype(np.uint8)
    return levels[image]
