"""Threads that make the rows of a batch together, while the batch before it is finished.

Decoding on the CPU, the packed store and DALI's batches on the CPU all share their work in this way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Protocol, TypeVar

from adadistill.loaders.batch import Batch
from adadistill.loaders.pipelines.rank_steps import StepPlan

Tasks = list[Future[None]]

_BATCHES_IN_WORK = 2
"""While one batch is being finished, the threads work on the next."""


class BatchInWork(Protocol):
    """A batch whose rows are being made."""

    @property
    def tasks(self) -> Tasks:
        """What the threads do for it."""
        ...


Work = TypeVar("Work", bound=BatchInWork)


class RowThreads:
    """A pool of threads, each of whose tasks makes some rows of a batch.

    Args:
        threads: of the pool.
        rows: images of one task.
        name: of the threads, for people who look at a process.
    """

    def __init__(self, threads: int, *, rows: int, name: str) -> None:
        self._rows = rows
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)

    def start(self, count: int, work: Callable[[slice], None]) -> Tasks:
        """Let `work` make rows [0, count), some at a time; slices may end behind the last."""
        starts = range(0, count, self._rows)
        return [self._pool.submit(work, slice(start, start + self._rows)) for start in starts]

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def finish(tasks: Tasks) -> None:
    """Wait for all, before the first error is raised: none may write to memory that is let go."""
    wait(tasks)
    for task in tasks:
        task.result()


def batches_in_turn(
    plans: Iterator[StepPlan], begin: Callable[[StepPlan], Work], end: Callable[[Work], Batch]
) -> Generator[Batch, None, None]:
    """The batches of the plans, in order: each is begun before the one before it is ended.

    Left early, it cancels what has not begun and waits for what has.
    """
    in_work: deque[Work] = deque()
    try:
        for plan in plans:
            in_work.append(begin(plan))
            if len(in_work) == _BATCHES_IN_WORK:
                yield end(in_work.popleft())
        while in_work:
            yield end(in_work.popleft())
    finally:
        left = [task for work in in_work for task in work.tasks]
        for task in left:
            task.cancel()
        wait(left)
