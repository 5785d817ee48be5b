"""How many images per second each way of loading delivers, stage by stage, and what it costs in CPU time.

Stages: `read` gives encoded bytes, checked as DALI is fed them, `decode` uint8 pixels, `augment` augmented pixels of
images decoded before, `batch` normalised float32 batches on the device with labels and flips: what training gets,
through `build_pipeline`. Isolates loading: nothing trains, and a consumer that only counts takes the batches. Leaves
out the first batches of each round, in which threads and buffers come up, and cold disks: files are read once before.

Beside ours run, on the CPU, what one would write without a library (torch's DataLoader with worker processes, Pillow,
ToTensor and Normalize in plain torch) and, wherever DALI is, a pipeline as insightface writes it (its own record
reader, decoder and crop_mirror_normalize). On CUDA, torchvision's batched decoder where torchvision is installed.
Rounds of all of them alternate, so that a busy machine slows all.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from adadistill.bench.bench_parser import bench_parser
from adadistill.bench.image_sources import SOURCES as OURS
from adadistill.bench.image_sources import Feed, pipeline_builders, synthetic_records, tiled_records
from adadistill.bench.report.row_sets import machine
from adadistill.bench.rows import append_row, read_rows, results_folder
from adadistill.bench.timing import drain, spread
from adadistill.core.profiling.summary import covered
from adadistill.loaders.augment.augment_image import augment_image
from adadistill.loaders.augment.augment_policy import Augmentation, AugmentConfig
from adadistill.loaders.batch import Batch
from adadistill.loaders.pipelines.dali_pipeline import DaliMissingError, require_dali
from adadistill.loaders.pipelines.pipeline import ImagePipeline
from adadistill.loaders.pipelines.sample_order import SampleOrder
from adadistill.loaders.pixels import decode_image, image_size, to_network_input
from adadistill.loaders.records.checked_records import CheckedRecords
from adadistill.loaders.records.image_records import ImageRecords
from adadistill.loaders.records.record_index import write_record_index
from adadistill.loaders.usable_cpus import usable_cpus

TINY = (
    "--image-size 32 --tile 16 --batch-size 4 --batches 2 --repeats 2 --workers 1 --device cpu --sources cpu packed_rgb"
)

SOURCES = (*OURS, "dataloader", "dali_plain", "torchvision")
STAGES = ("read", "decode", "augment", "batch")
_WARM_UP = 4
_NVJPEG_LEVELS = 6.0
"""Mean difference of decoded levels above which two decoders do not show the same picture."""
_SYNTHETIC_RECORDS = 20_000
_FIT_QUALITIES = (50, 75, 90, 95, 100)


@dataclass(frozen=True)
class Loader:
    """One way of loading: `batches(count)` yields that many batches and then ends all it started."""

    name: str
    stage: str
    batches: Callable[[int], Iterator[Any]]
    augments: bool = False
    """Whether it does what `--augment` asks for. What others write does not."""


@dataclass(frozen=True)
class Setting:
    """What all loaders of a run share."""

    records: ImageRecords
    size: int
    batch_size: int
    workers: int
    device: torch.device
    augmentation: Augmentation


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


def pipeline_loader(name: str, setting: Setting, build: Callable[[], ImagePipeline]) -> Loader:
    """Our own pipeline as a recipe builds it, after its first batch was compared with single images."""

    def batches(count: int) -> Iterator[Batch]:
        pipeline = build()
        try:
            epochs = itertools.chain.from_iterable(pipeline.epoch(epoch) for epoch in itertools.count())
            yield from itertools.islice(epochs, count)
        finally:
            pipeline.close()

    check(setting, next(batches(1)), exact=not name.startswith("dali") or setting.device.type == "cpu")
    return Loader(name, "batch", batches, augments=True)


def stage_loaders(setting: Setting) -> list[Loader]:
    """The stages of the CPU pipeline one by one, each on one thread: images a second of a core."""
    checked = CheckedRecords(setting.records, setting.size)
    ids = np.random.default_rng(0).permutation(len(setting.records))
    decoded = np.stack([checked.decode(int(record_id))[1] for record_id in ids[: min(256, len(ids))]])

    def over_ids(work: Callable[[npt.NDArray[np.int64]], object]) -> Callable[[int], Iterator[Any]]:
        def batches(count: int) -> Iterator[Any]:
            for number in range(count):
                yield work(ids[(np.arange(setting.batch_size) + number * setting.batch_size) % len(ids)])

        return batches

    def read(record_ids: npt.NDArray[np.int64]) -> object:
        return checked.feedable_batch(record_ids, _raise)

    def decode(record_ids: npt.NDArray[np.int64]) -> object:
        _, bodies = checked.read_plain(record_ids)
        images = []
        for record_id, body in zip(record_ids.tolist(), bodies, strict=True):
            pixels = checked.decode_plain(record_id, body)
            images.append(checked.decode(record_id)[1] if pixels is None else pixels)
        return images

    def augment(count: int) -> Iterator[Any]:
        out = np.empty_like(decoded[0])
        tables = setting.augmentation.tables
        for number in range(count):
            chosen = (np.arange(setting.batch_size) + number * setting.batch_size) % len(ids)
            rows = setting.augmentation.parameters(0, chosen)
            assert rows is not None, "this stage is measured where something is augmented"
            assert tables is not None, "and then there are tables"
            for place, row in zip((chosen % len(decoded)).tolist(), rows, strict=True):
                augment_image(decoded[place], row, tables, out)
            yield out

    loaders = [
        Loader("one thread", "read", over_ids(read)),
        Loader("one thread", "decode", over_ids(decode)),
    ]
    if setting.augmentation.alters_pixels:
        loaders.append(Loader("one thread", "augment", augment, augments=True))
    return loaders


def _raise(record_id: int, error: ValueError) -> bytes:
    raise error


def pillow_loader(setting: Setting) -> Loader:
    """torch's DataLoader with worker processes; restarted in each round as it is in each epoch, start not timed."""

    def batches(count: int) -> Iterator[Any]:
        needed = count * setting.batch_size
        order = torch.randperm(len(setting.records), generator=torch.Generator().manual_seed(0))
        sampler = order.repeat(-(-needed // len(order)))[:needed]
        yield from DataLoader(
            PillowDataset(setting.records),
            batch_size=setting.batch_size,
            sampler=sampler.tolist(),
            num_workers=setting.workers,
        )

    return Loader("torch DataLoader + Pillow", "batch", batches)


def plain_dali_loader(setting: Setting, index: Path) -> Loader:
    """DALI as arcface_torch uses it: record reader, window shuffle, decoder, crop_mirror_normalize, two threads."""
    from nvidia.dali import Pipeline, fn, types

    gpu = setting.device.index if setting.device.type == "cuda" else None

    def batches(count: int) -> Iterator[Any]:
        pipeline = Pipeline(
            batch_size=setting.batch_size, num_threads=2, device_id=gpu, prefetch_queue_depth=1, exec_dynamic=True
        )
        with pipeline:
            encoded, labels = fn.readers.mxnet(
                path=[str(setting.records.path)],
                index_path=[str(index)],
                initial_fill=min(32768, len(setting.records)),
                random_shuffle=True,
                pad_last_batch=False,
                name="reader",
            )
            images = fn.decoders.image(
                encoded, device="cpu" if gpu is None else "mixed", output_type=types.DALIImageType.RGB
            )
            images = fn.crop_mirror_normalize(
                images,
                dtype=types.DALIDataType.FLOAT,
                mean=[127.5] * 3,
                std=[127.5] * 3,
                mirror=fn.random.coin_flip(probability=0.5),
            )
            pipeline.set_outputs(images, labels)
        pipeline.build()
        for _ in range(count):
            outputs: Any = pipeline.run()
            yield torch.from_dlpack(outputs[0].as_tensor()), torch.from_dlpack(outputs[1].as_tensor())[:, 0].long()

    return Loader("DALI as insightface writes it", "batch", batches)


def torchvision_loader(setting: Setting) -> Loader:
    """torchvision's batched nvJPEG decoder and normalisation on the device; CUDA only."""
    from torchvision.io import ImageReadMode, decode_jpeg

    def batches(count: int) -> Iterator[Any]:
        order = SampleOrder(len(setting.records), setting.batch_size, seed=0)
        for number in range(count):
            ids = order.global_ids(number // order.steps_per_epoch, number % order.steps_per_epoch)
            encoded = [setting.records.read(int(record_id)) for record_id in ids]
            bodies = [torch.frombuffer(bytearray(one.body), dtype=torch.uint8) for one in encoded]
            pixels = torch.stack(decode_jpeg(bodies, mode=ImageReadMode.RGB, device=setting.device))
            labels = torch.tensor([one.label for one in encoded], device=setting.device)
            yield to_network_input(pixels, device=setting.device, channels_last=True), labels

    return Loader("torchvision decode_jpeg", "batch", batches)


def measure(loader: Loader, *, batches: int, setting: Setting) -> tuple[float, float]:
    """One round: images/s over `batches` batches after the warm-up, and CPU seconds for 10,000 images.

    CPU seconds count all threads of this process, and of worker processes from their start to their end, so they hold
    the warm-up too and are divided by all images.
    """
    cpu = _cpu_seconds()
    started = finished = 0.0
    for number, _ in enumerate(loader.batches(_WARM_UP + batches), start=1):
        if number == _WARM_UP:
            drain(setting.device)
            started = time.perf_counter()
        if number == _WARM_UP + batches:
            drain(setting.device)
            finished = time.perf_counter()
    images = (_WARM_UP + batches) * setting.batch_size
    return batches * setting.batch_size / (finished - started), (_cpu_seconds() - cpu) / images * 10_000


def gpu_busy(loader: Loader, *, batches: int, setting: Setting) -> float | None:
    """Share of the time in which loading keeps the GPU's own units busy, of one more round; None on the CPU.

    Counts kernels and copies of all streams, DALI's too, as torch's profiler sees them, once where they overlap. The
    JPEG engine of a GPU is not among them.
    """
    if setting.device.type != "cuda":
        return None
    from torch.profiler import ProfilerActivity, profile

    stream = loader.batches(_WARM_UP + batches)
    for _ in range(_WARM_UP):
        next(stream)
    drain(setting.device)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        started = time.perf_counter()
        for _ in stream:
            pass
        drain(setting.device)
        seconds = time.perf_counter() - started
    spans = [
        (event.time_range.start, event.time_range.end)
        for event in profiler.events() or []
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    return covered(spans) / 1e6 / seconds


def check(setting: Setting, batch: Batch, *, exact: bool) -> None:
    """Compare with single images, decoded, augmented and normalised one by one.

    Raises:
        ValueError: they differ; nothing is timed then.
    """
    rows = setting.augmentation.parameters(batch.epoch, batch.record_ids.cpu().numpy())
    for row in range(min(8, len(batch.labels))):
        record_id = int(batch.record_ids[row])
        where = setting.records.where(record_id)
        pixels = decode_image(setting.records.read(record_id).body, where=where)
        if rows is not None:
            assert setting.augmentation.tables is not None, "parameters point into tables"
            decoded, pixels = pixels, np.empty_like(pixels)
            augment_image(decoded, rows[row], setting.augmentation.tables, pixels)
        elif batch.mirrored[row]:
            pixels = pixels[:, ::-1].copy()
        wanted = to_network_input(torch.from_numpy(pixels)[None], device=torch.device("cpu"))[0]
        error = (batch.images[row].cpu().double() - wanted.double()).abs().mean().item() * 127.5
        if error > (1e-4 if exact else _NVJPEG_LEVELS):
            raise ValueError(f"{where}: decoded pixels are {error:.2f} levels off; nothing was timed")


def decode_fit(setting: Setting, rows: str | None, *, images: int = 200, repeats: int = 5) -> None:
    """Fit us = a + b * KB over faces encoded anew at several qualities, on one thread, and write the row."""
    import simplejpeg

    sizes: list[float] = []
    times: list[float] = []
    pixels = [decode_image(setting.records.read(i).body, where="fit") for i in range(min(images, len(setting.records)))]
    for quality in _FIT_QUALITIES:
        bodies = [simplejpeg.encode_jpeg(image, quality=quality, colorsubsampling="420") for image in pixels]
        best = np.inf
        for _ in range(repeats):
            started = time.perf_counter()
            for body in bodies:
                simplejpeg.decode_jpeg(body)
            best = min(best, time.perf_counter() - started)
        sizes.append(float(np.mean([len(body) for body in bodies])) / 1000)
        times.append(best / len(bodies) * 1e6)
    slope, base = np.polyfit(sizes, times, 1)
    append_row(
        rows, bench="decode_fit", device="cpu", pipeline="simplejpeg", us_base=float(base), us_per_kb=float(slope),
        kb=sizes, us=times, image_size=setting.size,
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table and append rows."""
    parser = bench_parser("loader", __doc__)
    parser.add_argument("records", nargs="?", help="a .rec file of JPEGs of one size (default: synthetic faces)")
    parser.add_argument("--image-size", type=int, default=112, help="of synthetic faces; a file has its own")
    parser.add_argument("--index", help="its .idx (default: the one beside it)")
    parser.add_argument("--tile", type=int, help="repeat its images to so many records, in a temporary folder")
    parser.add_argument("--quality", type=int, help="with --tile: encode them anew at this quality, 4:2:0")
    parser.add_argument("--sources", nargs="+", choices=SOURCES, help="default: all that can run here")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=["read", "decode", "augment", "batch"])
    parser.add_argument("--augment", choices=("none", "adaface", "insightface"), default="none")
    parser.add_argument("--hw-decoder-load", nargs="+", type=float, default=[0.65], help="of DALI on a GPU; each a row")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--batches", type=int, default=40, help="timed per round")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--workers", type=int, default=usable_cpus(), help="decode threads, or worker processes")
    parser.add_argument("--fit", action="store_true", help="also fit decode time against bytes")
    parser.add_argument("--table", action="store_true", help="print the rows of bench/results/loader.jsonl and end")
    arguments = parser.parse_args(argv)
    if arguments.table:
        print(markdown_table())
        return 0
    if arguments.records is None and arguments.index is not None:
        parser.error("--index belongs to a .rec file, and none is named")
    device = torch.device(arguments.device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="adadistill-loader-")))
        if arguments.records is None:
            count = arguments.tile or _SYNTHETIC_RECORDS
            records = ImageRecords(synthetic_records(folder, size=arguments.image_size, count=count))
        else:
            records = ImageRecords(arguments.records, arguments.index)
        if arguments.tile is not None and (arguments.records is not None or arguments.quality is not None):
            records = ImageRecords(tiled_records(records, folder / "tiled.rec", arguments.tile, arguments.quality))
        _measure_all(_setting(records, arguments, device), arguments, folder)
    return 0


def markdown_table(path: Path | None = None) -> str:
    """The newest row of each loader, stage and augmentation, as a table for docs/data.md; of one machine, the last."""
    path = results_folder() / "loader.jsonl" if path is None else path
    newest: dict[tuple[Any, ...], dict[str, Any]] = {}
    rows = [row for row in (read_rows(path) if path.is_file() else []) if row["bench"] == "loader" and "records" in row]
    for row in rows:
        if machine(row) == machine(rows[-1]):
            newest[row["pipeline"], row["stage"], row["augment"], row["device"]] = row
    lines = [
        "| Source | Stage | Augmentation | Device | images/s | CPU s per 10,000 | GPU busy | Commit |",
        "| --- | --- | --- | --- | ---: | ---: | ---: | --- |",
    ]
    for (name, stage, augment, device), row in newest.items():
        cpu = row.get("cpu_s_per_10k")
        spent = "" if cpu is None else f"{cpu['median']:.2f}"
        rate = f"{row['images_per_s']['median']:,.0f}"
        busy = "" if row.get("gpu_busy") is None else f"{row['gpu_busy']:.0%}"
        lines.append(
            f"| {name} | {stage} | {augment} | {device} | {rate} | {spent} | {busy} | {str(row['commit'])[:7]} |"
        )
    return "\n".join(lines)


def _setting(records: ImageRecords, arguments: argparse.Namespace, device: torch.device) -> Setting:
    records.labels()  # also brings the file into memory
    size = image_size(records.read(0).body, where=records.where(0))[0]
    config = AugmentConfig(policy=arguments.augment)
    return Setting(
        records=records,
        size=size,
        batch_size=min(arguments.batch_size, len(records)),
        workers=arguments.workers,
        device=device,
        augmentation=Augmentation(config, mirror_probability=0.5, seed=0, image_size=size),
    )


def _measure_all(setting: Setting, arguments: argparse.Namespace, folder: Path) -> None:
    loaders = [loader for loader in stage_loaders(setting) if loader.stage in arguments.stages]
    if "batch" in arguments.stages:
        loaders += _batch_loaders(setting, arguments, folder)
    rates: list[list[float]] = [[] for _ in loaders]
    spent: list[list[float]] = [[] for _ in loaders]
    for _ in range(arguments.repeats):
        for number, loader in enumerate(loaders):
            rate, cpu = measure(loader, batches=arguments.batches, setting=setting)
            rates[number].append(rate)
            spent[number].append(cpu)
    busy = [gpu_busy(loader, batches=arguments.batches, setting=setting) for loader in loaders]
    _report(loaders, rates, spent, busy, setting, arguments)
    if arguments.fit:
        decode_fit(setting, arguments.rows)


def _batch_loaders(setting: Setting, arguments: argparse.Namespace, folder: Path) -> list[Loader]:
    """Ours and what others write, as far as they were asked for and can run here."""
    on_cuda = setting.device.type == "cuda"
    chosen = arguments.sources or _possible_sources(setting)
    feed = Feed(
        batch_size=setting.batch_size, workers=setting.workers, device=setting.device, dtype=torch.float32,
        channels_last=on_cuda, augmentation=setting.augmentation,
    )  # fmt: skip
    dali: dict[str, dict[str, Any]] = {"dali": {}}
    if on_cuda:
        dali = {f"dali, hw {load:g}": {"hw_decoder_load": load} for load in arguments.hw_decoder_load}
        dali["dali, decode on cpu"] = {"decode_on": "cpu"}
    ours = [source for source in chosen if source in OURS]
    builders = pipeline_builders(setting.records, feed, folder, chosen=ours, dali=dali)
    loaders = [pipeline_loader(name, setting, build) for name, build in builders.items()]
    if "dataloader" in chosen:
        loaders.append(pillow_loader(setting))
    if "dali_plain" in chosen:
        write_record_index(setting.records.index, folder / "images.idx")
        loaders.append(plain_dali_loader(setting, folder / "images.idx"))
    if "torchvision" in chosen:
        loaders.append(torchvision_loader(setting))
    return loaders


def _possible_sources(setting: Setting) -> list[str]:
    """Ours, which say themselves what is missing, and of the others those whose libraries are there."""
    sources = list(OURS)
    with suppress(DaliMissingError):
        require_dali()
        sources.append("dali_plain")
    other, needed = ("torchvision", "torchvision") if setting.device.type == "cuda" else ("dataloader", "PIL")
    return [*sources, other] if importlib.util.find_spec(needed) else sources


def _report(
    loaders: list[Loader],
    rates: list[list[float]],
    spent: list[list[float]],
    busy: list[float | None],
    setting: Setting,
    arguments: argparse.Namespace,
) -> None:
    mean_bytes = float((setting.records.index.limits - setting.records.index.offsets).mean())
    for loader, measured, cpu, share in zip(loaders, rates, spent, busy, strict=True):
        append_row(
            arguments.rows, bench="loader", pipeline=loader.name, stage=loader.stage, device=setting.device,
            images_per_s=spread(measured), cpu_s_per_10k=spread(cpu), gpu_busy=share,
            augment=arguments.augment if loader.augments else "none", records=len(setting.records),
            mean_record_bytes=round(mean_bytes), batches=arguments.batches, repeats=arguments.repeats,
            batch_size=setting.batch_size, workers=setting.workers,
        )  # fmt: skip


def _cpu_seconds() -> float:
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )


if __name__ == "__main__":
    sys.exit(main())
