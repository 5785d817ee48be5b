"""What people see while a store is written or read block by block: a bar on a terminal, lines in a log, a rate."""

from __future__ import annotations

import logging
import time
from typing import Any

from adadistill.core.distributed import Ranks
from adadistill.core.training.metrics_log import ProgressBar, format_seconds
from adadistill.core.training.stop_signal import StopRequested, StopSignal
from adadistill.loaders.block_store.reader import BlockReader
from adadistill.loaders.block_store.writer import BlockProgress

logger = logging.getLogger("adadistill")

LOG_EVERY_S = 10.0


class BlockReport:
    """Shows how far a writing is: a bar on a terminal, and a line every ten seconds. Rank 0's part stands for all."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._bar: ProgressBar | None = None
        self._since: tuple[float, BlockProgress] | None = None

    def __call__(self, progress: BlockProgress) -> None:
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

    def _log(self, progress: BlockProgress, earlier: BlockProgress, seconds: float) -> None:
        blocks_per_s = (progress.blocks - earlier.blocks) / seconds
        logger.info(
            "block %d/%d%s  images/s %.0f  ETA %s",
            progress.blocks,
            progress.of_blocks,
            f" of rank 0 of {self._ranks.world_size}" if self._ranks.world_size > 1 else "",
            (progress.images - earlier.images) / seconds * self._ranks.world_size,
            format_seconds((progress.of_blocks - progress.blocks) / max(blocks_per_s, 1e-9)),
        )


def check_blocks(store: BlockReader[Any], ranks: Ranks, stop: StopSignal) -> str:
    """Compare all blocks of a store with their checksums, beside a bar; what to say of it.

    Raises:
        StopRequested: a signal came between two blocks.
        StoreDamagedError: the first damaged block.
    """
    header = store.header
    bar, began = ProgressBar(header.num_blocks, ranks), time.perf_counter()

    def progress(blocks: int) -> None:
        bar.update(blocks)
        if stop.requested:
            bar.clear()
            raise StopRequested(stop.exit_code)

    store.check(progress=progress)
    bar.clear()
    gigabytes = header.data_bytes / 1e9
    rate = gigabytes / max(time.perf_counter() - began, 1e-9)
    return f"all checksums are right: {header.num_blocks} blocks, {gigabytes:.3f} GB, {rate:.2f} GB/s"
