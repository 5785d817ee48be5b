"""Geometry-aware margin: asks more of samples where the student lags behind a teacher who is sure of itself.

The term is added to AdaFace's quality scaler before that is clipped, so it moves a lagging sample towards the margins
of a high-quality one: a larger additive part and a smaller angular one. It does not simply add an angle. It is made of
the confidence (cosine of the centre as it was before the step to the teacher's embedding) and of the student-teacher
cosine, and carries no gradient. A ramp over the first epochs keeps it out while neither of them means anything yet.
`headroom` is the same term of another confidence, that of slow centres (`core/method/slow_centres.py`).

Source: github.com/rayyichen310/adadistill_with_adaface_loss, re-derived from its description.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from adadistill.kernels.head_prologue import GeometryRule, geometry_values


@dataclass(frozen=True, kw_only=True, slots=True)
class GeometryMarginConfig:
    """Extra margin where the student lags behind a confident teacher; for the adaface head with adaptive or frozen
    centres."""

    mode: Literal["off", "adaptive", "static", "headroom"] = "off"
    """`adaptive` compares confidence with the student-teacher cosine; `static` looks at that cosine alone; `headroom`
    is `adaptive` with the confidence of a second, slow centre of each identity, which is not capped by the noise of
    adaptive centres (C D more numbers of memory; adaptive centres only; not in the published method)."""
    weight: float = 1.0
    """Multiplies the term after its ramp. At least 0. The origin's final recipe has 1."""
    scale: float = 3.0
    """Slope of the term in the lag. At least 0. The origin's final recipe has 3."""
    warmup_epochs: float = 1.0
    """Epochs, fractions allowed, over which the term is ramped up; 0 has it in full from the start."""
    mask: float = 0.8
    """`static` only: student-teacher cosines from here on get no term. In [-1, 1]."""
    baseline: float = 0.25
    """`static` only: subtracted from the term, negative results count as 0. In [0, 1]."""
    headroom_momentum: float = 0.99
    """`headroom` only: weight that a slow centre keeps at each image of its identity. In [0, 1); 0.99 averages about a
    hundred images, more than one epoch shows of a person in MS1MV2."""

    def __post_init__(self) -> None:
        if self.mode not in ("off", "adaptive", "static", "headroom"):
            raise ValueError(f"mode must be off, adaptive, static or headroom, got {self.mode!r}")
        for name in ("weight", "scale", "warmup_epochs"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be at least 0 and finite, got {getattr(self, name)}")
        if not -1.0 <= self.mask <= 1.0:
            raise ValueError(f"mask must be in [-1, 1], got {self.mask}")
        if not 0.0 <= self.baseline <= 1.0:
            raise ValueError(f"baseline must be in [0, 1], got {self.baseline}")
        if not 0.0 <= self.headroom_momentum < 1.0:
            raise ValueError(f"headroom_momentum must be in [0, 1), got {self.headroom_momentum}")


def geometry_ramp(config: GeometryMarginConfig, fractional_epoch: float) -> float:
    """Share of the term in force at `fractional_epoch` (epoch + step / steps per epoch), linear until full.

    `adaptive` and `headroom` start from 0, `static` (as it was published) from 1 / (warmup_epochs + 1); all are full
    after `warmup_epochs`.
    """
    if config.warmup_epochs == 0.0:
        return 1.0
    if config.mode == "static":
        return min(1.0, (fractional_epoch + 1.0) / (config.warmup_epochs + 1.0))
    return min(1.0, max(0.0, fractional_epoch / config.warmup_epochs))


def geometry_rule(config: GeometryMarginConfig, fractional_epoch: float) -> GeometryRule:
    """The term's numbers at `fractional_epoch` for `kernels/head_prologue.py`, to which `headroom` is `adaptive`."""
    weight = config.weight * geometry_ramp(config, fractional_epoch)
    mode = "adaptive" if config.mode == "headroom" else config.mode
    return GeometryRule(mode, weight, config.scale, config.mask, config.baseline)


def geometry_term(
    config: GeometryMarginConfig, confidence: Tensor, student_teacher_cosine: Tensor, fractional_epoch: float
) -> Tensor:
    """What to add to the quality scaler of each sample before it is clipped.

    Args:
        config: mode and constants.
        confidence: (B,) or (B, 1), cosine of the pre-step centre (`headroom`: of the pre-step slow centre) to the
            teacher's embedding, cut to [1e-6, 1].
        student_teacher_cosine: (B,) or (B, 1), in [-1, 1].
        fractional_epoch: epoch + step / steps per epoch, from 0.

    Returns:
        (B,) at least 0, weight and ramp included, without gradient; zeros when the mode is off.

    Raises:
        ValueError: shapes disagree.
    """
    confidence, cosine = _flat("confidence", confidence), _flat("student_teacher_cosine", student_teacher_cosine)
    if confidence.shape != cosine.shape:
        raise ValueError(
            f"confidence {tuple(confidence.shape)} and student_teacher_cosine {tuple(cosine.shape)} must match"
        )
    return geometry_values(geometry_rule(config, fractional_epoch), confidence, cosine)


def _flat(name: str, values: Tensor) -> Tensor:
    """(B,) detached, float32 or wider; the origin once added a (B, 1) to a (B,) and trained on (B, B)."""
    if values.ndim == 2 and values.shape[1] == 1:
        values = values.squeeze(1)
    if values.ndim != 1:
        raise ValueError(f"{name} must be (B,) or (B, 1), got {tuple(values.shape)}")
    return values.detach().to(torch.promote_types(values.dtype, torch.float32))
