"""Cosine regression: the student's embedding is pulled straight towards the teacher's of the same image.

    loss_i = 1 - cos(x_i, t_i) = |x_i/|x_i| - t_i|^2 / 2
    d loss_i / d x_i = -(t_i - cos_i x_i/|x_i|) / |x_i|

It is what class centres are compared with: it knows no identities and asks only for the teacher's answer. Beside the
margin softmax it keeps that answer in sight after the centres have turned into classes.

Gradient  exact, to the student alone; finite for embeddings of no length, which get none (see `heads.directions`)
Ignored   label -1 gives 0 and no gradient, whatever the row holds: such a record is damaged, so what the teacher says
          of its image is no lesson either
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from adadistill.core.distributed import local_slice
from adadistill.core.method.terms.term import Stateless, TermFacts


@dataclass(frozen=True, kw_only=True, slots=True)
class RegressionConfig:
    """Cosine regression of the student's embedding to the teacher's, beside the margin softmax or alone."""

    weight: float = 0.0
    """Multiplies the mean of 1 - cos(student, teacher), which is added to the margin softmax (itself of weight 1), or
    is the whole loss with `centres.kind: none`. At least 0; 0 is off. With `head.logit_scale`, 64, the teacher's
    embedding pulls as strongly as the class centre of a sample that is not learnt yet."""
    hardest: float = 1.0
    """Share of the global batch, those images furthest from their teacher, over which the mean is taken. In (0, 1]; 1
    takes all. Hard mining after arXiv:2508.11376."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.weight < math.inf:
            raise ValueError(f"weight must be at least 0 and finite, got {self.weight}")
        if not 0.0 < self.hardest <= 1.0:
            raise ValueError(f"hardest must be in (0, 1], got {self.hardest}")


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


def hardest_samples(cosine: Tensor, valid: Tensor, share: float) -> Tensor:
    """(G,) bool: the share of the valid samples that are furthest from their teacher, at least one of them.

    Args:
        cosine: (G,) student-teacher; valid: (G,) bool.
    """
    order = torch.where(valid, cosine, math.inf).argsort(stable=True)
    place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return valid & (place < (share * valid.sum()).ceil().clamp(min=1))


class CosineRegression(Stateless):
    """The mean of `cosine_regression`, over all samples or the hardest of the global batch."""

    def __init__(self, config: RegressionConfig) -> None:
        self.weight, self._hardest = config.weight, config.hardest

    def loss(self, facts: TermFacts) -> Tensor:
        """See `Term.loss`."""
        losses = cosine_regression(facts.student, facts.teacher, facts.labels)  # (B,)
        if self._hardest == 1.0:
            return losses.mean()
        chosen = hardest_samples(facts.global_cosine, facts.global_labels >= 0, self._hardest)
        own = torch.where(local_slice(chosen, facts.ranks), losses, 0.0)
        # Averaged over ranks, this is the mean over the chosen of all ranks.
        return own.sum() * facts.ranks.world_size / chosen.sum().clamp(min=1)
