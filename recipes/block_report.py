"""What people see while a store is written or read block by block: a bar on a terminal, lines in a log, a rate."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from adadistill.core.distributed import Ranks
from adadistill.core.training.metrics_log import ProgressBar, format_seconds
from adadistill.core.training.stop_signal import StopRequested, StopSignal

logger = logging.getLogger("adadistill")

LOG_EVERY_S = 10.0


class BlockProgress(Protocol):
    """How far one rank is."""

    @property
    def blocks(self) -> int:
        """Done, of this rank's."""
        ...

    @property
    def of_blocks(self) -> int:
        """This rank's."""
        ...

    @property
    def images(self) -> int:
        """Taken in this run, by this rank."""
        ...


P = TypeVar("P", bound=BlockProgress)


class BlockReport(Generic[P]):
    """Shows how far a writing is: a bar on a terminal, and a line every ten seconds. Rank 0's part stands for all.

    Args:
        ranks: of the launch.
        rates: what the line says of speed, from the newest progress and the images/s of all ranks.
    """

    def __init__(self, ranks: Ranks, rates: Callable[[P, float], str]) -> None:
        self._ranks, self._rates = ranks, rates
        self._bar: ProgressBar | None = None
        self._since: tuple[float, P] | None = None

    def __call__(self, progress: P) -> None:
        """Take note of a block that was done."""
        now = time.perf_counter()
        if self._bar is None or self._since is None:  # what came before the first block says nothing of the next ones
            self._bar, self._since = ProgressBar(progress.of_blocks, self._ranks), (now, progress)
        self._bar.update(progress.blocks)
        if progress.blocks == progress.of_blocks:
            self._bar.clear()
        elif now - self._since[0] >= LOG_EVERY_S:
            self._bar.clear()
            self._log(progress, self._since[1], now - self._since[0])
            self._since = (now, progress)

    def _log(self, progress: P, earlier: P, seconds: float) -> None:
        blocks_per_s = (progress.blocks - earlier.blocks) / seconds
        logger.info(
            "block %d/%d%s  %s  ETA %s",
            progress.blocks,
            progress.of_blocks,
            f" of rank 0 of {self._ranks.world_size}" if self._ranks.world_size > 1 else "",
            self._rates(progress, (progress.images - earlier.images) / seconds * self._ranks.world_size),
            format_seconds((progress.of_blocks - progress.blocks) / max(blocks_per_s, 1e-9)),
        )


def verify_blocks(
    verify: Callable[[Callable[[int], None]], None], num_blocks: int, data_bytes: int, ranks: Ranks, stop: StopSignal
) -> str:
    """Compare all blocks of a store with their checksums, beside a bar; what to say of it.

    Args:
        verify: reads the blocks, calling its argument with how many are done.

    Raises:
        StopRequested: a signal came between two blocks.
        Whatever `verify` raises.
    """
    bar, began = ProgressBar(num_blocks, ranks), time.perf_counter()

    def progress(blocks: int) -> None:
        bar.update(blocks)
        if stop.requested:
            bar.clear()
            raise StopRequested(stop.exit_code)

    verify(progress)
    bar.clear()
    gigabytes = data_bytes / 1e9
    rate = gigabytes / max(time.perf_counter() - began, 1e-9)
    return f"all checksums are right: {num_blocks} blocks, {gigabytes:.3f} GB, {rate:.2f} GB/s"
