"""Batches for the head prologue, shared by its tests and by the process that runs Triton's interpreter."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from adadistill.core.method.geometry_margin import GeometryMarginConfig
from adadistill.core.method.heads import HeadConfig
from adadistill.kernels.head_prologue import CentreStore, Directions, HeadPrologue

ADAFACE = HeadConfig()
ARCFACE, COSFACE = HeadConfig(kind="arcface", margin=0.45), HeadConfig(kind="cosface", margin=0.35)


@dataclass(frozen=True, kw_only=True)
class CutAndStraight(HeadConfig):
    """No published head has both, but limits and gradient are two things."""

    heads: ClassVar = {"adaface": replace(ADAFACE.head, straight_through_limits=ADAFACE.limits)}


OFF = GeometryMarginConfig()
VARIANTS: dict[str, tuple[HeadConfig, GeometryMarginConfig]] = {
    "adaface, adaptive": (ADAFACE, GeometryMarginConfig(mode="adaptive")),
    "adaface, static": (ADAFACE, GeometryMarginConfig(mode="static", weight=0.8, scale=1.4)),
    "straight through": (CutAndStraight(margin_grad="straight_through"), OFF),
    "arcface": (ARCFACE, OFF),
    "cosface": (COSFACE, OFF),
}


@dataclass(frozen=True)
class Case:
    """One rank's rows, the first of a global batch."""

    embeddings: Tensor
    teacher: Tensor
    labels: Tensor
    confidence: Tensor
    others_quality: Tensor
    others_labels: Tensor
    centres: Tensor
    mean: Tensor
    std: Tensor

    def to(self, dtype: torch.dtype, device: str = "cpu") -> Case:
        return Case(*(v.to(device, dtype if v.is_floating_point() else None) for v in vars(self).values()))

    def inputs(self, student: Directions, variant: str, *, unit: bool) -> dict[str, Any]:
        """Of `head_prologue`, on these directions."""
        head, geometry = VARIANTS[variant]
        return {
            "student": student,
            "labels": self.labels,
            "confidence": None if geometry.mode == "off" else self.confidence,
            "global_quality": torch.cat([student.quality, self.others_quality]),
            "global_labels": torch.cat([self.labels, self.others_labels]),
            "norm_mean": self.mean,
            "norm_std": self.std,
            "store": CentreStore(normalize(self.centres) if unit else self.centres, unit),
            "head": head,
            "geometry": geometry,
            "geometry_ramp": 0.7,
        }


def make_case(batch: int, dim: int, *, others: int = 0, classes: int = 7, seed: int = 0) -> Case:
    """Random case in float64, of values that float32 holds; from 10 rows on, with what breaks lesser code.

    Embeddings exactly on and opposite their centre and near either, of no length, shorter than 1e-8, and of norms on
    either side of those that count; an ignored row of NaN; repeated labels. Norms spread around statistics of 20 and 4,
    so that the scaler is clipped for some.
    """
    draw = torch.Generator().manual_seed(seed + 97 * batch + dim)
    centres = torch.randn(classes, dim, generator=draw) * 0.3
    labels = torch.randint(0, classes, (batch,), generator=draw)
    teacher = normalize(torch.randn(batch, dim, generator=draw) + 3.0 * normalize(centres)[labels])
    lengths = 20.0 + 12.0 * torch.randn(batch, 1, generator=draw)
    embeddings = lengths * normalize(
        torch.randn(batch, dim, generator=draw) + 2.0 * teacher + normalize(centres)[labels]
    )
    if batch >= 10:
        axis = torch.zeros(dim)
        axis[3] = 1.0
        centres[1] = 2.0 * axis
        labels[:3] = torch.tensor([1, 1, 1])
        embeddings[0], embeddings[1] = 16.0 * axis, -16.0 * axis
        embeddings[2] = 0.0
        embeddings[3] *= 1e-10
        embeddings[4] *= 1e-6
        embeddings[5] *= 30.0
        embeddings[6], labels[6] = torch.nan, -1
        labels[8] = labels[7]
        # Angles that the margin pushes beyond either end: a good face near its centre, a poor one far from it.
        near = normalize(normalize(centres)[labels[7:9]] + 0.35 * normalize(torch.randn(2, dim, generator=draw)))
        embeddings[7:9] = near * torch.tensor([[60.0], [-1.0]])
    return Case(
        embeddings.double(),
        teacher.double(),
        labels,
        torch.rand(batch, generator=draw).double(),
        (20.0 + 30.0 * torch.randn(others, generator=draw)).abs().double(),
        torch.randint(-1, classes, (others,), generator=draw),
        centres.double(),
        torch.tensor(20.0).double(),
        torch.tensor(4.0).double(),
    )


def as_double(student: Directions) -> Directions:
    return Directions(*(value.detach().double() for value in (
        student.unit_embeddings, student.quality, student.teacher_cosine)))  # fmt: skip


def parts(made: HeadPrologue) -> dict[str, Tensor]:
    """Every tensor of it by name."""
    return {
        "norm_mean": made.norm_mean, "norm_std": made.norm_std, "geometry": made.geometry,
        "angular": made.margins.angular, "additive": made.margins.additive, "scaler": made.margins.scaler,
        "clipped": made.margins.clipped, "rows": made.target_rows, **made.target._asdict(),
    }  # fmt: skip
