"""Work done ahead arrives in order, errors in their place, and nothing keeps running."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator

import pytest

from adadistill.loaders.pipelines.prefetch import prefetched


def counting(stop: int, made: list[int], ended: list[str]) -> Generator[int, None, None]:
    try:
        for number in range(stop):
            made.append(number)
            yield number
    finally:
        ended.append(threading.current_thread().name)


def wait_until(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)


def background_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("adadistill-prefetch")]


@pytest.mark.parametrize("depth", [1, 100])
def test_items_arrive_complete_and_in_order(depth):
    assert list(prefetched(counting(20, [], []), depth)) == list(range(20))
    assert list(prefetched(counting(0, [], []), depth)) == []
    assert background_threads() == []


def test_only_depth_items_are_made_ahead():
    made: list[int] = []
    items = prefetched(counting(100, made, []), 3)
    assert background_threads() == [], "nothing starts before the first item is asked for"
    assert next(items) == 0
    wait_until(lambda: len(made) == 4)
    time.sleep(0.05)
    assert made == [0, 1, 2, 3]
    items.close()


def test_an_error_arrives_after_all_items_before_it():
    def failing() -> Generator[int, None, None]:
        yield from range(3)
        raise OSError("disk on fire")

    items = prefetched(failing(), 10)
    assert [next(items), next(items), next(items)] == [0, 1, 2]
    with pytest.raises(OSError, match="disk on fire"):
        next(items)
    assert list(items) == []
    assert background_threads() == []


def test_closing_early_ends_the_thread_and_the_source():
    ended: list[str] = []
    items = prefetched(counting(1000, [], ended), 4)
    next(items)
    items.close()
    assert len(ended) == 1
    assert background_threads() == []


def test_a_depth_of_nothing_is_refused():
    with pytest.raises(ValueError, match="depth must be positive"):
        prefetched(counting(1, [], []), 0)
