"""How much of a training step is spent waiting for images, for each source of them.

Runs one MobileFaceNet step on a replayed batch, then the same step fed by each source, and reports the stall, 1 - fed /
replayed images/s. Isolates loading from everything but the step that consumes it: no evaluation, no checkpoints.
Sources alternate with the replayed batch, so that a busy machine slows all. The teacher's rows are random and on the
device.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from adadistill.bench.loader import tiled_records
from adadistill.bench.rows import append_row, spread
from adadistill.bench.step import build_step
from adadistill.bench.timing import drain
from adadistill.core.objectives import GlobalSamples
from adadistill.core.precision import resolve_precision
from adadistill.core.teachers import record_binding
from adadistill.core.training_step import TrainingStep
from adadistill.loaders.augment_policy import Augmentation, AugmentConfig
from adadistill.loaders.batch import Batch
from adadistill.loaders.dali_pipeline import DaliMissingError, require_dali
from adadistill.loaders.image_records import ImageRecords
from adadistill.loaders.packed_store import PackError, pack_records
from adadistill.loaders.pipeline import DataConfig, ImagePipeline, build_pipeline
from adadistill.loaders.pixels import image_size
from adadistill.loaders.sample_order import SampleOrder


def fed_images_per_s(step: TrainingStep, batches: Iterator[Batch], *, warmup: int, steps: int) -> float:
    """Images/s of steps that take their batches from an iterator."""
    started, images = 0.0, 0
    for number in range(warmup + steps):
        batch = next(batches)
        if number == warmup:
            drain(batch.images.device)
            started, images = time.perf_counter(), 0
        ids, mirrored = batch.record_ids.cpu().numpy(), batch.mirrored.cpu().numpy()
        samples = GlobalSamples(record_ids=ids, mirrored=mirrored)
        step.run(batch, samples, lr=0.01, fractional_epoch=1.0, global_step=0, stop=False)
        images += len(batch.labels)
    drain(batch.images.device)
    return images / (time.perf_counter() - started)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table and append rows."""
    parser = argparse.ArgumentParser(prog="python -m adadistill.bench.input_stall", description=__doc__.split("\n")[0])
    parser.add_argument("faces", type=Path, help=".rec file, or a folder with train.rec")
    parser.add_argument("--tile", type=int, default=50_000, help="repeat the images to so many records")
    parser.add_argument("--arch", default="mobilefacenet")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--augment", choices=("none", "adaface", "insightface"), default="none")
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", help="JSONL file for the rows (default: print only)")
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    path = arguments.faces / "train.rec" if arguments.faces.is_dir() else arguments.faces
    with tempfile.TemporaryDirectory(prefix="adadistill-stall-") as folder:
        records = ImageRecords(tiled_records(ImageRecords(path), Path(folder) / "tiled.rec", arguments.tile, None))
        _measure(records, Path(folder), arguments, device)
    return 0


def _measure(records: ImageRecords, folder: Path, arguments: argparse.Namespace, device: torch.device) -> None:
    size = image_size(records.read(0).body, where=records.where(0))[0]
    step, replayed, _ = build_step(
        arch=arguments.arch,
        width=arguments.width,
        image_size=size,
        batch_size=arguments.batch_size,
        identities=records.num_classes,
        precision=arguments.precision,
        compiled=False,
        device=device,
    )
    sources = _sources(records, folder, size, arguments, device)
    rates: dict[str, list[float]] = {name: [] for name in ("replayed", *sources)}
    for _ in range(arguments.repeats):
        for name in rates:
            pipeline = None if name == "replayed" else sources[name]()
            batches = _again(replayed) if pipeline is None else _epochs(pipeline)
            rates[name].append(fed_images_per_s(step, batches, warmup=arguments.warmup, steps=arguments.steps))
            if pipeline is not None:
                pipeline.close()
    fastest = spread(rates["replayed"])["median"]
    print(f"\n{'source':<26} {'images/s':>10} {'stall':>8}   {device}, batch {arguments.batch_size}")
    for name, measured in rates.items():
        rate = spread(measured)
        stall = 1.0 - rate["median"] / fastest
        print(f"{name:<26} {rate['median']:>10,.0f} {stall:>8.1%}")
        append_row(
            arguments.rows, bench="input_stall", source=name, images_per_s=rate, stall=stall, device=str(device),
            arch=arguments.arch, batch_size=arguments.batch_size, workers=arguments.workers,
            augment=arguments.augment, records=len(records),
        )  # fmt: skip


def _sources(
    records: ImageRecords, folder: Path, size: int, arguments: argparse.Namespace, device: torch.device
) -> dict[str, Callable[[], ImagePipeline]]:
    """What can run here, by name."""
    formats = resolve_precision(arguments.precision, device)
    augmentation = Augmentation(
        AugmentConfig(policy=arguments.augment), mirror_probability=0.5, seed=0, image_size=size
    )

    def builder(**data: object) -> Callable[[], ImagePipeline]:
        config = DataConfig(records=str(records.path), image_size=size, workers=arguments.workers, **data)  # type: ignore[arg-type]
        return lambda: build_pipeline(
            config,
            records,
            SampleOrder(len(records), arguments.batch_size, seed=0),
            rank=0,
            world_size=1,
            device=device,
            augmentation=augmentation,
            dtype=formats.image_dtype,
            channels_last=formats.channels_last,
        )

    sources = {"cpu": builder(decoder="cpu")}
    try:
        require_dali()
        sources["dali"] = builder(decoder="dali")
    except DaliMissingError as reason:
        print(f"without dali: {reason}")
    for layout in ("rgb", "planes"):
        try:
            pack_records(records, folder / layout, binding=record_binding(records), layout=layout, image_size=size)
        except PackError as reason:
            print(f"without packed {layout}: {reason}")
            continue
        for place in ("page_cache", "device") if device.type == "cuda" else ("page_cache",):
            sources[f"packed {layout}, {place}"] = builder(packed=str(folder / layout), packed_in=place)
    return sources


def _again(batch: Batch) -> Iterator[Batch]:
    while True:
        yield batch


def _epochs(pipeline: ImagePipeline) -> Iterator[Batch]:
    epoch = 0
    while True:
        yield from pipeline.epoch(epoch)
        epoch += 1


if __name__ == "__main__":
    sys.exit(main())
