"""Decoding with NVIDIA DALI: on the GPU where there is one, on its CPU threads where there is none.

DALI is fed by record id: a Python source hands it the encoded bytes and mirror flags of one batch at a time, read and
checked here, and it does nothing but decode and flip uint8 pixels. Order, augmentation and normalisation are ours, so
nothing depends on DALI's random state and both pipelines give the same batches.

Pixels  On the CPU DALI's decoder is libjpeg-turbo with exact IDCT and smooth ("fancy") chroma upsampling, bit-identical
        to simplejpeg for 4:4:4 to 4:1:1, grey and odd sizes; EXIF orientation is ignored by both. On a GPU nvJPEG
        decodes, with the same upsampling; how far its pixels differ is not measured yet.
Damage  One image that DALI cannot decode ends the DALI pipeline, and an unparsable header the process, so headers are
        checked before. What fails behind the header is traced to its record by decoding the batch again on the CPU.
        DALI is more lenient than simplejpeg: entropy-coded data with wrong bits in it mostly decodes, without a word.
Memory  With the dynamic executor DALI's outputs own their memory; batches are made of new tensors nonetheless.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from adadistill.loaders.batch import Batch
from adadistill.loaders.batch_destination import BatchDestination
from adadistill.loaders.checked_records import CheckedRecords
from adadistill.loaders.pixels import decode_image
from adadistill.loaders.rank_steps import StepPlan

_OLDEST_DALI = (2, 3)
"""The first release that checks the lengths in malformed input."""

_BATCHES_IN_WORK = 2
"""DALI's own queue: one batch being taken while the next is decoded. What training sees ahead is data.prefetch."""

_JPEG = b"\xff\xd8"
_NAMED_SAMPLE = re.compile(r"sample #(\d+)")


@dataclass(frozen=True, slots=True, eq=False)
class _Fed:
    """A batch that DALI was given and has not returned."""

    plan: StepPlan
    labels: npt.NDArray[np.int64]


class DaliMissingError(ImportError):
    """The recipe asks for DALI, and there is none, or one too old."""


class DaliBatchError(RuntimeError):
    """DALI failed on a batch of which every image decodes on the CPU; `record_ids` of the batch, and DALI's words."""

    def __init__(self, message: str, record_ids: list[int]) -> None:
        self.record_ids = record_ids
        super().__init__(message)


class DaliDecoding:
    """Turns plans into batches with a DALI pipeline.

    Args:
        records: where the images come from.
        destination: what batches are made of and where they go; where they arrive on a GPU, it also decodes.
        batch_size: images per batch, B.
        threads: of DALI's pool.

    Raises:
        DaliMissingError: DALI cannot be imported, or is older than 2.3.
    """

    def __init__(
        self, records: CheckedRecords, destination: BatchDestination, *, batch_size: int, threads: int
    ) -> None:
        require_dali()
        self._records, self._destination = records, destination
        self._batch_size, self._threads = batch_size, threads
        self._source = _Source(records)
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
            while (outputs := self._run()) is not None:
                fed = self._source.fed.popleft()
                yield self._batch(fed, outputs)
            if self._source.error is not None:
                raise self._source.error
        finally:
            self._source.close()
            self._drain()

    def close(self) -> None:
        """Let go of DALI's threads and memory."""
        self._pipeline = None

    def _build(self) -> Any:
        return _build(self._source, self._batch_size, self._threads, self._destination.device.index)

    def _run(self) -> Any | None:
        """DALI's outputs for the oldest batch fed, None where there is none left."""
        try:
            return self._pipeline.run(self._destination.stream)
        except StopIteration:
            return None
        except RuntimeError as error:
            self._pipeline = None  # in DALI's own words "no longer valid"
            if not self._source.fed:
                raise
            raise self._traced(error) from error

    def _batch(self, fed: _Fed, outputs: Any) -> Batch:
        with torch.cuda.stream(self._destination.stream):  # tells DALI which stream reads; no effect on the CPU
            images_u8 = torch.from_dlpack(outputs[0].as_tensor())  # (B, H, W, 3), DALI's memory
        staged = self._destination.stage(images_u8)
        self._destination.normalise_rows(staged, slice(0, self._batch_size))
        return self._destination.batch(fed.plan, fed.labels, staged)

    def _traced(self, error: RuntimeError) -> Exception:
        """The error to raise for a batch that DALI failed on: the one of the bad record, if there is one."""
        plan = self._source.fed[0].plan
        record_ids: list[int] = plan.record_ids.tolist()
        for record_id in record_ids:
            try:
                decode_image(self._records.read(record_id).body, where=self._records.where(record_id))
            except ValueError as bad_record:
                return bad_record
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
    """What DALI calls for its next batch: encoded bytes and mirror flags, by plan."""

    def __init__(self, records: CheckedRecords) -> None:
        self._records = records
        self._plans: Iterator[StepPlan] = iter(())
        self.fed: deque[_Fed] = deque()
        self.error: ValueError | OSError | None = None

    def open(self, plans: Iterator[StepPlan]) -> None:
        self._plans, self.error = plans, None
        self.fed.clear()

    def close(self) -> None:
        self._plans = iter(())

    def __call__(self) -> tuple[list[npt.NDArray[np.uint8]], npt.NDArray[np.int32]]:
        plan = next(self._plans, None)
        if plan is None:
            raise StopIteration
        bodies: list[npt.NDArray[np.uint8]] = []
        labels = np.empty(len(plan.record_ids), dtype=np.int64)
        try:
            for row, record_id in enumerate(plan.record_ids.tolist()):
                encoded = self._records.read(record_id)
                labels[row] = encoded.label
                bodies.append(np.frombuffer(self._feedable(record_id, encoded.body), dtype=np.uint8))
        except (ValueError, OSError) as error:
            # DALI then delivers the batches before this one, after which `batches` raises.
            self.error = error
            self.close()
            raise StopIteration from error
        self.fed.append(_Fed(plan, labels))
        return bodies, plan.mirrored.astype(np.int32)

    def _feedable(self, record_id: int, body: bytes) -> bytes:
        """JPEGs as they are; other images decoded here, by the code of the CPU pipeline, and fed as PPM."""
        if body.startswith(_JPEG):
            return body
        pixels = decode_image(body, where=self._records.where(record_id))
        height, width, _ = pixels.shape
        return b"P6\n%d %d\n255\n" % (width, height) + pixels.tobytes()


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


def _build(source: _Source, batch_size: int, threads: int, gpu: int | None) -> Any:
    """The DALI pipeline: encoded bytes and mirror flags to (B, H, W, 3) uint8 RGB, on `gpu` or on the CPU."""
    from nvidia.dali import Pipeline, fn, types

    pipeline = Pipeline(
        batch_size=batch_size,
        num_threads=threads,
        device_id=gpu,
        prefetch_queue_depth=_BATCHES_IN_WORK,
        exec_dynamic=True,  # outputs own their memory, and are ordered with our stream
    )
    with pipeline:
        encoded, mirrored = fn.external_source(
            source=source,
            num_outputs=2,
            batch=True,
            dtype=[types.DALIDataType.UINT8, types.DALIDataType.INT32],
            ndim=[1, 0],
        )
        images = fn.decoders.image(
            encoded,
            device="cpu" if gpu is None else "mixed",
            output_type=types.DALIImageType.RGB,
            adjust_orientation=False,  # libjpeg-turbo alone, as simplejpeg: the stored rows and columns
            jpeg_fancy_upsampling=True,  # libjpeg-turbo's default; nvJPEG's is not
            use_fast_idct=False,  # off by up to 28 levels
        )
        pipeline.set_outputs(fn.flip(images, horizontal=mirrored, vertical=0))
    pipeline.build()
    return pipeline
