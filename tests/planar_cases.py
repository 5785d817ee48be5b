"""Cases for planar_augment, shared by its tests and by the process that runs Triton's interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from adadistill.kernels.augment_parameters import Column, identity_parameters, resample_tables
from adadistill.kernels.planar_augment import DeviceTables

CASES = (
    "mirror", "identity", "crop", "low", "blur", "matrix", "grey", "brightness", "contrast", "saturation", "everything",
)  # fmt: skip
COUNT, PAIR, IMAGES = 5, 2, 7  # rows are drawn with repeats, out of order


def make_case(layout: str, name: str, size: int, device: str = "cpu", *, count: int = COUNT) -> dict[str, Any]:
    """Arguments of `planar_augment_u8`: noise, and one operation in every image, or all of them in different images."""
    draws = np.random.RandomState(size)
    image_bytes = 3 * size * size // (2 if layout == "planes" else 1)
    return {
        "store": torch.from_numpy(draws.randint(0, 256, (IMAGES, image_bytes), dtype=np.uint8)).to(device),
        "rows": torch.from_numpy(draws.randint(0, IMAGES, count)).to(device),
        "layout": layout,
        "image_size": size,
        "mirrored": torch.from_numpy(draws.rand(count) < 0.5),
        "parameters": None if name == "mirror" else torch.from_numpy(_parameters(name, size, count, draws)),
        "tables": None if name == "mirror" else DeviceTables.of(resample_tables(size), torch.device(device)),
    }


def network_input(pixels: Tensor, dtype: torch.dtype, channels_last: bool) -> Tensor:
    """The loaders' own normalisation."""
    from adadistill.loaders.pixels import to_network_input

    return to_network_input(pixels, device=pixels.device, dtype=dtype, channels_last=channels_last)


def _parameters(name: str, size: int, count: int, draws: np.random.RandomState) -> np.ndarray:
    rows = identity_parameters(count, size)
    tables = resample_tables(size)
    for number, row in enumerate(rows):
        if name in ("crop", "everything"):
            height, width = draws.randint(1, size + 1, 2)
            top, left = draws.randint(0, size - height + 1), draws.randint(0, size - width + 1)
            row[Column.CROP_TOP : Column.CROP_WIDTH + 1] = (top, left, height, width)
        if name == "low" or (name == "everything" and number % 2):
            side, kinds = draws.randint(tables.least_side, size + 1), draws.randint(0, 6, 2)
            row[Column.LOW_SIDE] = side
            row[Column.DOWN_TABLE] = tables.down(kinds[0], np.int64(side))
            row[Column.UP_TABLE] = tables.up(kinds[1], np.int64(side))
        if name == "blur" or (name == "everything" and number % 3 == 0):
            row[Column.BLUR_TABLE] = tables.blur(np.int64(draws.choice([3, 5])))
        if name in ("matrix", "everything"):
            row[Column.MATRIX : Column.MATRIX + 9] = draws.randint(-40_000, 110_000, 9)
        if name == "grey" or (name == "everything" and number == 4):
            row[Column.GREY] = 1
        for column, blend in enumerate(("brightness", "contrast", "saturation")):
            if name in (blend, "everything"):
                row[Column.BRIGHTNESS + column] = draws.randint(32768, 98305)
        row[Column.FIRST : Column.THIRD + 1] = draws.permutation(3)
        row[Column.MIRROR] = number % 2
    return rows
