"""Folds the batch norms of a frozen backbone into the maps beside them, where that changes nothing but rounding.

In evaluation mode a batch norm is scale * x + shift for each channel. After a convolution or a linear map it goes into
the rows of that map, before a linear map into its columns. What stays is the norm that opens a residual block: zeros
are padded after it, where a shift that had become part of the convolution would be felt. `torch.nn.utils.fusion` knows
neither a norm before a map nor, for linear maps, one without weight and bias, so all of it is written out here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adadistill.core.backbones.ir import IR
from adadistill.core.backbones.iresnet import IResNet
from adadistill.core.backbones.layers import ConvUnit, EmbeddingLayer


def fold_batch_norms_(network: nn.Module) -> None:
    """Fold every batch norm of our backbones, at any depth inside a network, that can be folded exactly. In place.

    Computed in float64 and stored in the dtype of the weights, so embeddings differ by rounding alone. The maps change
    and are frozen; folded norms become `nn.Identity`, so that folding twice is folding once.

    Args:
        network: any module in evaluation mode; what is not of our own layers stays as it is.

    Raises:
        ValueError: it is in training mode, where norms follow the batch and cannot be folded.
    """
    if network.training:
        raise ValueError("batch norms are folded in evaluation mode; call network.eval() first")
    for module in list(network.modules()):
        if isinstance(module, ConvUnit):
            _fold_norm_after_(module, module.conv)
        elif isinstance(module, EmbeddingLayer):
            _fold_norm_after_(module, module.linear)
        elif isinstance(module, IR | IResNet):
            _fold_norm_before_(module, module.embed.linear)


def _fold_norm_after_(owner: nn.Module, linear_map: nn.Conv2d | nn.Linear) -> None:
    """Fold `owner.norm`, which takes what the map gives: scale its rows."""
    if (affine := _take_norm_(owner)) is not None:
        scale, shift = affine
        weight = linear_map.weight.double()  # (out, in) or (out, in, k, k)
        bias = shift if linear_map.bias is None else linear_map.bias.double() * scale + shift
        _set_(linear_map, weight * scale.view(-1, *[1] * (weight.ndim - 1)), bias)


def _fold_norm_before_(owner: nn.Module, linear: nn.Linear) -> None:
    """Fold `owner.norm`, whose (B, C, h, w) the map takes flattened, channel by channel: scale its columns."""
    if (affine := _take_norm_(owner)) is not None:
        cells = linear.in_features // len(affine[0])
        scale, shift = (per_channel.repeat_interleave(cells) for per_channel in affine)  # (C*h*w,)
        weight = linear.weight.double()  # (D, C*h*w)
        bias = weight @ shift if linear.bias is None else linear.bias.double() + weight @ shift
        _set_(linear, weight * scale, bias)


def _take_norm_(owner: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Put an identity in the place of `owner.norm` and return its scale and shift, (C,) float64; None if it was one."""
    norm = owner.get_submodule("norm")
    if isinstance(norm, nn.Identity):
        return None
    assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)
    shift = torch.zeros_like(scale)
    if norm.affine:
        scale, shift = scale * norm.weight.detach().double(), norm.bias.detach().double()
    owner.set_submodule("norm", nn.Identity())
    return scale, shift - norm.running_mean.double() * scale


def _set_(linear_map: nn.Conv2d | nn.Linear, weight: Tensor, bias: Tensor) -> None:
    dtype = linear_map.weight.dtype
    linear_map.weight = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
    linear_map.bias = nn.Parameter(bias.detach().to(dtype), requires_grad=False)
