"""What a term is: a loss of the student's embeddings against the teacher's, beside the margin softmax or alone.

A term sees the whole global batch where it needs to, so that what a recipe trains does not depend on the number of
ranks: `TermFacts.everyone` gathers once a step for all terms. A term with a state proposes it in `loss` and keeps it in
`commit_`, as objectives do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from adadistill.core.distributed import Ranks
from adadistill.core.method.sharded_centres import gathered_with_gradient


class Everyone(NamedTuple):
    """The global batch, rows of ignored samples zero; equal on all ranks."""

    student: Tensor
    """(G, D) unit, with the gradient of the rank's own rows."""
    teacher: Tensor
    """(G, D) unit."""
    valid: Tensor
    """(G,) bool: the sample is not ignored."""


class TermCentres(NamedTuple):
    """Class centres in the space of the teacher, which the softmax reads; without gradient."""

    rows: Tensor
    """(C, D), unit after `inverse_lengths`."""
    inverse_lengths: Tensor | None
    """(C,) float32 that make the rows unit; None where they are."""


@dataclass(frozen=True)
class TermFacts:
    """What terms may make a loss of, in one step."""

    student: Tensor
    """(B, D) unit embeddings of the rank's own samples, with gradient."""
    teacher: Tensor
    """(B, D) unit embeddings of the same images by the teacher."""
    labels: Tensor
    """(B,) int64; -1 to ignore, whatever the rows hold."""
    global_cosine: Tensor
    """(G,) student-teacher cosine of the global batch, without gradient."""
    global_labels: Tensor
    """(G,) int64."""
    ranks: Ranks
    centres: TermCentres | None = None
    """None where no class has a centre in the space of the teacher."""

    @cached_property
    def own(self) -> tuple[Tensor, Tensor]:
        """Student and teacher rows (B, D), those of ignored samples zero: 0 * NaN would reach the student."""
        valid = (self.labels >= 0)[:, None]
        dtype = torch.promote_types(torch.promote_types(self.student.dtype, self.teacher.dtype), torch.float32)
        student = torch.where(valid, self.student.to(dtype), 0.0)
        return student, torch.where(valid, self.teacher.detach().to(dtype), 0.0)

    @cached_property
    def everyone(self) -> Everyone:
        """The global batch, in one collective that every rank enters at the first term that asks."""
        student, teacher = self.own
        both = gathered_with_gradient(torch.cat([student, teacher], dim=1), self.ranks)  # (G, 2 D)
        return Everyone(both[:, : student.shape[1]], both[:, student.shape[1] :].detach(), self.global_labels >= 0)


class Term(Protocol):
    """One loss, with the state that it owns."""

    weight: float
    """Multiplies it in the sum; positive."""

    def loss(self, facts: TermFacts) -> Tensor:
        """0-dim loss. Its mean over ranks is the term's value on the global batch; state changes are proposed."""
        ...

    def commit_(self, finite: Tensor) -> None:
        """Keep the proposed state where `finite` (0-dim bool), the old one elsewhere; no host sync."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Its state in a checkpoint, equal on all ranks."""
        ...

    def load_(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` returned, in place.

        Raises:
            ValueError: other keys or shapes.
        """
        ...


class Stateless:
    """The part of `Term` that a term without a state has nothing to do in."""

    def commit_(self, finite: Tensor) -> None:
        """Nothing to do."""

    def tensors(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def load_(self, tensors: Mapping[str, Tensor]) -> None:
        """Nothing, which is all that it may be given."""
        if tensors:
            raise ValueError(f"{type(self).__name__} has no state, but the checkpoint holds {sorted(tensors)}")


def check_weight(weight: float) -> None:
    """Refuse a weight that is not positive and finite.

    Raises:
        ValueError: it is not.
    """
    if not 0.0 < weight < float("inf"):
        raise ValueError(f"weight must be positive and finite (leave the term out to do without), got {weight}")


def mean_over(values: Tensor, chosen: Tensor) -> Tensor:
    """0-dim mean of the values at which `chosen` (bool, of their shape) holds; 0 where it holds nowhere."""
    return torch.where(chosen, values, 0.0).sum() / chosen.sum().clamp(min=1)
