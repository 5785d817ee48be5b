"""Trunk of the improved residual networks, shared by `iresnet.py` and `ir.py`.

Both families are the same pre-activation residual network; they differ in the first shortcut of stage 1, in the last
batch norm, in dropout and in initialisation. There is no pooling in the stem, no activation after the sum, and the
stride of a block sits in its second convolution.

Source: ArcFace, arXiv:1801.07698, section 3.2 ("improved residual unit").
"""

import torch
from torch import Tensor, nn

from adadistill.core.backbones.layers import ConvUnit, scaled_channels

STAGE_CHANNELS = (64, 128, 256, 512)
"""Channels of the four stages at width 1; the stem has those of the first."""

DEPTHS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 14, 3),
    100: (3, 13, 30, 3),
    200: (6, 26, 60, 6),
}
"""Blocks per stage by the number that names the network; IR calls the one of 100 by 101."""

_FEW_CHANNELS = 8

_SQUEEZE = 16


class SqueezeExcitation(nn.Module):
    """Scale every channel by a gate in (0, 1) that the means of all channels decide. (B, C, H, W) -> the same.

    Source: arXiv:1709.01507; a sixteenth of the channels inside, without biases, as in AdaDistill's iresnet.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // _SQUEEZE)
        self.reduce = nn.Conv2d(channels, hidden, 1, bias=False)
        self.expand = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        means = inputs.mean((2, 3), keepdim=True)  # (B, C, 1, 1)
        return inputs * torch.sigmoid(self.expand(torch.relu(self.reduce(means))))


class ResidualBlock(nn.Module):
    """Batch norm, 3x3 convolution, batch norm, PReLU, 3x3 convolution with stride, batch norm, with `excite` a gate for
    each channel; plus the shortcut.

    (B, in_channels, H, W) -> (B, out_channels, H / stride, W / stride). The shortcut is a 1x1 convolution with batch
    norm where `project` is set, otherwise plain subsampling (the identity at stride 1).
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int, project: bool, excite: bool = False
    ) -> None:
        super().__init__()
        self.stride = stride
        self.norm = nn.BatchNorm2d(in_channels)
        self.first = ConvUnit(in_channels, out_channels, 3)
        self.second = ConvUnit(out_channels, out_channels, 3, stride=stride, activation=False)
        self.excite = SqueezeExcitation(out_channels) if excite else nn.Identity()
        # torch 2.13 crashes the process in the backward of a strided 1x1 convolution of 8 channels, channels last, on
        # the CPU. Subsampling first is the same map in every bit, and slower where there are more channels.
        self.subsamples_first = project and stride > 1 and in_channels <= _FEW_CHANNELS
        shortcut_stride = 1 if self.subsamples_first else stride
        self.shortcut = (
            ConvUnit(in_channels, out_channels, 1, stride=shortcut_stride, activation=False) if project else None
        )

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.excite(self.second(self.first(self.norm(inputs))))
        if self.stride > 1 and (self.shortcut is None or self.subsamples_first):
            inputs = inputs[:, :, :: self.stride, :: self.stride]
        return outputs + (inputs if self.shortcut is None else self.shortcut(inputs))


def residual_stages(
    blocks_per_stage: tuple[int, ...], width: float, *, project_every_stage: bool, excite: bool = False
) -> nn.ModuleList:
    """Return the four stages, each halving the resolution in its first block.

    Args:
        blocks_per_stage: a value of `DEPTHS`.
        width: multiplies the channel counts, each rounded to a multiple of 8.
        project_every_stage: give the first block of every stage a learned shortcut; otherwise only where the number of
            channels changes.
        excite: end every block in squeeze and excitation.
    """
    stages = nn.ModuleList()
    in_channels = scaled_channels(STAGE_CHANNELS[0], width)
    for blocks, base_channels in zip(blocks_per_stage, STAGE_CHANNELS, strict=True):
        channels = scaled_channels(base_channels, width)
        project = project_every_stage or channels != in_channels
        first = ResidualBlock(in_channels, channels, stride=2, project=project, excite=excite)
        others = [ResidualBlock(channels, channels, stride=1, project=False, excite=excite) for _ in range(blocks - 1)]
        stages.append(nn.Sequential(first, *others))
        in_channels = channels
    return stages
