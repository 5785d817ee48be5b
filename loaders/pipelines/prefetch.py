"""Run an iterator ahead of its consumer, on a thread of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

Item = TypeVar("Item")


class _End:
    pass


_END: Final = _End()


def prefetched(items: Generator[Item, None, None], depth: int) -> Generator[Item, None, None]:
    """The same items, computed up to `depth` ahead by one background thread.

    The thread starts with the first `next()`. Each item is one task, and a task is only handed out for a place that the
    consumer has freed: nothing ever blocks on a full queue, so neither closing early nor leaving the interpreter can
    hang. An exception raised by `items` reaches the consumer in its place, after all items before it.

    Args:
        items: a generator. It runs on the background thread only; closed, by the consumer's thread, when this ends.
        depth: items ready or in the making while the consumer works; at least 1.
    """
    if depth < 1:
        raise ValueError(f"depth must be positive, got {depth}")
    return _run_ahead(items, depth)


def _run_ahead(items: Generator[Item, None, None], depth: int) -> Generator[Item, None, None]:
    executor = ThreadPoolExecutor(1, thread_name_prefix="adadistill-prefetch")
    ahead: deque[Future[Item | _End]] = deque()
    try:
        for _ in range(depth):
            ahead.append(executor.submit(_next_or_end, items))
        while not isinstance(item := ahead.popleft().result(), _End):
            ahead.append(executor.submit(_next_or_end, items))
            yield item
            del item  # while the next one is awaited, this one's memory may be reused
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
        items.close()


def _next_or_end(items: Generator[Item, None, None]) -> Item | _End:
    return next(items, _END)
