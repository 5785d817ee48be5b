"""The target's column of the margin softmax: margin, scale and slope of each sample's own class, all of it (B,).

With c the cosine cut to [-L, L], theta = acos c and theta' = clip(theta + angular):

    logit = s (cos(theta') - additive)      slope = sin(theta') / sin(theta),  0 where c is cut or theta' clipped

It is formed without acos where no angle is clipped: cos(theta + m) = c cos m - sin(theta) sin m. `margin_softmax.py`
and `head_prologue.py` share it; the gradient is described in the former.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

MarginGrad = Literal["exact", "straight_through"]


class TargetColumn(NamedTuple):
    """The target column: everything about it is (B,), in the dtype of the loss, and without gradient."""

    cosine: Tensor
    """Not cut to the limit; 0 for ignored rows."""
    logit: Tensor
    """Margin and scale included."""
    slope: Tensor
    """d logit / (s d cosine)."""
    clamped: Tensor
    """Bool, cosine or angle was beyond its limit."""


def target_column(
    cosine: Tensor,
    angular: Tensor,
    additive: Tensor,
    logit_scale: float,
    cosine_limit: float,
    angle_limits: tuple[float, float] | None,
    margin_grad: MarginGrad,
) -> TargetColumn:
    """Margin logit of the target and its slope d logit / (s d cosine), without acos where no angle is clipped."""
    beyond = cosine.abs() > cosine_limit
    c = cosine.clamp(-cosine_limit, cosine_limit)
    sine = ((1.0 - c) * (1.0 + c)).sqrt()  # keeps its accuracy near theta = 0 and pi, which sin(acos c) does not
    cos_margin, sin_margin = torch.cos(angular), torch.sin(angular)
    margined = c * cos_margin - sine * sin_margin
    slope = cos_margin + sin_margin * c / sine
    slope = torch.where(sine == 0.0, torch.where(sin_margin == 0.0, cos_margin, 0.0), slope)
    clipped = torch.zeros_like(beyond)
    if angle_limits is not None:
        lowest, highest = angle_limits
        angle = torch.acos(c) + angular
        margined_at_limit = torch.cos(angle.clamp(lowest, highest))
        clipped = (angle < lowest) | (angle > highest)
        margined = torch.where(clipped, margined_at_limit, margined)
        slope = torch.where(clipped, 0.0, slope)
    if margin_grad == "straight_through":
        slope = torch.ones_like(slope)
    slope = torch.where(beyond, 0.0, slope)
    return TargetColumn(cosine, logit_scale * (margined - additive), slope, beyond | clipped)
