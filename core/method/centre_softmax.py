"""The margin softmax over class centres, with the head's limits, and the state of objectives that have one."""

from __future__ import annotations

import dataclasses
from typing import Generic, TypeVar

import torch
from torch import Tensor

from adadistill.core.checkpoints import RowArray
from adadistill.core.distributed import Ranks
from adadistill.core.method.class_centres import AdaptiveCentres, TrainableCentres
from adadistill.core.method.class_sample import ClassSample
from adadistill.core.method.frozen_centres import FrozenCentres
from adadistill.core.method.gathered_facts import GatheredFacts
from adadistill.core.method.heads import HeadConfig, margins
from adadistill.core.method.norm_statistics import NormStatistics
from adadistill.core.method.sharded_centres import ShardedCentres, gathered_with_gradient, own_samples
from adadistill.core.method.terms.sum import TermSum
from adadistill.kernels.head_margins import Margins
from adadistill.kernels.head_prologue import Directions, HeadPrologue
from adadistill.kernels.margin_softmax import ClassShard, MarginSoftmax, margin_softmax

Centres = TypeVar("Centres", AdaptiveCentres, TrainableCentres | ShardedCentres | FrozenCentres)


class CentresAndStatistics(Generic[Centres]):
    """The state that objectives with centres own, and its way in and out of a checkpoint."""

    centres: Centres
    statistics: NormStatistics
    terms: TermSum
    ranks: Ranks

    def row_sharded(self) -> dict[str, RowArray]:
        """See `Objective.row_sharded`."""
        return self.centres.state_dict()

    def tensors(self) -> dict[str, Tensor]:
        """See `Objective.tensors`."""
        return {**self.statistics.state_dict(), **self.terms.tensors()}

    def load(self, *, row_sharded: dict[str, RowArray], tensors: dict[str, Tensor]) -> None:
        """See `Objective.load`."""
        self.centres.load_state_dict(row_sharded)
        self.statistics = NormStatistics.from_state_dict(self.terms.load_(tensors), device=self.ranks.device)


def class_softmax(
    head: HeadConfig,
    unit_centres: Tensor,
    unit_embeddings: Tensor,
    labels: Tensor,
    margin: Margins,
    *,
    prologue: HeadPrologue | None = None,
    shard: ClassShard | None = None,
    inverse_lengths: Tensor | None = None,
    product_dtype: torch.dtype | None = None,
    sample: ClassSample | None = None,
) -> MarginSoftmax:
    """The margin softmax within the limits of a head.

    Args:
        unit_centres: (C, D), or this rank's rows of them with `shard`; trained ones with gradient.
        unit_embeddings: (B, D); labels: (B,) int64 in [0, C), -1 ignores; margin: (B,) each part.
        prologue: target rows and logits of the same samples, where they have been computed already.
        inverse_lengths, product_dtype: as `margin_softmax`.
        sample: compare with these classes alone; `unit_centres` and `labels` are of all.
    """
    if sample is not None:
        unit_centres, labels = unit_centres[sample.classes], sample.places(labels)
        inverse_lengths = None if inverse_lengths is None else inverse_lengths[sample.classes]
    return margin_softmax(
        unit_embeddings,
        unit_centres,
        labels,
        margin.angular,
        margin.additive,
        logit_scale=head.logit_scale,
        cosine_limit=head.limits.cosine_limit,
        angle_limits=head.limits.angle_limits,
        margin_grad=head.margin_grad,
        # Rows of trained centres are read from the centres themselves, so that they get their gradient.
        target_centres=None if prologue is None or unit_centres.requires_grad else prologue.target_rows,
        target=None if prologue is None else prologue.target,
        shard=shard,
        inverse_lengths=inverse_lengths,
        product_dtype=product_dtype,
        filter_above=head.filter_above,
    )


def sharded_softmax(
    head: HeadConfig,
    centres: ShardedCentres,
    student: Directions,
    facts: GatheredFacts,
    statistics: NormStatistics,
    ranks: Ranks,
    sample: ClassSample | None = None,
) -> MarginSoftmax:
    """`class_softmax` of the rank's own samples, with classes spread over the ranks: each compares its own with all.

    Margins follow from norms that every rank has, so that embeddings are all there is to gather.
    """
    everyone = gathered_with_gradient(student.unit_embeddings, ranks)  # (G, D)
    margin = margins(head, facts.quality, statistics)  # (G,)
    shard, labels = centres.shard, facts.labels
    if sample is not None:  # the drawn rows are all classes that this rank has; no label of another rank is among them
        shard, labels = dataclasses.replace(shard, first_class=0), sample.places(labels)
    softmax = class_softmax(
        head, centres.unit_centres(sample), everyone, labels, margin, shard=shard,
        product_dtype=centres.product_dtype,
    )  # fmt: skip
    return own_samples(softmax, ranks)


def margin_metrics(
    softmax: MarginSoftmax, margin: Margins, student: Directions, statistics: NormStatistics
) -> dict[str, Tensor]:
    """What to report of head and statistics: 0-dim, of the rank's own samples."""
    return {
        "target_cosine": softmax.target_cosine.mean(),
        "margins_clipped": margin.clipped.float().mean(),
        "quality": student.quality.mean(),
        "norm_mean": statistics.mean,
        "norm_std": statistics.std,
    }


def geometry_metrics(confidence: Tensor, geometry: Tensor) -> dict[str, Tensor]:
    """What to report of the geometry margin: 0-dim, of (B,) values of the rank's own samples."""
    return {
        "confidence": confidence.mean(),
        "geometry": geometry.mean(),
        "geometry_active": (geometry > 0).float().mean(),
    }
