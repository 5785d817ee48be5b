"""Slow class centres: where a teacher sees an identity on the long run, as a measure of how sure it is of an image.

Adaptive centres average the last two or three teacher embeddings of an identity (the momentum is near 0.6 late in the
published run), so their cosine to the next one, the confidence, is capped near 0.69 by their own noise, and a student
that has come that close shuts the geometry margin's gate. A second centre with a fixed, large momentum averages about
a hundred embeddings instead; its cosine comes near the true one of the identity, and the gate stays open for samples
that lag behind that. Only the geometry term reads it: the adaptive centres' own momentum and the softmax do not.

    confidence' = clip(cos(u, t), 1e-6, 1)          u as it was before the step
    u <- momentum u + (1 - momentum) t              each image of an identity, in batch order

The start is zero, and rows are normalised where they are read, never in storage. After n images u is a weighted sum of
teacher embeddings alone, with weights (1 - momentum) momentum^(n - i): too short, by 1 - momentum^n, but its direction,
all that is read, owes nothing to a start. An identity not seen yet has no direction: its confidence is the least there
is, so that the gate is shut.

Source: `headroom`, a variant of our own of the geometry margin; not in the published code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from adadistill.core.checkpoints import RowArray
from adadistill.core.method.class_centres import centre_confidence, load_centres_
from adadistill.kernels.centre_update import centre_update_


@dataclass(frozen=True, slots=True)
class SlowCentreStep:
    """One step's update of the slow centres, written but not yet final."""

    confidence: Tensor
    """(G,) cosine of the slow centre as it was to the teacher's embedding, in [1e-6, 1]; 0 for ignored samples."""
    commit_: Callable[[Tensor], None]
    """Keep the step where its argument (0-dim bool on the centres' device) is true, else restore every bit."""


class SlowCentres:
    """Moving averages of the teacher's embeddings with one fixed momentum, beside the adaptive centres.

    Ownership: replicated, as adaptive centres are: every rank applies the same update of the whole global batch, so
    that replicas stay equal in every bit. Checkpoints hold the (C, D) tensor, by rows over the ranks.

    Memory: (C, D) numbers more than adaptive centres alone: 176 MB for MS1MV2's 85,742 identities in float32.
    """

    def __init__(
        self, num_classes: int, dim: int, *, momentum: float, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Start from zeros.

        Args:
            num_classes: C; `dim`: D.
            momentum: weight of the old centre, in [0, 1).
            dtype: of storage, see `slow_centres_dtype`.
        """
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        self.momentum = momentum
        self.slow_centres = torch.zeros(num_classes, dim, dtype=dtype, device=device)

    @torch.no_grad()
    def propose_update(self, teacher_embeddings: Tensor, labels: Tensor) -> SlowCentreStep:
        """Apply one global batch, to be kept or undone by the step's `commit_`.

        Args:
            teacher_embeddings: (G, D) unit rows in global order.
            labels: (G,) int64 in [0, C), or -1 to skip.

        Raises:
            ValueError: shapes disagree.
        """
        if teacher_embeddings.shape != (len(labels), self.slow_centres.shape[1]):
            raise ValueError(
                f"teacher_embeddings must be ({len(labels)}, {self.slow_centres.shape[1]}), "
                f"got {tuple(teacher_embeddings.shape)}"
            )
        dtype = torch.promote_types(self.slow_centres.dtype, torch.float32)
        teacher = teacher_embeddings.to(dtype)
        confidence = centre_confidence(self.slow_centres[labels.clamp(min=0)], teacher)
        momentum = torch.full_like(labels, self.momentum, dtype=dtype)
        update = centre_update_(self.slow_centres, teacher, labels, momentum)
        return SlowCentreStep(torch.where(labels >= 0, confidence, 0.0), update.commit_)

    def state_dict(self) -> dict[str, RowArray]:
        """What a checkpoint stores: the live (C, D) slow centres."""
        return {"slow_centres": self.slow_centres}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, RowArray]) -> None:
        """Take over stored slow centres, in place.

        Raises:
            ValueError: other keys, shape or dtype than this object's.
        """
        load_centres_(self.slow_centres, state, name="slow_centres", num_classes=len(self.slow_centres))


def slow_centres_dtype(half: Literal["bfloat16", "float16"] | None, exact: torch.dtype) -> torch.dtype:
    """In which slow centres are stored: `exact`, or float16 where `centres.half` asks for either half format.

    A step goes one hundredth of the way, which bfloat16 rounds off: its averages stray by 7e-4 in cosine, and those of
    float16 by 1.5e-6 (1,500 images of each of 50 identities in 512 dimensions). Entries of an average of unit vectors
    need none of bfloat16's range.
    """
    return exact if half is None else torch.float16
