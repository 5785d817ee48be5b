"""Fills a cache of teacher embeddings: every record through the teacher's network, in each of its views.

A block of the cache is one batch of the network, decoded, embedded and written by one rank. So a block's numbers depend
on nothing but its records, and which rank computed it, after how many interruptions, leaves no trace. Decoding runs
ahead of the network and writing behind it; ranks speak to each other before their first block and after their last.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adadistill.core.distributed import Ranks, broadcast_text, gather_rows, rank_share
from adadistill.core.recipe import Recipe, recipe_augmentation
from adadistill.core.teachers import TeacherConfig, TeacherError, record_binding
from adadistill.core.teachers.build import check_loaded
from adadistill.core.teachers.cache_inputs import CacheInputs, config_of_network, embedded, open_inputs, plans_of_views
from adadistill.core.teachers.cache_views import ViewChoice, chosen_views
from adadistill.core.training.stop_signal import StopRequested, StopSignal
from adadistill.loaders.block_store.errors import StoreError, StoreWriteError
from adadistill.loaders.block_store.teacher_cache import CacheHeader, CacheView, CacheWriter, TeacherCache
from adadistill.loaders.block_store.writer import BlockProgress
from adadistill.loaders.pipelines.rank_steps import block_plans
from adadistill.loaders.records.image_source import ImageSource

logger = logging.getLogger(__name__)

_WRITING_THREADS = 2
"""A block costs two waits for the disk; with two threads these overlap."""
_BLOCKS_IN_FLIGHT = 2
"""Blocks embedded (on CUDA: being embedded) and not yet on disk. A kill costs these and the one in the making."""
_CHECKED_AT_ONCE = 64
"""Finished blocks whose checksums are read between two looks at the stop signal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheBuildResult:
    """A finished cache."""

    folder: Path
    header: CacheHeader
    digest: str
    """Names the content, see `TeacherCache.digest`."""
    images: int
    """Embedded in this run, by all ranks; 0 where the cache was complete already."""
    seconds: float
    """From the first block to the last byte, on this rank."""

    @property
    def images_per_s(self) -> float:
        """Of all ranks together; each image gives one embedding for each view."""
        return self.images / self.seconds if self.images else 0.0


def build_cache(
    recipe: Recipe,
    *,
    ranks: Ranks,
    stop: StopSignal,
    batch_size: int = 256,
    views: ViewChoice | None = None,
    report: Callable[[BlockProgress], None] | None = None,
) -> CacheBuildResult:
    """Build, continue or confirm the cache that a recipe names. All ranks call it together.

    Args:
        recipe: `teacher.cache` is the folder; the teacher's network, the records, decoder and precision are used.
        stop: heeded while files are opened, and in each block, which is then not kept.
        batch_size: images in each run of the network, and records in each block.
        views: None takes the augmented views of a recipe that augments, and otherwise `both`; `plain` leaves the
            mirrored view out, which halves time and size, for recipes that never mirror.
        report: called by each rank after each of its blocks.

    Raises:
        StopRequested: `stop` was set before all was done. What is done stays; the same call goes on.
        StoreError: the folder holds another cache, or cannot be written.
        StoreWriteError: an embedding is zero or not finite (the record is named), or the disk refused a block.
        RecordError, ImageDecodeError: a record is damaged.
        TeacherError: there is no folder or no network, or the teacher does not load. Loading errors keep their types.
    """
    config = _config_to_build(recipe)
    if batch_size < 1:
        raise ValueError(f"the batch size must be positive, got {batch_size}")
    assert config.cache is not None
    folder = Path(config.cache)
    with stop.interruptible(keeps=False):
        source = open_inputs(recipe, config, ranks)
    header = _header(source, recipe, batch_size=batch_size, views=chosen_views(recipe_augmentation(recipe), views))
    with _open_writer(folder, header, ranks, stop) as writer:
        pending = _pending_blocks(writer, ranks, stop)
        if ranks.is_main:
            _announce(source, header, folder, len(pending))
        if len(pending):  # before hours of embedding; a cache that is complete is confirmed without running the network
            size, loaded = recipe.data.image_size, source.loaded
            with _leaving_together(stop), stop.interruptible(keeps=False):
                check_loaded(config, loaded, source.colors, records=source.records, image_size=size, ranks=ranks)
        started = time.perf_counter()
        images = _embed_blocks(source, writer, pending[ranks.rank :: ranks.world_size], stop, report)
        with _leaving_together(stop):
            all_images = int(gather_rows(torch.tensor([images], device=ranks.device), ranks).sum())
        seconds = time.perf_counter() - started
        cache = TeacherCache(folder)  # refuses a cache of which a block is missing
    return CacheBuildResult(folder=folder, header=header, digest=cache.digest(), images=all_images, seconds=seconds)


class _BackgroundWriter:
    """Writes blocks behind the network's back. Its errors come out of `write`, a block or two late, or of leaving.

    Args:
        records: name the record whose embedding has no direction.
    """

    def __init__(self, writer: CacheWriter, records: ImageSource) -> None:
        self._writer, self._records = writer, records
        self._threads = ThreadPoolExecutor(_WRITING_THREADS, thread_name_prefix="adadistill-cache-write")
        self._in_flight: deque[Future[None]] = deque()

    def __enter__(self) -> _BackgroundWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._threads.shutdown(wait=True)  # also where something else failed: what was embedded is kept
        if error is None:
            while self._in_flight:
                self._in_flight.popleft().result()

    def write(self, block: int, rows: Tensor) -> None:
        """Store a block's unit embeddings, (n, V, D) on any device; waits only where the disk does not keep up."""
        while len(self._in_flight) >= _BLOCKS_IN_FLIGHT:
            self._in_flight.popleft().result()
        self._in_flight.append(self._threads.submit(self._write, block, _on_its_way_to_host(rows)))

    def _write(self, block: int, rows: Callable[[], npt.NDArray[np.floating]]) -> None:
        stored = rows().astype(np.float16)  # (n, V, D), each number rounded to the nearest
        self._refuse_without_direction(stored, self._writer.header.block_record_range(block).start)
        self._writer.write_block(block, stored)

    def _refuse_without_direction(self, rows: npt.NDArray[np.float16], first_id: int) -> None:
        norms = np.linalg.norm(rows.astype(np.float32), axis=2)  # (n, V); 1 but for rounding
        bad = np.argwhere(~(np.isfinite(norms) & (norms > 0.0)))
        if len(bad):
            row, column = bad[0].tolist()
            what = "zero" if norms[row, column] == 0.0 else "not finite"
            raise StoreWriteError(
                f"{self._records.where(first_id + row)}: the teacher's embedding of the "
                f"{self._writer.header.views[column]} image is {what}. Look at this image, and at the teacher's weights"
            )


def _on_its_way_to_host(rows: Tensor) -> Callable[[], npt.NDArray[np.floating]]:
    """Start copying to the host; the result, called on another thread, waits for it. The caller's thread never does."""
    if rows.device.type != "cuda":
        return rows.numpy
    host = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
    host.copy_(rows, non_blocking=True)
    copied = torch.cuda.Event(blocking=True)
    copied.record(torch.cuda.current_stream(rows.device))

    def arrived() -> npt.NDArray[np.floating]:
        copied.synchronize()
        return host.numpy()

    return arrived


def _config_to_build(recipe: Recipe) -> TeacherConfig:
    config = config_of_network(recipe)
    if config.cache is None:
        raise TeacherError(f"recipe {recipe.name} does not say where its cache goes; set teacher.cache=FOLDER")
    return config


def _header(source: CacheInputs, recipe: Recipe, *, batch_size: int, views: tuple[CacheView, ...]) -> CacheHeader:
    return CacheHeader(
        num_records=len(source.records),
        embedding_dim=source.loaded.identity.embedding_dim,
        views=views,
        block_records=batch_size,
        teacher=source.loaded.identity.to_json(),
        records=record_binding(source.records),
        built={
            "by": "network",
            "batch_size": batch_size,
            "compile": source.compiles,
            "decoder": recipe.data.decoder,
            "device": source.device.type,
            "fold_batch_norm": source.runs_in_torch,
            "precision": str(source.image_dtype).removeprefix("torch."),
        },
    )


@contextmanager
def _leaving_together(stop: StopSignal) -> Iterator[None]:
    """A collective that fails since the other ranks left on the same signal is a stop of this rank too."""
    try:
        yield
    except RuntimeError as error:
        if stop.requested:
            raise StopRequested(stop.exit_code) from error
        raise


def _open_writer(folder: Path, header: CacheHeader, ranks: Ranks, stop: StopSignal) -> CacheWriter:
    """Rank 0 makes the folder or finds it good, then the others open it; its error ends all of them."""
    problem, writer, caught = "", None, None
    if ranks.is_main:
        try:
            writer = CacheWriter(folder, header, main=True)
        except (ValueError, OSError) as error:
            problem, caught = f"{type(error).__name__}: {error}", error
    with _leaving_together(stop):
        problem = broadcast_text(problem, ranks)
    if caught is not None:
        raise caught
    if problem:
        raise StoreError(f"rank 0 could not open the cache: {problem}")
    return writer or CacheWriter(folder, header, main=False)


def _pending_blocks(writer: CacheWriter, ranks: Ranks, stop: StopSignal) -> npt.NDArray[np.int64]:
    """Blocks to compute, ascending, the same on every rank; finished ones are checked, each by one rank."""
    pending = np.zeros(writer.header.num_blocks, dtype=np.uint8)
    first, last = rank_share(len(pending), ranks.rank, ranks.world_size)
    for start in range(first, last, _CHECKED_AT_ONCE):
        if stop.requested:
            raise StopRequested(stop.exit_code)
        pending[writer.pending(start, min(start + _CHECKED_AT_ONCE, last))] = 1
    with _leaving_together(stop):
        of_all = gather_rows(torch.from_numpy(pending)[None].to(ranks.device), ranks)  # (R, blocks)
    return np.flatnonzero(of_all.amax(dim=0).cpu().numpy())


def _embed_blocks(
    source: CacheInputs,
    writer: CacheWriter,
    blocks: npt.NDArray[np.int64],
    stop: StopSignal,
    report: Callable[[BlockProgress], None] | None,
) -> int:
    """Compute and write one rank's blocks; the number of images embedded. Raises StopRequested where some are left."""
    header = writer.header
    done = images = 0
    if len(blocks) and not stop.requested:
        teacher = source.network_teacher(header.block_records)
        plans = plans_of_views(
            block_plans(blocks.tolist(), num_records=header.num_records, block_records=header.block_records),
            header.views,
            recipe_augmentation(source.recipe),
        )
        with source.batches(plans, header.block_records) as batches, _BackgroundWriter(writer, source.records) as out:
            rows_of_blocks = embedded(teacher, batches, header.views)
            for block in blocks.tolist():
                try:
                    with stop.interruptible():  # ranks do not wait for each other here, and a block in the making costs
                        _, rows = next(rows_of_blocks)  # nothing but itself; the first one may be minutes of compiling
                except StopRequested:
                    break
                count = len(header.block_record_range(block))
                out.write(block, rows[:count])
                done, images = done + 1, images + count
                if report is not None:
                    report(BlockProgress(blocks=done, of_blocks=len(blocks), images=images))
    if done < len(blocks):
        left = f"{len(blocks) - done} of {len(blocks)} blocks"
        logger.warning("%s: stopped with %s left to do; the same command goes on with them", writer.folder, left)
        raise StopRequested(stop.exit_code, f"{done} blocks of this launch are kept, the same command goes on")
    return images


def _announce(source: CacheInputs, header: CacheHeader, folder: Path, pending: int) -> None:
    logger.info("teacher: %s", source.loaded.identity.summary())
    if not pending:
        logger.info("%s is already complete: %d blocks, all checksums are right", folder, header.num_blocks)
        return
    logger.info(
        "%s: %d of %d blocks to do, of %d images in %d view(s), %.3f GB when complete",
        folder, pending, header.num_blocks, header.block_records, header.num_views, header.data_bytes / 1e9,
    )  # fmt: skip
