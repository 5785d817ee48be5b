"""The Triton half of planar_augment.py: one program for each image, one launch for a batch.

Most images of a batch ask for nothing but a crop, a flip and colours, which are computed where they are stored. An
image that is resampled passes through scratch in global memory, which at 226 KB an image stays in L2: its program
writes a stage, waits for its own threads at a barrier, and reads it back. Programs never wait for each other.
"""

from __future__ import annotations

import inspect

import triton
import triton.language as tl

from adadistill.kernels.augment_parameters import TAPS, Column
from adadistill.kernels.pixel_rules import NUMBERS, PIXEL_RULES

# Triton's interpreter, in which `jit` makes something else, takes a plain function as it is.
RULES = (
    tuple(
        made if isinstance(made := triton.jit(rule.apply), triton.JITFunction) else rule.apply
        for rule in PIXEL_RULES.values()
    )
    or None
)
RULES_KEY = "".join(inspect.getsource(rule.apply) for rule in PIXEL_RULES.values())
"""Triton finds a compiled kernel by the names of functions in a tuple, which an edit of a rule leaves alone."""

# Triton takes numbers from outside a kernel as constexpr only.
_TAPS = tl.constexpr(TAPS)
_MIRROR = tl.constexpr(int(Column.MIRROR))
_CROP_TOP = tl.constexpr(int(Column.CROP_TOP))
_LOW_SIDE = tl.constexpr(int(Column.LOW_SIDE))
_DOWN_TABLE = tl.constexpr(int(Column.DOWN_TABLE))
_UP_TABLE = tl.constexpr(int(Column.UP_TABLE))
_BLUR_TABLE = tl.constexpr(int(Column.BLUR_TABLE))
_MATRIX = tl.constexpr(int(Column.MATRIX))
_GREY = tl.constexpr(int(Column.GREY))
_FIRST = tl.constexpr(int(Column.FIRST))
_BRIGHTNESS = tl.constexpr(int(Column.BRIGHTNESS))
_CONTRAST = tl.constexpr(1)
_RULES = tl.constexpr(int(Column.RULES))
_NUMBERS = tl.constexpr(NUMBERS)


@triton.jit
def _upsampled(chroma, row, column, mask, HALF: tl.constexpr):
    """libjpeg-turbo's fancy upsampling of one plane: 3/4 the nearer sample and 1/4 the farther, each way."""
    near_row, near_column = row // 2, column // 2
    far_row = tl.minimum(tl.maximum(near_row + 2 * (row % 2) - 1, 0), HALF - 1)
    far_column = tl.minimum(tl.maximum(near_column + 2 * (column % 2) - 1, 0), HALF - 1)
    nn = tl.load(chroma + near_row * HALF + near_column, mask=mask, other=0).to(tl.int32)
    fn = tl.load(chroma + far_row * HALF + near_column, mask=mask, other=0).to(tl.int32)
    nf = tl.load(chroma + near_row * HALF + far_column, mask=mask, other=0).to(tl.int32)
    ff = tl.load(chroma + far_row * HALF + far_column, mask=mask, other=0).to(tl.int32)
    return (3 * (3 * nn + fn) + (3 * nf + ff) + 8 - column % 2) >> 4


@triton.jit
def _clipped(value):
    return tl.minimum(tl.maximum(value, 0), 255)


@triton.jit
def _stored(image, pixel, mask, S: tl.constexpr, PLANES: tl.constexpr):
    """(r, g, b) of stored pixels."""
    if PLANES:
        HALF: tl.constexpr = S // 2
        row, column = pixel // S, pixel % S
        luma = tl.load(image + pixel, mask=mask, other=0).to(tl.int32)
        blue = _upsampled(image + S * S, row, column, mask, HALF) - 128
        red = _upsampled(image + S * S + HALF * HALF, row, column, mask, HALF) - 128
        r = _clipped(luma + ((91881 * red + 32768) >> 16))
        g = _clipped(luma + ((-22554 * blue - 46802 * red + 32768) >> 16))
        b = _clipped(luma + ((116130 * blue + 32768) >> 16))
    else:
        r = tl.load(image + 3 * pixel, mask=mask, other=0).to(tl.int32)
        g = tl.load(image + 3 * pixel + 1, mask=mask, other=0).to(tl.int32)
        b = tl.load(image + 3 * pixel + 2, mask=mask, other=0).to(tl.int32)
    return r, g, b


@triton.jit
def _cropped(image, pixel, mask, top, left, height, width, S: tl.constexpr, PLANES: tl.constexpr):
    row, column = pixel // S, pixel % S
    inside = mask & (row >= top) & (row < top + height) & (column >= left) & (column < left + width)
    r, g, b = _stored(image, pixel, inside, S, PLANES)
    return tl.where(inside, r, 0), tl.where(inside, g, 0), tl.where(inside, b, 0)


@triton.jit
def _resample(source, middle, target, index, weight, height, length, S: tl.constexpr, BLOCK: tl.constexpr):
    """(height, any, 3) uint8 -> (length, length, 3) uint8, all with rows of S pixels; columns first, then rows."""
    tl.debug_barrier()
    for start in range(0, height * length, BLOCK):
        place = start + tl.arange(0, BLOCK)
        mask = place < height * length
        row, column = place // length, place % length
        r = tl.zeros((BLOCK,), tl.int32)
        g = tl.zeros((BLOCK,), tl.int32)
        b = tl.zeros((BLOCK,), tl.int32)
        for tap in tl.static_range(_TAPS):
            at = tl.load(index + column * _TAPS + tap, mask=mask, other=0).to(tl.int32)
            by = tl.load(weight + column * _TAPS + tap, mask=mask, other=0).to(tl.int32)
            pixel = source + 3 * (row * S + at)
            r += by * tl.load(pixel, mask=mask, other=0).to(tl.int32)
            g += by * tl.load(pixel + 1, mask=mask, other=0).to(tl.int32)
            b += by * tl.load(pixel + 2, mask=mask, other=0).to(tl.int32)
        into = middle + 3 * (row * S + column)
        tl.store(into, (r + 128) >> 8, mask=mask)
        tl.store(into + 1, (g + 128) >> 8, mask=mask)
        tl.store(into + 2, (b + 128) >> 8, mask=mask)
    tl.debug_barrier()
    for start in range(0, length * length, BLOCK):
        place = start + tl.arange(0, BLOCK)
        mask = place < length * length
        row, column = place // length, place % length
        r = tl.zeros((BLOCK,), tl.int32)
        g = tl.zeros((BLOCK,), tl.int32)
        b = tl.zeros((BLOCK,), tl.int32)
        for tap in tl.static_range(_TAPS):
            at = tl.load(index + row * _TAPS + tap, mask=mask, other=0).to(tl.int32)
            by = tl.load(weight + row * _TAPS + tap, mask=mask, other=0).to(tl.int32)
            pixel = middle + 3 * (at * S + column)
            r += by * tl.load(pixel, mask=mask, other=0)
            g += by * tl.load(pixel + 1, mask=mask, other=0)
            b += by * tl.load(pixel + 2, mask=mask, other=0)
        into = target + 3 * (row * S + column)
        tl.store(into, _clipped((r + 8192) >> 14).to(tl.uint8), mask=mask)
        tl.store(into + 1, _clipped((g + 8192) >> 14).to(tl.uint8), mask=mask)
        tl.store(into + 2, _clipped((b + 8192) >> 14).to(tl.uint8), mask=mask)
    tl.debug_barrier()


@triton.jit
def _grey_of(r, g, b):
    return (19595 * r + 38470 * g + 7471 * b + 32768) >> 16


@triton.jit
def _blend(value, towards, factor):
    return _clipped((65536 * towards + factor * (value - towards)) >> 16)


@triton.jit
def _recoloured(r, g, b, row, mean, until, STEPS: tl.constexpr):
    """Matrix, grey, and those blends of the three whose number is below `until`."""
    m = row + _MATRIX
    r, g, b = (
        _clipped((tl.load(m) * r + tl.load(m + 1) * g + tl.load(m + 2) * b + 32768) >> 16),
        _clipped((tl.load(m + 3) * r + tl.load(m + 4) * g + tl.load(m + 5) * b + 32768) >> 16),
        _clipped((tl.load(m + 6) * r + tl.load(m + 7) * g + tl.load(m + 8) * b + 32768) >> 16),
    )
    is_grey = tl.load(row + _GREY) != 0
    grey = _grey_of(r, g, b)
    r, g, b = tl.where(is_grey, grey, r), tl.where(is_grey, grey, g), tl.where(is_grey, grey, b)
    for step in tl.static_range(STEPS):
        operation = tl.load(row + _FIRST + step)
        factor = tl.load(row + _BRIGHTNESS + operation)
        factor = tl.where(step < until, factor, 65536)
        grey = _grey_of(r, g, b)
        towards = tl.where(operation == 2, grey, tl.where(operation == 1, mean, 0))
        r, g, b = _blend(r, towards, factor), _blend(g, towards, factor), _blend(b, towards, factor)
    return r, g, b


@triton.jit
def _ruled(r, g, b, pixel, row, S: tl.constexpr, RULES: tl.constexpr):
    """The pixel rules, in order."""
    for place in tl.static_range(len(RULES)):
        n = row + _RULES + _NUMBERS * place
        n0, n1, n2, n3, n4, n5 = (
            tl.load(n),
            tl.load(n + 1),
            tl.load(n + 2),
            tl.load(n + 3),
            tl.load(n + 4),
            tl.load(n + 5),
        )
        x, y, z = RULES[place](r, g, b, pixel // S, pixel % S, n0, n1, n2, n3, n4, n5)
        on = (n0 | n1 | n2 | n3 | n4 | n5) != 0
        r, g, b = tl.where(on, _clipped(x), r), tl.where(on, _clipped(y), g), tl.where(on, _clipped(z), b)
    return r, g, b


@triton.jit
def _pixels(image, scratch, pixel, row, slot, S: tl.constexpr, PLANES: tl.constexpr):
    """(r, g, b) after cropping and resampling, from scratch where the image was resampled (it has a slot)."""
    # Bounds rather than `mask & scalar`, which Triton's interpreter turns into integers.
    stored_pixels = tl.where(slot < 0, S * S, 0)
    scratch_pixels = S * S - stored_pixels
    c = row + _CROP_TOP
    r, g, b = _cropped(
        image,
        pixel,
        pixel < stored_pixels,
        tl.load(c),
        tl.load(c + 1),
        tl.load(c + 2),
        tl.load(c + 3),
        S,
        PLANES,
    )
    from_scratch = pixel < scratch_pixels
    r += tl.load(scratch + 3 * pixel, mask=from_scratch, other=0).to(tl.int32)
    g += tl.load(scratch + 3 * pixel + 1, mask=from_scratch, other=0).to(tl.int32)
    b += tl.load(scratch + 3 * pixel + 2, mask=from_scratch, other=0).to(tl.int32)
    return r, g, b


@triton.jit
def augment_kernel(
    out, store, rows, mirrored, parameters, slots, index, weight, pixels_a, pixels_b, middle,
    image_bytes, num_columns,
    out_image, out_channel, out_row, out_column,
    S: tl.constexpr, PLANES: tl.constexpr, AUGMENTS: tl.constexpr, NORMALISES: tl.constexpr, WIDE: tl.constexpr,
    BLOCK: tl.constexpr, RULES: tl.constexpr, RULES_KEY: tl.constexpr,
):  # fmt: skip
    """One image: `out[i]` from `store[rows[i]]`."""
    number = tl.program_id(0).to(tl.int64)
    image = store + tl.load(rows + number) * image_bytes  # int64: stores are larger than 2 GB
    row = parameters + number * num_columns
    flipped = tl.load(mirrored + number).to(tl.int32)
    mean = 0
    slot = number
    if AUGMENTS:
        flipped = tl.load(row + _MIRROR)
        slot = tl.load(slots + number).to(tl.int64)
    ONE_IMAGE: tl.constexpr = 3 * S * S
    a = pixels_a + tl.maximum(slot, 0) * ONE_IMAGE
    if AUGMENTS:
        if slot >= 0:
            b_ = pixels_b + slot * ONE_IMAGE
            m = middle + slot * ONE_IMAGE
            c = row + _CROP_TOP
            top, left, height, width = tl.load(c), tl.load(c + 1), tl.load(c + 2), tl.load(c + 3)
            for start in range(0, S * S, BLOCK):
                pixel = start + tl.arange(0, BLOCK)
                mask = pixel < S * S
                r, g, b = _cropped(image, pixel, mask, top, left, height, width, S, PLANES)
                tl.store(a + 3 * pixel, r.to(tl.uint8), mask=mask)
                tl.store(a + 3 * pixel + 1, g.to(tl.uint8), mask=mask)
                tl.store(a + 3 * pixel + 2, b.to(tl.uint8), mask=mask)
            side = tl.load(row + _LOW_SIDE)
            TABLE: tl.constexpr = S * _TAPS
            if side > 0:
                down, up = tl.load(row + _DOWN_TABLE) * TABLE, tl.load(row + _UP_TABLE) * TABLE
                _resample(a, m, b_, index + down, weight + down, S, side, S, BLOCK)
                _resample(b_, m, a, index + up, weight + up, side, S, S, BLOCK)
            blur = tl.load(row + _BLUR_TABLE)
            if blur >= 0:
                _resample(a, m, a, index + blur * TABLE, weight + blur * TABLE, S, S, S, BLOCK)
        if tl.load(row + _BRIGHTNESS + _CONTRAST) != 65536:
            before = tl.where(
                tl.load(row + _FIRST) == _CONTRAST, 0, tl.where(tl.load(row + _FIRST + 1) == _CONTRAST, 1, 2)
            )
            total = tl.zeros((BLOCK,), tl.int32)
            for start in range(0, S * S, BLOCK):
                pixel = start + tl.arange(0, BLOCK)
                mask = pixel < S * S
                r, g, b = _pixels(image, a, pixel, row, slot, S, PLANES)
                r, g, b = _recoloured(r, g, b, row, 0, before, 3)
                total += tl.where(mask, _grey_of(r, g, b), 0)
            mean = (tl.sum(total, axis=0) + S * S // 2) // (S * S)
    for start in range(0, S * S, BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        mask = pixel < S * S
        if AUGMENTS:
            r, g, b = _pixels(image, a, pixel, row, slot, S, PLANES)
            r, g, b = _recoloured(r, g, b, row, mean, 3, 3)
            if RULES is not None:
                r, g, b = _ruled(r, g, b, pixel, row, S, RULES)
        else:
            r, g, b = _stored(image, pixel, mask, S, PLANES)
        column = pixel % S
        column = tl.where(flipped != 0, S - 1 - column, column)
        into = out + number * out_image + (pixel // S) * out_row + column * out_column
        if NORMALISES:
            if WIDE:
                tl.store(into, (r.to(tl.float64) - 127.5) / 127.5, mask=mask)
                tl.store(into + out_channel, (g.to(tl.float64) - 127.5) / 127.5, mask=mask)
                tl.store(into + 2 * out_channel, (b.to(tl.float64) - 127.5) / 127.5, mask=mask)
            else:
                # Divided and rounded as IEEE 754 says: torch divides so, and / may multiply by a reciprocal.
                tl.store(into, tl.div_rn(r.to(tl.float32) - 127.5, 127.5).to(out.dtype.element_ty), mask=mask)
                tl.store(
                    into + out_channel, tl.div_rn(g.to(tl.float32) - 127.5, 127.5).to(out.dtype.element_ty), mask=mask
                )
                tl.store(
                    into + 2 * out_channel,
                    tl.div_rn(b.to(tl.float32) - 127.5, 127.5).to(out.dtype.element_ty),
                    mask=mask,
                )
        else:
            tl.store(into, r.to(tl.uint8), mask=mask)
            tl.store(into + out_channel, g.to(tl.uint8), mask=mask)
            tl.store(into + 2 * out_channel, b.to(tl.uint8), mask=mask)
