"""What a step minimises, and the state beside the student that it owns.

Three objectives behind one protocol. `DistillationObjective` is the method: class centres averaged from teacher
embeddings, margins from the student's embedding norms and the geometry between student, teacher and centre.
`ClassificationObjective` has centres that no teacher moves: trained by gradient, for baselines and for teachers
themselves, or frozen. `RegressionObjective` has none and asks for the teacher's embedding alone. Cosine regression can
also stand beside the softmax of the first two.

All follow the order of method 4.1: teacher, centre update, statistics, margins, softmax; and all propose their state
changes first and keep them only when told that the step was finite.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from adadistill.core.checkpoints import RowArray
from adadistill.core.class_centres import AdaptiveCentres, CentreStep, TrainableCentres
from adadistill.core.distributed import Ranks, gather_rows, local_slice, start_average_
from adadistill.core.frozen_centres import FrozenCentres
from adadistill.core.geometry_margin import GeometryMarginConfig, geometry_rule
from adadistill.core.heads import HeadConfig, head_limits, head_rule, margins
from adadistill.core.norm_statistics import NormStatistics, updated_norm_statistics
from adadistill.core.regression import RegressionConfig, cosine_regression
from adadistill.core.sharded_centres import ShardedCentres, gathered_with_gradient, own_samples
from adadistill.core.slow_centres import SlowCentres, SlowCentreStep
from adadistill.core.teachers import ImageTeacher, RecordTeacher
from adadistill.kernels.head_prologue import (
    CentreStore,
    Directions,
    GeometryRule,
    HeadPrologue,
    HeadRule,
    Margins,
    directions,
    head_prologue,
)
from adadistill.kernels.margin_softmax import ClassShard, MarginSoftmax, margin_softmax
from adadistill.loaders.batch import Batch
from adadistill.loaders.named_ranges import in_range, named_range

NO_GEOMETRY = GeometryMarginConfig(mode="off")
NO_REGRESSION = RegressionConfig(weight=0.0)


@dataclass(frozen=True, slots=True)
class GlobalSamples:
    """Host-side facts of the whole global batch that every rank knows without communication."""

    record_ids: npt.NDArray[np.int64]
    """(G,) in global batch order."""
    mirrored: npt.NDArray[np.bool_]
    """(G,)."""
    view: int | None = None
    """Number of the fixed view that the step shows of every record; None where each epoch draws anew."""


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

    def parameters(self) -> dict[str, nn.Parameter]:
        """Parameters trained beside the student's, by their names in `row_sharded`."""
        ...

    def reduce_gradients_(self, ranks: Ranks) -> None:
        """Average the gradients of replicated `parameters` over ranks."""
        ...

    def row_sharded(self) -> dict[str, RowArray]:
        """Large (C, ...) arrays of the checkpoint: whole and equal on all ranks, or each rank's own rows."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Small tensors of the checkpoint, equal on all ranks."""
        ...

    def load(self, *, row_sharded: dict[str, RowArray], tensors: dict[str, Tensor]) -> None:
        """Put back what `row_sharded` and `tensors` returned."""
        ...


Centres = TypeVar("Centres", AdaptiveCentres, TrainableCentres | ShardedCentres | FrozenCentres)
Teacher: TypeAlias = ImageTeacher | RecordTeacher


class _CentresAndStatistics(Generic[Centres]):
    """The state that objectives with centres own, and its way in and out of a checkpoint."""

    centres: Centres
    statistics: NormStatistics
    ranks: Ranks

    def row_sharded(self) -> dict[str, RowArray]:
        """See `Objective.row_sharded`."""
        return self.centres.state_dict()

    def tensors(self) -> dict[str, Tensor]:
        """See `Objective.tensors`."""
        return self.statistics.state_dict()

    def load(self, *, row_sharded: dict[str, RowArray], tensors: dict[str, Tensor]) -> None:
        """See `Objective.load`."""
        self.centres.load_state_dict(row_sharded)
        self.statistics = NormStatistics.from_state_dict(tensors, device=self.ranks.device)


class DistillationObjective(_CentresAndStatistics[AdaptiveCentres]):
    """AdaDistill's adaptive centres with AdaFace, ArcFace or CosFace margins and the geometry-aware margin.

    Args:
        centres: replicated; every rank applies the update of the whole global batch.
        statistics: AdaFace's norm statistics of the global batch; replicated.
        regression: cosine regression to the same teacher, added where its weight is not 0.
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
        regression: RegressionConfig = NO_REGRESSION,
        slow_centres: SlowCentres | None = None,
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
        self.regression = regression
        self._proposed: tuple[CentreStep, SlowCentreStep | None, NormStatistics] | None = None

    def step(
        self, embeddings: Tensor, batch: Batch, samples: GlobalSamples, *, fractional_epoch: float, stop: bool
    ) -> ObjectiveStep:
        """See `Objective.step`."""
        teacher_global = _global_teacher_embeddings(self.teacher, batch, samples, self.ranks)  # (G, D)
        own_teacher = local_slice(teacher_global, self.ranks)  # (B, D)
        student = directions(embeddings, own_teacher)
        lesson = _Lesson(own_teacher, student.teacher_cosine)

        shared = _Shared.gather(lesson.cosine, student.quality, batch, stop=stop, ranks=self.ranks)
        slow_step = None
        with named_range("centres"):
            centre_step = self.centres.propose_update(teacher_global, shared.labels, shared.cosine)
            if self.slow_centres is not None:
                slow_step = self.slow_centres.propose_update(teacher_global, shared.labels)
        confidence = local_slice(centre_step.confidence, self.ranks)
        slow_confidence = None if slow_step is None else local_slice(slow_step.confidence, self.ranks)
        prologue = shared.prologue(
            student,
            batch.labels,
            statistics=self.statistics,
            confidence=confidence if slow_confidence is None else slow_confidence,
            store=self.centres.target_store(),
            head=head_rule(self.head),
            geometry=geometry_rule(self.geometry, fractional_epoch),
        )
        statistics = NormStatistics(prologue.norm_mean, prologue.norm_std)
        self._proposed = (centre_step, slow_step, statistics)

        unit_centres = self.centres.unit_centres()
        softmax = _softmax(
            self.head, unit_centres, student.unit_embeddings, batch.labels, prologue.margins, prologue=prologue
        )
        loss, teacher_metrics = _with_regression(softmax.loss.mean(), self.regression, student, lesson, batch.labels)
        return shared.outcome(
            loss,
            {
                **_margin_metrics(softmax, prologue.margins, student, statistics),
                **teacher_metrics,
                **_geometry_metrics(confidence, prologue.geometry),
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


class ClassificationObjective(_CentresAndStatistics[TrainableCentres | ShardedCentres | FrozenCentres]):
    """Margin softmax against class centres that no teacher moves: trained by gradient, or frozen.

    Args:
        centres: frozen and trainable ones are replicated. Trainable ones are parameters outside DDP, whose replicas are
            kept equal here: the average over ranks of their gradient begins in backward, as soon as it is there, and
            runs beside the student's backward; `reduce_gradients_` waits for it. Sharded ones need no such thing.
        statistics: as in `DistillationObjective`.
        teacher: for `regression` and, with frozen centres, for `geometry`; None where neither is used.

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
        regression: RegressionConfig = NO_REGRESSION,
    ) -> None:
        if teacher is None and (geometry.mode != "off" or regression.weight > 0.0):
            raise ValueError("regression and the geometry margin need a teacher")
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
        self.regression = regression
        self._proposed: NormStatistics | None = None
        self._finish_average: Callable[[], Tensor] | None = None
        if isinstance(centres, TrainableCentres):
            centres.class_centres.register_post_accumulate_grad_hook(self._begin_average)

    def step(
        self, embeddings: Tensor, batch: Batch, samples: GlobalSamples, *, fractional_epoch: float, stop: bool
    ) -> ObjectiveStep:
        """See `Objective.step`."""
        own = None if self.teacher is None else _own_teacher_embeddings(self.teacher, batch, samples, self.ranks)
        student = directions(embeddings, own)
        lesson = None if own is None else _Lesson(own, student.teacher_cosine)
        shared = _Shared.gather(student.teacher_cosine, student.quality, batch, stop=stop, ranks=self.ranks)

        confidence = self._confidence(lesson, batch.labels)
        geometry_metrics: dict[str, Tensor] = {}
        if isinstance(self.centres, ShardedCentres):
            # No rank has a whole column of targets; the softmax makes it of all shards.
            statistics = updated_norm_statistics(
                self.statistics, shared.quality, momentum=self.head.norm_momentum, valid=shared.labels >= 0
            )
            margin = margins(self.head, student.quality, statistics)
            softmax = _sharded_softmax(self.head, self.centres, student, shared, statistics, self.ranks)
        else:
            unit_centres = self.centres.unit_centres()
            store = CentreStore(unit_centres.detach(), unit=True)
            if isinstance(self.centres, FrozenCentres):
                store = self.centres.target_store()
            prologue = shared.prologue(
                student,
                batch.labels,
                statistics=self.statistics,
                confidence=confidence,
                store=store,
                head=head_rule(self.head),
                geometry=geometry_rule(self.geometry, fractional_epoch),
            )
            statistics, margin = NormStatistics(prologue.norm_mean, prologue.norm_std), prologue.margins
            softmax = _softmax(
                self.head, unit_centres, student.unit_embeddings, batch.labels, margin, prologue=prologue
            )
            if confidence is not None:
                geometry_metrics = _geometry_metrics(confidence, prologue.geometry)
        self._proposed = statistics
        loss = softmax.loss.mean()
        teacher_metrics: dict[str, Tensor] = {}
        if lesson is not None:
            loss, teacher_metrics = _with_regression(loss, self.regression, student, lesson, batch.labels)
        metrics = _margin_metrics(softmax, margin, student, statistics)
        return shared.outcome(loss, {**metrics, **teacher_metrics, **geometry_metrics})

    def commit_(self, finite: Tensor) -> None:
        """See `Objective.commit_`. The centres themselves are the optimiser's to commit, or nobody's."""
        assert self._proposed is not None, "commit_ follows step"
        self.statistics = self.statistics.committed(self._proposed, finite)
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

    def _confidence(self, lesson: _Lesson | None, labels: Tensor) -> Tensor | None:
        """(B,) cosine of each label's centre to the teacher's embedding; None where the geometry margin is off."""
        if lesson is None or not isinstance(self.centres, FrozenCentres) or self.geometry.mode == "off":
            return None
        return self.centres.confidence(labels, lesson.teacher_embeddings)


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

    def step(
        self, embeddings: Tensor, batch: Batch, samples: GlobalSamples, *, fractional_epoch: float, stop: bool
    ) -> ObjectiveStep:
        """See `Objective.step`."""
        own = _own_teacher_embeddings(self.teacher, batch, samples, self.ranks)
        student = directions(embeddings, own)
        lesson = _Lesson(own, student.teacher_cosine)
        shared = _Shared.gather(lesson.cosine, student.quality, batch, stop=stop, ranks=self.ranks)
        no_softmax = lesson.cosine.new_zeros(())
        loss, metrics = _with_regression(no_softmax, self.regression, student, lesson, batch.labels)
        return shared.outcome(loss, {**metrics, "quality": student.quality.mean()})

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


@in_range("teacher")
def _global_teacher_embeddings(teacher: Teacher, batch: Batch, samples: GlobalSamples, ranks: Ranks) -> Tensor:
    """(G, D) unit embeddings of the global batch: gathered from a network, read from a store."""
    if isinstance(teacher, ImageTeacher):
        return gather_rows(teacher.embed(batch.images), ranks)
    return teacher.rows(samples.record_ids, samples.mirrored, samples.view)


@in_range("teacher")
def _own_teacher_embeddings(teacher: Teacher, batch: Batch, samples: GlobalSamples, ranks: Ranks) -> Tensor:
    """(B, D) unit embeddings of this rank's samples, without communication."""
    if isinstance(teacher, ImageTeacher):
        return teacher.embed(batch.images)
    own = slice(ranks.rank * len(batch.labels), (ranks.rank + 1) * len(batch.labels))
    return teacher.rows(samples.record_ids[own], samples.mirrored[own], samples.view)


@dataclass(frozen=True, slots=True)
class _Lesson:
    """What the teacher says of the rank's own samples."""

    teacher_embeddings: Tensor  # (B, D) unit
    cosine: Tensor  # (B,) student-teacher, without gradient


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


def _softmax(
    head: HeadConfig,
    unit_centres: Tensor,
    unit_embeddings: Tensor,
    labels: Tensor,
    margin: Margins,
    *,
    prologue: HeadPrologue | None = None,
    shard: ClassShard | None = None,
) -> MarginSoftmax:
    limits = head_limits(head)
    return margin_softmax(
        unit_embeddings,
        unit_centres,
        labels,
        margin.angular,
        margin.additive,
        logit_scale=head.logit_scale,
        cosine_limit=limits.cosine_limit,
        angle_limits=limits.angle_limits,
        margin_grad=head.margin_grad,
        # Rows of trained centres are read from the centres themselves, so that they get their gradient.
        target_centres=None if prologue is None or unit_centres.requires_grad else prologue.target_rows,
        target=None if prologue is None else prologue.target,
        shard=shard,
    )


def _sharded_softmax(
    head: HeadConfig,
    centres: ShardedCentres,
    student: Directions,
    shared: _Shared,
    statistics: NormStatistics,
    ranks: Ranks,
) -> MarginSoftmax:
    """`_softmax` of the rank's own samples, with classes spread over the ranks: each compares its own with all samples.

    Margins follow from norms that every rank has, so that embeddings are all there is to gather.
    """
    everyone = gathered_with_gradient(student.unit_embeddings, ranks)  # (G, D)
    margin = margins(head, shared.quality, statistics)  # (G,)
    softmax = _softmax(head, centres.unit_centres(), everyone, shared.labels, margin, shard=centres.shard)
    return own_samples(softmax, ranks)


def _margin_metrics(
    softmax: MarginSoftmax, margin: Margins, student: Directions, statistics: NormStatistics
) -> dict[str, Tensor]:
    return {
        "target_cosine": softmax.target_cosine.mean(),
        "margins_clipped": margin.clipped.float().mean(),
        "quality": student.quality.mean(),
        "norm_mean": statistics.mean,
        "norm_std": statistics.std,
    }


def _with_regression(
    loss: Tensor, config: RegressionConfig, student: Directions, lesson: _Lesson, labels: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The 0-dim loss with the weighted cosine regression added where it is on, and what to report of the teacher."""
    metrics = {"student_teacher_cosine": lesson.cosine.mean()}
    if config.weight == 0.0:
        return loss, metrics
    regression = cosine_regression(student.unit_embeddings, lesson.teacher_embeddings, labels).mean()
    return loss + config.weight * regression, {**metrics, "regression": regression.detach()}


def _geometry_metrics(confidence: Tensor, geometry: Tensor) -> dict[str, Tensor]:
    return {
        "confidence": confidence.mean(),
        "geometry": geometry.mean(),
        "geometry_active": (geometry > 0).float().mean(),
    }
