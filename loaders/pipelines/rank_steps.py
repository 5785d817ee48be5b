"""What one rank has to load, step by step: record ids and augmentation, before anything is read.

All pipelines take their work from here, so they agree on every batch by construction, and a position (epoch, step)
means the same batch whether training came to it or resumed at it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adadistill.loaders.augment.augment_policy import Augmentation
from adadistill.loaders.pipelines.sample_order import SampleOrder


@dataclass(frozen=True, slots=True, eq=False)
class StepPlan:
    """One rank's share of one step; B samples in global batch order."""

    epoch: int
    step: int
    record_ids: npt.NDArray[np.int64]
    """(B,) int64."""
    mirrored: npt.NDArray[np.bool_]
    """(B,) bool, True where the image is to be flipped left to right."""
    parameters: npt.NDArray[np.int32] | None = None
    """(B, P), all that is to be done to each image, mirroring included (`kernels.augment_parameters`); None where that
    is mirroring alone."""


class RankSteps:
    """The plans of one rank. Every rank has the same number of steps, of the same size.

    Args:
        order: which records make up which global batch.
        rank: in [0, world_size).
        world_size: ranks that share a global batch; must divide it.
        augmentation: of the images, the same on all ranks.

    Raises:
        ValueError: the rank or the world size does not fit.
    """

    def __init__(self, order: SampleOrder, *, rank: int, world_size: int, augmentation: Augmentation) -> None:
        self.batch_size = order.local_batch_size(world_size)
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, {world_size}), got {rank}")
        self.rank, self.world_size = rank, world_size
        self._order = order
        self._augmentation = augmentation

    @property
    def steps_per_epoch(self) -> int:
        """The same on every rank."""
        return self._order.steps_per_epoch

    def plans(self, epoch: int, first_step: int = 0) -> Iterator[StepPlan]:
        """The plans from (epoch, first_step) to the end of the epoch; none where first_step is the number of steps.

        Raises:
            ValueError: at once, where there is no such position.
        """
        if epoch < 0 or not 0 <= first_step <= self.steps_per_epoch:
            raise ValueError(
                f"no position epoch {epoch}, step {first_step}: epochs count from 0 and steps to {self.steps_per_epoch}"
            )
        return (self._plan(epoch, step) for step in range(first_step, self.steps_per_epoch))

    def ids_by_rank(self, epoch: int, step: int) -> npt.NDArray[np.int64]:
        """(R, B) the record ids of one step on every rank."""
        return self._order.global_ids(epoch, step).reshape(self.world_size, self.batch_size)

    def _plan(self, epoch: int, step: int) -> StepPlan:
        record_ids = self._order.rank_ids(epoch, step, self.rank, self.world_size)
        mirrored = self._augmentation.mirrored(epoch, record_ids)
        return StepPlan(epoch, step, record_ids, mirrored, self._augmentation.parameters(epoch, record_ids))
