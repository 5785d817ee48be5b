"""The one place that plans a step: which records, how they are augmented, and which of them are this rank's.

`RankSteps` plans training, `block_plans` and `record_plans` what is read once, in the order of the file. All pipelines
take their work from here and hand the plan's facts on in `Batch`, so they agree on every batch by
construction, and a position (epoch, step) means the same batch whether training came to it or resumed at it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from adadistill.loaders.augment.augment_policy import Augmentation
from adadistill.loaders.pipelines.sample_order import SampleOrder


@dataclass(frozen=True, slots=True, eq=False)
class StepPlan:
    """A step's global batch of G samples, of which one rank loads B in a row."""

    epoch: int
    step: int
    global_record_ids: npt.NDArray[np.int64]
    """(G,) int64."""
    global_mirrored: npt.NDArray[np.bool_]
    """(G,) bool, True where the image is to be flipped left to right."""
    own: slice = field(default_factory=lambda: slice(None))
    """This rank's samples among them; all of them where one rank works alone."""
    view: int | None = None
    """See `Batch.view`."""
    parameters: npt.NDArray[np.int32] | None = None
    """(B, P), all that is to be done to each image, mirroring included (`kernels.augment_parameters`); None where that
    is mirroring alone."""

    @property
    def record_ids(self) -> npt.NDArray[np.int64]:
        """(B,) record ids of this rank's samples."""
        return self.global_record_ids[self.own]

    @property
    def mirrored(self) -> npt.NDArray[np.bool_]:
        """(B,) their mirror flags."""
        return self.global_mirrored[self.own]


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

    def _plan(self, epoch: int, step: int) -> StepPlan:
        record_ids = self._order.global_ids(epoch, step)  # (G,)
        own = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        return StepPlan(
            epoch=epoch,
            step=step,
            global_record_ids=record_ids,
            global_mirrored=self._augmentation.mirrored(epoch, record_ids),
            own=own,
            view=self._augmentation.view(epoch),
            parameters=self._augmentation.parameters(epoch, record_ids[own]),
        )


def block_plans(blocks: Iterable[int], *, num_records: int, block_records: int) -> Iterator[StepPlan]:
    """The plans that load blocks of consecutive records, as they are stored (not mirrored).

    Args:
        blocks: numbers of the blocks, in the order in which they are wanted.
        num_records: N; block b holds records [b * block_records, (b + 1) * block_records), the last one what is left.
        block_records: records in a block, and in each plan: a short block is padded.

    Returns:
        One plan for each block, with epoch 0 and the block's number as its step.

    Raises:
        IndexError: from `next()`, where there is no such block.
    """
    for block in blocks:
        first = block * block_records
        if not 0 <= first < num_records:
            raise IndexError(f"block must be in [0, {-(-num_records // block_records)}), got {block}")
        yield _unmirrored(block, np.arange(first, min(first + block_records, num_records)), block_records)


def record_plans(record_ids: npt.NDArray[np.int64], *, batch_size: int) -> Iterator[StepPlan]:
    """The plans that load chosen records, (n,) ids, in their order; the last plan is padded to `batch_size`."""
    for step, first in enumerate(range(0, len(record_ids), batch_size)):
        yield _unmirrored(step, record_ids[first : first + batch_size], batch_size)


def _unmirrored(step: int, record_ids: npt.NDArray[np.int64], batch_size: int) -> StepPlan:
    padding = np.full(batch_size - len(record_ids), record_ids[-1], dtype=np.int64)
    filled = np.concatenate([record_ids, padding])  # (batch_size,)
    unmirrored = np.zeros(batch_size, dtype=np.bool_)
    return StepPlan(epoch=0, step=step, global_record_ids=filled, global_mirrored=unmirrored)
