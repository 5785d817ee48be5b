"""Pairwise similarities with a memory bank: to images of earlier steps, the student is as similar as the teacher is.

    mean over i, and over the hardest of the bank's j, of (cos(x_i, x_j) - cos(t_i, t_j))^2

x_j and t_j are what student and teacher said of image j when it was in a batch, a few steps ago. A bank holds far more
pairs than a batch does, most of which are easy; `hardest` keeps the largest differences of each image.

State     the newest `bank` embeddings of both, 8 bytes x bank x D in float32, in checkpoints, equal on all ranks
Gradient  exact, to the image's own embedding; those in the bank are constants
Ignored   label -1 gives no loss and goes into the bank as zeros, which differ from nothing
Source    the relational half of arXiv:2508.11376, of which the abstract is what is followed here
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adadistill.core.method.terms.term import TermFacts, check_weight


@dataclass(frozen=True, kw_only=True, slots=True)
class SimilaritiesConfig:
    """Similarities to images of earlier steps, kept in a memory bank."""

    needs_centres: ClassVar[bool] = False
    weight: float
    """Multiplies the mean square of the differences. Positive."""
    bank: int = 4096
    """Images that the bank holds; at least one global batch, at most the images of the training set."""
    hardest: float = 0.1
    """Share of the bank that counts for each image, its largest differences. In (0, 1]."""

    def __post_init__(self) -> None:
        check_weight(self.weight)
        if self.bank < 2:
            raise ValueError(f"bank must be at least 2, got {self.bank}")
        if not 0.0 < self.hardest <= 1.0:
            raise ValueError(f"hardest must be in (0, 1], got {self.hardest}")

    def build(self, *, dim: int, dtype: torch.dtype, device: torch.device) -> Similarities:
        """See `TermConfig.build`."""
        return Similarities(self, dim=dim, dtype=dtype, device=device)


class Similarities:
    """Similarities to a bank of earlier embeddings.

    Args:
        dim: D, of student and teacher.
        dtype: of the bank; float32 or float64.
    """

    def __init__(self, config: SimilaritiesConfig, *, dim: int, dtype: torch.dtype, device: torch.device) -> None:
        self.weight = config.weight
        self._count = max(1, math.ceil(config.hardest * config.bank))
        self._student = torch.zeros(config.bank, dim, dtype=dtype, device=device)
        self._teacher = torch.zeros_like(self._student)
        self._seen = torch.zeros((), dtype=torch.int64, device=device)  # images that ever went in
        self._proposed: tuple[Tensor, Tensor] | None = None

    def loss(self, facts: TermFacts) -> Tensor:
        """See `Term.loss`."""
        student, teacher = facts.own
        everyone = facts.everyone
        self._proposed = everyone.student.detach(), everyone.teacher
        difference = student @ self._student.T - teacher @ self._teacher.T  # (B, bank)
        hardest = difference.square().topk(self._count, dim=1, sorted=False).values
        # Slots that are still empty are zeros and come last; rows of ignored samples are zeros too.
        filled = self._seen.clamp(min=1, max=self._count)
        return hardest.sum(1).mean() / filled

    def commit_(self, finite: Tensor) -> None:
        """See `Term.commit_`."""
        assert self._proposed is not None, "commit_ follows loss"
        rows, self._proposed = self._proposed, None
        count = min(len(rows[0]), len(self._student))
        slots = (self._seen + torch.arange(count, device=self._seen.device)) % len(self._student)
        for bank, new in zip((self._student, self._teacher), rows, strict=True):
            bank.index_copy_(0, slots, torch.where(finite, new[-count:].to(bank.dtype), bank[slots]))
        self._seen += torch.where(finite, count, 0)

    def tensors(self) -> dict[str, Tensor]:
        """See `Term.tensors`."""
        return {"student": self._student, "teacher": self._teacher, "seen": self._seen}

    def load_(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Term.load_`."""
        own = self.tensors()
        if tensors.keys() != own.keys() or any(tensors[name].shape != own[name].shape for name in own):
            shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            raise ValueError(f"a bank of {tuple(self._student.shape)} was expected, the checkpoint holds {shapes}")
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
