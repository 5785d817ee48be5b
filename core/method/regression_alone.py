"""The teacher's embedding of each image as the only target: no centres and no identities."""

from __future__ import annotations

from torch import Tensor, nn

from adadistill.core.checkpoints import RowArray
from adadistill.core.distributed import Ranks
from adadistill.core.method.gathered_facts import GatheredFacts
from adadistill.core.method.lesson import Lesson, Teacher, own_teacher_embeddings
from adadistill.core.method.objective import ObjectiveStep
from adadistill.core.method.regression import RegressionConfig, with_regression
from adadistill.kernels.head_prologue import directions
from adadistill.loaders.batch import Batch


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
