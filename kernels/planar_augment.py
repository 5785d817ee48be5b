"""Stored pixels to network input: gather, chroma upsampling, colour conversion, augmentation and normalisation at once.

A store holds one image a row, as JPEG 4:2:0 planes or as RGB. For chosen rows, in this order:

    planes   Cb and Cr upsampled as libjpeg-turbo does ("fancy"): 3/4 the nearer sample and 1/4 the farther, first down
             the columns, then along the rows, (.. + 8 or 7) >> 4 at even and odd columns; edges repeat
             R = Y + ((91881 Cr' + 2^15) >> 16)                       Cb' = Cb - 128, Cr' = Cr - 128, results clipped
             G = Y + ((-22554 Cb' - 46802 Cr' + 2^15) >> 16)
             B = Y + ((116130 Cb' + 2^15) >> 16)
    augment  the operations of augment_parameters.py, by one row of parameters each
    output   (x - 127.5) / 127.5, computed in float32 (float64 for float64) and rounded once

Shapes    store (N, bytes) uint8, rows (B,) int64 -> (B, 3, S, S); bytes = 3 S S / 2 for planes, 3 S S for RGB
Gradient  none: images are data
Numerics  integers until the last line, so every path gives the same bits; planes give libjpeg-turbo's RGB exactly
Cost      reads the rows once and writes the output once (113 KB a face in bfloat16 from RGB) where nothing is
          resampled; a resampled image passes through 226 KB of scratch. B = 0 launches nothing. Not measured on a GPU.
Source    libjpeg-turbo's jdsample.c (h2v2_fancy_upsample) and jdcolor.c (ycc_rgb_convert)

The Triton kernel lies in planar_augment_triton.py, which is imported where it runs. On the CPU the reference runs; data
pipelines have decode threads of their own there (loaders/plane_pixels.py, loaders/augment/augment_image.py).

Both are behind one registered operator, `adadistill::planar_augment`, which torch.compile keeps whole: which images are
resampled is read from host memory, and no graph can hold that. A CUDA graph would replay the first batch's parameters
for ever, so capturing it is refused unless all its inputs lie on the device (mirroring alone can).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from adadistill.kernels.augment_parameters import FACTOR_ONE, TAPS, Column, ResampleTables, len_columns
from adadistill.kernels.device_copy import copied_to
from adadistill.kernels.pixel_rules import NUMBERS, PixelRule, rules_from
from adadistill.kernels.triton_use import runs_triton

Layout = Literal["planes", "rgb"]

BLOCK = 512
"""Pixels that a program works on at a time: 4 for each of 128 threads, 25 turns for a face. 1,024 spill on sm_90 (255
registers and 144 bytes a thread), 512 take 165 registers. Not tuned on a GPU."""
_BRIGHTNESS, _CONTRAST, _SATURATION = range(3)


@dataclass(frozen=True, slots=True, eq=False)
class DeviceTables:
    """Resampling tables on a device; see `augment_parameters.ResampleTables`."""

    index: Tensor
    """(T, S, 8) int16."""
    weight: Tensor
    """(T, S, 8) int16."""

    @staticmethod
    def of(tables: ResampleTables, device: torch.device) -> DeviceTables:
        """A copy on the device."""
        return DeviceTables(*(torch.tensor(array, device=device) for array in (tables.index, tables.weight)))


def planar_augment(
    store: Tensor,
    rows: Tensor,
    *,
    layout: Layout,
    image_size: int,
    mirrored: Tensor,
    parameters: Tensor | None,
    tables: DeviceTables | None,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    """Network input of chosen images.

    Args:
        store: (N, bytes) uint8 on any device, rows contiguous.
        rows: (B,) int64 in [0, N), on the store's device. Their range is checked where they are made; a check here
            would stall the GPU every step.
        layout: `planes` are Y, Cb and Cr one after another; `rgb` is interleaved.
        image_size: side S in pixels, even for planes.
        mirrored: (B,) bool, read where there are no parameters.
        parameters: (B, P) int32 in host memory, or None for mirroring alone.
        tables: on the store's device; needed by parameters.
        dtype: floating point, of the output.
        channels_last: memory format of the output.

    Returns:
        (B, 3, S, S) in [-1, 1], its own memory, on the store's device.

    Raises:
        ValueError: shapes, dtypes or devices disagree.
    """
    _check(store, rows, layout, image_size, mirrored, parameters, tables)
    if not dtype.is_floating_point:
        raise ValueError(f"images are floating point, got dtype {dtype}")
    planes = layout == "planes"
    return _augment(store, rows, mirrored, parameters, *_arrays(tables), planes, image_size, dtype, channels_last)


def planar_augment_u8(
    store: Tensor,
    rows: Tensor,
    *,
    layout: Layout,
    image_size: int,
    mirrored: Tensor,
    parameters: Tensor | None,
    tables: DeviceTables | None,
) -> Tensor:
    """As `planar_augment`, before normalisation: (B, S, S, 3) uint8 RGB."""
    _check(store, rows, layout, image_size, mirrored, parameters, tables)
    planes = layout == "planes"
    pixels = _augment(store, rows, mirrored, parameters, *_arrays(tables), planes, image_size, torch.uint8, True)
    return pixels.permute(0, 2, 3, 1)


def planar_augment_reference(
    store: Tensor,
    rows: Tensor,
    *,
    layout: Layout,
    image_size: int,
    mirrored: Tensor,
    parameters: Tensor | None,
    tables: DeviceTables | None,
) -> Tensor:
    """The definition in plain torch, on any device: (B, S, S, 3) uint8 RGB."""
    stored = store.index_select(0, rows)
    images = _planes_to_rgb(stored, image_size) if layout == "planes" else _interleaved(stored, image_size)
    if parameters is None:
        flips = mirrored.to(images.device)
    else:
        assert tables is not None
        moved = parameters.to(images.device)
        images = _augmented(images, moved, tables)
        flips = moved[:, Column.MIRROR] != 0
    images = torch.where(flips[:, None, None, None], images.flip(3), images)
    return images.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _check(
    store: Tensor,
    rows: Tensor,
    layout: Layout,
    size: int,
    mirrored: Tensor,
    parameters: Tensor | None,
    tables: DeviceTables | None,
) -> None:
    if layout not in ("planes", "rgb"):
        raise ValueError(f"layout must be planes or rgb, got {layout!r}")
    if layout == "planes" and size % 2:
        raise ValueError(f"planes are of even sides, got {size}")
    wanted = 3 * size * size // (2 if layout == "planes" else 1)
    if store.dtype != torch.uint8 or store.ndim != 2 or store.shape[1] != wanted or not store.is_contiguous():
        raise ValueError(
            f"store must be contiguous (N, {wanted}) uint8 for {layout} of {size} x {size} pixels, got "
            f"{tuple(store.shape)} {store.dtype}"
        )
    if rows.dtype != torch.int64 or rows.ndim != 1 or rows.device != store.device:
        got = f"{tuple(rows.shape)} {rows.dtype} on {rows.device}"
        raise ValueError(f"rows must be (B,) int64 on {store.device}, got {got}")
    if mirrored.dtype != torch.bool or mirrored.shape != rows.shape:
        raise ValueError(f"mirrored must be {tuple(rows.shape)} bool, got {tuple(mirrored.shape)} {mirrored.dtype}")
    if parameters is None:
        return
    if parameters.dtype != torch.int32 or parameters.shape != (len(rows), len_columns()):
        raise ValueError(
            f"parameters must be ({len(rows)}, {len_columns()}) int32, got {tuple(parameters.shape)} {parameters.dtype}"
        )
    if parameters.device.type != "cpu":
        raise ValueError("parameters must be in host memory, where what they ask for can be read without a wait")
    if tables is None or tables.index.device != store.device or tables.index.shape[1:] != (size, TAPS):
        raise ValueError(f"parameters point into tables, which must be of side {size} and on {store.device}")


def _arrays(tables: DeviceTables | None) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if tables is None else (tables.index, tables.weight)


@torch.library.custom_op("adadistill::planar_augment", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def _augment(
    store: Tensor,
    rows: Tensor,
    mirrored: Tensor,
    parameters: Tensor | None,
    index: Tensor | None,
    weight: Tensor | None,
    planes: bool,
    image_size: int,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    """(B, 3, S, S): uint8 as it is, floating point normalised."""
    layout: Layout = "planes" if planes else "rgb"
    if not runs_triton(store):
        tables = None if index is None or weight is None else DeviceTables(index, weight)
        pixels = planar_augment_reference(
            store, rows, layout=layout, image_size=image_size, mirrored=mirrored, parameters=parameters, tables=tables
        )
        return _converted(pixels.permute(0, 3, 1, 2), dtype, channels_last)
    images = _empty_images(store, rows, image_size, dtype, channels_last)
    _launch(images, store, rows, layout, mirrored, parameters, index, weight)
    return images


@_augment.register_fake
def _(
    store: Tensor,
    rows: Tensor,
    mirrored: Tensor,
    parameters: Tensor | None,
    index: Tensor | None,
    weight: Tensor | None,
    planes: bool,
    image_size: int,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    return _empty_images(store, rows, image_size, dtype, channels_last)


def _empty_images(store: Tensor, rows: Tensor, size: int, dtype: torch.dtype, channels_last: bool) -> Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty((len(rows), 3, size, size), dtype=dtype, device=store.device, memory_format=memory_format)


def _launch(
    out: Tensor,
    store: Tensor,
    rows: Tensor,
    layout: Layout,
    mirrored: Tensor,
    parameters: Tensor | None,
    index: Tensor | None,
    weight: Tensor | None,
) -> None:
    """Fill `out`, (B, 3, S, S) of any strides."""
    from adadistill.kernels.planar_augment_triton import RULES, RULES_KEY, augment_kernel

    count, _, size, _ = out.shape
    if count == 0:
        return
    device = store.device
    from_host = parameters is not None or mirrored.device != device
    if from_host and device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "planar_augment reads its parameters and flips in host memory, which a CUDA graph would read once and "
            "replay for ever; augment before the captured step"
        )
    flips = copied_to(device, mirrored.to(torch.uint8))
    nothing = torch.empty(0, dtype=torch.int32, device=device)
    index, weight = (nothing if table is None else table for table in (index, weight))
    moved, slots, scratch = nothing, nothing, (nothing, nothing, nothing)
    if parameters is not None:
        # Only resampled images take scratch, and which they are is known on the host.
        resampled = (parameters[:, Column.LOW_SIDE] > 0) | (parameters[:, Column.BLUR_TABLE] >= 0)
        numbers = torch.where(resampled, resampled.cumsum(0) - 1, -1).to(torch.int32)
        images = max(1, int(resampled.sum()))
        shape = (images, size, size, 3)
        scratch = (
            torch.empty(shape, dtype=torch.uint8, device=device),
            torch.empty(shape, dtype=torch.uint8, device=device),
            torch.empty(shape, dtype=torch.int32, device=device),
        )
        moved, slots = copied_to(device, parameters), copied_to(device, numbers)
    augment_kernel[(count,)](
        out, store, rows.contiguous(), flips, moved, slots, index, weight, *scratch,
        store.shape[1], len_columns(), *out.stride(),
        S=size, PLANES=layout == "planes", AUGMENTS=parameters is not None, NORMALISES=out.dtype != torch.uint8,
        WIDE=out.dtype == torch.float64, BLOCK=BLOCK, RULES=RULES, RULES_KEY=RULES_KEY,
    )  # fmt: skip


def _converted(pixels: Tensor, dtype: torch.dtype, channels_last: bool) -> Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    if dtype == torch.uint8:
        return pixels.contiguous(memory_format=memory_format)
    wide = pixels.to(torch.float64 if dtype == torch.float64 else torch.float32)
    return wide.sub_(127.5).div_(127.5).to(dtype).contiguous(memory_format=memory_format)


def _interleaved(stored: Tensor, size: int) -> Tensor:
    """(B, 3 S S) uint8 -> (B, 3, S, S) int32."""
    return stored.view(-1, size, size, 3).permute(0, 3, 1, 2).to(torch.int32)


def _planes_to_rgb(stored: Tensor, size: int) -> Tensor:
    """(B, 3 S S / 2) uint8 -> (B, 3, S, S) int32."""
    half, pixels = size // 2, size * size
    luma = stored[:, :pixels].view(-1, size, size).to(torch.int32)
    blue = _upsampled(stored[:, pixels : pixels + half * half].view(-1, half, half)) - 128
    red = _upsampled(stored[:, pixels + half * half :].view(-1, half, half)) - 128
    channels = [
        luma + ((91881 * red + 32768) >> 16),
        luma + ((-22554 * blue - 46802 * red + 32768) >> 16),
        luma + ((116130 * blue + 32768) >> 16),
    ]
    return torch.stack(channels, dim=1).clamp_(0, 255)


def _upsampled(chroma: Tensor) -> Tensor:
    """(B, h, w) uint8 -> (B, 2h, 2w) int32."""
    near = chroma.to(torch.int32)
    above = torch.cat([near[:, :1], near[:, :-1]], dim=1)
    below = torch.cat([near[:, 1:], near[:, -1:]], dim=1)
    tall = torch.stack([3 * near + above, 3 * near + below], dim=2).flatten(1, 2)  # (B, 2h, w)
    left = torch.cat([tall[:, :, :1], tall[:, :, :-1]], dim=2)
    right = torch.cat([tall[:, :, 1:], tall[:, :, -1:]], dim=2)
    return torch.stack([(3 * tall + left + 8) >> 4, (3 * tall + right + 7) >> 4], dim=3).flatten(2, 3)


def _augmented(images: Tensor, parameters: Tensor, tables: DeviceTables) -> Tensor:
    """(B, 3, S, S) int32 through all operations but mirroring."""
    images = _cropped(images, parameters)
    low = (parameters[:, Column.LOW_SIDE] > 0).nonzero().squeeze(1)
    images = _resampled_rows(images, low, parameters[:, Column.DOWN_TABLE], tables)
    images = _resampled_rows(images, low, parameters[:, Column.UP_TABLE], tables)
    blurred = (parameters[:, Column.BLUR_TABLE] >= 0).nonzero().squeeze(1)
    images = _resampled_rows(images, blurred, parameters[:, Column.BLUR_TABLE], tables)
    matrix = parameters[:, Column.MATRIX : Column.MATRIX + 9].view(-1, 3, 3)
    images = ((torch.einsum("bck,bkhw->bchw", matrix, images) + 32768) >> 16).clamp(0, 255)
    images = torch.where(parameters[:, Column.GREY, None, None, None] != 0, _grey(images), images)
    rows = torch.arange(len(images), device=images.device)
    for place in (Column.FIRST, Column.SECOND, Column.THIRD):
        operation = parameters[:, place].long()
        factor = parameters[rows, Column.BRIGHTNESS + operation][:, None, None, None]
        images = _blended(images, operation[:, None, None, None], factor)
    for first, rule in rules_from(Column.RULES):
        numbers = parameters[:, first : first + NUMBERS]
        images = torch.where(numbers.any(1)[:, None, None, None], _ruled(images, rule, numbers), images)
    return images


def _ruled(images: Tensor, rule: PixelRule, numbers: Tensor) -> Tensor:
    place = torch.arange(images.shape[2], dtype=torch.int32, device=images.device)
    of_image = (numbers[:, number, None, None] for number in range(NUMBERS))  # (B, 1, 1) each
    channels = rule.apply(*images.unbind(1), place[:, None], place[None], *of_image)
    made = [torch.as_tensor(channel, device=images.device).expand_as(images[:, 0]) for channel in channels]
    return torch.stack(made, dim=1).clamp(0, 255).to(torch.int32)


def _cropped(images: Tensor, parameters: Tensor) -> Tensor:
    top, left, height, width = (parameters[:, column, None] for column in range(Column.CROP_TOP, Column.CROP_WIDTH + 1))
    place = torch.arange(images.shape[2], device=images.device)[None]
    rows, columns = (place >= top) & (place < top + height), (place >= left) & (place < left + width)  # (B, S)
    return images * (rows[:, None, :, None] & columns[:, None, None, :])


def _resampled_rows(images: Tensor, chosen: Tensor, table: Tensor, tables: DeviceTables) -> Tensor:
    """Resample the chosen images, each by its table. Beyond the target side a table weighs nothing: zeros."""
    if len(chosen) == 0:
        return images
    index = tables.index[table[chosen].long()].long()  # (n, S, 8)
    weight = tables.weight[table[chosen].long()].to(torch.int32)
    source = images[chosen]  # (n, 3, S, S)
    columns = torch.zeros_like(source)
    for tap in range(TAPS):
        places = index[:, None, None, :, tap].expand_as(source)
        columns += weight[:, None, None, :, tap] * source.gather(3, places)
    columns = (columns + 128) >> 8
    result = torch.zeros_like(source)
    for tap in range(TAPS):
        places = index[:, None, :, None, tap].expand_as(source)
        result += weight[:, None, :, None, tap] * columns.gather(2, places)
    return images.index_copy(0, chosen, ((result + 8192) >> 14).clamp_(0, 255))


def _grey(images: Tensor) -> Tensor:
    """(B, 1, S, S) int32."""
    return (19595 * images[:, :1] + 38470 * images[:, 1:2] + 7471 * images[:, 2:] + 32768) >> 16


def _blended(images: Tensor, operation: Tensor, factor: Tensor) -> Tensor:
    """One of the three blends for each image; operation and factor are (B, 1, 1, 1)."""
    grey = _grey(images)
    count = grey.shape[2] * grey.shape[3]
    mean = (grey.sum(dim=(1, 2, 3), keepdim=True).to(torch.int32) + count // 2) // count
    towards = torch.where(operation == _SATURATION, grey, torch.where(operation == _CONTRAST, mean, 0))
    return ((FACTOR_ONE * towards + factor * (images - towards)) >> 16).clamp(0, 255)
