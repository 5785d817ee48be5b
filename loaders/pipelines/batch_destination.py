"""From decoded pixels to a `Batch` on the training device, in the background.

A decoding pipeline fills uint8 images and says which rows are ready; the destination makes the batch of them. On the
CPU the decode threads augment and normalise what they have just decoded. On CUDA the pixels travel as uint8 (a quarter
of the bytes) and are augmented and normalised there in one launch, on a stream of its own, so that neither copy nor
conversion stands in the way of training. The numbers are those of `to_network_input`.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adadistill.kernels.device_copy import copied_to
from adadistill.loaders.augment.planned_augmentation import PlannedImages
from adadistill.loaders.batch import Batch
from adadistill.loaders.named_ranges import in_range
from adadistill.loaders.pipelines.rank_steps import StepPlan
from adadistill.loaders.pixels import normalise_, to_network_input, write_network_input


@dataclass(frozen=True, slots=True, eq=False)
class Staged:
    """Memory of one step between decoding and hand-over."""

    images_u8: Tensor
    """(B, H, W, 3) uint8 RGB, augmented already unless the destination does that."""
    images: Tensor | None
    """(B, 3, H, W) on the CPU, what the batch will hold; None where the device makes its own."""


class BatchDestination(Protocol):
    """Where batches go. Methods run on background threads; `normalise_rows` on several at once, for distinct rows."""

    device: torch.device
    """Where batches arrive; a cuda device with its index."""
    stream: torch.cuda.Stream | None
    """On which pixels are read and normalised; None on the CPU."""
    augments: bool
    """Whether the destination does what the plan says of each image, mirroring included; else the decoder has to."""

    def stage(self, images_u8: Tensor | None = None) -> Staged:
        """Memory for one step, around the decoder's own `images_u8` where it has some."""
        ...

    def normalise_rows(self, staged: Staged, rows: slice) -> None:
        """Rows of `images_u8` are complete."""
        ...

    def batch(self, plan: StepPlan, labels: npt.NDArray[np.int64], staged: Staged) -> Batch:
        """All rows are complete: the batch, which owns its memory. Nothing reads `staged` after this returns."""
        ...

    def make(self, plan: StepPlan, labels: npt.NDArray[np.int64], images: Callable[[], Tensor]) -> Batch:
        """The batch of images that `images` computes on the device. Nothing it reads is read after this returns."""
        ...


def batch_destination(
    device: torch.device, *, batch_size: int, image_size: int, dtype: torch.dtype, channels_last: bool, keep: int
) -> BatchDestination:
    """The destination for a device.

    Args:
        device: cpu or cuda.
        batch_size: images per batch, B.
        image_size: side in pixels, H = W.
        dtype: of the images handed out.
        channels_last: memory format of the images handed out.
        keep: batches whose memory is kept for use again.

    Raises:
        ValueError: no such device is supported.
    """
    shape = (batch_size, image_size, image_size, 3)
    if device.type == "cpu":
        return HostDestination(shape, dtype=dtype, channels_last=channels_last, keep=keep)
    if device.type == "cuda":
        return CudaDestination(shape, device=device, dtype=dtype, channels_last=channels_last)
    raise ValueError(f"images can go to a cpu or cuda device, got {device}")


class HostDestination:
    """Batches in host memory."""

    def __init__(self, shape: tuple[int, int, int, int], *, dtype: torch.dtype, channels_last: bool, keep: int) -> None:
        self.device = torch.device("cpu")
        self.stream: torch.cuda.Stream | None = None
        self.augments = False
        self._channels_last, self._dtype = channels_last, dtype
        count, height, width, _ = shape
        self._pixels = BufferPool(shape, torch.uint8, keep=keep)
        self._images = BufferPool(shape if channels_last else (count, 3, height, width), dtype, keep=keep)

    def stage(self, images_u8: Tensor | None = None) -> Staged:
        images = self._images.take()
        return Staged(
            images_u8=self._pixels.take() if images_u8 is None else images_u8,
            images=images.permute(0, 3, 1, 2) if self._channels_last else images,
        )

    def normalise_rows(self, staged: Staged, rows: slice) -> None:
        assert staged.images is not None
        images_u8, images = staged.images_u8[rows], staged.images[rows]
        if images.dtype in (torch.float32, torch.float64):
            write_network_input(images_u8.numpy(), images.numpy())
        else:
            images.copy_(to_network_input(images_u8, device=self.device, dtype=images.dtype))

    @in_range("h2d")
    def batch(self, plan: StepPlan, labels: npt.NDArray[np.int64], staged: Staged) -> Batch:
        assert staged.images is not None
        return _batch_of(plan, staged.images, *_host_tensors(plan, labels))

    @in_range("h2d")
    def make(self, plan: StepPlan, labels: npt.NDArray[np.int64], images: Callable[[], Tensor]) -> Batch:
        return _batch_of(plan, images(), *_host_tensors(plan, labels))

    def takes_channels(self) -> bool:
        """Whether `write_channels` will do, which knows the numbers that numpy knows."""
        return self._dtype in (torch.float32, torch.float64)

    def write_channels(
        self,
        staged: Staged,
        rows: slice,
        channels: Iterator[tuple[int, npt.NDArray[np.int32]]],
        mirrored: npt.NDArray[np.bool_],
    ) -> None:
        """Complete rows from (number, (n, H, W) levels) of each channel: no interleaved pixels are made on the way."""
        assert staged.images is not None
        images, flips = staged.images[rows].numpy(), np.flatnonzero(mirrored[rows]).tolist()
        for channel, levels in channels:
            planes = images[:, channel]
            planes[...] = levels
            for number in flips:
                planes[number] = levels[number, :, ::-1]
            normalise_(planes)


class CudaDestination:
    """Batches in device memory, complete when they are handed over: the consumer's stream has nothing to wait for."""

    def __init__(
        self, shape: tuple[int, int, int, int], *, device: torch.device, dtype: torch.dtype, channels_last: bool
    ) -> None:
        index = torch.cuda.current_device() if device.index is None else device.index
        self.device = torch.device("cuda", index)
        self.stream: torch.cuda.Stream | None = torch.cuda.Stream(self.device)
        self.augments = True
        self._shape = shape
        self._images = PlannedImages(shape[1], device=self.device, dtype=dtype, channels_last=channels_last)

    def stage(self, images_u8: Tensor | None = None) -> Staged:
        # torch keeps pinned blocks for use again, and knows of the copies still reading them.
        if images_u8 is None:
            with torch.cuda.device(self.device):  # or a new thread would open a context on the first GPU
                images_u8 = torch.empty(self._shape, dtype=torch.uint8, pin_memory=True)
        return Staged(images_u8=images_u8, images=None)

    def normalise_rows(self, staged: Staged, rows: slice) -> None:
        """Nothing to do: the device normalises all rows at once."""

    def batch(self, plan: StepPlan, labels: npt.NDArray[np.int64], staged: Staged) -> Batch:
        def augmented() -> Tensor:
            pixels = copied_to(self.device, staged.images_u8)  # DALI decodes on the CPU into pageable memory
            rows = torch.arange(len(pixels), device=self.device)
            return self._images.of(pixels.reshape(len(pixels), -1), rows, plan)

        return self.make(plan, labels, augmented)

    @in_range("h2d")
    def make(self, plan: StepPlan, labels: npt.NDArray[np.int64], images: Callable[[], Tensor]) -> Batch:
        with torch.cuda.stream(self.stream):
            made = images()
            others = [copied_to(self.device, tensor) for tensor in _host_tensors(plan, labels)]
            done = torch.cuda.Event(blocking=True)
            done.record(self.stream)
        done.synchronize()  # frees the decoder's buffers, and the consumer from any wait; only this thread stands still
        return _batch_of(plan, made, *others)


def hand_over(batch: Batch) -> Batch:
    """Tell torch's allocator that the consumer's current stream now uses the batch. Runs on the consumer's thread."""
    if batch.images.device.type == "cuda":
        stream = torch.cuda.current_stream(batch.images.device)
        for tensor in (batch.images, batch.labels, batch.record_ids, batch.mirrored):
            tensor.record_stream(stream)
    return batch


@in_range("h2d")
def batch_of(plan: StepPlan, images: Tensor, labels: npt.NDArray[np.int64], device: torch.device) -> Batch:
    """A batch of images that are on the device already, on the current stream."""
    return _batch_of(plan, images, *(copied_to(device, tensor) for tensor in _host_tensors(plan, labels)))


def _host_tensors(plan: StepPlan, labels: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
    """Labels, record ids and mirror flags; copies, since a plan's ids are a view of the whole permutation."""
    return torch.from_numpy(labels), torch.tensor(plan.record_ids), torch.tensor(plan.mirrored)


def _batch_of(plan: StepPlan, images: Tensor, labels: Tensor, record_ids: Tensor, mirrored: Tensor) -> Batch:
    return Batch(
        images=images,
        labels=labels,
        record_ids=record_ids,
        mirrored=mirrored,
        epoch=plan.epoch,
        step=plan.step,
        global_record_ids=plan.global_record_ids,
        global_mirrored=plan.global_mirrored,
        view=plan.view,
    )


class BufferPool:
    """Hands out uninitialised CPU tensors of one shape; the memory returns when the last view of a tensor is gone.

    Fresh memory for 512 float32 images (77 MB) comes from the kernel page by page, and the page faults alone cost 55 us
    an image where decoding its JPEG costs 80 (two vCPUs). One fixed buffer would be as fast and wrong: a batch that
    somebody keeps would change under their hands.

    Args:
        shape: of each tensor.
        dtype: of each tensor.
        keep: buffers kept for use again; more may be in use.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, *, keep: int) -> None:
        self._shape, self._dtype, self._keep = shape, dtype, keep
        self._free: list[npt.NDArray[np.uint8]] = []

    def take(self) -> Tensor:
        """A tensor of the pool's shape and dtype, contents undefined. Any thread may call this."""
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(math.prod(self._shape) * self._dtype.itemsize, dtype=np.uint8)
        # torch keeps this view, and nothing else, for as long as any tensor uses the memory.
        view = memory[:]
        weakref.finalize(view, _give_back, self._free, self._keep, memory).atexit = False
        return torch.from_numpy(view).view(self._dtype).view(self._shape)


def _give_back(free: list[npt.NDArray[np.uint8]], keep: int, memory: npt.NDArray[np.uint8]) -> None:
    if len(free) < keep:
        free.append(memory)
