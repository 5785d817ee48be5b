"""Layers that every backbone shares: convolution units, the embedding layer, widths and seeded initialisation.

The networks differ in how they stack these. What they have in common is written once here: convolutions without bias
followed by batch norm and, mostly, a per-channel PReLU; a last layer that stays in float32 under autocast; and an
initialisation that draws every number from one explicit generator, so that a seed decides all weights.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from adadistill.kernels.prelu import prelu

GRID_STRIDE = 16
"""Input pixels per cell of the last feature grid, in each direction, of every network here."""


def scaled_channels(channels: int, width: float) -> int:
    """Return `channels * width` rounded to the nearest positive multiple of 8, which vector lanes and tensor cores
    like."""
    return max(8, int(channels * width / 8.0 + 0.5) * 8)


def grid_side(image_size: int) -> int:
    """Return the side of the last feature grid, in cells, for square images of `image_size` pixels.

    Raises:
        ValueError: `image_size` is not a positive multiple of 16.
    """
    if image_size < GRID_STRIDE or image_size % GRID_STRIDE:
        raise ValueError(f"image_size must be a positive multiple of {GRID_STRIDE}, got {image_size}")
    return image_size // GRID_STRIDE


class ChannelPReLU(nn.PReLU):
    """`nn.PReLU` with one slope per channel and a backward that is fast on CPU too; the state dict is the same."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)

    def forward(self, inputs: Tensor) -> Tensor:
        return prelu(inputs, self.weight)


class ConvUnit(nn.Module):
    """Convolution without bias, batch norm and, unless `activation` is False, a PReLU with one slope per channel.

    (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride)); `padding` defaults to that which
    keeps the size at stride 1 for an odd kernel.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        *,
        stride: int = 1,
        padding: int | None = None,
        groups: int = 1,
        activation: bool = True,
    ) -> None:
        super().__init__()
        padding = kernel_size // 2 if padding is None else padding
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.act = ChannelPReLU(out_channels) if activation else nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(inputs)))


class EmbeddingLayer(nn.Module):
    """Features (B, C, h, w) -> raw embeddings (B, D): flatten channel-major, dropout, linear, batch norm.

    The linear map and its batch norm run in the dtype of their weights, float32 in training, whatever autocast is
    doing around them: embeddings decide norms and margins, and bfloat16 has 8 bits.

    Args:
        in_features: C * h * w.
        bias: whether the linear map has a bias.
        affine: whether the batch norm has a weight and a bias.
        dropout: probability of zeroing an input of the linear map in training.
    """

    def __init__(self, in_features: int, embedding_dim: int, *, bias: bool, affine: bool, dropout: float) -> None:
        super().__init__()
        # No layer at all for probability 0, so that such a network never draws random numbers in training.
        self.dropout = nn.Dropout(dropout) if dropout > 0.0 else nn.Identity()
        self.linear = nn.Linear(in_features, embedding_dim, bias=bias)
        self.norm = nn.BatchNorm1d(embedding_dim, affine=affine)

    def forward(self, features: Tensor) -> Tensor:
        # flatten, not view: channels_last memory must give the channel-major order that public weights expect.
        flat = self.dropout(features.flatten(1))  # (B, C*h*w)
        with torch.autocast(flat.device.type, enabled=False):
            return self.norm(self.linear(flat.to(self.linear.weight.dtype)))  # (B, D)


def initialise_(network: nn.Module, initialise_map: Callable[[nn.Conv2d | nn.Linear], None]) -> None:
    """Set every parameter and buffer of `network`, which may be uninitialised memory, in module order.

    Convolutions and linear maps are left to `initialise_map`. Batch norms become the identity (weight 1, bias 0,
    running mean 0, running variance 1) and PReLU slopes 0.25, as in all public implementations.

    Raises:
        TypeError: a module with parameters or buffers of its own is of none of these kinds.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            initialise_map(module)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, nn.PReLU):
            nn.init.constant_(module.weight, 0.25)
        elif any(True for _ in module.parameters(recurse=False)) or any(True for _ in module.buffers(recurse=False)):
            raise TypeError(f"no initialisation is known for {type(module).__name__}")


def kaiming_fan_out_(module: nn.Conv2d | nn.Linear, generator: torch.Generator | None) -> None:
    """Draw the weight from N(0, 2 / fan_out), zero the bias: AdaFace's and MobileFaceNet's choice."""
    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def insightface_iresnet_(module: nn.Conv2d | nn.Linear, generator: torch.Generator | None) -> None:
    """Draw convolutions from N(0, 0.1^2) and linear maps, bias included, from U(-1, 1) / sqrt(in_features)."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.1, generator=generator)
        return
    bound = 1.0 / math.sqrt(module.in_features)
    nn.init.uniform_(module.weight, -bound, bound, generator=generator)
    if module.bias is not None:
        nn.init.uniform_(module.bias, -bound, bound, generator=generator)
