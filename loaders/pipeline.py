"""Batches for training from a recipe's `data` section: one interface, two ways of decoding.

Whatever decodes (`cpu`: simplejpeg on threads, `dali`: NVIDIA DALI, on the GPU where there is one), record ids, labels,
mirror flags and their order are the same, and on the CPU the pixels are too. They come from a function of (seed, epoch,
step), so a pipeline can start anywhere in an epoch and has no state to save.
"""

from __future__ import annotations

import atexit
import inspect
import weakref
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import torch

from adadistill.loaders.batch import Batch
from adadistill.loaders.batch_destination import batch_destination, hand_over
from adadistill.loaders.checked_records import CheckedRecords
from adadistill.loaders.cpu_pipeline import CpuDecoding
from adadistill.loaders.dali_pipeline import DaliDecoding
from adadistill.loaders.image_records import ImageRecords
from adadistill.loaders.pixels import MAX_SIDE
from adadistill.loaders.prefetch import prefetched
from adadistill.loaders.rank_steps import RankSteps, StepPlan
from adadistill.loaders.sample_order import SampleOrder


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Training images and how they are fed."""

    records: str
    """Path of the `.rec` file (insightface, im2rec or CVLface style)."""
    index: str | None = None
    """Path of the `.idx` file. Left out: the one beside the records, or a scan of the records where there is none."""
    num_classes: int | None = None
    """Number of identities C; labels are in [0, C). Left out: read from the dataset."""
    image_size: int = 112
    """Side of the square images in pixels, 1 to 2048; records of another size are refused. 112 is the field's size."""
    global_batch_size: int = 512
    """Samples per step over all ranks, so that a run can change its number of ranks. 512 as in the published runs."""
    decoder: Literal["dali", "cpu"] = "dali"
    """dali decodes on the GPU and needs the extra dali13 (or dali12), also on a CPU; cpu needs nothing further."""
    workers: int = 4
    """Decode threads per process, 1 to 256."""
    prefetch: int = 3
    """Batches kept ready ahead of training, 1 to 64. Each costs B x 3 x H x W floats: 77 MB for 512 images."""
    mirror_probability: float = 0.5
    """Share of the images flipped left to right, in [0, 1]; the field's only augmentation by default."""

    def __post_init__(self) -> None:
        if not self.records:
            raise ValueError("records must be the path of a .rec file, got an empty text")
        if self.num_classes is not None and self.num_classes < 1:
            raise ValueError(f"num_classes must be positive or left out, got {self.num_classes}")
        if not 1 <= self.image_size <= MAX_SIDE:
            raise ValueError(f"image_size must be in [1, {MAX_SIDE}], got {self.image_size}")
        if self.global_batch_size < 1:
            raise ValueError(f"global_batch_size must be positive, got {self.global_batch_size}")
        if self.decoder not in ("dali", "cpu"):
            raise ValueError(f"decoder must be dali or cpu, got {self.decoder}")
        if not 1 <= self.workers <= 256:
            raise ValueError(f"workers must be in [1, 256], got {self.workers}")
        if not 1 <= self.prefetch <= 64:
            raise ValueError(f"prefetch must be in [1, 64], got {self.prefetch}")
        if not 0.0 <= self.mirror_probability <= 1.0:
            raise ValueError(f"mirror_probability must be in [0, 1], got {self.mirror_probability}")


class ImagePipeline(Protocol):
    """One rank's batches, epoch by epoch."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches in a whole epoch, the same on every rank."""
        ...

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches from (epoch, first_step) to the end of the epoch, the same as in a run that came there.

        Batches own their memory. One epoch can be under way at a time: exhaust or close its iterator (leaving a `for`
        loop does) before the next.

        Raises:
            ValueError: at once, where there is no such position.
            RecordError, ImageDecodeError: from `next()`, when a bad record's batch is reached; record id and key are
                named. The iterator is then at its end; the pipeline can start another.
        """
        ...

    def close(self) -> None:
        """End an epoch under way and all threads. The pipeline cannot be used again."""
        ...


class Decoding(Protocol):
    """What differs between pipelines: plans to batches."""

    def batches(self, plans: Iterator[StepPlan]) -> Generator[Batch, None, None]:
        """The batches of the plans, in order; closing the generator abandons what was begun."""
        ...

    def close(self) -> None:
        """End all threads."""
        ...


def build_pipeline(
    config: DataConfig,
    records: ImageRecords,
    order: SampleOrder,
    *,
    rank: int,
    world_size: int,
    device: torch.device,
    mirror_seed: int,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> ImagePipeline:
    """The pipeline that a recipe asks for. Everything that can be refused is refused here.

    Args:
        config: decoder, image size, threads, prefetch and mirror probability are used.
        records: the images; opened here.
        order: over exactly these records.
        rank: of this process, in [0, world_size).
        world_size: ranks that share a global batch.
        device: where all tensors of a batch arrive, cpu or cuda.
        mirror_seed: of the mirror stream, equal on all ranks.
        dtype: floating-point type of the images.
        channels_last: memory format of the images.

    Raises:
        ValueError: order, rank, device or dtype do not fit.
        DaliMissingError: the recipe asks for DALI and it is not installed.
        FileNotFoundError, RecordError: the records cannot be opened.
    """
    if not dtype.is_floating_point:
        raise ValueError(f"images are floating point, got dtype {dtype}")
    steps = RankSteps(
        order,
        rank=rank,
        world_size=world_size,
        mirror_seed=mirror_seed,
        mirror_probability=config.mirror_probability,
    )
    checked = CheckedRecords(records, config.image_size)
    if order.num_records != checked.num_records:
        raise ValueError(
            f"the sample order is over {order.num_records} records, {records.path} holds {checked.num_records} images"
        )
    decoding = _decoding(
        config, checked, batch_size=steps.batch_size, device=device, dtype=dtype, channels_last=channels_last
    )
    return PrefetchedPipeline(steps, decoding, prefetch=config.prefetch)


@contextmanager
def planned_batches(
    config: DataConfig,
    records: ImageRecords,
    plans: Iterator[StepPlan],
    *,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> Iterator[Iterator[Batch]]:
    """The batches of plans made elsewhere, decoded ahead of their consumer: for passes over records that do not train.

    Args:
        config: decoder, image size, threads and prefetch are used.
        plans: of `batch_size` records each.
        device: where all tensors of a batch arrive, cpu or cuda.
        dtype: floating-point type of the images.
        channels_last: memory format of the images.

    Raises:
        As `build_pipeline` on entering, and as `ImagePipeline.epoch` from `next()`.
    """
    decoding = _decoding(
        config,
        CheckedRecords(records, config.image_size),
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        channels_last=channels_last,
    )
    with closing(decoding), closing(prefetched(decoding.batches(plans), config.prefetch)) as batches:
        yield map(hand_over, batches)


def _decoding(
    config: DataConfig,
    checked: CheckedRecords,
    *,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
    channels_last: bool,
) -> Decoding:
    destination = batch_destination(
        device,
        batch_size=batch_size,
        image_size=config.image_size,
        dtype=dtype,
        channels_last=channels_last,
        keep=config.prefetch + 2,
    )
    if config.decoder == "cpu":
        return CpuDecoding(checked, destination, threads=config.workers)
    return DaliDecoding(checked, destination, batch_size=batch_size, threads=config.workers)


class PrefetchedPipeline:
    """An `ImagePipeline` that runs a decoding ahead of its consumer.

    Args:
        steps: what this rank has to load.
        decoding: turns plans into batches; owned by the pipeline from here on.
        prefetch: batches kept ready.
    """

    def __init__(self, steps: RankSteps, decoding: Decoding, *, prefetch: int) -> None:
        self._steps, self._decoding, self._prefetch = steps, decoding, prefetch
        self._latest: weakref.ref[Generator[Batch, None, None]] | None = None
        self._closed = False
        # DALI takes its pipelines apart when the interpreter exits; what uses them must have ended by then. Exit
        # handlers run last in, first out, and DALI, where it is used, is imported by now.
        self._at_exit = partial(_close_if_alive, weakref.ref(self))
        atexit.register(self._at_exit)

    @property
    def steps_per_epoch(self) -> int:
        return self._steps.steps_per_epoch

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        if self._closed:
            raise RuntimeError("this pipeline is closed; build another")
        earlier = self._epoch_under_way()
        if earlier is not None:
            raise RuntimeError("an epoch of this pipeline is under way; exhaust or close its iterator first")
        batches = self._run(self._steps.plans(epoch, first_step))
        # A strong reference would keep alive what leaving a `for` loop is to end.
        self._latest = weakref.ref(batches)
        return batches

    def close(self) -> None:
        self._closed = True
        under_way = self._epoch_under_way()
        if under_way is not None:
            under_way.close()
        self._decoding.close()
        atexit.unregister(self._at_exit)

    def _epoch_under_way(self) -> Generator[Batch, None, None] | None:
        batches = None if self._latest is None else self._latest()
        if batches is None or inspect.getgeneratorstate(batches) == inspect.GEN_CLOSED:
            return None
        return batches

    def _run(self, plans: Iterator[StepPlan]) -> Generator[Batch, None, None]:
        with closing(prefetched(self._decoding.batches(plans), self._prefetch)) as batches:
            yield from map(hand_over, batches)


def _close_if_alive(reference: weakref.ref[PrefetchedPipeline]) -> None:
    pipeline = reference()
    if pipeline is not None:
        pipeline.close()
