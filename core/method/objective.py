"""What every objective promises: a loss of raw embeddings, and the state beside the student that it owns.

All follow one order: teacher, centre update, statistics, margins, softmax; and all propose their state
changes first and keep them only when told that the step was finite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from adadistill.core.checkpoints import RowArray
from adadistill.core.distributed import Ranks
from adadistill.loaders.batch import Batch


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

    def step(self, embeddings: Tensor, batch: Batch, *, fractional_epoch: float, stop: bool) -> ObjectiveStep:
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
