"""One step of the whole head on raw embeddings, composed of the public parts, for tests of several files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from adadistill.core.method.class_centres import AdaptiveCentres, CentreStep, TrainableCentres, student_teacher_cosine
from adadistill.core.method.geometry_margin import GeometryMarginConfig, geometry_ramp
from adadistill.core.method.heads import Directions, HeadConfig, Margins, directions, margins
from adadistill.core.method.norm_statistics import NormStatistics, updated_norm_statistics
from adadistill.kernels.head_margins import geometry_values
from adadistill.kernels.margin_softmax import MarginSoftmax, margin_logits_reference


def geometry_term(config: GeometryMarginConfig, confidence: Tensor, cosine: Tensor, epoch: float) -> Tensor:
    """The term of (B,) samples at an epoch."""
    return geometry_values(config, geometry_ramp(config, epoch), confidence, cosine)


@dataclass(frozen=True)
class Prepared:
    """Everything of a step but the loss, so that several forms of the loss can be compared on it."""

    head: HeadConfig
    student: Tensor
    parts: Directions
    labels: Tensor
    cosine: Tensor
    margin: Margins
    statistics: NormStatistics
    centres: AdaptiveCentres | TrainableCentres
    centre_step: CentreStep | None

    def softmax(self, form: Callable[..., MarginSoftmax]) -> MarginSoftmax:
        adaptive = isinstance(self.centres, AdaptiveCentres)
        target = self.centres.target_store().rows_of(self.labels) if adaptive else None
        return form(*self._inputs(), target_centres=target, **self._options())

    def gradients(self, form: Callable[..., MarginSoftmax]) -> tuple[Tensor, list[Tensor]]:
        """Mean loss and its gradients to the raw embeddings and, where they are trained, the stored centres."""
        loss = self.softmax(form).loss.mean()
        wanted = [self.student]
        if isinstance(self.centres, TrainableCentres):
            wanted.append(self.centres.class_centres)
        return loss.detach(), list(torch.autograd.grad(loss, wanted, retain_graph=True))

    def logits(self) -> Tensor:
        return margin_logits_reference(*self._inputs(), **self._options()).detach()

    def _inputs(self) -> tuple[Tensor, ...]:
        unit = self.parts.unit_embeddings
        return unit, self.centres.unit_centres(), self.labels, self.margin.angular, self.margin.additive

    def _options(self) -> dict[str, object]:
        limits = self.head.limits
        return {
            "logit_scale": self.head.logit_scale,
            "cosine_limit": limits.cosine_limit,
            "angle_limits": limits.angle_limits,
            "margin_grad": self.head.margin_grad,
        }


def prepare_step(
    head: HeadConfig,
    centres: AdaptiveCentres | TrainableCentres,
    statistics: NormStatistics,
    student: Tensor,
    labels: Tensor,
    *,
    teacher: Tensor | None = None,
    geometry: GeometryMarginConfig | None = None,
    epoch: float = 0.0,
) -> Prepared:
    """Raw (B, D) student and teacher embeddings through statistics, centres and margins, as one process."""
    student = student.detach().clone().requires_grad_()
    parts = directions(student)
    statistics = updated_norm_statistics(statistics, parts.quality, momentum=head.norm_momentum, valid=labels >= 0)
    cosine, step, term = torch.zeros_like(parts.quality), None, None
    if isinstance(centres, AdaptiveCentres):
        assert teacher is not None
        unit_teacher = directions(teacher).unit_embeddings
        cosine = student_teacher_cosine(parts.unit_embeddings, unit_teacher)
        step = centres.propose_update(unit_teacher, labels, cosine)
        if geometry is not None and geometry.mode != "off":
            term = geometry_term(geometry, step.confidence, cosine, epoch)
    margin = margins(head, parts.quality, statistics, term)
    return Prepared(head, student, parts, labels, cosine, margin, statistics, centres, step)
