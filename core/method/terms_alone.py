"""What the teacher says as the only target: terms without class centres, margins or identities."""

from __future__ import annotations

from torch import Tensor, nn

from adadistill.core.checkpoints import RowArray
from adadistill.core.distributed import Ranks
from adadistill.core.method.gathered_facts import GatheredFacts
from adadistill.core.method.lesson import Lesson, Teacher, own_teacher_embeddings
from adadistill.core.method.objective import ObjectiveStep
from adadistill.core.method.terms.sum import TermSum
from adadistill.kernels.head_prologue import directions
from adadistill.loaders.batch import Batch


class TermsObjective:
    """Terms alone, such as the regression: no centres, no softmax.

    Args:
        terms: at least one, none of which needs centres.
    """

    def __init__(self, *, terms: TermSum, teacher: Teacher, ranks: Ranks) -> None:
        if not terms:
            raise ValueError("terms alone need at least one term")
        self.terms = terms
        self.teacher = teacher
        self.ranks = ranks

    def step(self, embeddings: Tensor, batch: Batch, *, fractional_epoch: float, stop: bool) -> ObjectiveStep:
        """See `Objective.step`."""
        own = own_teacher_embeddings(self.teacher, batch, self.ranks)
        student = directions(embeddings, own)
        lesson = Lesson(own, student.teacher_cosine)
        facts = GatheredFacts.gather(lesson.cosine, student.quality, batch, stop=stop, ranks=self.ranks)
        no_softmax = lesson.cosine.new_zeros(())
        loss, metrics = self.terms.added_to(no_softmax, student, lesson, batch.labels, facts, self.ranks)
        return facts.outcome(loss, {**metrics, "quality": student.quality.mean()})

    def commit_(self, finite: Tensor) -> None:
        """See `Objective.commit_`."""
        self.terms.commit_(finite)

    def parameters(self) -> dict[str, nn.Parameter]:
        """None."""
        return {}

    def reduce_gradients_(self, ranks: Ranks) -> None:
        """Nothing to do."""

    def row_sharded(self) -> dict[str, RowArray]:
        """Nothing."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """See `Objective.tensors`: the state of the terms."""
        return self.terms.tensors()

    def load(self, *, row_sharded: dict[str, RowArray], tensors: dict[str, Tensor]) -> None:
        """See `Objective.load`.

        Raises:
            ValueError: the checkpoint is of an objective with other state.
        """
        if found := {**row_sharded, **self.terms.load_(tensors)}:
            raise ValueError(f"this objective has no class centres, but the checkpoint holds {sorted(found)}")
