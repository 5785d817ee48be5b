"""The teacher's softmax over the class centres: whom else an image resembles, as the teacher sees it.

    p_ij = softmax_j(scale cos(t_i, w_j)),  q_ij = softmax_j(scale cos(x_i, w_j)),  without margins
    loss = mean over i of KL(p'_i || q'_i)

where p' and q' keep the `classes` that the teacher finds likeliest of image i and put all others into one. By the chain
rule this is GKD's loss of the primary group, weighted by the group's probability, and of the group against the rest;
what the teacher says within the rest is noise, and is left out as there.

Gradient  exact, to the student's embedding; centres are constants
Ignored   label -1 gives 0 and no gradient
Cost      two streaming softmaxes over C and the teacher's largest logits, chunk by chunk; (B, classes, D) numbers
Source    logit distillation arXiv:1503.02531, grouped for faces in arXiv:2304.04462 (GKD)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adadistill.core.method.terms.term import Stateless, TermCentres, TermFacts, check_weight
from adadistill.kernels.margin_softmax import margin_softmax

_CHUNK = 8192
"""Classes whose logits are held at once while the teacher's largest are looked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherClassesConfig:
    """The teacher's softmax over its class centres, its likeliest classes one by one and the others together."""

    needs_centres: ClassVar[bool] = True
    weight: float
    """Multiplies the mean divergence. Positive."""
    scale: float = 16.0
    """Multiplies the cosines before both softmaxes: 64 / 4 is a temperature of 4 at the usual scale. Positive."""
    classes: int = 32
    """Likeliest classes of each image that are told apart; at least 1, more than there are counts as all."""

    def __post_init__(self) -> None:
        check_weight(self.weight)
        if not 0.0 < self.scale < math.inf:
            raise ValueError(f"scale must be positive and finite, got {self.scale}")
        if not 1 <= self.classes <= 4096:
            raise ValueError(f"classes must be in [1, 4096], got {self.classes}")

    def build(self, *, dim: int, dtype: torch.dtype, device: torch.device) -> TeacherClasses:
        """See `TermConfig.build`."""
        return TeacherClasses(self)


class TeacherClasses(Stateless):
    """Divergence of the student's softmax over class centres from the teacher's."""

    def __init__(self, config: TeacherClassesConfig) -> None:
        self.weight, self._scale, self._classes = config.weight, config.scale, config.classes

    def loss(self, facts: TermFacts) -> Tensor:
        """See `Term.loss`.

        Raises:
            ValueError: there are no centres.
        """
        if facts.centres is None:
            raise ValueError("the teacher's softmax needs class centres in its own space")
        student, teacher = facts.own
        return class_divergence(
            student, teacher, facts.labels, facts.centres, scale=self._scale, classes=self._classes
        ).mean()


def class_divergence(
    student: Tensor, teacher: Tensor, labels: Tensor, centres: TermCentres, *, scale: float, classes: int
) -> Tensor:
    """(B,) divergences; 0 for ignored samples.

    Args:
        student, teacher: (B, D) unit rows, those of ignored samples zero; labels: (B,) int64, -1 ignores.
    """
    with torch.no_grad():
        likeliest = _likeliest(teacher, centres, min(classes, len(centres.rows)))  # (B, K)
        rows = _unit_rows(centres, likeliest).to(student.dtype)  # (B, K, D)
        of_teacher = _log_groups(teacher, rows, labels, centres, scale)  # (B, K + 1)
    of_student = _log_groups(student, rows, labels, centres, scale)
    divergence = (of_teacher.exp() * (of_teacher - of_student)).sum(1)
    return torch.where(labels >= 0, divergence, 0.0)


def _log_groups(embeddings: Tensor, rows: Tensor, labels: Tensor, centres: TermCentres, scale: float) -> Tensor:
    """(B, K + 1) log-probabilities of the chosen classes, and of all others together."""
    none = torch.zeros(len(labels), dtype=embeddings.dtype, device=labels.device)
    own = _unit_rows(centres, labels.clamp(min=0)).to(embeddings.dtype)  # (B, D)
    softmax = margin_softmax(
        embeddings, centres.rows, labels, none, none, logit_scale=scale, cosine_limit=1.0, angle_limits=None,
        margin_grad="exact", target_centres=own, inverse_lengths=centres.inverse_lengths,
    )  # fmt: skip
    # Without a margin the loss is logsumexp less the label's logit.
    log_sum = softmax.loss + scale * (embeddings * own).sum(1)  # (B,)
    chosen = scale * (rows @ embeddings[:, :, None]).squeeze(2) - log_sum[:, None]  # (B, K)
    least = torch.finfo(chosen.dtype).eps
    others = (1.0 - chosen.exp().sum(1, keepdim=True)).clamp(min=least).log()
    return torch.cat([chosen, others], dim=1)


def _likeliest(teacher: Tensor, centres: TermCentres, count: int) -> Tensor:
    """(B, count) classes of the largest cosines."""
    best = teacher.new_empty(len(teacher), 0)
    classes = torch.empty(len(teacher), 0, dtype=torch.int64, device=teacher.device)
    for first in range(0, len(centres.rows), _CHUNK):
        chunk = torch.arange(first, min(first + _CHUNK, len(centres.rows)), device=teacher.device)
        cosines = teacher @ _unit_rows(centres, chunk).to(teacher.dtype).T
        both = torch.cat([best, cosines], dim=1)
        numbers = torch.cat([classes, chunk.expand(len(teacher), -1)], dim=1)
        best, places = both.topk(min(count, both.shape[1]), dim=1)
        classes = numbers.gather(1, places)
    return classes


def _unit_rows(centres: TermCentres, classes: Tensor) -> Tensor:
    """Unit rows of these classes, (*classes.shape, D)."""
    rows = centres.rows[classes]
    if centres.inverse_lengths is None:
        return rows
    return rows * centres.inverse_lengths[classes][..., None].to(rows.dtype)
