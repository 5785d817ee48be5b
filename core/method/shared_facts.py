"""What a step knows before any loss: the teacher's embeddings, and what ranks tell each other of each sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from adadistill.core.distributed import Ranks, gather_rows
from adadistill.core.method.norm_statistics import NormStatistics
from adadistill.core.method.objective import ObjectiveStep
from adadistill.core.method.regression import RegressionConfig, cosine_regression
from adadistill.core.teachers import ImageTeacher, RecordTeacher
from adadistill.kernels.head_prologue import (
    CentreStore,
    Directions,
    GeometryRule,
    HeadPrologue,
    HeadRule,
    head_prologue,
)
from adadistill.loaders.batch import Batch
from adadistill.loaders.records.named_ranges import in_range

NO_REGRESSION = RegressionConfig(weight=0.0)
Teacher: TypeAlias = ImageTeacher | RecordTeacher


@in_range("teacher")
def global_teacher_embeddings(teacher: Teacher, batch: Batch, ranks: Ranks) -> Tensor:
    """(G, D) unit embeddings of the global batch: gathered from a network, read from a store."""
    if isinstance(teacher, ImageTeacher):
        return gather_rows(teacher.embed(batch.images), ranks)
    return teacher.rows(batch.global_record_ids, batch.global_mirrored, batch.view)


@in_range("teacher")
def own_teacher_embeddings(teacher: Teacher, batch: Batch, ranks: Ranks) -> Tensor:
    """(B, D) unit embeddings of this rank's samples, without communication."""
    if isinstance(teacher, ImageTeacher):
        return teacher.embed(batch.images)
    own = slice(ranks.rank * len(batch.labels), (ranks.rank + 1) * len(batch.labels))
    return teacher.rows(batch.global_record_ids[own], batch.global_mirrored[own], batch.view)


@dataclass(frozen=True, slots=True)
class Lesson:
    """What the teacher says of the rank's own samples."""

    teacher_embeddings: Tensor  # (B, D) unit
    cosine: Tensor  # (B,) student-teacher, without gradient


@dataclass(frozen=True, slots=True)
class SharedFacts:
    """Per-sample facts of the global batch, gathered in one collective of a few numbers per sample."""

    cosine: Tensor  # (G,) student-teacher
    quality: Tensor  # (G,) embedding norm
    labels: Tensor  # (G,) int64
    finite: Tensor  # (G,) bool
    stop: Tensor  # () bool

    @staticmethod
    def gather(cosine: Tensor, quality: Tensor, batch: Batch, *, stop: bool, ranks: Ranks) -> SharedFacts:
        """Tell all ranks of the own samples, (B,) each, and hear of theirs."""
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
        return SharedFacts(
            cosine=cosine_global,
            quality=quality_global,
            labels=packed[:, 2].contiguous().view(bits).to(torch.int64),
            finite=torch.isfinite(cosine_global) & torch.isfinite(quality_global) & (packed[:, 3] > 0),
            stop=(packed[:, 4] > 0).any(),
        )

    def prologue(
        self,
        student: Directions,
        labels: Tensor,
        *,
        statistics: NormStatistics,
        confidence: Tensor | None,
        store: CentreStore,
        head: HeadRule,
        geometry: GeometryRule,
    ) -> HeadPrologue:
        """What the head makes of the rank's own samples, and the statistics with the global batch in them."""
        return head_prologue(
            student,
            labels,
            confidence=confidence,
            global_quality=self.quality,
            global_labels=self.labels,
            norm_mean=statistics.mean,
            norm_std=statistics.std,
            store=store,
            head=head,
            geometry=geometry,
        )

    def outcome(self, loss: Tensor, metrics: dict[str, Tensor]) -> ObjectiveStep:
        """What `Objective.step` returns for this batch; `metrics` are of the rank's own samples."""
        return ObjectiveStep(
            loss=loss,
            finite_samples=self.finite,
            stop_requested=self.stop,
            metrics={"loss": loss.detach(), **metrics},
        )


def with_regression(
    loss: Tensor, config: RegressionConfig, student: Directions, lesson: Lesson, labels: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The 0-dim loss with the weighted cosine regression added where it is on, and what to report of the teacher."""
    metrics = {"student_teacher_cosine": lesson.cosine.mean()}
    if config.weight == 0.0:
        return loss, metrics
    regression = cosine_regression(student.unit_embeddings, lesson.teacher_embeddings, labels).mean()
    return loss + config.weight * regression, {**metrics, "regression": regression.detach()}
