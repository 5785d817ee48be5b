"""How many images per second each way of loading delivers from JPEG records.

Two stages: `decode` ends with uint8 pixels where the decoder leaves them, `batch` with normalised float32 batches on
the device, labels and all. Isolates loading: nothing trains, and a consumer that only counts takes the batches. Leaves
out the first batches of each round, in which threads and buffers come up, and cold disks: records are read once before.

Beside ours runs what one would write without a library, on the CPU: torch's DataLoader with Pillow, and ToTensor and
Normalize in plain torch (where Pillow is installed). Rounds of all of them alternate, so that a busy machine slows all.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from adadistill.bench.rows import append_row, spread
from adadistill.loaders.batch import Batch
from adadistill.loaders.batch_destination import BatchDestination, Staged, batch_destination
from adadistill.loaders.buffer_pool import BufferPool
from adadistill.loaders.checked_records import CheckedRecords
from adadistill.loaders.cpu_pipeline import CpuDecoding
from adadistill.loaders.dali_pipeline import DaliDecoding, DaliMissingError, require_dali
from adadistill.loaders.image_records import ImageRecords
from adadistill.loaders.pipeline import Decoding
from adadistill.loaders.pixels import decode_image, image_size, to_network_input
from adadistill.loaders.prefetch import prefetched
from adadistill.loaders.rank_steps import RankSteps, StepPlan
from adadistill.loaders.sample_order import SampleOrder

_PREFETCH = 3
_WARM_UP = 4
_NVJPEG_LEVELS = 6.0
"""Mean difference of decoded levels above which two decoders do not show the same picture."""


@dataclass(frozen=True)
class Loader:
    """One way of loading: `batches(count)` yields that many batches and then ends all it started."""

    name: str
    stage: str
    batches: Callable[[int], Iterator[Any]]


class DecodeOnly:
    """A destination that leaves the pixels where the decoder put them."""

    def __init__(self, shape: tuple[int, int, int, int], device: torch.device) -> None:
        self.device = device
        self.stream: torch.cuda.Stream | None = None
        self._pixels = BufferPool(shape, torch.uint8, keep=_PREFETCH + 2)

    def stage(self, images_u8: Tensor | None = None) -> Staged:
        return Staged(images_u8=self._pixels.take() if images_u8 is None else images_u8, images=None)

    def normalise_rows(self, staged: Staged, rows: slice) -> None:
        """Not in this stage."""

    def batch(self, plan: StepPlan, labels: npt.NDArray[np.int64], staged: Staged) -> Batch:
        flags, ids = torch.from_numpy(plan.mirrored), torch.tensor(plan.record_ids)
        return Batch(staged.images_u8, torch.from_numpy(labels), ids, flags, plan.epoch, plan.step)


class PillowDataset(Dataset[tuple[Tensor, int]]):
    """Records as a map-style dataset, decoded by Pillow, with torchvision's transforms written out."""

    def __init__(self, records: ImageRecords) -> None:
        self._records = records
        len(records)  # the index is read here, not once in every worker

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, record_id: int) -> tuple[Tensor, int]:
        import io

        from PIL import Image

        encoded = self._records.read(record_id)
        with Image.open(io.BytesIO(encoded.body)) as picture:
            pixels = np.array(picture.convert("RGB"))
        if torch.rand(()) < 0.5:
            pixels = pixels[:, ::-1].copy()
        image = torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float().div(255.0)  # ToTensor
        return image.sub_(0.5).div_(0.5), encoded.label  # Normalize


def our_loaders(
    records: ImageRecords, *, decoders: Sequence[str], batch_size: int, workers: int, device: torch.device
) -> list[Loader]:
    """Each decoder in both stages, after its batches were compared with single images decoded one by one."""
    side = image_size(records.read(0).body, where=records.where(0))[0]
    order = SampleOrder(len(records), batch_size, seed=0)
    steps = RankSteps(order, rank=0, world_size=1, mirror_seed=0, mirror_probability=0.5)
    loaders: list[Loader] = []
    for decoder, stage in itertools.product(decoders, ("decode", "batch")):
        batches = _batches(CheckedRecords(records, side), steps, decoder, stage, workers, device)
        _check(records, next(batches(1)), exact=decoder == "cpu" or device.type == "cpu")
        loaders.append(Loader(decoder, stage, batches))
    return loaders


def pillow_loader(records: ImageRecords, *, batch_size: int, workers: int) -> Loader:
    """torch's DataLoader with worker processes; restarted in each round as it is in each epoch, start not timed."""

    def batches(count: int) -> Iterator[Any]:
        sampler = torch.randperm(len(records), generator=torch.Generator().manual_seed(0)).repeat(
            -(-count * batch_size // len(records))
        )[: count * batch_size]
        yield from DataLoader(
            PillowDataset(records), batch_size=batch_size, sampler=sampler.tolist(), num_workers=workers
        )

    return Loader("torch DataLoader + Pillow", "batch", batches)


def images_per_s(loader: Loader, *, batches: int, batch_size: int, device: torch.device) -> float:
    """One round: the rate over `batches` batches after the warm-up."""
    started = 0.0
    for number, _ in enumerate(loader.batches(_WARM_UP + batches), start=1):
        if number == _WARM_UP:
            _synchronise(device)
            started = time.perf_counter()
    _synchronise(device)
    return batches * batch_size / (time.perf_counter() - started)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table and append rows."""
    parser = argparse.ArgumentParser(prog="python -m adadistill.bench.loader", description=__doc__.split("\n")[0])
    parser.add_argument("records", help="a .rec file of JPEGs of one size")
    parser.add_argument("--index", help="its .idx (default: the one beside it)")
    parser.add_argument("--decoders", nargs="+", choices=["cpu", "dali"], help="default: those installed")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--batches", type=int, default=40, help="timed per round")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="decode threads, or worker processes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", help="JSONL file for the rows (default: print only)")
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    records = ImageRecords(arguments.records, arguments.index)
    records.labels()  # also brings the file into memory
    sizes = {"batch_size": min(arguments.batch_size, len(records)), "workers": arguments.workers}
    decoders = arguments.decoders or _installed_decoders()
    loaders = our_loaders(records, decoders=decoders, device=device, **sizes)
    if device.type == "cpu" and importlib.util.find_spec("PIL"):
        loaders.append(pillow_loader(records, **sizes))
    rates: list[list[float]] = [[] for _ in loaders]
    for _ in range(arguments.repeats):
        for loader, measured in zip(loaders, rates, strict=True):
            measured.append(
                images_per_s(loader, batches=arguments.batches, batch_size=sizes["batch_size"], device=device)
            )
    _report(loaders, rates, device, sizes, arguments)
    return 0


def _installed_decoders() -> list[str]:
    try:
        require_dali()
    except DaliMissingError as reason:
        print(f"without dali: {reason}")
        return ["cpu"]
    return ["cpu", "dali"]


def _batches(
    records: CheckedRecords, steps: RankSteps, decoder: str, stage: str, workers: int, device: torch.device
) -> Callable[[int], Iterator[Batch]]:
    side, count = records.image_size, steps.batch_size

    def batches(number: int) -> Iterator[Batch]:
        destination: BatchDestination
        if stage == "decode":
            destination = DecodeOnly((count, side, side, 3), device if decoder == "dali" else torch.device("cpu"))
        else:
            destination = batch_destination(
                device,
                batch_size=count,
                image_size=side,
                dtype=torch.float32,
                channels_last=device.type == "cuda",
                keep=_PREFETCH + 2,
            )
        decoding: Decoding
        if decoder == "cpu":
            decoding = CpuDecoding(records, destination, threads=workers)
        else:
            decoding = DaliDecoding(records, destination, batch_size=count, threads=workers)
        plans = itertools.chain.from_iterable(steps.plans(epoch) for epoch in itertools.count())
        try:
            yield from prefetched(decoding.batches(itertools.islice(plans, number)), _PREFETCH)
        finally:
            decoding.close()

    return batches


def _check(records: ImageRecords, batch: Batch, *, exact: bool) -> None:
    """Compare with single images, decoded and normalised one by one."""
    for row in range(min(8, len(batch.labels))):
        record_id = int(batch.record_ids[row])
        pixels = torch.from_numpy(decode_image(records.read(record_id).body, where=records.where(record_id)))
        pixels = pixels.flip(1) if batch.mirrored[row] else pixels
        image = batch.images[row].cpu()
        if image.dtype != torch.uint8:
            pixels = to_network_input(pixels[None], device=pixels.device)[0] * 127.5
            image = image * 127.5
        error = (image.double() - pixels.double()).abs().mean().item()
        if error > (1e-4 if exact else _NVJPEG_LEVELS):
            raise ValueError(
                f"{records.where(record_id)}: decoded pixels are {error:.2f} levels off; nothing was timed"
            )


def _report(
    loaders: list[Loader],
    rates: list[list[float]],
    device: torch.device,
    sizes: dict[str, int],
    arguments: argparse.Namespace,
) -> None:
    print(f"\n{'pipeline':<28} {'stage':<8} {'images/s':>10} {'p20':>10} {'p80':>10}   {device}, {sizes}")
    for loader, measured in zip(loaders, rates, strict=True):
        rate = spread(measured)
        print(
            f"{loader.name:<28} {loader.stage:<8} {rate['median']:>10,.0f} {rate['p20']:>10,.0f} {rate['p80']:>10,.0f}"
        )
        append_row(
            arguments.rows,
            bench="loader",
            pipeline=loader.name,
            stage=loader.stage,
            device=str(device),
            images_per_s=rate,
            batches=arguments.batches,
            repeats=arguments.repeats,
            **sizes,
        )


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    sys.exit(main())
