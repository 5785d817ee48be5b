"""insightface's IResNet-18/34/50/100/200, the usual teachers of arcface_torch and AdaDistill.

Differs from the IR networks of AdaFace and CVLface (`ir.py`) in a learned shortcut in stage 1 too, a trainable bias in
the last batch norm (its weight stays 1), no dropout by default, and initialisation.

Source: insightface arcface_torch; shapes and parameter counts are those of its code.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from adadistill.core.backbones.layers import (
    ConvUnit,
    EmbeddingLayer,
    grid_side,
    initialise_,
    insightface_iresnet_,
    scaled_channels,
)
from adadistill.core.backbones.public_weights import NameRules
from adadistill.core.backbones.residual_trunk import DEPTHS, STAGE_CHANNELS, residual_stages


class IResNet(nn.Module):
    """Images (B, 3, image_size, image_size) RGB in [-1, 1] -> raw embeddings (B, embedding_dim).

    Args:
        depth: 18, 34, 50, 100 or 200.
        image_size: pixels, a multiple of 16.
        embedding_dim: D.
        width: multiplies every channel count, each rounded to a multiple of 8.
        dropout: probability before the last linear map.
        se: squeeze and excitation at the end of every block, an option of AdaDistill's copy.

    Raises:
        ValueError: image_size is no positive multiple of 16.
    """

    def __init__(
        self, depth: int, *, image_size: int, embedding_dim: int, width: float, dropout: float, se: bool = False
    ) -> None:
        super().__init__()
        cells = grid_side(image_size) ** 2
        channels = scaled_channels(STAGE_CHANNELS[-1], width)
        self.stem = ConvUnit(3, scaled_channels(STAGE_CHANNELS[0], width), 3)
        self.stages = residual_stages(DEPTHS[depth], width, project_every_stage=True, excite=se)
        self.norm = nn.BatchNorm2d(channels)
        self.embed = EmbeddingLayer(channels * cells, embedding_dim, bias=True, affine=True, dropout=dropout)
        # Constant: a learned scale per component would be undone by nothing but the normalisation of embeddings.
        self.embed.norm.weight.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)  # (B, 64, H, W)
        for stage in self.stages:
            features = stage(features)  # H and W halve
        return self.embed(self.norm(features))  # (B, D)

    def initialise_(self, generator: torch.Generator | None = None) -> None:
        """Draw all weights anew as insightface does. `generator` None is torch's global one."""
        initialise_(self, partial(insightface_iresnet_, generator=generator))


def _iresnet_block(stage: int, index: int, blocks_per_stage: Sequence[int]) -> str:
    return f"layer{stage + 1}.{index}"


IRESNET_NAMES = NameRules(
    outside={
        "stem.conv": "conv1",
        "stem.norm": "bn1",
        "stem.act": "prelu",
        "norm": "bn2",
        "embed.linear": "fc",
        "embed.norm": "features",
    },
    block=_iresnet_block,
    inside={
        "norm": "bn1",
        "first.conv": "conv1",
        "first.norm": "bn2",
        "first.act": "prelu",
        "second.conv": "conv2",
        "second.norm": "bn3",
        "shortcut.conv": "downsample.0",
        "shortcut.norm": "downsample.1",
        "excite.reduce": "se_block.fc1",
        "excite.expand": "se_block.fc2",
    },
)
