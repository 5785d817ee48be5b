"""How a teacher wants its images, and the way there from the project's own: RGB, (x - 127.5) / 127.5.

Colour order and normalisation belong to the network that was trained with them. A wrong order costs a point of accuracy
and says nothing, so both are stated and recorded with everything that is made of a teacher.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

Color: TypeAlias = Literal["rgb", "bgr"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """A network's input: channel order, then (x / 255 - mean) / std per channel, in that order of channels."""

    color: Color = "rgb"
    """Order of the input channels."""
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Of each input channel, on the scale of 0 to 1."""
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Of each input channel, on the scale of 0 to 1. Positive."""

    def __post_init__(self) -> None:
        if self.color not in ("rgb", "bgr"):
            raise ValueError(f"color must be rgb or bgr, got {self.color!r}")
        check_statistics(self.mean, self.std)

    def affine(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Scale and shift of each channel that take the project's own images there, after the channels are in order.

        x / 255 = (image + 1) / 2, so (x / 255 - mean) / std = image * 0.5 / std + (0.5 - mean) / std.
        """
        scale = tuple(0.5 / std for std in self.std)
        shift = tuple((0.5 - mean) / std for mean, std in zip(self.mean, self.std, strict=True))
        return scale, shift


class TeacherNetwork(nn.Module):
    """A network behind the project's own input: (B, 3, H, W), RGB in [-1, 1] -> what the network makes of it.

    Does nothing to the images, and costs nothing, where the network wants them as they are.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, body: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.body = body
        self.reverses_channels = preprocessing.color == "bgr"
        scale, shift = preprocessing.affine()
        self.normalises = any(factor != 1.0 for factor in scale) or any(shift)
        # Buffers, so that they are on the device before the first step; not part of the network's state.
        self.register_buffer("scale", torch.tensor(scale).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", torch.tensor(shift).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if self.reverses_channels:
            images = images.flip(1)
        if self.normalises:
            images = torch.addcmul(self.shift.to(images.dtype), images, self.scale.to(images.dtype))
        return self.body(images)


def check_statistics(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Refuse what cannot be the mean and standard deviation of three channels on the scale of 0 to 1."""
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != 3 or not all(math.isfinite(value) for value in values):
            raise ValueError(f"{name} must be three finite numbers, one for each channel, got {list(values)}")
    if min(std) <= 0.0:
        raise ValueError(f"std must be positive, got {list(std)}")
    if max(*mean, *std) > 1.0 or min(mean) < 0.0:
        raise ValueError(
            f"mean and std are on the scale of 0 to 1, got {list(mean)} and {list(std)}; divide by 255 (127.5 is 0.5)"
        )
