"""Batches for training from a recipe's `data` section: one interface, three sources.

Whatever makes the pixels (`cpu`: simplejpeg on threads, `dali`: NVIDIA DALI, on the GPU where there is one, or a
packed store in which they are decoded already), record ids, labels, augmentation and their order are the same, and on
the CPU the pixels are too. They come from a function of (seed, epoch, step), so a pipeline can start anywhere in an
epoch and has no state to save.
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

from adadistill.loaders.augment.augment_policy import Augmentation
from adadistill.loaders.augment.planned_augmentation import PlannedImages
from adadistill.loaders.batch import Batch
from adadistill.loaders.block_store.packed_images import PackedStore
from adadistill.loaders.pipelines.batch_destination import batch_destination, hand_over
from adadistill.loaders.pipelines.cpu_pipeline import CpuDecoding
from adadistill.loaders.pipelines.dali_pipeline import DaliDecoding, require_dali
from adadistill.loaders.pipelines.packed_pipeline import Exchange, PackedDecoding, SharedPackedPipeline
from adadistill.loaders.pipelines.prefetch import prefetched
from adadistill.loaders.pipelines.rank_steps import RankSteps, StepPlan
from adadistill.loaders.pipelines.sample_order import SampleOrder
from adadistill.loaders.pixels import MAX_SIDE, ImageLimits
from adadistill.loaders.records.checked_records import CheckedRecords
from adadistill.loaders.records.damaged_records import DamagedRecords
from adadistill.loaders.records.image_source import ImageSource
from adadistill.loaders.records.open_images import open_images

_CHOICES = {
    "decode_on": ("auto", "gpu", "cpu"),
    "packed_in": ("page_cache", "device", "device_share"),
    "seal": ("auto", "require", "ignore"),
    "links": ("inside", "anywhere"),
    "on_damaged": ("stop", "skip"),
    "wrong_size": ("refuse", "resize"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Training images and how they are fed."""

    records: str
    """Path of the `.rec` file (insightface, im2rec or CVLface style), or of a folder with one sub-folder of images
    (.jpg, .jpeg, .png) for each identity."""
    index: str | None = None
    """Path of the `.idx` file, or of a folder's `.images.index`. Left out: the one beside the records, or a scan of the
    records where there is none."""
    num_classes: int | None = None
    """Number of identities C; labels are in [0, C). Left out: read from the dataset."""
    image_size: int = 112
    """Side of the square images in pixels, 1 to 2048; records of another size are refused. 112 is the field's size."""
    global_batch_size: int = 512
    """Samples per step over all ranks, so that a run can change its number of ranks. 512 as in the published runs."""
    micro_batch_size: int | None = None
    """Most images that a device takes through the student at once, at least 2. A larger share of the global batch goes
    through in equal parts of this size, which must divide it: less memory, a third more of the student's time, and the
    same training but that each part's batch norm sees its own samples alone, as each device's does. Left out: whole."""
    decoder: Literal["dali", "cpu"] = "dali"
    """dali decodes on the GPU and needs the extra dali13 (or dali12), also on a CPU; cpu needs nothing further."""
    workers: int = 4
    """Decode threads per process, 1 to 256."""
    prefetch: int = 3
    """Batches kept ready ahead of training, 1 to 64. Each costs B x 3 x H x W floats: 77 MB for 512 images."""
    mirror_probability: float = 0.5
    """Share of the images flipped left to right, in [0, 1]; the field's only augmentation by default."""
    decode_on: Literal["auto", "gpu", "cpu"] = "auto"
    """Where DALI decodes: auto on the GPU that trains, where one does; cpu on DALI's threads, which leaves the GPU to
    training, and pays where cores are many."""
    hw_decoder_load: float = 0.65
    """Share of the images that a GPU's JPEG engine decodes, in [0, 1]; the rest are decoded by its cores. DALI's own
    choice; bench.loader sweeps it."""
    packed: str | None = None
    """Folder of a packed store of these records (`adadistill data pack`), read in place of decoding."""
    packed_in: Literal["page_cache", "device", "device_share"] = "page_cache"
    """Where the packed store is read from: files that the system caches; the memory of each rank's device; or spread
    over the devices of all ranks, which send each other what a step needs."""
    seal: Literal["auto", "require", "ignore"] = "auto"
    """Whether every record is checked against its checksum as it is read (`adadistill data check --seal` writes them):
    where the file has a seal; always, and the run does not start without one; or never."""
    links: Literal["inside", "anywhere"] = "inside"
    """Which links in a folder of images are followed: those that stay within it, or all. A set from elsewhere could
    name any file of this machine; a subset of your own is often a folder of links."""
    on_damaged: Literal["stop", "skip"] = "stop"
    """What a record does that cannot be read or decoded: stop the run, or be left out of its batch with a warning."""
    max_damaged: int = 100
    """Distinct damaged records that `on_damaged: skip` tolerates in each process; one more stops the run."""
    wrong_size: Literal["refuse", "resize"] = "refuse"
    """What happens to an image that is not `image_size` pixels square: it counts as damaged, or is resized."""
    max_image_side: int = 1024
    """Pixels a side above which an image is not decoded, whatever its header says; 1 to 2048. Bounds memory."""
    max_image_bytes: int = 4194304
    """Encoded bytes above which an image is not decoded; at least 1024."""

    def __post_init__(self) -> None:
        if not self.records:
            raise ValueError("records must be the path of a .rec file or of a folder, got an empty text")
        if self.num_classes is not None and self.num_classes < 1:
            raise ValueError(f"num_classes must be positive or left out, got {self.num_classes}")
        if not 1 <= self.image_size <= MAX_SIDE:
            raise ValueError(f"image_size must be in [1, {MAX_SIDE}], got {self.image_size}")
        if self.global_batch_size < 1:
            raise ValueError(f"global_batch_size must be positive, got {self.global_batch_size}")
        if self.micro_batch_size is not None and self.micro_batch_size < 2:
            raise ValueError(
                "micro_batch_size must be at least 2, since batch norm needs a spread, or left out, "
                f"got {self.micro_batch_size}"
            )
        if self.decoder not in ("dali", "cpu"):
            raise ValueError(f"decoder must be dali or cpu, got {self.decoder}")
        if not 1 <= self.workers <= 256:
            raise ValueError(f"workers must be in [1, 256], got {self.workers}")
        if not 1 <= self.prefetch <= 64:
            raise ValueError(f"prefetch must be in [1, 64], got {self.prefetch}")
        if not 0.0 <= self.mirror_probability <= 1.0:
            raise ValueError(f"mirror_probability must be in [0, 1], got {self.mirror_probability}")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)}")
        if not 0.0 <= self.hw_decoder_load <= 1.0:
            raise ValueError(f"hw_decoder_load must be in [0, 1], got {self.hw_decoder_load}")
        if self.max_damaged < 0:
            raise ValueError(f"max_damaged must be 0 or more, got {self.max_damaged}")
        if self.packed == "":
            raise ValueError("packed must be the folder of a packed store or left out, got an empty text")
        if self.packed is None and self.packed_in != "page_cache":
            raise ValueError(f"packed_in {self.packed_in} says where a packed store lives, and packed names none")
        self.image_limits()

    def parts(self, local_batch_size: int) -> int:
        """Equal parts in which a device's share of a global batch goes through the student; 1 where it goes whole.

        Raises:
            ValueError: `micro_batch_size` does not divide the share; its text names the sizes that do.
        """
        size = self.micro_batch_size
        if size is None or size >= local_batch_size:
            return 1
        if local_batch_size % size:
            fitting = [str(other) for other in range(2, local_batch_size + 1) if local_batch_size % other == 0]
            raise ValueError(
                f"data.micro_batch_size {size} does not divide the {local_batch_size} images that each process takes "
                f"of data.global_batch_size {self.global_batch_size}; sizes that do: {', '.join(fitting)}"
            )
        return local_batch_size // size

    def image_limits(self) -> ImageLimits:
        """What an encoded image may claim before it is decoded."""
        return ImageLimits(max_side=self.max_image_side, max_bytes=self.max_image_bytes)


def named_records(config: DataConfig) -> ImageSource:
    """The records that a recipe names; opened here, read later. Raises as `open_images`."""
    return open_images(
        config.records,
        config.index,
        num_classes=config.num_classes,
        seal=config.seal,
        limits=config.image_limits(),
        links=config.links,
    )


class ImagePipeline(Protocol):
    """One rank's batches, epoch by epoch."""

    damaged: DamagedRecords
    """The damaged records met so far."""

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
                named. The iterator is then at its end; the pipeline can start another. Not where damage is skipped.
            TooManyDamagedError: from `next()`, when more records were skipped than the recipe tolerates.
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
    records: ImageSource,
    order: SampleOrder,
    *,
    rank: int,
    world_size: int,
    device: torch.device,
    augmentation: Augmentation,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    exchange: Exchange | None = None,
) -> ImagePipeline:
    """The pipeline that a recipe asks for. Everything that can be refused is refused here.

    Args:
        config: decoder, image size, threads and prefetch are used.
        records: the images; opened here.
        order: over exactly these records.
        rank: of this process, in [0, world_size).
        world_size: ranks that share a global batch.
        device: where all tensors of a batch arrive, cpu or cuda.
        augmentation: of the images, mirroring included; the same on all ranks.
        dtype: floating-point type of the images.
        channels_last: memory format of the images.
        exchange: sends rows between ranks, for a store that is spread over them.

    Raises:
        ValueError: order, rank, device or dtype do not fit, or a packed store has no room where it shall live.
        StoreError: the packed store is not one, not complete, or of other records.
        DaliMissingError: the recipe asks for DALI and it is not installed.
        FileNotFoundError, RecordError: the records cannot be opened.
    """
    if not dtype.is_floating_point:
        raise ValueError(f"images are floating point, got dtype {dtype}")
    steps = RankSteps(order, rank=rank, world_size=world_size, augmentation=augmentation)
    if order.num_records != len(records):
        raise ValueError(
            f"the sample order is over {order.num_records} records, {records.path} holds {len(records)} images"
        )
    output = _Output(steps.batch_size, device, dtype, channels_last)
    if config.packed is not None and config.packed_in == "device_share" and world_size > 1:
        if exchange is None:
            raise ValueError(
                "data.packed_in device_share spreads the store over ranks, which need a way to exchange rows"
            )
        store = open_store(config, records)
        images = PlannedImages(config.image_size, device=device, dtype=dtype, channels_last=channels_last)
        return SharedPackedPipeline(store, steps, images, exchange=exchange, device=device)
    damaged = DamagedRecords(config.on_damaged, config.max_damaged)
    return PrefetchedPipeline(steps, _decoding(config, records, damaged, output), damaged, prefetch=config.prefetch)


@contextmanager
def planned_batches(
    config: DataConfig,
    records: ImageSource,
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
    damaged = DamagedRecords(config.on_damaged, config.max_damaged)
    decoding = _decoding(config, records, damaged, _Output(batch_size, device, dtype, channels_last))
    with closing(decoding), closing(prefetched(decoding.batches(plans), config.prefetch)) as batches:
        yield map(hand_over, batches)


@dataclass(frozen=True, slots=True)
class _Output:
    """What batches shall be."""

    batch_size: int
    device: torch.device
    dtype: torch.dtype
    channels_last: bool


def _decoding(config: DataConfig, records: ImageSource, damaged: DamagedRecords, output: _Output) -> Decoding:
    destination = batch_destination(
        output.device,
        batch_size=output.batch_size,
        image_size=config.image_size,
        dtype=output.dtype,
        channels_last=output.channels_last,
        keep=config.prefetch + 2,
    )
    if config.packed is not None:
        return PackedDecoding(
            open_store(config, records),
            destination,
            PlannedImages(
                config.image_size, device=destination.device, dtype=output.dtype, channels_last=output.channels_last
            ),
            place="device" if config.packed_in == "device_share" else config.packed_in,
            batch_size=output.batch_size,
            threads=config.workers,
        )
    checked = CheckedRecords(records, config.image_size, limits=config.image_limits(), wrong_size=config.wrong_size)
    if config.decoder == "cpu":
        return CpuDecoding(checked, destination, damaged, threads=config.workers)
    require_decoder(config, destination.device)
    return DaliDecoding(
        checked,
        destination,
        damaged,
        batch_size=output.batch_size,
        threads=config.workers,
        decode_on_gpu=config.decode_on != "cpu",
        hw_decoder_load=config.hw_decoder_load,
    )


def require_decoder(config: DataConfig, device: torch.device) -> None:
    """See whether what decodes the images can run; nothing is opened.

    Raises:
        DaliMissingError: the recipe asks for DALI and it is not installed.
        ValueError: DALI is to decode on a GPU, and batches go elsewhere.
    """
    if config.packed is not None or config.decoder != "dali":
        return
    require_dali()
    if config.decode_on == "gpu" and device.type != "cuda":
        raise ValueError(f"data.decode_on is gpu, but batches go to {device}; set it to auto or cpu")


def open_store(config: DataConfig, records: ImageSource) -> PackedStore:
    """The packed store that a recipe names, checked against its records; images are not read.

    Raises:
        StoreError, OSError: as `PackedStore` and its `require`. ValueError: its images have another size.
    """
    assert config.packed is not None
    store = PackedStore(config.packed)
    store.require(
        records={"fingerprint": records.fingerprint(), "num_records": len(records), "name": records.path.name}
    )
    if store.image_size != config.image_size:
        raise ValueError(
            f"{config.packed} holds images of {store.image_size} pixels, the recipe wants {config.image_size}; set "
            "data.image_size, or pack the records anew"
        )
    return store


class PrefetchedPipeline:
    """An `ImagePipeline` that runs a decoding ahead of its consumer.

    Args:
        steps: what this rank has to load.
        decoding: turns plans into batches; owned by the pipeline from here on.
        damaged: what the decoding notes damaged records in.
        prefetch: batches kept ready.
    """

    def __init__(self, steps: RankSteps, decoding: Decoding, damaged: DamagedRecords, *, prefetch: int) -> None:
        self._steps, self._decoding, self._prefetch = steps, decoding, prefetch
        self.damaged = damaged
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
