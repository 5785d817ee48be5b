"""A progress bar for work whose size is known when it begins."""

from __future__ import annotations

from adadistill.core.distributed import Ranks
from adadistill.core.training.metrics_log import ProgressBar
from adadistill.loaders.dataset_tools.rewrite import Progress


class CountedProgress:
    """A context manager that gives a function (done, total), which draws."""

    def __init__(self) -> None:
        self._bar: ProgressBar | None = None

    def __enter__(self) -> Progress:
        return self._update

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.clear()

    def _update(self, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = ProgressBar(total, Ranks())
        if done % 1000 == 0 or done == total:
            self._bar.update(done)
