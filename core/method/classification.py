"""The softmax over centres that no teacher moves: trained by gradient, for baselines and teachers, or frozen."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from adadistill.core.distributed import Ranks, start_average_
from adadistill.core.method.centre_softmax import (
    CentresAndStatistics,
    class_softmax,
    geometry_metrics,
    margin_metrics,
    sharded_softmax,
)
from adadistill.core.method.class_centres import TrainableCentres
from adadistill.core.method.class_sample import ClassSampler
from adadistill.core.method.frozen_centres import FrozenCentres
from adadistill.core.method.gathered_facts import GatheredFacts
from adadistill.core.method.geometry_margin import GeometryMarginConfig, geometry_ramp
from adadistill.core.method.heads import HeadConfig, margins
from adadistill.core.method.lesson import Lesson, Teacher, own_teacher_embeddings
from adadistill.core.method.norm_statistics import NormStatistics, updated_norm_statistics
from adadistill.core.method.objective import ObjectiveStep
from adadistill.core.method.sharded_centres import ShardedCentres
from adadistill.core.method.terms.sum import NO_TERMS, TermSum
from adadistill.core.method.terms.term import TermCentres
from adadistill.kernels.head_prologue import CentreStore, directions, head_prologue
from adadistill.loaders.batch import Batch

NO_GEOMETRY = GeometryMarginConfig(mode="off")


class ClassificationObjective(CentresAndStatistics[TrainableCentres | ShardedCentres | FrozenCentres]):
    """Margin softmax against class centres that no teacher moves: trained by gradient, or frozen.

    Args:
        centres: frozen and trainable ones are replicated. Trainable ones are parameters outside DDP, whose replicas are
            kept equal here: the average over ranks of their gradient begins in backward, as soon as it is there, and
            runs beside the student's backward; `reduce_gradients_` waits for it. Sharded ones need no such thing.
        statistics: as in `DistillationObjective`.
        teacher: for `terms` and, with frozen centres, for `geometry`; None where neither is used.
        sampler: draws the classes that a step compares with; None compares with all.

    Raises:
        ValueError: a part is given that these centres or a missing teacher cannot serve.
    """

    def __init__(
        self,
        *,
        head: HeadConfig,
        centres: TrainableCentres | ShardedCentres | FrozenCentres,
        statistics: NormStatistics,
        ranks: Ranks,
        teacher: Teacher | None = None,
        geometry: GeometryMarginConfig = NO_GEOMETRY,
        terms: TermSum = NO_TERMS,
        sampler: ClassSampler | None = None,
    ) -> None:
        if teacher is None and (geometry.mode != "off" or terms):
            raise ValueError("terms, such as the regression, and the geometry margin need a teacher")
        if geometry.mode != "off" and not isinstance(centres, FrozenCentres):
            raise ValueError("the geometry margin needs frozen centres here, got trainable ones")
        if geometry.mode == "headroom":
            raise ValueError("geometry mode headroom needs adaptive centres")
        self.head = head
        self.centres = centres
        self.statistics = statistics
        self.ranks = ranks
        self.teacher = teacher
        self.geometry = geometry
        self.terms = terms
        self.sampler = sampler
        self._proposed: NormStatistics | None = None
        self._finish_average: Callable[[], Tensor] | None = None
        if isinstance(centres, TrainableCentres):
            centres.class_centres.register_post_accumulate_grad_hook(self._begin_average)

    def step(self, embeddings: Tensor, batch: Batch, *, fractional_epoch: float, stop: bool) -> ObjectiveStep:
        """See `Objective.step`."""
        own = None if self.teacher is None else own_teacher_embeddings(self.teacher, batch, self.ranks)
        student = directions(embeddings, own)
        lesson = None if own is None else Lesson(own, student.teacher_cosine)
        facts = GatheredFacts.gather(student.teacher_cosine, student.quality, batch, stop=stop, ranks=self.ranks)

        confidence = self._confidence(lesson, batch.labels)
        of_geometry: dict[str, Tensor] = {}
        sample = None if self.sampler is None else self.sampler.draw(facts.labels, epoch=batch.epoch, step=batch.step)
        if isinstance(self.centres, ShardedCentres):
            # No rank has a whole column of targets; the softmax makes it of all shards.
            statistics = updated_norm_statistics(
                self.statistics, facts.quality, momentum=self.head.norm_momentum, valid=facts.labels >= 0
            )
            margin = margins(self.head, student.quality, statistics)
            softmax = sharded_softmax(self.head, self.centres, student, facts, statistics, self.ranks, sample)
        else:
            labels = batch.labels
            if isinstance(self.centres, FrozenCentres):
                unit_centres, store = self.centres.unit_centres(), self.centres.target_store()
            else:
                unit_centres = self.centres.unit_centres(sample)
                store = CentreStore(unit_centres.detach(), unit=True)
                if sample is not None:  # these rows are the sample
                    labels, sample = sample.places(labels), None
            prologue = head_prologue(
                student,
                labels,
                confidence=confidence,
                global_quality=facts.quality,
                global_labels=facts.labels,
                norm_mean=self.statistics.mean,
                norm_std=self.statistics.std,
                store=store,
                head=self.head,
                geometry=self.geometry,
                geometry_ramp=geometry_ramp(self.geometry, fractional_epoch),
            )
            statistics, margin = NormStatistics(prologue.norm_mean, prologue.norm_std), prologue.margins
            softmax = class_softmax(
                self.head, unit_centres, student.unit_embeddings, labels, margin, prologue=prologue, sample=sample,
                product_dtype=None if isinstance(self.centres, FrozenCentres) else self.centres.product_dtype,
            )  # fmt: skip
            if confidence is not None:
                of_geometry = geometry_metrics(confidence, prologue.geometry)
        self._proposed = statistics
        loss = softmax.loss.mean()
        teacher_metrics: dict[str, Tensor] = {}
        if lesson is not None:
            taught = TermCentres(self.centres.unit_centres(), None) if isinstance(self.centres, FrozenCentres) else None
            loss, teacher_metrics = self.terms.added_to(
                loss, student, lesson, batch.labels, facts, self.ranks, centres=taught
            )
        metrics = margin_metrics(softmax, margin, student, statistics)
        return facts.outcome(loss, {**metrics, **teacher_metrics, **of_geometry})

    def commit_(self, finite: Tensor) -> None:
        """See `Objective.commit_`. The centres themselves are the optimiser's to commit, or nobody's."""
        assert self._proposed is not None, "commit_ follows step"
        self.statistics = self.statistics.committed(self._proposed, finite)
        self.terms.commit_(finite)
        self._proposed = None

    def parameters(self) -> dict[str, nn.Parameter]:
        """The centres, where they are trained: all of them, or this rank's rows."""
        return {} if isinstance(self.centres, FrozenCentres) else {"class_centres": self.centres.class_centres}

    def reduce_gradients_(self, ranks: Ranks) -> None:
        """See `Objective.reduce_gradients_`."""
        if isinstance(self.centres, TrainableCentres):
            assert self._finish_average is not None, "reduce_gradients_ follows backward"
            self._finish_average()
            self._finish_average = None

    def _begin_average(self, parameter: Tensor) -> None:
        # Centres come after the student in forward, so in backward their gradient comes before any of the student's.
        assert parameter.grad is not None, "torch calls this once there is a gradient"
        self._finish_average = start_average_(parameter.grad, self.ranks)

    def _confidence(self, lesson: Lesson | None, labels: Tensor) -> Tensor | None:
        """(B,) cosine of each label's centre to the teacher's embedding; None where the geometry margin is off."""
        if lesson is None or not isinstance(self.centres, FrozenCentres) or self.geometry.mode == "off":
            return None
        return self.centres.confidence(labels, lesson.teacher_embeddings)
