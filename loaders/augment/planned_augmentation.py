"""What a plan does to decoded images: nothing, a flip, or rows of operations; one by one, or a batch in a launch."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adadistill.kernels.augment_parameters import resample_tables
from adadistill.loaders.augment.augment_image import augment_image
from adadistill.loaders.pipelines.rank_steps import StepPlan
from adadistill.loaders.pixels import to_network_input
from adadistill.loaders.plane_pixels import PlaneConverter

Pixels = npt.NDArray[np.uint8]


def write_augmented(pixels: Pixels, plan: StepPlan, row: int, target: Pixels) -> None:
    """Write image `row` of the plan, decoded as `pixels`, into `target`; both (S, S, 3) uint8, not overlapping."""
    if plan.parameters is not None:
        augment_image(pixels, plan.parameters[row], resample_tables(len(pixels)), target)
    elif plan.mirrored[row]:
        # Plane by plane takes 13 us where numpy needs 60 us to reverse three-byte pixels.
        for channel in range(3):
            target[:, :, channel] = pixels[:, ::-1, channel]
    else:
        target[...] = pixels


class PlannedImages:
    """Turns stored pixels of many images into the network input of a plan.

    Args:
        image_size: side S in pixels.
        device: of the images made.
        dtype: of the images made.
        channels_last: their memory format.
    """

    def __init__(self, image_size: int, *, device: torch.device, dtype: torch.dtype, channels_last: bool) -> None:
        self._image_size, self._device, self._dtype, self._channels_last = image_size, device, dtype, channels_last
        self._tables: Any = None

    def of(self, store: Tensor, rows: Tensor, plan: StepPlan, layout: Literal["planes", "rgb"] = "rgb") -> Tensor:
        """(B, 3, S, S) images of a plan.

        Args:
            store: (N, bytes) uint8, each row one image in `layout`.
            rows: (B,) int64, the row of each image of the plan.
        """
        if self._device.type == "cpu":
            pixels = self._on_the_host(store.numpy()[rows.numpy()], plan, layout)
            return to_network_input(
                torch.from_numpy(pixels), device=self._device, dtype=self._dtype, channels_last=self._channels_last
            )
        from adadistill.kernels.planar_augment import DeviceTables, planar_augment

        parameters = None
        if plan.parameters is not None:
            self._tables = self._tables or DeviceTables.of(resample_tables(self._image_size), self._device)
            parameters = torch.from_numpy(plan.parameters)
        return planar_augment(
            store,
            rows,
            layout=layout,
            image_size=self._image_size,
            mirrored=torch.from_numpy(plan.mirrored),
            parameters=parameters,
            tables=self._tables,
            dtype=self._dtype,
            channels_last=self._channels_last,
        )

    def _on_the_host(self, stored: Pixels, plan: StepPlan, layout: Literal["planes", "rgb"]) -> Pixels:
        """(B, S, S, 3) uint8 by the same code as decode threads use, for runs and tests without a GPU."""
        size = self._image_size
        images = np.empty((len(stored), size, size, 3), dtype=np.uint8)
        pixels = stored.reshape(images.shape) if layout == "rgb" else np.empty_like(images)
        if layout == "planes":
            PlaneConverter(size, len(stored)).convert(stored, pixels)
        for row in range(len(images)):
            write_augmented(pixels[row], plan, row, images[row])
        return images
