"""Decoding with NVIDIA DALI: on the GPU where there is one, on its CPU threads where there is none.

DALI is fed by record id: a Python source hands it the encoded bytes of one batch at a time, checked here together, and
it does nothing but decode. The source runs in this process: DALI's parallel ones would copy every batch between
processes to save 4 us of Python an image. Order, augmentation and normalisation are ours, so nothing depends on DALI's
random state and all pipelines give the same batches; on a GPU they are one launch on the memory that DALI decoded into.

Pixels  On the CPU DALI's decoder is libjpeg-turbo with exact IDCT and smooth ("fancy") chroma upsampling, bit-identical
        to simplejpeg for 4:4:4 to 4:1:1, grey and odd sizes. On a GPU nvJPEG decodes, with the same upsampling; how
        far its pixels differ is not measured yet. Pictures that EXIF turns come decoded (`CheckedRecords.feedable`).
Damage  One image that DALI cannot decode ends the DALI pipeline, and an unparsable header the process, so headers are
        checked before. What fails behind the header is traced to its record by decoding the batch again on the CPU;
        where damaged records are skipped, that batch is taken from there and a new DALI pipeline goes on behind it.
        DALI is more lenient than simplejpeg: entropy-coded data with wrong bits in it mostly decodes, without a word.
Memory  With the dynamic executor DALI's outputs own their memory; batches are made of new tensors nonetheless.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from adadistill.loaders.augment.planned_augmentation import write_augmented
from adadistill.loaders.batch import Batch
from adadistill.loaders.errors import WorkFailed
from adadistill.loaders.pipelines.batch_destination import BatchDestination, Staged
from adadistill.loaders.pipelines.rank_steps import StepPlan
from adadistill.loaders.pipelines.row_threads import RowThreads, finish
from adadistill.loaders.records.checked_records import CheckedRecords
from adadistill.loaders.records.damaged_records import DAMAGE, GREY_LEVEL, SKIPPED_LABEL, DamagedRecords

_OLDEST_DALI = (2, 3)
"""The first release that checks the lengths in malformed input."""

_BATCHES_IN_WORK = 2
"""DALI's own queue: one batch being taken while the next is decoded. What training sees ahead is data.prefetch."""

_ROWS_PER_TASK = 32
"""Images that one task augments on the CPU."""

_NAMED_SAMPLE = re.compile(r"sample #(\d+)")


@dataclass(frozen=True, slots=True, eq=False)
class _Fed:
    """A batch that DALI was given and has not returned."""

    plan: StepPlan
    labels: npt.NDArray[np.int64]


class DaliMissingError(ImportError):
    """The recipe asks for DALI, and there is none, or one too old."""


class DaliBatchError(WorkFailed, RuntimeError):
    """DALI failed on a batch of which every image decodes on the CPU; `record_ids` of the batch, and DALI's words."""

    def __init__(self, message: str, record_ids: list[int]) -> None:
        self.record_ids = record_ids
        super().__init__(message)


class DaliDecoding:
    """Turns plans into batches with a DALI pipeline.

    Args:
        records: where the images come from.
        destination: what batches are made of and where they go.
        damaged: decides about records that cannot be decoded.
        batch_size: images per batch, B.
        threads: of DALI's pool, and of ours that augments on the CPU.
        decode_on_gpu: decode where batches arrive; else on DALI's CPU threads.
        hw_decoder_load: share of the images that a GPU's JPEG engine takes, where it has one.

    Raises:
        DaliMissingError: DALI cannot be imported, or is older than 2.3.
    """

    def __init__(
        self,
        records: CheckedRecords,
        destination: BatchDestination,
        damaged: DamagedRecords,
        *,
        batch_size: int,
        threads: int,
        decode_on_gpu: bool = True,
        hw_decoder_load: float = 0.65,
    ) -> None:
        require_dali()
        self._records, self._destination, self._damaged = records, destination, damaged
        self._batch_size, self._threads = batch_size, threads
        self._gpu = destination.device.index if decode_on_gpu else None
        self._hw_decoder_load = hw_decoder_load
        self._source = _Source(records, damaged)
        self._row_threads = RowThreads(threads, rows=_ROWS_PER_TASK, name="adadistill-augment")
        self._pipeline: Any = self._build()

    def batches(self, plans: Iterator[StepPlan]) -> Generator[Batch, None, None]:
        """The batches of the plans, in order.

        Raises:
            RecordError, ImageDecodeError: the first bad record, when its batch is reached.
            DaliBatchError: DALI failed for another reason.
        """
        if self._pipeline is None:
            self._pipeline = self._build()
        self._source.open(plans)
        try:
            while (batch := self._next()) is not None:
                yield batch
            if self._source.error is not None:
                raise self._source.error
        finally:
            self._source.close()
            self._drain()

    def close(self) -> None:
        """Let go of all threads, and of DALI's memory."""
        self._pipeline = None
        self._row_threads.close()

    def _build(self) -> Any:
        return _build(self._source, self._batch_size, self._threads, self._gpu, self._hw_decoder_load)

    def _next(self) -> Batch | None:
        """The oldest batch fed; None where there is none left."""
        try:
            outputs = self._pipeline.run(self._destination.stream)
        except StopIteration:
            return None
        except RuntimeError as error:
            self._pipeline = None  # in DALI's own words "no longer valid"
            if not self._source.fed:
                raise
            batch = self._decoded_here(error)
            self._source.feed_again()
            self._pipeline = self._build()
            return batch
        return self._batch(self._source.fed.popleft(), outputs)

    def _batch(self, fed: _Fed, outputs: Any) -> Batch:
        with torch.cuda.stream(self._destination.stream):  # tells DALI which stream reads; no effect on the CPU
            images_u8 = torch.from_dlpack(outputs[0].as_tensor())  # (B, H, W, 3), DALI's memory
        if self._destination.augments:
            staged = self._destination.stage(images_u8)
        else:
            staged = self._destination.stage()
            work = partial(self._augment_rows, fed.plan, images_u8, staged)
            finish(self._row_threads.start(self._batch_size, work))
        return self._destination.batch(fed.plan, fed.labels, staged)

    def _augment_rows(self, plan: StepPlan, decoded: torch.Tensor, staged: Staged, rows: slice) -> None:
        pixels, images = decoded.numpy(), staged.images_u8.numpy()
        for row in range(*rows.indices(len(images))):
            write_augmented(pixels[row], plan, row, images[row])
        self._destination.normalise_rows(staged, rows)

    def _decoded_here(self, error: RuntimeError) -> Batch:
        """The batch that DALI failed on, decoded on this thread, its damaged records skipped.

        Raises:
            RecordError, ImageDecodeError: of the damaged record, where that stops the run.
            DaliBatchError: no record of it is damaged.
        """
        fed, images = self._source.fed.popleft(), []
        for row, record_id in enumerate(fed.plan.record_ids.tolist()):
            pixels = np.full((self._records.image_size,) * 2 + (3,), GREY_LEVEL, dtype=np.uint8)
            try:
                _, pixels = self._records.decode(record_id)
            except DAMAGE as bad_record:
                self._damaged.note(record_id, bad_record)
                fed.labels[row] = SKIPPED_LABEL
            images.append(pixels)
        if not (fed.labels == SKIPPED_LABEL).any():
            raise self._unexplained(fed.plan, error) from error
        staged = self._destination.stage()
        for row, pixels in enumerate(images):
            target = staged.images_u8[row].numpy()
            if self._destination.augments or fed.labels[row] == SKIPPED_LABEL:
                target[...] = pixels
            else:
                write_augmented(pixels, fed.plan, row, target)
        self._destination.normalise_rows(staged, slice(0, self._batch_size))
        return self._destination.batch(fed.plan, fed.labels, staged)

    def _unexplained(self, plan: StepPlan, error: RuntimeError) -> DaliBatchError:
        """DALI failed on a batch of which every image decodes on the CPU."""
        record_ids: list[int] = plan.record_ids.tolist()
        named = _NAMED_SAMPLE.search(str(error))
        suspect = f" It names {self._records.where(record_ids[int(named[1])])}." if named else ""
        return DaliBatchError(
            f"DALI failed on epoch {plan.epoch}, step {plan.step}, though every image of it decodes on the CPU; "
            f"data.decoder=cpu would train on.{suspect} Record ids: {record_ids}. DALI says: {error}",
            record_ids,
        )

    def _drain(self) -> None:
        """Let DALI finish what it was fed and nobody waits for, so that the next epoch begins empty."""
        while self._pipeline is not None:
            try:
                self._pipeline.run(self._destination.stream)
            except StopIteration:
                self._pipeline.reset()
                return
            except RuntimeError:
                self._pipeline = None  # a bad batch that was never asked for; it will be named when it is


class _Source:
    """What DALI calls for its next batch: encoded bytes, by plan."""

    def __init__(self, records: CheckedRecords, damaged: DamagedRecords) -> None:
        self._records, self._damaged = records, damaged
        self._plans: Iterator[StepPlan] = iter(())
        self.fed: deque[_Fed] = deque()
        self.error: ValueError | OSError | None = None
        size = records.image_size
        self._grey = b"P6\n%d %d\n255\n" % (size, size) + bytes([GREY_LEVEL]) * (3 * size * size)

    def open(self, plans: Iterator[StepPlan]) -> None:
        self._plans, self.error = plans, None
        self.fed.clear()

    def close(self) -> None:
        self._plans = iter(())

    def feed_again(self) -> None:
        """What was fed and not returned is fed once more, to a new DALI pipeline."""
        self._plans = chain([fed.plan for fed in self.fed], self._plans)
        self.fed.clear()

    def __call__(self) -> list[npt.NDArray[np.uint8]]:
        plan = next(self._plans, None)
        if plan is None:
            raise StopIteration
        try:
            labels, bodies = self._records.feedable_batch(plan.record_ids, self._skipped)
        except (ValueError, OSError) as error:
            # DALI then delivers the batches before this one, after which `batches` raises.
            self.error = error
            self.close()
            raise StopIteration from error
        self.fed.append(_Fed(plan, labels))
        return bodies

    def _skipped(self, record_id: int, error: ValueError) -> bytes:
        self._damaged.note(record_id, error)
        return self._grey


def require_dali() -> None:
    """Raise DaliMissingError unless a DALI that we can use is installed."""
    remedy = (
        "Install it with `pip install adadistill[dali13]` (dali12 for CUDA 12; both work without a GPU), "
        "or decode without it: data.decoder=cpu"
    )
    try:
        import nvidia.dali
    except ImportError as error:
        raise DaliMissingError(f"data.decoder is dali, but DALI cannot be imported ({error}). {remedy}") from error
    version = nvidia.dali.__version__
    if tuple(int(number) for number in re.findall(r"\d+", version)[:2]) < _OLDEST_DALI:
        raise DaliMissingError(f"data.decoder is dali, but DALI {version} is installed; 2.3 is needed. {remedy}")


def _build(source: _Source, batch_size: int, threads: int, gpu: int | None, hw_decoder_load: float) -> Any:
    """The DALI pipeline: encoded bytes to (B, H, W, 3) uint8 RGB, on `gpu` or on the CPU."""
    from nvidia.dali import Pipeline, fn, types

    pipeline = Pipeline(
        batch_size=batch_size,
        num_threads=threads,
        device_id=gpu,
        prefetch_queue_depth=_BATCHES_IN_WORK,
        exec_dynamic=True,  # outputs own their memory, and are ordered with our stream
    )
    with pipeline:
        encoded = fn.external_source(source=source, batch=True, dtype=types.DALIDataType.UINT8, ndim=1)
        images = fn.decoders.image(
            encoded,
            device="cpu" if gpu is None else "mixed",
            output_type=types.DALIImageType.RGB,
            adjust_orientation=False,  # what is fed is upright; DALI's reader of EXIF would be a second rule
            jpeg_fancy_upsampling=True,  # libjpeg-turbo's default; nvJPEG's is not
            use_fast_idct=False,  # off by up to 28 levels
            hw_decoder_load=hw_decoder_load,
        )
        pipeline.set_outputs(images)
    pipeline.build()
    return pipeline
