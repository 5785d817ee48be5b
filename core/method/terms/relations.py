"""Relational distillation: the student's distances and angles between images become those of the teacher.

    distances   mean over pairs   i != j          of huber(d_ij / mean d - d'_ij / mean d')
    angles      mean over triples i != j != k != i of huber(cos ijk - cos' ijk),  cos ijk at the vertex j

d_ij is the distance of two unit embeddings, the primed ones are the teacher's, and huber(x) is x^2 / 2 up to 1 and
|x| - 1/2 beyond. Neither asks the student to stand where the teacher does: turned, the student is as good.

Gradient  exact, the student's mean distance included; pairs closer than 1e-3 have no direction and take no part in
          angles; a distance of 0 passes no gradient
Ignored   samples with label -1 are in no pair and no triple
Cost      distances 2 G^2 D operations on every rank; angles G n^2 numbers, in groups of n samples of the global batch
Source    RKD, arXiv:1904.05068. There both means divide by all N^2 and N^3 index tuples, those with repeated indices
          included, so that equal weights pull a little less there
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad, smooth_l1_loss

from adadistill.core.method.terms.term import Stateless, TermFacts, check_weight, mean_over

_LEAST_SQUARE = 1e-6
"""Of a distance that still has a direction: rounding of float32 unit rows is 1e-7."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DistancesConfig:
    """RKD's distances: relative distances of all pairs of the global batch."""

    needs_centres: ClassVar[bool] = False
    weight: float
    """Multiplies the mean over pairs. Positive; 25 in RKD's recipes for metric learning."""

    def __post_init__(self) -> None:
        check_weight(self.weight)

    def build(self, *, dim: int, dtype: torch.dtype, device: torch.device) -> Distances:
        """See `TermConfig.build`."""
        return Distances(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class AnglesConfig:
    """RKD's angles: of all triples within groups of the global batch."""

    needs_centres: ClassVar[bool] = False
    weight: float
    """Multiplies the mean over triples. Positive; 50 in RKD's recipes for metric learning."""
    group: int = 64
    """Samples among which triples are formed, in order of the global batch; at least 3. Memory is G x group^2."""

    def __post_init__(self) -> None:
        check_weight(self.weight)
        if not 3 <= self.group <= 1024:
            raise ValueError(f"group must be in [3, 1024], got {self.group}")

    def build(self, *, dim: int, dtype: torch.dtype, device: torch.device) -> Angles:
        """See `TermConfig.build`."""
        return Angles(self)


class Distances(Stateless):
    """Distances of all pairs."""

    def __init__(self, config: DistancesConfig) -> None:
        self.weight = config.weight

    def loss(self, facts: TermFacts) -> Tensor:
        """See `Term.loss`."""
        student, teacher, valid = facts.everyone
        return distance_loss(student, teacher, valid)


class Angles(Stateless):
    """Angles of all triples of each group."""

    def __init__(self, config: AnglesConfig) -> None:
        self.weight, self._group = config.weight, config.group

    def loss(self, facts: TermFacts) -> Tensor:
        """See `Term.loss`."""
        student, teacher, valid = facts.everyone
        return angle_loss(student, teacher, valid, group=self._group)


def distance_loss(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """0-dim huber of relative distances.

    Args:
        student, teacher: (G, D) unit rows; valid: (G,) bool.
    """
    pairs = valid[:, None] & valid[None, :] & ~torch.eye(len(valid), dtype=torch.bool, device=valid.device)

    def relative(rows: Tensor) -> Tensor:
        # By differences: from a Gram matrix, float32 distances of near images would be noise.
        distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")  # (G, G)
        mean = mean_over(distances, pairs)
        return distances / torch.where(mean > 0, mean, 1.0)

    return mean_over(smooth_l1_loss(relative(student), relative(teacher), reduction="none"), pairs)


def angle_loss(student: Tensor, teacher: Tensor, valid: Tensor, *, group: int) -> Tensor:
    """0-dim huber of the cosines at every vertex; arguments as `distance_loss`."""
    count = -len(valid) % group
    batched = pad(valid, (0, count)).reshape(-1, group)  # (groups, n)
    cosines = [
        _vertex_cosines(pad(rows, (0, 0, 0, count)).reshape(len(batched), group, -1)) for rows in (student, teacher)
    ]
    (of_student, known), (of_teacher, known_too) = cosines
    distinct = ~torch.eye(group, dtype=torch.bool, device=valid.device)
    # Vertex j second: (i, j) and (k, j) are distances, and i != k.
    triples = (
        batched[:, :, None, None] & batched[:, None, :, None] & batched[:, None, None, :] & distinct[None, :, None, :]
    )
    triples = triples & _legs(known) & _legs(known_too)
    return mean_over(smooth_l1_loss(of_student, of_teacher, reduction="none"), triples)


def _vertex_cosines(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(groups, i, j, k) cosine of the angle at j between i and k; (groups, i, j) bool, i and j lie apart."""
    gram = rows @ rows.transpose(1, 2)  # (groups, n, n)
    squares = gram.diagonal(dim1=1, dim2=2)  # (groups, n)
    square_distances = squares[:, :, None] + squares[:, None, :] - 2.0 * gram
    apart = square_distances > _LEAST_SQUARE
    inverse = torch.where(apart, square_distances, 1.0).rsqrt()
    # <x_i - x_j, x_k - x_j> without the (n, n, D) differences.
    inner = gram[:, :, None, :] - gram[:, :, :, None] - gram[:, None, :, :] + squares[:, None, :, None]
    return inner * inverse[:, :, :, None] * inverse[:, None, :, :], apart


def _legs(apart: Tensor) -> Tensor:
    """(groups, i, j, k): i and k both lie apart from j."""
    return apart[:, :, :, None] & apart[:, None, :, :]
