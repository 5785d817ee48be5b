"""Every record once, in file order: what has to be loaded to embed a whole file block by block.

Why: a network's rounding depends on the shape of its input, and compiled networks and DALI want one shape for ever. So
a block is one batch of a fixed size, and the last one is filled up by repeating its last record: whoever computes a
block, after whichever others, computes the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from adadistill.loaders.pipelines.rank_steps import StepPlan


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
        yield _plan(block, np.arange(first, min(first + block_records, num_records)), block_records)


def record_plans(record_ids: npt.NDArray[np.int64], *, batch_size: int) -> Iterator[StepPlan]:
    """The plans that load chosen records, (n,) ids, in their order; the last plan is padded to `batch_size`."""
    for step, first in enumerate(range(0, len(record_ids), batch_size)):
        yield _plan(step, record_ids[first : first + batch_size], batch_size)


def _plan(step: int, record_ids: npt.NDArray[np.int64], batch_size: int) -> StepPlan:
    padding = np.full(batch_size - len(record_ids), record_ids[-1], dtype=np.int64)
    filled = np.concatenate([record_ids, padding])  # (batch_size,)
    unmirrored = np.zeros(batch_size, dtype=np.bool_)
    return StepPlan(epoch=0, step=step, global_record_ids=filled, global_mirrored=unmirrored)
