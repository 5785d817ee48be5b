"""What one rank has to load, step by step: record ids and mirror flags, before anything is read.

Both pipelines take their work from here, so they agree on every batch by construction, and a position (epoch, step)
means the same batch whether training came to it or resumed at it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adadistill.loaders.augmentation import mirror_flags
from adadistill.loaders.sample_order import SampleOrder


@dataclass(frozen=True, slots=True, eq=False)
class StepPlan:
    """One rank's share of one step; B samples in global batch order."""

    epoch: int
    step: int
    record_ids: npt.NDArray[np.int64]
    """(B,) int64."""
    mirrored: npt.NDArray[np.bool_]
    """(B,) bool, True where the image is to be flipped left to right."""


class RankSteps:
    """The plans of one rank. Every rank has the same number of steps, of the same size.

    Args:
        order: which records make up which global batch.
        rank: in [0, world_size).
        world_size: ranks that share a global batch; must divide it.
        mirror_seed: of the mirror stream, equal on all ranks.
        mirror_probability: share of images mirrored, in [0, 1].

    Raises:
        ValueError: the rank or the world size does not fit.
    """

    def __init__(
        self, order: SampleOrder, *, rank: int, world_size: int, mirror_seed: int, mirror_probability: float
    ) -> None:
        self.batch_size = order.local_batch_size(world_size)
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, {world_size}), got {rank}")
        if mirror_seed < 0:
            raise ValueError(f"mirror_seed must not be negative, got {mirror_seed}")
        self._order, self._rank, self._world_size = order, rank, world_size
        self._mirror_seed, self._mirror_probability = mirror_seed, mirror_probability

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

    def _plan(self, epoch: int, step: int) -> StepPlan:
        record_ids = self._order.rank_ids(epoch, step, self._rank, self._world_size)
        mirrored = mirror_flags(self._mirror_seed, epoch, record_ids, self._mirror_probability)
        return StepPlan(epoch, step, record_ids, mirrored)
