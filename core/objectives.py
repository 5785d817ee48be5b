"""What a step minimises, and the state beside the student that it owns.

Two objectives behind one protocol. `DistillationObjective` is the method: class centres averaged from teacher
embeddings, margins from the student's embedding norms and the geometry between student, teacher and centre.
`ClassificationObjective` trains centres by gradient, for baselines and for teachers themselves.

Both follow the order of method 4.1: teacher, centre update, statistics, margins, softmax; and both propose their state
changes first and keep them only when told that the step was finite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from adadistill.core.class_centres import (
    AdaptiveCentres,
    CentreStep,
    TrainableCentres,
    student_teacher_cosine,
)
from adadistill.core.distributed import Ranks, average_, gather_rows, local_slice
from adadistill.core.geometry_margin import GeometryMarginConfig, geometry_term
from adadistill.core.heads import Directions, HeadConfig, Margins, directions, head_limits, margins
from adadistill.core.norm_statistics import NormStatistics, updated_norm_statistics
from adadistill.core.teachers import ImageTeacher, RecordTeacher
from adadistill.kernels.margin_softmax import MarginSoftmax, margin_softmax
from adadistill.loaders.batch import Batch


@dataclass(frozen=True, slots=True)
class GlobalSamples:
    """Host-side facts of the whole global batch that every rank knows without communication."""

    record_ids: npt.NDArray[np.int64]
    """(G,) in global batch order."""
    mirrored: npt.NDArray[np.bool_]
    """(G,)."""


@dataclass(frozen=True, slots=True)
class ObjectiveStep:
    """One evaluation of an objective."""

    loss: Tensor
    """0-dim, mean over the rank's samples, to be differentiated."""
    finite_samples: Tensor
    """(G,) bool, equal on all ranks: image, embedding and teacher embedding of each sample are finite."""
    stop_requested: Tensor
    """0-dim bool, equal on all ranks: some rank was asked to stop."""
    metrics: dict[str, Tensor]
    """0-dim values of the rank's own samples, to be averaged over steps and ranks."""


class Objective(Protocol):
    """Loss on raw student embeddings, with the state it owns."""

    def step(
        self, embeddings: Tensor, batch: Batch, samples: GlobalSamples, *, fractional_epoch: float, stop: bool
    ) -> ObjectiveStep:
        """Loss of one batch. State changes are proposed; `commit_` must follow.

        Args:
            embeddings: (B, D) raw, with gradient.
            fractional_epoch: epoch + step / steps per epoch.
            stop: whether this process was asked to stop, carried to all ranks.
        """
        ...

    def commit_(self, finite: Tensor) -> None:
        """Keep the proposed state where `finite` (0-dim bool), restore the old one elsewhere; no host sync."""
        ...

    def parameters(self) -> list[nn.Parameter]:
        """Parameters trained beside the student's, with their names in `tensors`."""
        ...

    def reduce_gradients_(self, ranks: Ranks) -> None:
        """Average the gradients of `parameters` over ranks."""
        ...

    def row_sharded(self) -> dict[str, Tensor]:
        """Large (C, ...) arrays of the checkpoint, equal on all ranks."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Small tensors of the checkpoint, equal on all ranks."""
        ...

    def load(self, *, row_sharded: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
        """Put back what `row_sharded` and `tensors` returned."""
        ...


Centres = TypeVar("Centres", AdaptiveCentres, TrainableCentres)


class _CentresAndStatistics(Generic[Centres]):
    """The state that both objectives own, and its way in and out of a checkpoint."""

    centres: Centres
    statistics: NormStatistics
    ranks: Ranks

    def row_sharded(self) -> dict[str, Tensor]:
        """See `Objective.row_sharded`."""
        return self.centres.state_dict()

    def tensors(self) -> dict[str, Tensor]:
        """See `Objective.tensors`."""
        return self.statistics.state_dict()

    def load(self, *, row_sharded: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
        """See `Objective.load`."""
        self.centres.load_state_dict(row_sharded)
        self.statistics = NormStatistics.from_state_dict(tensors, device=self.ranks.device)


class DistillationObjective(_CentresAndStatistics[AdaptiveCentres]):
    """AdaDistill's adaptive centres with AdaFace, ArcFace or CosFace margins and the geometry-aware margin.

    Args:
        centres: replicated; every rank applies the update of the whole global batch.
        statistics: AdaFace's norm statistics of the global batch; replicated.
    """

    def __init__(
        self,
        *,
        head: HeadConfig,
        geometry: GeometryMarginConfig,
        centres: AdaptiveCentres,
        teacher: ImageTeacher | RecordTeacher,
        statistics: NormStatistics,
        ranks: Ranks,
    ) -> None:
        self.head = head
        self.geometry = geometry
        self.centres = centres
        self.teacher = teacher
        self.statistics = statistics
        self.ranks = ranks
        self._proposed: tuple[CentreStep, NormStatistics] | None = None

    def step(
        self, embeddings: Tensor, batch: Batch, samples: GlobalSamples, *, fractional_epoch: float, stop: bool
    ) -> ObjectiveStep:
        """See `Objective.step`."""
        student = directions(embeddings)
        teacher_global = self._teacher_embeddings(batch, samples)  # (G, D)
        teacher = local_slice(teacher_global, self.ranks)
        cosine = student_teacher_cosine(student.unit_embeddings, teacher)

        shared = _Shared.gather(cosine, student.quality, batch, stop=stop, ranks=self.ranks)
        centre_step = self.centres.propose_update(teacher_global, shared.labels, shared.cosine)
        statistics = _next_statistics(self.statistics, self.head, shared)
        self._proposed = (centre_step, statistics)

        confidence = local_slice(centre_step.confidence, self.ranks)
        geometry = geometry_term(self.geometry, confidence, cosine, fractional_epoch)
        margin = margins(self.head, student.quality, statistics, None if self.geometry.mode == "off" else geometry)
        softmax = _softmax(self.head, self.centres, student, batch.labels, margin)
        return ObjectiveStep(
            loss=softmax.loss.mean(),
            finite_samples=shared.finite,
            stop_requested=shared.stop,
            metrics={
                **_margin_metrics(softmax, margin, student, statistics),
                "student_teacher_cosine": cosine.mean(),
                "confidence": confidence.mean(),
                "centre_momentum": local_slice(centre_step.momentum, self.ranks).mean(),
                "geometry": geometry.mean(),
                "geometry_active": (geometry > 0).float().mean(),
            },
        )

    def commit_(self, finite: Tensor) -> None:
        """See `Objective.commit_`."""
        assert self._proposed is not None, "commit_ follows step"
        centre_step, statistics = self._proposed
        centre_step.commit_(finite)
        self.statistics = self.statistics.committed(statistics, finite)
        self._proposed = None

    def parameters(self) -> list[nn.Parameter]:
        """None: centres are averages of teacher embeddings, not parameters."""
        return []

    def reduce_gradients_(self, ranks: Ranks) -> None:
        """Nothing to do."""

    def _teacher_embeddings(self, batch: Batch, samples: GlobalSamples) -> Tensor:
        """(G, D) unit embeddings of the global batch: gathered from a network, read from a store."""
        if isinstance(self.teacher, ImageTeacher):
            return gather_rows(self.teacher.embed(batch.images), self.ranks)
        return self.teacher.rows(samples.record_ids, samples.mirrored)


class ClassificationObjective(_CentresAndStatistics[TrainableCentres]):
    """Margin softmax against class centres trained by gradient: the baseline without a teacher.

    Args:
        centres: replicated parameters, outside DDP; `reduce_gradients_` keeps replicas equal.
    """

    def __init__(
        self, *, head: HeadConfig, centres: TrainableCentres, statistics: NormStatistics, ranks: Ranks
    ) -> None:
        self.head = head
        self.centres = centres
        self.statistics = statistics
        self.ranks = ranks
        self._proposed: NormStatistics | None = None

    def step(
        self, embeddings: Tensor, batch: Batch, samples: GlobalSamples, *, fractional_epoch: float, stop: bool
    ) -> ObjectiveStep:
        """See `Objective.step`."""
        student = directions(embeddings)
        no_cosine = torch.zeros_like(student.quality)
        shared = _Shared.gather(no_cosine, student.quality, batch, stop=stop, ranks=self.ranks)
        statistics = self._proposed = _next_statistics(self.statistics, self.head, shared)
        margin = margins(self.head, student.quality, statistics)
        softmax = _softmax(self.head, self.centres, student, batch.labels, margin)
        return ObjectiveStep(
            loss=softmax.loss.mean(),
            finite_samples=shared.finite,
            stop_requested=shared.stop,
            metrics=_margin_metrics(softmax, margin, student, statistics),
        )

    def commit_(self, finite: Tensor) -> None:
        """See `Objective.commit_`. The centres themselves are the optimiser's to commit."""
        assert self._proposed is not None, "commit_ follows step"
        self.statistics = self.statistics.committed(self._proposed, finite)
        self._proposed = None

    def parameters(self) -> list[nn.Parameter]:
        """See `Objective.parameters`."""
        return [self.centres.class_centres]

    def reduce_gradients_(self, ranks: Ranks) -> None:
        """See `Objective.reduce_gradients_`."""
        gradient = self.centres.class_centres.grad
        assert gradient is not None, "reduce_gradients_ follows backward"
        average_(gradient, ranks)


@dataclass(frozen=True, slots=True)
class _Shared:
    """Per-sample facts of the global batch, gathered in one collective of a few numbers per sample."""

    cosine: Tensor  # (G,) student-teacher
    quality: Tensor  # (G,) embedding norm
    labels: Tensor  # (G,) int64
    finite: Tensor  # (G,) bool
    stop: Tensor  # () bool

    @staticmethod
    def gather(cosine: Tensor, quality: Tensor, batch: Batch, *, stop: bool, ranks: Ranks) -> _Shared:
        # Integers travel as bits of the floating dtype: gathering copies bytes, so they arrive as they were.
        bits = torch.int64 if cosine.dtype == torch.float64 else torch.int32
        images_finite = torch.isfinite(batch.images.sum(dim=(1, 2, 3), dtype=torch.float32))
        columns = [
            cosine,
            quality,
            batch.labels.to(bits).view(cosine.dtype),
            images_finite.to(cosine.dtype),
            torch.full_like(cosine, float(stop)),
        ]
        packed = gather_rows(torch.stack(columns, dim=1), ranks)  # (G, 5)
        cosine_global, quality_global = packed[:, 0].contiguous(), packed[:, 1].contiguous()
        return _Shared(
            cosine=cosine_global,
            quality=quality_global,
            labels=packed[:, 2].contiguous().view(bits).to(torch.int64),
            finite=torch.isfinite(cosine_global) & torch.isfinite(quality_global) & (packed[:, 3] > 0),
            stop=(packed[:, 4] > 0).any(),
        )


def _next_statistics(statistics: NormStatistics, head: HeadConfig, shared: _Shared) -> NormStatistics:
    return updated_norm_statistics(statistics, shared.quality, momentum=head.norm_momentum, valid=shared.labels >= 0)


def _softmax(
    head: HeadConfig, centres: AdaptiveCentres | TrainableCentres, student: Directions, labels: Tensor, margin: Margins
) -> MarginSoftmax:
    limits = head_limits(head)
    return margin_softmax(
        student.unit_embeddings,
        centres.unit_centres(),
        labels,
        margin.angular,
        margin.additive,
        logit_scale=head.logit_scale,
        cosine_limit=limits.cosine_limit,
        angle_limits=limits.angle_limits,
        margin_grad=head.margin_grad,
        target_centres=centres.target_centres(labels),
    )


def _margin_metrics(
    softmax: MarginSoftmax, margin: Margins, student: Directions, statistics: NormStatistics
) -> dict[str, Tensor]:
    return {
        "loss": softmax.loss.detach().mean(),
        "target_cosine": softmax.target_cosine.mean(),
        "margins_clipped": margin.clipped.float().mean(),
        "quality": student.quality.mean(),
        "norm_mean": statistics.mean,
        "norm_std": statistics.std,
    }
