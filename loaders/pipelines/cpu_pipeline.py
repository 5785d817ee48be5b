"""Decoding on plain CPU threads: simplejpeg in a thread pool.

simplejpeg lets go of Python's interpreter lock while it decodes, so threads do (two decode 1.6 times as fast as one on
two hyper-threads) and nothing has to be copied between processes. What stays under the lock takes 4 us per image
(records are checked a batch at a time, headers one by one) beside 70 us of decoding: one process ends at 250,000
images/s, however many threads it has.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from adadistill.loaders.augment.planned_augmentation import write_augmented
from adadistill.loaders.batch import Batch
from adadistill.loaders.pipelines.batch_destination import BatchDestination, Staged
from adadistill.loaders.pipelines.rank_steps import StepPlan
from adadistill.loaders.pipelines.row_threads import RowThreads, Tasks, batches_in_turn, finish
from adadistill.loaders.records.checked_records import CheckedRecords
from adadistill.loaders.records.damaged_records import DAMAGE, GREY_LEVEL, SKIPPED_LABEL, DamagedRecords

_ROWS_PER_TASK = 16
"""Images one task decodes: small enough to share a batch among many threads and to stay in cache between decoding and
normalising (600 KB), large enough that handing out the task costs nothing beside it."""


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    plan: StepPlan
    labels: npt.NDArray[np.int64]
    staged: Staged
    tasks: Tasks


class CpuDecoding:
    """Turns plans into batches with a pool of decode threads.

    Args:
        records: where the images come from.
        destination: what batches are made of and where they go.
        damaged: decides about records that cannot be decoded.
        threads: of the pool.
    """

    def __init__(
        self, records: CheckedRecords, destination: BatchDestination, damaged: DamagedRecords, *, threads: int
    ) -> None:
        self._records, self._destination, self._damaged = records, destination, damaged
        self._threads = RowThreads(threads, rows=_ROWS_PER_TASK, name="adadistill-decode")

    def batches(self, plans: Iterator[StepPlan]) -> Generator[Batch, None, None]:
        """The batches of the plans, in order.

        Raises:
            RecordError, ImageDecodeError: the first bad record, when its batch is reached.
        """
        return batches_in_turn(plans, self._start, self._finish)

    def close(self) -> None:
        """End the threads."""
        self._threads.close()

    def _start(self, plan: StepPlan) -> _Work:
        labels, bodies = self._records.read_plain(plan.record_ids)
        staged = self._destination.stage()
        tasks = self._threads.start(len(labels), partial(self._decode_rows, plan, labels, bodies, staged))
        return _Work(plan, labels, staged, tasks)

    def _finish(self, work: _Work) -> Batch:
        finish(work.tasks)
        return self._destination.batch(work.plan, work.labels, work.staged)

    def _decode_rows(
        self,
        plan: StepPlan,
        labels: npt.NDArray[np.int64],
        bodies: list[npt.NDArray[np.uint8] | None],
        staged: Staged,
        rows: slice,
    ) -> None:
        images = staged.images_u8[rows].numpy()
        for row, record_id in enumerate(plan.record_ids[rows].tolist(), start=rows.start):
            try:
                pixels = self._records.decode_plain(record_id, bodies[row])
                if pixels is None:
                    labels[row], pixels = self._records.decode(record_id)
            except DAMAGE as error:
                self._damaged.note(record_id, error)
                labels[row] = SKIPPED_LABEL
                images[row - rows.start] = GREY_LEVEL
                continue
            if self._destination.augments:
                images[row - rows.start] = pixels
            else:
                write_augmented(pixels, plan, row, images[row - rows.start])
        self._destination.normalise_rows(staged, rows)
