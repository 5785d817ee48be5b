"""The method: class centres averaged from teacher embeddings, margins from the student's norms and from geometry."""

from __future__ import annotations

from torch import Tensor, nn

from adadistill.core.checkpoints import RowArray
from adadistill.core.distributed import Ranks, local_slice
from adadistill.core.method.centre_softmax import (
    CentresAndStatistics,
    class_softmax,
    geometry_metrics,
    margin_metrics,
)
from adadistill.core.method.class_centres import AdaptiveCentres, CentreStep
from adadistill.core.method.class_sample import ClassSampler
from adadistill.core.method.gathered_facts import GatheredFacts
from adadistill.core.method.geometry_margin import GeometryMarginConfig, geometry_ramp
from adadistill.core.method.heads import HeadConfig
from adadistill.core.method.lesson import Lesson, Teacher, global_teacher_embeddings
from adadistill.core.method.norm_statistics import NormStatistics
from adadistill.core.method.objective import ObjectiveStep
from adadistill.core.method.slow_centres import SlowCentres, SlowCentreStep
from adadistill.core.method.terms.sum import NO_TERMS, TermSum
from adadistill.core.method.terms.term import TermCentres
from adadistill.kernels.head_prologue import directions, head_prologue
from adadistill.loaders.batch import Batch
from adadistill.loaders.named_ranges import named_range


class DistillationObjective(CentresAndStatistics[AdaptiveCentres]):
    """AdaDistill's adaptive centres with AdaFace, ArcFace or CosFace margins and the geometry-aware margin.

    Args:
        centres: replicated; every rank applies the update of the whole global batch.
        statistics: AdaFace's norm statistics of the global batch; replicated.
        terms: further losses against the same teacher, added to the softmax.
        sampler: draws the classes that a step compares with; None compares with all.
        slow_centres: for geometry mode `headroom`, whose confidence they give; None with any other. Replicated.

    Raises:
        ValueError: slow centres are missing in mode `headroom`, or given in another.
    """

    def __init__(
        self,
        *,
        head: HeadConfig,
        geometry: GeometryMarginConfig,
        centres: AdaptiveCentres,
        teacher: Teacher,
        statistics: NormStatistics,
        ranks: Ranks,
        terms: TermSum = NO_TERMS,
        slow_centres: SlowCentres | None = None,
        sampler: ClassSampler | None = None,
    ) -> None:
        if (slow_centres is not None) != (geometry.mode == "headroom"):
            raise ValueError(
                f"slow centres are for geometry mode headroom alone, which needs them; got {geometry.mode}"
            )
        self.head = head
        self.geometry = geometry
        self.centres = centres
        self.slow_centres = slow_centres
        self.teacher = teacher
        self.statistics = statistics
        self.ranks = ranks
        self.terms = terms
        self.sampler = sampler
        self._proposed: tuple[CentreStep, SlowCentreStep | None, NormStatistics] | None = None

    def step(self, embeddings: Tensor, batch: Batch, *, fractional_epoch: float, stop: bool) -> ObjectiveStep:
        """See `Objective.step`."""
        teacher_global = global_teacher_embeddings(self.teacher, batch, self.ranks)  # (G, D)
        own_teacher = local_slice(teacher_global, self.ranks)  # (B, D)
        student = directions(embeddings, own_teacher)
        lesson = Lesson(own_teacher, student.teacher_cosine)

        facts = GatheredFacts.gather(lesson.cosine, student.quality, batch, stop=stop, ranks=self.ranks)
        slow_step = None
        with named_range("centres"):
            centre_step = self.centres.propose_update(teacher_global, facts.labels, facts.cosine)
            if self.slow_centres is not None:
                slow_step = self.slow_centres.propose_update(teacher_global, facts.labels)
        confidence = local_slice(centre_step.confidence, self.ranks)
        slow_confidence = None if slow_step is None else local_slice(slow_step.confidence, self.ranks)
        prologue = head_prologue(
            student,
            batch.labels,
            confidence=confidence if slow_confidence is None else slow_confidence,
            global_quality=facts.quality,
            global_labels=facts.labels,
            norm_mean=self.statistics.mean,
            norm_std=self.statistics.std,
            store=self.centres.target_store(),
            head=self.head,
            geometry=self.geometry,
            geometry_ramp=geometry_ramp(self.geometry, fractional_epoch),
        )
        statistics = NormStatistics(prologue.norm_mean, prologue.norm_std)
        self._proposed = (centre_step, slow_step, statistics)

        unit_centres = self.centres.unit_centres()
        sample = None if self.sampler is None else self.sampler.draw(facts.labels, epoch=batch.epoch, step=batch.step)
        softmax = class_softmax(
            self.head, unit_centres, student.unit_embeddings, batch.labels, prologue.margins, prologue=prologue,
            inverse_lengths=self.centres.inverse_lengths, sample=sample,
        )  # fmt: skip
        loss, teacher_metrics = self.terms.added_to(
            softmax.loss.mean(), student, lesson, batch.labels, facts, self.ranks,
            centres=TermCentres(unit_centres, self.centres.inverse_lengths),
        )  # fmt: skip
        return facts.outcome(
            loss,
            {
                **margin_metrics(softmax, prologue.margins, student, statistics),
                **teacher_metrics,
                **geometry_metrics(confidence, prologue.geometry),
                **({} if slow_confidence is None else {"slow_confidence": slow_confidence.mean()}),
                "centre_momentum": local_slice(centre_step.momentum, self.ranks).mean(),
            },
        )

    def commit_(self, finite: Tensor) -> None:
        """See `Objective.commit_`."""
        assert self._proposed is not None, "commit_ follows step"
        centre_step, slow_step, statistics = self._proposed
        with named_range("centres"):
            centre_step.commit_(finite)
            if slow_step is not None:
                slow_step.commit_(finite)
        self.statistics = self.statistics.committed(statistics, finite)
        self.terms.commit_(finite)
        self._proposed = None

    def row_sharded(self) -> dict[str, RowArray]:
        """See `Objective.row_sharded`."""
        slow = {} if self.slow_centres is None else self.slow_centres.state_dict()
        return {**self.centres.state_dict(), **slow}

    def load(self, *, row_sharded: dict[str, RowArray], tensors: dict[str, Tensor]) -> None:
        """See `Objective.load`."""
        if self.slow_centres is not None:
            own = self.slow_centres.state_dict().keys()
            self.slow_centres.load_state_dict({name: rows for name, rows in row_sharded.items() if name in own})
            row_sharded = {name: rows for name, rows in row_sharded.items() if name not in own}
        super().load(row_sharded=row_sharded, tensors=tensors)

    def parameters(self) -> dict[str, nn.Parameter]:
        """None: centres are averages of teacher embeddings, not parameters."""
        return {}

    def reduce_gradients_(self, ranks: Ranks) -> None:
        """Nothing to do."""
