"""Decodes every image of a record file once, into a packed store that training reads ever after.

Threads decode and write whole blocks, and processes share the blocks by their ranks, without speaking to each other:
rank 0 makes the files, the others wait for the header, and whoever sees that all blocks are done writes the list of
damaged records.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from adadistill.loaders.block_store.errors import StoreError
from adadistill.loaders.block_store.packed_header import (
    DAMAGED_LABEL,
    DAMAGED_PIXEL,
    Layout,
    PackedHeader,
    packed_header,
)
from adadistill.loaders.block_store.packed_images import PackedStore, PackWriter, stored_header
from adadistill.loaders.block_store.packed_layouts import (
    DecodeRecord,
    FillRow,
    LayoutChoice,
    OnDamaged,
    choose_layout,
    is_damage,
    row_filler,
)
from adadistill.loaders.block_store.writer import BlockProgress, check_folder
from adadistill.loaders.pixels import ImageDecodeError, ImageLimits
from adadistill.loaders.records.checked_records import CheckedRecords
from adadistill.loaders.records.image_source import ImageSource
from adadistill.loaders.records.recordio import RecordError

logger = logging.getLogger(__name__)

HEADER_WAIT_S = 1800.0
"""How long a rank waits for rank 0 to read all headers and to make the files."""
_HEADER_LOOK_S = 0.1
_MAX_WORKERS = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class PackResult:
    """What one call of `pack_records` left behind."""

    folder: Path
    header: PackedHeader | None = None
    """The header of the store; None where it was stopped before the layout was known."""
    images: int = 0
    """Images decoded in this run, by this rank; 0 where its part was done already."""
    seconds: float = 0.0
    """Time from the first block to the last byte, on this rank."""
    missing_blocks: int | None = None
    """Blocks of all ranks that are not done; None where it was stopped before there was a store."""
    damaged: int = 0
    """Records stored as damaged so far, by all ranks."""
    digest: str | None = None
    """Names the content, see `PackedStore.digest`; None where the store is not complete."""
    stopped: bool
    """Whether `stop` ended it."""

    @property
    def is_complete(self) -> bool:
        """Whether the store can be read."""
        return self.digest is not None

    @property
    def images_per_s(self) -> float:
        """The speed of this rank."""
        return self.images / self.seconds if self.images else 0.0


def pack_records(
    records: ImageSource,
    folder: str | Path,
    *,
    binding: Mapping[str, Any],
    layout: LayoutChoice = "auto",
    image_size: int = 112,
    shard_records: int = 65536,
    workers: int = 4,
    on_damaged: OnDamaged = "stop",
    wrong_size: Literal["refuse", "resize"] = "refuse",
    limits: ImageLimits | None = None,
    decode: DecodeRecord | None = None,
    rank: int = 0,
    world_size: int = 1,
    stop: Callable[[], bool] = lambda: False,
    report: Callable[[BlockProgress], None] = lambda progress: None,
) -> PackResult:
    """Pack the images of a record file. A call that was stopped or killed is continued by the next one.

    Args:
        records: the images and their labels.
        folder: of the store: absent, empty, or what an earlier call of the same packing left.
        binding: `fingerprint`, `num_records`, `num_classes` and `name` of the records, which training compares.
        layout: auto takes planes where all images are 4:2:0 or grey JPEGs and the TurboJPEG library is there, else rgb.
        image_size, shard_records: the side of all images in pixels, and the images in a file.
        workers: threads that decode, 1 to 256; each holds a block (19 MB as planes of 112 pixels).
        on_damaged: stop raises for the first damaged record; skip stores it as mid-grey with label -1, and warns.
        wrong_size: refuse images of another size, even where damage is skipped; or resize them, which means rgb.
        limits: of what an image's header may claim.
        decode: makes label and RGB pixels of a record id in place of our own decoder; rgb only, which auto then means.
        rank, world_size: which part of the blocks this process packs. All processes get the same other arguments.
        stop: asked between blocks whether to give up; what is done stays. `report` is called after each block.

    Raises:
        RecordError, ImageDecodeError: the first damaged record of this rank's part, or one of another size.
        StoreError: the folder holds something else or cannot be written, planes cannot be had, rank 0 made no files.
        ValueError: an argument is out of range.
    """
    _check_arguments(layout, workers, on_damaged, rank, world_size)
    folder = Path(folder)
    checked = CheckedRecords(records, image_size, limits=limits, wrong_size=wrong_size)
    asked = "rgb" if layout == "auto" and decode is not None else layout
    chosen = _layout_of(folder, asked, checked, on_damaged, rank, stop)
    if chosen is None:
        return PackResult(folder=folder, stopped=True)
    header = packed_header(
        chosen, num_records=len(records), image_size=image_size, shard_records=shard_records, records=binding
    )
    fill = row_filler(chosen, checked, decode)
    with PackWriter(folder, header, main=rank == 0) as writer:
        result = _Packing(writer, fill, on_damaged, stop).run(rank, world_size, workers, report)
    return result if result.missing_blocks else replace(result, digest=PackedStore(folder).digest())


def _layout_of(
    folder: Path,
    asked: LayoutChoice,
    records: CheckedRecords,
    on_damaged: OnDamaged,
    rank: int,
    stop: Callable[[], bool],
) -> Layout | None:
    """The layout to pack in: that of a packing that is continued, where auto is asked for. None where stopped."""
    check_folder(folder, PackedHeader.kind)  # before minutes of reading headers
    stored = stored_header(folder)
    if stored is None and rank > 0 and (stored := _wait_for_header(folder, stop)) is None:
        return None
    if stored is None:
        return choose_layout(asked, records, on_damaged=on_damaged, stop=stop)
    return stored.layout if asked == "auto" else asked


class _Packing:
    """The blocks of one rank."""

    def __init__(self, writer: PackWriter, fill: FillRow, on_damaged: OnDamaged, stop: Callable[[], bool]) -> None:
        self._writer, self._fill, self._stop = writer, fill, stop
        self._skips_damaged, self._stopped = on_damaged == "skip", False

    def run(self, rank: int, world_size: int, workers: int, report: Callable[[BlockProgress], None]) -> PackResult:
        """Pack what is missing of a rank's blocks. They end in order, so the first damaged record is the one raised."""
        writer = self._writer
        first, last = (writer.header.num_blocks * place // world_size for place in (rank, rank + 1))
        all_images, began = 0, time.perf_counter()
        pool = ThreadPoolExecutor(workers, thread_name_prefix="pack")
        try:
            done = _in_order(pool, self._pack_block, self._until_stopped(range(first, last)), workers)
            for place, images in enumerate(done):
                all_images += images
                report(BlockProgress(blocks=place + 1, of_blocks=last - first, images=all_images))
        finally:
            pool.shutdown(cancel_futures=True)
        seconds, missing = time.perf_counter() - began, writer.missing_blocks()
        if not missing:
            writer.write_damaged_list()
        return PackResult(
            folder=writer.folder,
            header=writer.header,
            images=all_images,
            seconds=seconds,
            missing_blocks=missing,
            damaged=len(writer.damaged_ids()),
            stopped=self._stopped,
        )

    def _until_stopped(self, blocks: range) -> Iterator[int]:
        for block in blocks:
            if self._stop():
                self._stopped = True
                return
            yield block

    def _pack_block(self, block: int) -> int:
        """Number of images decoded: none where the block was done already."""
        writer = self._writer
        if not writer.pending(block, block + 1).size:
            return 0
        ids = writer.header.block_record_range(block)
        images = np.empty((len(ids), writer.header.image_bytes), np.uint8)
        labels = np.empty(len(ids), np.int64)
        for place, record_id in enumerate(ids):
            labels[place] = self._fill_or_skip(record_id, images[place])
        writer.write_block(block, images, labels)
        return len(ids)

    def _fill_or_skip(self, record_id: int, row: npt.NDArray[np.uint8]) -> int:
        try:
            return self._fill(record_id, row)
        except (RecordError, ImageDecodeError) as error:
            if not self._skips_damaged or not is_damage(error):
                raise
            logger.warning("stored as damaged, grey with label %d: %s", DAMAGED_LABEL, error)
            row.fill(DAMAGED_PIXEL)  # a decoder may have left half an image
            return DAMAGED_LABEL


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[int], int], items: Iterable[int], workers: int
) -> Iterator[int]:
    """Results of `work` in the order of its items, one item waiting for each thread."""
    running: deque[Future[int]] = deque()
    for item in items:
        running.append(pool.submit(work, item))
        if len(running) > 2 * workers:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


def _wait_for_header(folder: Path, stop: Callable[[], bool]) -> PackedHeader | None:
    """The header that rank 0 makes; None where `stop` said so first. Raises StoreError where it takes too long."""
    deadline = time.monotonic() + HEADER_WAIT_S
    while (stored := stored_header(folder)) is None and not stop():
        if time.monotonic() > deadline:
            raise StoreError(
                f"{folder}: rank 0 has made no packed store there in {HEADER_WAIT_S:.0f} s; see its messages"
            )
        time.sleep(_HEADER_LOOK_S)
    return stored


def _check_arguments(layout: str, workers: int, on_damaged: str, rank: int, world_size: int) -> None:
    if layout not in get_args(LayoutChoice):
        raise ValueError(f"layout must be auto, planes or rgb, got {layout!r}")
    if on_damaged not in get_args(OnDamaged):
        raise ValueError(f"on_damaged must be stop or skip, got {on_damaged!r}")
    if not 1 <= workers <= _MAX_WORKERS:
        raise ValueError(f"workers must be in [1, {_MAX_WORKERS}], got {workers}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be in [0, world_size), got rank {rank} of {world_size}")
