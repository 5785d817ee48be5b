"""A training step measured three ways: loader alone, model on a replayed batch, both together.

Each image comes from a record file (synthetic faces where none is named), through each source that can run here, into
a student that learns against stored teacher embeddings through `TrainingStep`, the very code of training. `replayed`
leaves out everything that reads or decodes: one batch of noise that is on the device already. `loader` leaves out the
model: batches are taken and dropped. `fed` is both. What they say together, for each source:

    input stall   1 - fed / replayed images/s: the share of training that loading costs
    bottleneck    the slower of loader and model; `shared processor` where fed is clearly below both, since they take
                  each other's cores

Leaves out evaluation, checkpoints, logging and the teacher: its rows are random and on the device. Groups of all ways,
sources and variants alternate, so that a busy machine slows all. A source stays open between its groups and is full of
batches when one begins: those are dropped before anything is timed, else a slow loader would look fast, and the warm-up
steps that follow fill it again where it is the faster side. Operations counted for the share of the
machine's GEMM rate are those of the student's convolutions and linear maps, three times (forward and both gradients),
and 4 C D for the head.

    python -m adadistill.bench step --precision bfloat16 --compile eager compiled
    python -m adadistill.bench step --records faces_emore/train.rec --sources dali packed_planes
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from adadistill.bench.bench_parser import bench_parser
from adadistill.bench.image_sources import SOURCES, Feed, open_records, pipeline_builders
from adadistill.bench.probes import gemm_tflop_per_s
from adadistill.bench.rows import append_row
from adadistill.bench.step_model import predicted_step_ms
from adadistill.bench.timing import drain, spread
from adadistill.core.backbones import BackboneConfig, build_backbone
from adadistill.core.distributed import Ranks
from adadistill.core.host_memory import keep_freed_memory
from adadistill.core.method.class_centres import AdaptiveCentres, CentresConfig, initial_centres
from adadistill.core.method.distillation import DistillationObjective
from adadistill.core.method.geometry_margin import GeometryMarginConfig
from adadistill.core.method.heads import HeadConfig
from adadistill.core.method.norm_statistics import NormStatistics
from adadistill.core.precision import Precision, resolve_precision
from adadistill.core.training.non_finite import GuardConfig, NonFiniteGuard
from adadistill.core.training.optimiser import OptimConfig
from adadistill.core.training.student_compiler import CompileMode
from adadistill.core.training.training_step import TrainingStep
from adadistill.loaders.augment.augment_policy import Augmentation, AugmentConfig
from adadistill.loaders.batch import Batch
from adadistill.loaders.pipelines.pipeline import DataConfig, ImagePipeline
from adadistill.loaders.pixels import image_size
from adadistill.loaders.records.image_records import ImageRecords
from adadistill.loaders.usable_cpus import usable_cpus

TINY = (
    "--width 0.125 --image-size 32 --batch-size 4 --identities 20 --records-at-least 12 --steps 1 --warmup 1 "
    "--rounds 2 --workers 1 --sources cpu --device cpu"
)

MODES: dict[str, CompileMode] = {
    "eager": "off",
    "compiled": "default",
    "reduce-overhead": "reduce-overhead",
    "max-autotune": "max-autotune",
    "max-autotune-no-cudagraphs": "max-autotune-no-cudagraphs",
}
"""How the student runs, by the name in the rows."""
WAYS = ("replayed", "loader", "fed")
_QUEUED = 8
"""Batches that are dropped before a group: more than a pipeline keeps ready (`prefetch`, 3) or has under way."""
_LOADER_BATCHES = 20
"""Timed at least where nothing trains: a batch is loaded in milliseconds."""


class RandomRows:
    """Stands in for stored teacher embeddings: fixed random unit rows, resident on the device."""

    def __init__(self, count: int, dim: int, device: torch.device) -> None:
        self.embedding_dim = dim
        rows = torch.randn(count, dim, generator=torch.Generator().manual_seed(0))
        self._rows = torch.nn.functional.normalize(rows, dim=1).to(device)

    def rows(
        self, record_ids: npt.NDArray[np.int64], mirrored: npt.NDArray[np.bool_], view: int | None = None
    ) -> Tensor:
        """(n, D) unit rows."""
        return self._rows[: len(record_ids)]


def training_step(
    student: nn.Module, centres: Tensor, teacher: Any, formats: Precision, *, batch_size: int, device: torch.device,
    compile_student: CompileMode = "off", optimiser: Literal["torch", "apex"] = "torch", parts: int = 1,
) -> TrainingStep:  # fmt: skip
    """The method as a recipe of its defaults has it, with adaptive centres that start where they are given."""
    ranks = Ranks(device=device)
    return TrainingStep(
        student=student,
        objective=DistillationObjective(
            head=HeadConfig(),
            geometry=GeometryMarginConfig(mode="adaptive"),
            centres=AdaptiveCentres(
                CentresConfig(), centres.to(device), unit_dtype=None if formats.autocast_dtype else formats.dtype
            ),
            teacher=teacher,
            statistics=NormStatistics.start(device=device),
            ranks=ranks,
        ),
        optim=OptimConfig(epochs=1, backend=optimiser),
        guard=NonFiniteGuard(GuardConfig(), batch_size, device),
        precision=formats,
        ranks=ranks,
        compile_student=compile_student,
        parts=parts,
    )


def plain_batch(images: Tensor, labels: Tensor, record_ids: npt.NDArray[np.int64]) -> Batch:
    """A batch of unmirrored images."""
    return Batch(
        images=images,
        labels=labels,
        record_ids=torch.from_numpy(record_ids).to(labels.device),
        mirrored=torch.zeros(len(labels), dtype=torch.bool, device=labels.device),
        epoch=0,
        step=0,
        global_record_ids=record_ids,
        global_mirrored=np.zeros(len(labels), dtype=bool),
    )


def build_step(
    *, arch: str, width: float, image_size: int, batch_size: int, identities: int, precision: str,
    device: torch.device, **options: Any,
) -> tuple[TrainingStep, Batch]:  # fmt: skip
    """A training step and a batch of noise to run it on; further options as `training_step` takes them."""
    formats = resolve_precision(precision, device)  # type: ignore[arg-type]
    backbone = BackboneConfig(arch=arch, width=width)
    generator = torch.Generator().manual_seed(0)
    centres = initial_centres(identities, backbone.embedding_dim, generator=generator)
    step = training_step(
        build_backbone(backbone, image_size, generator=0), centres,
        RandomRows(batch_size, backbone.embedding_dim, device), formats,
        batch_size=batch_size, device=device, **options,
    )  # fmt: skip
    memory_format = torch.channels_last if formats.channels_last else torch.contiguous_format
    images = torch.rand(batch_size, 3, image_size, image_size, generator=generator).mul_(2).sub_(1)
    images = images.to(device, formats.image_dtype).contiguous(memory_format=memory_format)
    labels = torch.randint(identities, (batch_size,), generator=generator).to(device)
    return step, plain_batch(images, labels, np.arange(batch_size))


def measure(step: TrainingStep, batch: Batch, *, warmup: int, steps: int) -> list[float]:
    """Seconds per step, in groups of steps so that launching ahead is not cut short."""
    cuda = batch.images.is_cuda
    group = 10 if cuda else 1

    def run(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            step.run(batch, lr=0.01, fractional_epoch=1.0, global_step=0, stop=False)
        if cuda:
            torch.cuda.synchronize()
        return (time.perf_counter() - started) / count

    run(warmup)
    return [run(group) for _ in range(max(1, steps // group))]


@dataclass(slots=True)
class Variant:
    """One way to run the model, with what it costs in memory and operations."""

    precision: str
    mode: str
    optimiser: str
    formats: Precision
    step: TrainingStep
    replayed: Batch
    held_mib: float
    """Memory of the device that it keeps between steps."""
    gflop_per_image: float
    peak_mib: float | None = None

    def run(self, batches: Iterator[Batch], *, warmup: int, steps: int) -> float:
        """Images/s of steps that take their batches from an iterator, after some that are not counted."""
        device = self.replayed.images.device
        for _ in range(warmup):
            self._step(next(batches))
        drain(device)
        started = time.perf_counter()
        for _ in range(steps):
            self._step(next(batches))
        drain(device)
        return steps * len(self.replayed.labels) / (time.perf_counter() - started)

    def _step(self, batch: Batch) -> None:
        # The teacher's rows are random, so any ids do: reading the batch's own would make the host wait.
        self.step.run(batch, lr=0.01, fractional_epoch=1.0, global_step=0, stop=False)


@dataclass(slots=True)
class Source:
    """An open pipeline, its epochs one after the other."""

    name: str
    pipeline: ImagePipeline
    batches: Iterator[Batch] = field(init=False)

    def __post_init__(self) -> None:
        self.batches = _epochs(self.pipeline)

    def close(self) -> None:
        """End its threads."""
        self.pipeline.close()


@dataclass(slots=True)
class Measured:
    """Images/s of each group."""

    replayed: dict[int, list[float]] = field(default_factory=dict)
    """By number of the variant."""
    loader: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    """By precision, which decides the format of images, and source."""
    fed: dict[tuple[int, str], list[float]] = field(default_factory=dict)
    """By number of the variant and source."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table and append rows."""
    parser = _parser()
    arguments = _with_defaults(parser.parse_args(argv))
    device = torch.device(arguments.device)
    keep_freed_memory()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="adadistill-step-")))
        records = None
        if set(arguments.ways) != {"replayed"}:
            count = max(arguments.records_at_least, 2 * arguments.batch_size)
            records = open_records(arguments.records, folder, size=arguments.image_size, count=count)
            arguments.image_size = image_size(records.read(0).body, where=records.where(0))[0]
            arguments.identities = max(arguments.identities, records.num_classes)
        gemm_tflop_per_s(device, torch.float32)  # the machine is probed before anything holds its memory
        variants = [
            _variant(precision, mode, optimiser, arguments, device)
            for precision in arguments.precision
            for mode in arguments.compile
            for optimiser in arguments.optimiser
        ]
        sources = _open_sources(records, variants, folder, arguments, device, stack)
        measured = _alternating(variants, sources, arguments)
        _report(variants, measured, records, arguments, device)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = bench_parser("step", __doc__)
    parser.add_argument("--arch", default="mobilefacenet")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--image-size", type=int, default=112, help="of noise and synthetic faces; records have theirs")
    parser.add_argument("--batch-size", type=int, help="default: 1024 on CUDA, 128 elsewhere")
    parser.add_argument("--micro-batch-size", type=int, help="images the student takes at once (default: the batch)")
    parser.add_argument("--identities", type=int, default=85_742, help="class centres, at least those of the records")
    parser.add_argument("--precision", nargs="+", default=["auto"])
    parser.add_argument("--compile", nargs="+", choices=list(MODES), default=["eager"], help="modes of the student")
    parser.add_argument("--optimiser", nargs="+", choices=["torch", "apex"], default=["torch"])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--records", type=Path, help=".rec file, or a folder with train.rec (default: synthetic faces)")
    parser.add_argument("--records-at-least", type=int, default=20_000, help="repeat its images to so many records")
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=list(SOURCES), help="default: all")
    parser.add_argument("--augment", choices=("none", "adaface", "insightface"), default="none")
    parser.add_argument("--workers", type=int, default=usable_cpus(), help="decode threads")
    parser.add_argument("--warmup", type=int, help="steps before each group (default: 5 on CUDA, 1 elsewhere)")
    parser.add_argument("--steps", type=int, help="steps of a group (default: 20 on CUDA, 2 elsewhere)")
    parser.add_argument("--rounds", type=int, default=5, help="groups of each way")
    return parser


def _with_defaults(arguments: argparse.Namespace) -> argparse.Namespace:
    on_cuda = torch.device(arguments.device).type == "cuda"
    for name, cuda, other in (("batch_size", 1024, 128), ("warmup", 5, 1), ("steps", 20, 2)):
        if getattr(arguments, name) is None:
            setattr(arguments, name, cuda if on_cuda else other)
    arguments.precision = [
        ("bfloat16" if on_cuda else "float32") if name == "auto" else name for name in arguments.precision
    ]
    return arguments


def _variant(
    precision: str, mode: str, optimiser: Literal["torch", "apex"], arguments: argparse.Namespace, device: torch.device
) -> Variant:
    before = _allocated_mib(device)
    step, batch = build_step(
        arch=arguments.arch,
        width=arguments.width,
        image_size=arguments.image_size,
        batch_size=arguments.batch_size,
        identities=arguments.identities,
        precision=precision,
        device=device,
        compile_student=MODES[mode],
        optimiser=optimiser,
        parts=_parts(arguments),
    )
    measure(step, batch, warmup=arguments.warmup, steps=1)  # compiles, and makes the optimiser's state
    return Variant(
        precision,
        mode,
        optimiser,
        resolve_precision(precision, device),  # type: ignore[arg-type]
        step,
        batch,
        held_mib=_allocated_mib(device) - before,
        gflop_per_image=_gflop_per_image(arguments),
    )


def _parts(arguments: argparse.Namespace) -> int:
    """As a recipe's `data.micro_batch_size` would have it."""
    data = DataConfig(
        records="none", global_batch_size=arguments.batch_size, micro_batch_size=arguments.micro_batch_size
    )
    return data.parts(arguments.batch_size)


def _gflop_per_image(arguments: argparse.Namespace) -> float:
    """Of a whole step, by the shapes alone."""
    config = BackboneConfig(arch=arguments.arch, width=arguments.width)
    network = build_backbone(config, arguments.image_size, generator=0).eval()
    image = torch.zeros(1, 3, arguments.image_size, arguments.image_size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(image)
    return (3 * counter.get_total_flops() + 4 * arguments.identities * config.embedding_dim) / 1e9


def _open_sources(
    records: ImageRecords | None,
    variants: Sequence[Variant],
    folder: Path,
    arguments: argparse.Namespace,
    device: torch.device,
    stack: ExitStack,
) -> dict[str, list[Source]]:
    """Open pipelines by precision, which decides the format of images."""
    if records is None:
        return {}
    augmentation = Augmentation(
        AugmentConfig(policy=arguments.augment), mirror_probability=0.5, seed=0, image_size=arguments.image_size
    )
    found: dict[str, list[Source]] = {}
    for variant in variants:
        if variant.precision not in found:
            feed = Feed(
                batch_size=arguments.batch_size,
                workers=arguments.workers,
                device=device,
                dtype=variant.formats.image_dtype,
                channels_last=variant.formats.channels_last,
                augmentation=augmentation,
            )
            builders = pipeline_builders(records, feed, folder, chosen=arguments.sources)
            found[variant.precision] = [
                stack.enter_context(closing(Source(name, build()))) for name, build in builders.items()
            ]
    return found


def _alternating(
    variants: Sequence[Variant], sources: dict[str, list[Source]], arguments: argparse.Namespace
) -> Measured:
    """Groups of every way, variant and source in turn."""
    measured = Measured()
    size = {"warmup": arguments.warmup, "steps": arguments.steps}
    for _ in range(arguments.rounds):
        for number, variant in enumerate(variants):
            if "replayed" in arguments.ways or "fed" in arguments.ways:
                measured.replayed.setdefault(number, []).append(_replayed_rate(variant, **size))
        for precision, listed in sources.items():
            for source in listed:
                if "loader" in arguments.ways or "fed" in arguments.ways:
                    batches = max(_LOADER_BATCHES, arguments.steps)
                    rate = loader_images_per_s(source.batches, arguments.batch_size, batches=batches)
                    measured.loader.setdefault((precision, source.name), []).append(rate)
        for number, variant in enumerate(variants):
            for source in sources.get(variant.precision, []):
                if "fed" in arguments.ways:
                    _drop(source.batches)
                    measured.fed.setdefault((number, source.name), []).append(variant.run(source.batches, **size))
    for variant in variants:
        if int(variant.step.guard.rejected_steps) > 0:
            raise ValueError(
                f"{variant.precision} {variant.mode}: a step was not finite, so it was not committed; its time says "
                "nothing, and no row was written"
            )
    return measured


def _replayed_rate(variant: Variant, *, warmup: int, steps: int) -> float:
    device = variant.replayed.images.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    before = _allocated_mib(device)
    rate = variant.run(_again(variant.replayed), warmup=warmup, steps=steps)
    if device.type == "cuda":  # other variants hold memory too, which is none of this one's
        variant.peak_mib = torch.cuda.max_memory_allocated(device) / 2**20 - before + variant.held_mib
    return rate


def loader_images_per_s(stream: Iterator[Batch], batch_size: int, *, batches: int) -> float:
    """Images/s of batches that are taken and dropped, once those that lay ready are gone."""
    device = _drop(stream)
    started = time.perf_counter()
    for _ in range(batches):
        next(stream)
    drain(device)
    return batches * batch_size / (time.perf_counter() - started)


def _drop(stream: Iterator[Batch]) -> torch.device:
    """Take what lies ready; the device it was on."""
    device = next(stream).images.device
    for _ in range(_QUEUED - 1):
        next(stream)
    drain(device)
    return device


def input_stall(fed: Sequence[float], replayed: Sequence[float]) -> float:
    """Share of training that waiting for images costs; below 0 where noise made the fed step the faster one."""
    return 1.0 - spread(fed)["median"] / spread(replayed)["median"]


def bottleneck(loader: Sequence[float], replayed: Sequence[float], fed: Sequence[float]) -> str:
    """`loader` or `model`, whichever is slower alone; `shared processor` where both together are clearly below it."""
    slower = min(spread(loader), spread(replayed), key=lambda rate: rate["median"])
    if spread(fed)["p80"] < slower["p20"]:
        return "shared processor"
    return "loader" if spread(loader)["median"] < spread(replayed)["median"] else "model"


def _predicted(variant: Variant, arguments: argparse.Namespace, device: torch.device) -> list[float] | None:
    """Least and most milliseconds that the step model expects, which the measured ones beside them try."""
    found = predicted_step_ms(
        BackboneConfig(arch=arguments.arch, width=arguments.width), arguments.image_size, batch=arguments.batch_size,
        identities=arguments.identities, in_bfloat16=variant.formats.autocast_dtype is not None,
        compiled=variant.mode != "eager", device=device, parts=_parts(arguments),
    )  # fmt: skip
    return None if found is None else list(found)


def _report(
    variants: Sequence[Variant],
    measured: Measured,
    records: ImageRecords | None,
    arguments: argparse.Namespace,
    device: torch.device,
) -> None:
    read = {}
    if records is not None:
        mean_bytes = float((records.index.limits - records.index.offsets).mean())
        read = {"records": len(records), "mean_record_bytes": round(mean_bytes)}

    def row(precision: str, mode: str, way: str, source: str, rates: Sequence[float], **values: object) -> None:
        rate = spread(rates)
        append_row(
            arguments.rows, bench="step", device=device, arch=arguments.arch, width=arguments.width,
            image_size=arguments.image_size, batch_size=arguments.batch_size, identities=arguments.identities,
            precision=precision, mode=mode, way=way, source=source, augment=arguments.augment,
            **({} if _parts(arguments) == 1 else {"micro_batch_size": arguments.micro_batch_size}),
            workers=None if source == "none" else arguments.workers, images_per_s=rate,
            step_ms=1e3 * arguments.batch_size / rate["median"], rounds=arguments.rounds, steps=arguments.steps,
            **read, **values,
        )  # fmt: skip

    def share(variant: Variant, rates: Sequence[float]) -> float:
        dtype = torch.bfloat16 if variant.formats.autocast_dtype is not None else torch.float32
        return spread(rates)["median"] * variant.gflop_per_image / 1e3 / gemm_tflop_per_s(device, dtype)

    for number, rates in measured.replayed.items():
        variant = variants[number]
        row(
            variant.precision, variant.mode, "replayed", "none", rates, optimiser=variant.optimiser,
            peak_mib=variant.peak_mib, gflop_per_image=variant.gflop_per_image,
            share_of_gemm_rate=share(variant, rates), predicted_step_ms=_predicted(variant, arguments, device),
        )  # fmt: skip
    for (precision, source), rates in measured.loader.items():
        row(precision, "none", "loader", source, rates)
    for (number, source), rates in measured.fed.items():
        variant = variants[number]
        alone, loaded = measured.replayed[number], measured.loader[variant.precision, source]
        row(
            variant.precision, variant.mode, "fed", source, rates, optimiser=variant.optimiser,
            input_stall=input_stall(rates, alone), bottleneck=bottleneck(loaded, alone, rates),
            gflop_per_image=variant.gflop_per_image,
            share_of_gemm_rate=share(variant, rates),
        )  # fmt: skip


def _allocated_mib(device: torch.device) -> float:
    return torch.cuda.memory_allocated(device) / 2**20 if device.type == "cuda" else 0.0


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
