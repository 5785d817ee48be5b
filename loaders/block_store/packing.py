"""Decodes every image of a record file once, into a packed store that training reads ever after.

Threads decode and write whole blocks, and processes share the blocks by their ranks, without speaking to each other:
rank 0 makes the files, the others wait for the header, and whoever sees that all blocks are done writes the list of
damaged records. Planes are taken where every image allows them, else RGB: all headers are read before anything is
written, as one image that has no 4:2:0 planes decides for all of them.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from adadistill.loaders.block_store.errors import StoreError
from adadistill.loaders.block_store.jpeg_planes import (
    TURBOJPEG_REMEDY,
    PlaneDecoder,
    TurboJpegMissingError,
    planes_available,
    why_no_planes,
)
from adadistill.loaders.block_store.packed_header import (
    DAMAGED_LABEL,
    DAMAGED_PIXEL,
    Layout,
    PackedHeader,
    image_bytes,
    packed_header,
)
from adadistill.loaders.block_store.packed_images import PackedStore, PackWriter, stored_header
from adadistill.loaders.block_store.writer import BlockProgress, check_folder
from adadistill.loaders.pixels import ImageDecodeError, ImageLimits
from adadistill.loaders.records.checked_records import CheckedRecords, ImageSizeError
from adadistill.loaders.records.damaged_records import may_be_skipped
from adadistill.loaders.records.image_source import ImageSource
from adadistill.loaders.records.recordio import RecordError, StaleIndexError

logger = logging.getLogger(__name__)

OnDamaged: TypeAlias = Literal["stop", "skip"]
FillRow: TypeAlias = Callable[[int, npt.NDArray[np.uint8]], int]
"""Writes the image of a record id to a row, (image_bytes,) uint8, and returns its label. Threads share it.

It raises RecordError or ImageDecodeError where the record is damaged or its image has another size.
"""
LayoutChoice: TypeAlias = Literal["auto", "planes", "rgb"]

HEADER_WAIT_S = 1800.0
"""How long a rank waits for rank 0 to read all headers and to make the files."""
_HEADER_LOOK_S = 0.1
_MAX_WORKERS = 256
_LOOK_EVERY = 1024  # records between two looks at the stop signal


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
    chosen = _layout_of(folder, layout, checked, on_damaged, rank, stop)
    if chosen is None:
        return PackResult(folder=folder, stopped=True)
    header = packed_header(
        chosen, num_records=len(records), image_size=image_size, shard_records=shard_records, records=binding
    )
    fill = _row_filler(chosen, checked)
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
            if not self._skips_damaged or not _is_damage(error):
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


def choose_layout(
    choice: LayoutChoice,
    records: CheckedRecords,
    *,
    on_damaged: OnDamaged,
    stop: Callable[[], bool] | None = None,
) -> Layout | None:
    """The layout of a new store; None where `stop` said so before it was known.

    Args:
        choice: what was asked for.
        records: whose headers are read, in file order, up to the first that has no planes.
        on_damaged: `skip` lets damaged records decide nothing.
        stop: asked now and then whether to give up.

    Raises:
        StoreError: planes were asked for, and a record or the image size does not allow them.
        TurboJpegMissingError: planes were asked for, and the library is not there.
        RecordError, ImageDecodeError: a damaged record, unless they are skipped; ImageSizeError always.
    """
    if choice == "rgb":
        return "rgb"
    if choice == "planes" and not planes_available():
        raise TurboJpegMissingError(
            f"--layout planes needs libjpeg-turbo's TurboJPEG library: {TURBOJPEG_REMEDY}, or pack with --layout rgb"
        )
    size = records.image_size
    misfit = _first_misfit(records, on_damaged, stop)
    if misfit is None:
        return None
    if not misfit and planes_available():
        return "planes"
    if choice == "planes":
        raise StoreError(f"planes cannot hold these images: {misfit}. Pack with --layout rgb")
    stored, possible = image_bytes("rgb", size), image_bytes("planes", size)
    if misfit:
        logger.info("layout rgb, %d bytes an image: %s", stored, misfit)
    else:
        logger.warning(
            "layout rgb costs twice the bytes, %d and not %d an image, as the images could be stored as planes: %s",
            stored,
            possible,
            TURBOJPEG_REMEDY,
        )
    return "rgb"


def _first_misfit(records: CheckedRecords, on_damaged: OnDamaged, stop: Callable[[], bool] | None) -> str | None:
    """What cannot be stored as planes, and why; empty where nothing is, None where `stop` said so."""
    size = records.image_size
    if size % 2:
        return f"images of {size} x {size} pixels have no whole 4:2:0 planes"
    logger.info("reading the headers of %d images, to choose a layout", records.num_records)
    for record_id in range(records.num_records):
        if stop is not None and record_id % _LOOK_EVERY == 0 and stop():
            return None
        where = records.where(record_id)
        try:
            body = records.read(record_id).body
            reason = why_no_planes(body, where=where) or records.why_resized(body, where=where)
        except (RecordError, ImageDecodeError) as error:
            if on_damaged == "stop" or not _is_damage(error):
                raise
            continue
        if reason:
            return f"{where} {reason}"
    return ""


def _row_filler(layout: Layout, records: CheckedRecords) -> FillRow:
    """What fills the rows of a store. Raises StoreError where planes are asked for and cannot be had."""
    side = records.image_size

    def fill_rgb(record_id: int, row: npt.NDArray[np.uint8]) -> int:
        label, pixels = records.decode(record_id)
        row.reshape(side, side, 3)[...] = pixels
        return label

    if layout == "rgb":
        return fill_rgb
    decoder = PlaneDecoder(side)

    def fill_planes(record_id: int, row: npt.NDArray[np.uint8]) -> int:
        encoded = records.read(record_id)
        decoder.decode(encoded.body, row, where=records.where(record_id))
        return encoded.label

    return fill_planes


def _is_damage(error: Exception) -> bool:
    """Whether a record may be stored as damaged: not where the size or the index is what is wrong, for all of them."""
    return may_be_skipped(error) and not isinstance(error, (ImageSizeError, StaleIndexError))
