"""AdaFace's and CVLface's IR-18/34/50/101.

Differs from insightface's IResNet (`iresnet.py`) in a parameter-free first shortcut in stage 1, a last batch norm
without weight and bias, dropout 0.4 by default, and initialisation. Weights of the one do not fit the other.

Source: AdaFace (MIT) and CVLface (MIT); shapes and parameter counts are those of their code.
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
    kaiming_fan_out_,
    scaled_channels,
)
from adadistill.core.backbones.public_weights import NameRules
from adadistill.core.backbones.residual_trunk import DEPTHS, STAGE_CHANNELS, residual_stages


class IR(nn.Module):
    """Images (B, 3, image_size, image_size) RGB in [-1, 1] -> raw embeddings (B, embedding_dim).

    Args:
        depth: 18, 34, 50 or 100 (published as IR-101).
        image_size: pixels, a multiple of 16.
        embedding_dim: D.
        width: multiplies every channel count, each rounded to a multiple of 8.
        dropout: probability before the last linear map.

    Raises:
        ValueError: image_size is no positive multiple of 16.
    """

    def __init__(self, depth: int, *, image_size: int, embedding_dim: int, width: float, dropout: float) -> None:
        super().__init__()
        cells = grid_side(image_size) ** 2
        channels = scaled_channels(STAGE_CHANNELS[-1], width)
        self.stem = ConvUnit(3, scaled_channels(STAGE_CHANNELS[0], width), 3)
        self.stages = residual_stages(DEPTHS[depth], width, project_every_stage=False)
        self.norm = nn.BatchNorm2d(channels)
        self.embed = EmbeddingLayer(channels * cells, embedding_dim, bias=True, affine=False, dropout=dropout)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)  # (B, 64, H, W)
        for stage in self.stages:
            features = stage(features)  # H and W halve
        return self.embed(self.norm(features))  # (B, D)

    def initialise_(self, generator: torch.Generator | None = None) -> None:
        """Draw all weights anew: Kaiming normal, fan out. `generator` None is torch's global one."""
        initialise_(self, partial(kaiming_fan_out_, generator=generator))


def _ir_block(stage: int, index: int, blocks_per_stage: Sequence[int]) -> str:
    return f"body.{sum(blocks_per_stage[:stage]) + index}"


IR_NAMES = NameRules(
    outside={
        "stem.conv": "input_layer.0",
        "stem.norm": "input_layer.1",
        "stem.act": "input_layer.2",
        "norm": "output_layer.0",
        "embed.linear": "output_layer.3",
        "embed.norm": "output_layer.4",
    },
    block=_ir_block,
    inside={
        "norm": "res_layer.0",
        "first.conv": "res_layer.1",
        "first.norm": "res_layer.2",
        "first.act": "res_layer.3",
        "second.conv": "res_layer.4",
        "second.norm": "res_layer.5",
        "shortcut.conv": "shortcut_layer.0",
        "shortcut.norm": "shortcut_layer.1",
    },
)
