"""MobileFaceNet: the 1.2 M parameter student of AdaDistill, and insightface's two wider variants of the same name.

All are a stride-2 stem, a grouped 3x3 convolution (in the largest two bottlenecks instead), three stages of inverted
bottlenecks (each opened by a block of stride 2), a 1x1 convolution and one depthwise convolution as large as the last
grid ("global depthwise convolution") instead of pooling, so that each grid cell has a weight of its own. Their state
dicts do not fit each other; here they are called `mobilefacenet` (1,199,488 parameters), `mbf` (2,059,520) and
`mbf_large` (6,314,880).

Source: MobileFaceNets, arXiv:1804.07573; shapes as in the released code of AdaDistill and of insightface's
arcface_torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn

from adadistill.core.backbones.layers import (
    ConvUnit,
    EmbeddingLayer,
    grid_side,
    initialise_,
    kaiming_fan_out_,
    scaled_channels,
)
from adadistill.core.backbones.public_weights import NameRules


@dataclass(frozen=True, kw_only=True, slots=True)
class StageShape:
    """One stage of bottlenecks at a common resolution; channel counts are those at width 1."""

    channels: int
    """Channels of the trunk, in and out of each block but the first's input."""
    first_hidden: int
    """Channels inside the first block, which halves the resolution and has no shortcut."""
    hidden: int
    """Channels inside the others."""
    blocks: int
    """Number of the others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MobileFaceNetShape:
    """What tells the variants apart; channel counts are those at width 1."""

    stem_channels: int
    stem_group_size: int
    """Channels per group of the second convolution; 1 is depthwise."""
    stem_blocks: int = 0
    """Bottlenecks in place of the second convolution, as those of the first stage; 0 keeps the convolution."""
    stages: tuple[StageShape, StageShape, StageShape]
    final_channels: int
    affine_output: bool
    """Whether the last batch norm has a weight and a bias."""


MOBILEFACENET = MobileFaceNetShape(
    stem_channels=64,
    stem_group_size=1,
    stages=(
        StageShape(channels=64, first_hidden=128, hidden=128, blocks=4),
        StageShape(channels=128, first_hidden=256, hidden=256, blocks=6),
        StageShape(channels=128, first_hidden=512, hidden=256, blocks=2),
    ),
    final_channels=512,
    affine_output=False,
)

MBF = MobileFaceNetShape(
    stem_channels=128,
    stem_group_size=2,
    stages=(
        StageShape(channels=128, first_hidden=128, hidden=128, blocks=4),
        StageShape(channels=256, first_hidden=256, hidden=256, blocks=6),
        StageShape(channels=256, first_hidden=512, hidden=256, blocks=2),
    ),
    final_channels=512,
    affine_output=True,
)

MBF_LARGE = MobileFaceNetShape(
    stem_channels=256,
    stem_group_size=4,
    stem_blocks=2,
    stages=(
        StageShape(channels=256, first_hidden=128, hidden=128, blocks=8),
        StageShape(channels=512, first_hidden=256, hidden=256, blocks=12),
        StageShape(channels=512, first_hidden=512, hidden=256, blocks=4),
    ),
    final_channels=512,
    affine_output=True,
)


class Bottleneck(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 projection without activation; plus the input where `shortcut` is set."""

    def __init__(self, in_channels: int, out_channels: int, hidden: int, *, stride: int, shortcut: bool) -> None:
        super().__init__()
        self.shortcut = shortcut
        self.expand = ConvUnit(in_channels, hidden)
        self.depthwise = ConvUnit(hidden, hidden, 3, stride=stride, groups=hidden)
        self.project = ConvUnit(hidden, out_channels, activation=False)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.project(self.depthwise(self.expand(inputs)))
        return inputs + outputs if self.shortcut else outputs


class MobileFaceNet(nn.Module):
    """Images (B, 3, image_size, image_size) RGB in [-1, 1] -> raw embeddings (B, embedding_dim).

    Args:
        shape: `MOBILEFACENET`, `MBF` or `MBF_LARGE`.
        image_size: pixels, a multiple of 16; the global depthwise kernel spans image_size / 16 cells.
        embedding_dim: D.
        width: multiplies every channel count, the hidden ones too, each rounded to a multiple of 8.
        dropout: probability before the last linear map; the public networks have none.

    Raises:
        ValueError: image_size is no positive multiple of 16.
    """

    def __init__(
        self, shape: MobileFaceNetShape, *, image_size: int, embedding_dim: int, width: float, dropout: float
    ) -> None:
        super().__init__()
        self.shape = shape
        stem_channels = scaled_channels(shape.stem_channels, width)
        self.stem = ConvUnit(3, stem_channels, 3, stride=2)
        self.stem_grouped = _second_layer(shape, stem_channels, width)
        self.stages = nn.ModuleList()
        channels = stem_channels
        for stage in shape.stages:
            self.stages.append(_stage(stage, channels, width))
            channels = scaled_channels(stage.channels, width)
        final_channels = scaled_channels(shape.final_channels, width)
        self.final = ConvUnit(channels, final_channels)
        self.pool = ConvUnit(
            final_channels, final_channels, grid_side(image_size), padding=0, groups=final_channels, activation=False
        )
        self.embed = EmbeddingLayer(
            final_channels, embedding_dim, bias=False, affine=shape.affine_output, dropout=dropout
        )

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem_grouped(self.stem(images))  # (B, stem, H/2, W/2)
        for stage in self.stages:
            features = stage(features)  # H and W halve
        features = self.pool(self.final(features))  # (B, final, 1, 1)
        return self.embed(features)  # (B, D)

    def initialise_(self, generator: torch.Generator | None = None) -> None:
        """Draw all weights anew: Kaiming normal, fan out. `generator` None is torch's global one."""
        initialise_(self, partial(kaiming_fan_out_, generator=generator))


def _second_layer(shape: MobileFaceNetShape, channels: int, width: float) -> nn.Module:
    if shape.stem_blocks == 0:
        return ConvUnit(channels, channels, 3, groups=channels // shape.stem_group_size)
    hidden = scaled_channels(shape.stages[0].hidden, width)
    return nn.Sequential(
        *(Bottleneck(channels, channels, hidden, stride=1, shortcut=True) for _ in range(shape.stem_blocks))
    )


def _stage(stage: StageShape, in_channels: int, width: float) -> nn.Sequential:
    channels = scaled_channels(stage.channels, width)
    first_hidden, hidden = scaled_channels(stage.first_hidden, width), scaled_channels(stage.hidden, width)
    first = Bottleneck(in_channels, channels, first_hidden, stride=2, shortcut=False)
    others = [Bottleneck(channels, channels, hidden, stride=1, shortcut=True) for _ in range(stage.blocks)]
    return nn.Sequential(first, *others)


def _nested(units: Mapping[str, str], parts: Mapping[str, str]) -> dict[str, str]:
    """Return the paths of every part of every unit: {u.p: U.P}."""
    return {f"{unit}.{part}": f"{units[unit]}.{parts[part]}" for unit, part in product(units, parts)}


def _mobilefacenet_block(stage: int, index: int, blocks_per_stage: Sequence[int]) -> str:
    return ("conv_23", "conv_34", "conv_45")[stage] if index == 0 else f"conv_{stage + 3}.model.{index - 1}"


def _mbf_block(stage: int, index: int, blocks_per_stage: Sequence[int]) -> str:
    return f"layers.{2 * stage + 2}" if index == 0 else f"layers.{2 * stage + 3}.layers.{index - 1}"


_ADADISTILL_UNIT = {"conv": "conv", "norm": "bn", "act": "prelu"}

MOBILEFACENET_NAMES = NameRules(
    outside={
        **_nested(
            {"stem": "conv1", "stem_grouped": "conv2_dw", "final": "conv_6_sep", "pool": "output_layer.conv_6_dw"},
            _ADADISTILL_UNIT,
        ),
        "embed.linear": "output_layer.linear",
        "embed.norm": "output_layer.bn",
    },
    block=_mobilefacenet_block,
    inside=_nested({"expand": "conv", "depthwise": "conv_dw", "project": "project"}, _ADADISTILL_UNIT),
)

_MBF_UNIT = {"conv": "layers.0", "norm": "layers.1", "act": "layers.2"}

MBF_NAMES = NameRules(
    outside={
        **_nested(
            {"stem": "layers.0", "stem_grouped": "layers.1", "final": "conv_sep", "pool": "features.layers.0"},
            _MBF_UNIT,
        ),
        "embed.linear": "features.layers.2",
        "embed.norm": "features.layers.3",
    },
    block=_mbf_block,
    stem_block="layers.1.layers",
    inside=_nested({"expand": "layers.0", "depthwise": "layers.1", "project": "layers.2"}, _MBF_UNIT),
)
