"""Batches from a packed store: nothing is decoded, rows of pixels are gathered and augmented.

Where the store lives decides what travels. From the page cache, threads copy the rows of a batch together, and on CUDA
one copy takes them to the device. A store that is resident in the device's memory is read there by row number, and
nothing but numbers crosses the bus. Where it is too large for one device, each rank keeps a share, and the rows of a
batch come from their owners by an exchange whose sizes every rank knows, since the sample order is a function. Whatever
the place, the order is a true permutation of all records.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adadistill.kernels.device_copy import copied_to
from adadistill.loaders.augment.planned_augmentation import PlannedImages, write_augmented
from adadistill.loaders.batch import Batch
from adadistill.loaders.block_store.packed_images import PackedStore
from adadistill.loaders.pipelines.batch_destination import (
    BatchDestination,
    HostDestination,
    Staged,
    batch_of,
    hand_over,
)
from adadistill.loaders.pipelines.rank_steps import RankSteps, StepPlan
from adadistill.loaders.pipelines.row_threads import RowThreads, Tasks, batches_in_turn, finish
from adadistill.loaders.plane_pixels import PlaneConverter
from adadistill.loaders.records.damaged_records import DamagedRecords

PackedPlace = Literal["page_cache", "device", "device_share"]
Exchange = Callable[[Tensor, Sequence[int], Sequence[int]], Tensor]
"""(rows to send, rank 0's first; how many to each rank; how many from each rank) -> rows received, rank 0's first."""

_ROWS_PER_TASK = 32
"""Images of one task. With 16, two threads wait for the interpreter's lock between short operations: planes came at
11,000 images/s where 32 gave 17,000 (two vCPUs)."""
_COPY_ROWS = 4096
"""Rows copied to the device at once: 77 MB of planes."""


class PackedDecoding:
    """Turns plans into batches from a store that is whole in one place.

    Args:
        store: of the records that the plans name.
        destination: where batches go.
        images: makes the network input on the destination's device.
        place: `page_cache` leaves the files to the system; `device` copies them to the memory of the destination's
            device, on the CPU to ordinary memory.
        batch_size: images per batch, B.
        threads: that gather rows, and on the CPU augment and normalise them.

    Raises:
        ValueError: the device is too small.
    """

    def __init__(
        self,
        store: PackedStore,
        destination: BatchDestination,
        images: PlannedImages,
        *,
        place: Literal["page_cache", "device"],
        batch_size: int,
        threads: int,
    ) -> None:
        self._store, self._destination, self._images = store, destination, images
        self._batch_size = batch_size
        self._cuda = destination.device.type == "cuda"
        self._resident = None
        if place == "device":
            self._resident = load_rows(store, range(store.num_records), destination.device)
        takes_channels = isinstance(destination, HostDestination) and destination.takes_channels()
        self._by_channel = cast(HostDestination, destination) if takes_channels else None
        self._of_thread = threading.local()
        self._threads = RowThreads(threads, rows=_ROWS_PER_TASK, name="adadistill-packed")

    def batches(self, plans: Iterator[StepPlan]) -> Generator[Batch, None, None]:
        """The batches of the plans, in order."""
        return batches_in_turn(plans, self._start, self._finish)

    def close(self) -> None:
        """End the threads and let go of the store's memory."""
        self._threads.close()
        self._resident = None

    def _start(self, plan: StepPlan) -> _Work:
        labels = self._store.labels[plan.record_ids]
        if self._cuda and self._resident is not None:
            return _Work(plan, labels, None, None, [])
        if not self._cuda:
            staged = self._destination.stage()
            filling = self._threads.start(self._batch_size, lambda rows: self._fill_rows(plan, staged, rows))
            return _Work(plan, labels, staged, None, filling)
        gathered = self._take_rows()
        copies = self._threads.start(
            self._batch_size, lambda rows: self._gather(plan.record_ids[rows], gathered[rows].numpy())
        )
        return _Work(plan, labels, None, gathered, copies)

    def _take_rows(self) -> Tensor:
        """(B, bytes) uint8 pinned memory, which torch keeps for use again."""
        with torch.cuda.device(self._destination.device):  # or a new thread would open a context on the first GPU
            return torch.empty(self._batch_size, self._store.image_bytes, dtype=torch.uint8, pin_memory=True)

    def _gather(self, record_ids: npt.NDArray[np.int64], out: npt.NDArray[np.uint8]) -> None:
        if self._resident is None:
            self._store.gather(record_ids, out=out)
        else:
            np.take(self._resident.numpy(), record_ids, axis=0, out=out, mode="clip")  # as in `PackedStore.gather`

    def _fill_rows(self, plan: StepPlan, staged: Staged, rows: slice) -> None:
        images = staged.images_u8[rows].numpy()
        memory = self._memory_of_thread()
        stored, pixels = memory.stored[: len(images)], memory.pixels[: len(images)]
        self._gather(plan.record_ids[rows], stored)
        if memory.planes is not None and plan.parameters is None and self._by_channel is not None:
            self._by_channel.write_channels(staged, rows, memory.planes.channels(stored), plan.mirrored)
            return
        if memory.planes is None:
            pixels = stored.reshape(images.shape)
        else:
            memory.planes.convert(stored, pixels)
        for number in range(len(images)):
            write_augmented(pixels[number], plan, rows.start + number, images[number])
        self._destination.normalise_rows(staged, rows)

    def _memory_of_thread(self) -> _ThreadMemory:
        memory: _ThreadMemory | None = getattr(self._of_thread, "memory", None)
        if memory is None:
            memory = self._of_thread.memory = _ThreadMemory.of(self._store)
        return memory

    def _finish(self, work: _Work) -> Batch:
        finish(work.tasks)
        if work.staged is not None:
            return self._destination.batch(work.plan, work.labels, work.staged)
        if work.gathered is None:
            assert self._resident is not None
            store, rows = self._resident, torch.from_numpy(work.plan.record_ids)
        else:
            store, rows = work.gathered, torch.arange(self._batch_size)

        def images() -> Tensor:
            device = self._destination.device
            return self._images.of(copied_to(device, store), copied_to(device, rows), work.plan, self._store.layout)

        return self._destination.make(work.plan, work.labels, images)


class SharedPackedPipeline:
    """An `ImagePipeline` from a store that is spread over the ranks' devices.

    The exchange is a collective, so it is queued where the consumer's other collectives are: in `next()`, on its
    thread, at the same step on every rank. It is that of the batch after the one handed out, on CUDA on a stream of its
    own, so that rows travel while the step before them is computed.

    Args:
        store: of the records that the plans name; this rank's share of it is loaded here.
        steps: what this rank has to load.
        images: makes the network input on `device`.
        exchange: rows between ranks, see `Exchange`.
        device: where the share lives and batches arrive.
    """

    def __init__(
        self, store: PackedStore, steps: RankSteps, images: PlannedImages, *, exchange: Exchange, device: torch.device
    ) -> None:
        self._store, self._steps, self._images, self._exchange = store, steps, images, exchange
        self._device = device
        self.damaged = DamagedRecords("skip", 0)
        """A packed store has met its damaged records when it was made."""
        bounds = [store.num_records * rank // steps.world_size for rank in range(steps.world_size + 1)]
        self._bounds = np.array(bounds, dtype=np.int64)
        self._first = bounds[steps.rank]
        self._share: Tensor | None = load_rows(store, range(bounds[steps.rank], bounds[steps.rank + 1]), device)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @property
    def steps_per_epoch(self) -> int:
        """See `ImagePipeline`."""
        return self._steps.steps_per_epoch

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """See `ImagePipeline`."""
        if self._share is None:
            raise RuntimeError("this pipeline is closed; build another")
        return self._batches(self._steps.plans(epoch, first_step))

    def close(self) -> None:
        """Let go of the share."""
        self._share = None

    def _batches(self, plans: Iterator[StepPlan]) -> Iterator[Batch]:
        ahead: Batch | None = None
        for plan in plans:
            with torch.cuda.stream(self._stream):  # no effect where there is none
                queued = self._batch(plan)
            if ahead is not None:
                yield ahead
            if self._stream is not None:
                torch.cuda.current_stream(self._device).wait_stream(self._stream)
            ahead = hand_over(queued)
        if ahead is not None:
            yield ahead

    def _batch(self, plan: StepPlan) -> Batch:
        assert self._share is not None, "an open pipeline holds its share"
        wanted = plan.global_record_ids.reshape(self._steps.world_size, -1)  # (R, B)
        owners = np.searchsorted(self._bounds, wanted, side="right") - 1  # (R, B)
        rank = self._steps.rank
        mine = owners == rank
        send = torch.from_numpy(wanted[mine] - self._first)  # row-major: for rank 0 first
        arriving = np.bincount(owners[rank], minlength=self._steps.world_size)
        sent = self._share.index_select(0, copied_to(self._device, send))
        received = self._exchange(sent, mine.sum(axis=1).tolist(), arriving.tolist())
        # They arrive by owner; within one owner in batch order. The kernel reads them at their places.
        order = np.argsort(owners[rank], kind="stable")
        rows = np.empty_like(order)
        rows[order] = np.arange(len(order))
        images = self._images.of(received, copied_to(self._device, torch.from_numpy(rows)), plan, self._store.layout)
        return batch_of(plan, images, self._store.labels[plan.record_ids], self._device)


def load_rows(store: PackedStore, records: range, home: torch.device) -> Tensor:
    """(n, bytes) uint8 rows of consecutive records in the memory named.

    Raises:
        ValueError: a GPU's free memory will not hold them.
    """
    size = len(records) * store.image_bytes
    if home.type == "cuda":
        free, total = torch.cuda.mem_get_info(home)
        if size > free:
            raise ValueError(
                f"{len(records)} images of {store.folder} take {size / 1e9:.1f} GB, {home} has {free / 1e9:.1f} of "
                f"{total / 1e9:.1f} GB free; set data.packed_in to device_share (several ranks) or page_cache"
            )
    resident = torch.empty((len(records), store.image_bytes), dtype=torch.uint8, device=home)
    for first in range(0, len(records), _COPY_ROWS):
        ids = np.arange(records.start + first, min(records.start + first + _COPY_ROWS, records.stop))
        resident[first : first + len(ids)].copy_(torch.from_numpy(store.gather(ids)))
    return resident


@dataclass(frozen=True, slots=True, eq=False)
class _ThreadMemory:
    """What one thread gathers and converts in; fresh memory of this size costs more than the work (page faults)."""

    stored: npt.NDArray[np.uint8]
    pixels: npt.NDArray[np.uint8]
    planes: PlaneConverter | None

    @staticmethod
    def of(store: PackedStore) -> _ThreadMemory:
        size, planes = store.image_size, store.layout == "planes"
        return _ThreadMemory(
            np.empty((_ROWS_PER_TASK, store.image_bytes), dtype=np.uint8),
            np.empty((_ROWS_PER_TASK if planes else 0, size, size, 3), dtype=np.uint8),
            PlaneConverter(size, _ROWS_PER_TASK) if planes else None,
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    """A batch whose rows are being copied together."""

    plan: StepPlan
    labels: npt.NDArray[np.int64]
    staged: Staged | None
    """Where the threads augment and normalise."""
    gathered: Tensor | None
    """Where they only gather, for the kernel."""
    tasks: Tasks
