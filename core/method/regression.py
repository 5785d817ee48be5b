"""Cosine regression: the student's embedding is pulled straight towards the teacher's of the same image.

    loss_i = 1 - cos(x_i, t_i) = |x_i/|x_i| - t_i|^2 / 2
    d loss_i / d x_i = -(t_i - cos_i x_i/|x_i|) / |x_i|

It is what class centres are compared with: it knows no identities and asks only for the teacher's answer. Beside the
margin softmax it keeps that answer in sight after the centres have turned into classes; alone it is an objective
without centres and without state.

Gradient  exact, to the student alone; finite for embeddings of no length, which get none (see `heads.directions`)
Ignored   label -1 gives 0 and no gradient, whatever the row holds: such a record is damaged, so what the teacher says
          of its image is no lesson either
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adadistill.core.checkpoints import RowArray
from adadistill.core.distributed import Ranks
from adadistill.core.method.gathered_facts import GatheredFacts
from adadistill.core.method.lesson import Lesson, Teacher, own_teacher_embeddings
from adadistill.core.method.objective import ObjectiveStep
from adadistill.kernels.head_prologue import Directions, directions
from adadistill.loaders.batch import Batch


@dataclass(frozen=True, kw_only=True, slots=True)
class RegressionConfig:
    """Cosine regression of the student's embedding to the teacher's, beside the margin softmax or alone."""

    weight: float = 0.0
    """Multiplies the mean of 1 - cos(student, teacher), which is added to the margin softmax (itself of weight 1), or
    is the whole loss with `centres.kind: none`. At least 0; 0 is off. With `head.logit_scale`, 64, the teacher's
    embedding pulls as strongly as the class centre of a sample that is not learnt yet."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.weight < math.inf:
            raise ValueError(f"weight must be at least 0 and finite, got {self.weight}")


NO_REGRESSION = RegressionConfig(weight=0.0)


def cosine_regression(unit_embeddings: Tensor, teacher_embeddings: Tensor, labels: Tensor) -> Tensor:
    """1 - cos of each student embedding to the teacher's of the same image.

    Args:
        unit_embeddings: (B, D) rows of `heads.directions`, with gradient.
        teacher_embeddings: (B, D) unit rows; constants here.
        labels: (B,) int64; -1 to ignore.

    Returns:
        (B,) in [0, 2] up to rounding, float32 or wider.

    Raises:
        ValueError: shapes disagree.
    """
    if unit_embeddings.shape != teacher_embeddings.shape or labels.shape != unit_embeddings.shape[:1]:
        raise ValueError(
            f"student {tuple(unit_embeddings.shape)} and teacher {tuple(teacher_embeddings.shape)} must both be (B, D) "
            f"and labels (B,), got {tuple(labels.shape)}"
        )
    dtype = torch.promote_types(torch.promote_types(unit_embeddings.dtype, teacher_embeddings.dtype), torch.float32)
    valid = labels >= 0
    # Ignored rows are cut out before the product: 0 * NaN would reach the student.
    student = torch.where(valid[:, None], unit_embeddings.to(dtype), 0.0)
    cosine = (student * teacher_embeddings.detach().to(dtype)).sum(-1)  # (B,)
    return torch.where(valid, 1.0 - cosine, 0.0)


def with_regression(
    loss: Tensor, config: RegressionConfig, student: Directions, lesson: Lesson, labels: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The 0-dim loss with the weighted cosine regression added where it is on, and what to report of the teacher."""
    metrics = {"student_teacher_cosine": lesson.cosine.mean()}
    if config.weight == 0.0:
        return loss, metrics
    regression = cosine_regression(student.unit_embeddings, lesson.teacher_embeddings, labels).mean()
    return loss + config.weight * regression, {**metrics, "regression": regression.detach()}


class RegressionObjective:
    """Cosine regression to the teacher alone: no centres, no softmax, no state.

    Args:
        regression: its weight multiplies the loss and must be positive.
    """

    def __init__(self, *, regression: RegressionConfig, teacher: Teacher, ranks: Ranks) -> None:
        if regression.weight <= 0.0:
            raise ValueError(f"regression alone needs a positive weight, got {regression.weight}")
        self.regression = regression
        self.teacher = teacher
        self.ranks = ranks

    def step(self, embeddings: Tensor, batch: Batch, *, fractional_epoch: float, stop: bool) -> ObjectiveStep:
        """See `Objective.step`."""
        own = own_teacher_embeddings(self.teacher, batch, self.ranks)
        student = directions(embeddings, own)
        lesson = Lesson(own, student.teacher_cosine)
        facts = GatheredFacts.gather(lesson.cosine, student.quality, batch, stop=stop, ranks=self.ranks)
        no_softmax = lesson.cosine.new_zeros(())
        loss, metrics = with_regression(no_softmax, self.regression, student, lesson, batch.labels)
        return facts.outcome(loss, {**metrics, "quality": student.quality.mean()})

    def commit_(self, finite: Tensor) -> None:
        """Nothing to do."""

    def parameters(self) -> dict[str, nn.Parameter]:
        """None."""
        return {}

    def reduce_gradients_(self, ranks: Ranks) -> None:
        """Nothing to do."""

    def row_sharded(self) -> dict[str, RowArray]:
        """Nothing."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def load(self, *, row_sharded: dict[str, RowArray], tensors: dict[str, Tensor]) -> None:
        """See `Objective.load`.

        Raises:
            ValueError: the checkpoint is of an objective with state.
        """
        if row_sharded or tensors:
            raise ValueError(
                f"regression alone has no state, but the checkpoint holds {sorted({**row_sharded, **tensors})}"
            )
