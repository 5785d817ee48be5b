"""Our training step beside the origin's, on the same real faces, weights and batches, in one run.

Both start from the same student and centres and take the same batches of decoded images in the same order, with stored
teacher embeddings, so that only the step differs: loading, teacher and evaluation are left out. Timed steps alternate,
so that a busy machine slows all alike. Every batch holds each identity once: on repeats the origin keeps one arbitrary
sample and ours applies all, and the losses could not be compared.

That both compute the same is shown in float64, where some steps must have the origin's losses to `EXACT_BOUND`; in the
timed formats only the first loss can be compared (`FIRST_LOSS_BOUNDS`), since from then on SGD on a fresh network makes
of any two roundings, other convolution kernels for instance, two trajectories. Images and rows are read before timing
starts.

Each runs in a process of its own, set up as its entry point sets it up: ours keeps freed host memory
(`core/host_memory.py`), the origin's gives it back to the system and gets it anew in every step, as it does in its own
training. On a CPU that alone can be most of the difference, so `origin keeping memory` runs too, the same step with our
setting. Both take turns with each of our variants, one process at a time.

    python -m adadistill.bench beside_origin FOLDER --batch-size 128 --rows beside_origin.jsonl
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from adadistill.bench.bench_parser import bench_parser
from adadistill.bench.origin_step import OriginStep
from adadistill.bench.rows import append_row
from adadistill.bench.step import plain_batch, training_step
from adadistill.bench.timing import seconds_of, spread
from adadistill.core.backbones import BackboneConfig, build_backbone
from adadistill.core.host_memory import keep_freed_memory
from adadistill.core.method.class_centres import initial_centres
from adadistill.core.precision import resolve_precision
from adadistill.core.teachers.stored_embeddings import StoredEmbeddings
from adadistill.loaders.pixels import decode_image
from adadistill.loaders.records.image_records import ImageRecords

TINY = (
    "FOLDER --width 0.125 --embedding-dim 16 --batch-size 8 --compared-steps 2 --rounds 2 --device cpu "
    "--variants 'eager float32'"
)

VARIANTS = {
    "eager float32": ("float32", False),
    "compiled float32": ("float32", True),
    "eager bfloat16": ("bfloat16", False),
    "compiled bfloat16": ("bfloat16", True),
}
"""Ours: precision and whether the student is compiled."""
ORIGINS = ("origin", "origin keeping memory")
EXACT_BOUND = 1e-8
"""Largest relative difference of a loss to the origin's over the compared steps in float64; it grows with them."""
FIRST_LOSS_BOUNDS = {"float32": 1e-5, "bfloat16": 0.03}
"""The same for the first loss in the timed formats."""
_EXACT_BATCH = 32  # float64 steps are slow, and no truer for being large
_LR = 0.025  # the origin's rate for 128 images; no warm-up, so that the losses move at once
_EPOCH = 1.0  # the geometry margin's ramp has ended


@dataclass(frozen=True, slots=True)
class Faces:
    """Some decoded batches and what belongs to them, on the device."""

    images: list[Tensor]  # (B, 3, H, W) in [-1, 1]
    labels: list[Tensor]  # (B,), each identity at most once
    record_ids: list[npt.NDArray[np.int64]]
    num_classes: int
    teacher: StoredEmbeddings


def read_faces(
    folder: Path,
    *,
    batch_size: int,
    batches: int,
    embedding_dim: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Faces:
    """Decode batches of distinct identities.

    Args:
        folder: holds `train.rec` and `teacher_embeddings.npy`, (N, V, D).
        dtype: of images and teacher embeddings.

    Raises:
        ValueError: there are fewer identities than a batch has samples.
    """
    records = ImageRecords(folder / "train.rec")
    teacher = StoredEmbeddings(
        folder / "teacher_embeddings.npy", num_records=len(records), embedding_dim=embedding_dim, mirrors=False,
        device=device, dtype=dtype,
    )  # fmt: skip
    labels, draw = records.labels(), np.random.default_rng(0)
    if records.num_classes < batch_size:
        raise ValueError(
            f"a batch of {batch_size} needs as many identities, {records.path} has {records.num_classes}; "
            "lower --batch-size"
        )
    chosen: list[npt.NDArray[np.int64]] = []
    for _ in range(batches):
        shuffled = draw.permutation(len(records))
        first_of_each = np.unique(labels[shuffled], return_index=True)[1]
        chosen.append(shuffled[draw.permutation(first_of_each)[:batch_size]])
    return Faces(
        images=[_decoded(records, ids).to(device, dtype) for ids in chosen],
        labels=[torch.from_numpy(labels[ids]).to(device) for ids in chosen],
        record_ids=chosen,
        num_classes=records.num_classes,
        teacher=teacher,
    )


def _decoded(records: ImageRecords, ids: npt.NDArray[np.int64]) -> Tensor:
    pixels = np.stack([decode_image(records.read(int(i)).body, where=records.where(int(i))) for i in ids])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).to(torch.float32).div_(127.5).sub_(1.0).contiguous()


def origin_steps(faces: Faces, student: nn.Module, centres: Tensor, device: torch.device) -> Iterator[float]:
    """The origin's losses, one step an item, over the batches again and again."""
    step = OriginStep(student, centres, device=device)
    while True:
        for images, labels, ids in zip(faces.images, faces.labels, faces.record_ids, strict=True):
            rows = faces.teacher.rows(ids, np.zeros(len(ids), dtype=bool))
            yield step.run(images, labels, rows, lr=_LR, fractional_epoch=_EPOCH)


def our_steps(
    faces: Faces, student: nn.Module, centres: Tensor, device: torch.device, *, precision: str, compiled: bool
) -> Iterator[Tensor]:
    """Ours; the losses stay on the device."""
    formats = resolve_precision(precision, device)  # type: ignore[arg-type]
    step = training_step(
        student, centres, faces.teacher, formats, batch_size=len(faces.labels[0]), device=device,
        compile_student="default" if compiled else "off",
    )  # fmt: skip
    batches = [
        plain_batch(images.to(formats.image_dtype).contiguous(memory_format=torch.channels_last), labels, ids)
        for images, labels, ids in zip(faces.images, faces.labels, faces.record_ids, strict=True)
    ]
    while True:
        for batch in batches:
            out = step.run(batch, lr=_LR, fractional_epoch=_EPOCH, global_step=0, stop=False)
            yield out.metrics["loss"]


def loss_differences(ours: Iterator[Tensor], origin: Iterator[float], steps: int) -> list[float]:
    """Relative difference of each of our losses to the origin's at the same step."""
    pairs = [(float(next(ours)), next(origin)) for _ in range(steps)]
    return [abs(a - b) / abs(b) for a, b in pairs]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and append a row for each variant."""
    arguments = _parser().parse_args(argv)
    device = torch.device(arguments.device)
    off = _exact_difference(arguments, device)
    print(f"float64: {arguments.compared_steps} losses off by at most {off:.1e} of their value")
    if not off <= EXACT_BOUND:
        print(f"that is more than {EXACT_BOUND}; nothing was timed", file=sys.stderr)
        return 1
    faces = _faces(arguments, arguments.batch_size, 2, device)  # whatever is wrong with them is said here
    first: dict[str, float] = {}
    seconds: dict[str, list[float]] = {name: [] for name in (*ORIGINS, *arguments.variants)}
    for variant in arguments.variants:  # one at a time: each process holds gigabytes of activations
        _take_turns((*ORIGINS, variant), arguments, first, seconds)
    far = False
    for variant, took in seconds.items():
        precision = VARIANTS[variant][0] if variant in VARIANTS else "float32"
        first_off = abs(first[variant] - first["origin"]) / abs(first["origin"])
        far |= not first_off <= FIRST_LOSS_BOUNDS[precision]
        rates = spread([arguments.batch_size / s for s in took])
        beside = _rounds_beside(variant, arguments)
        times, times_keeping = (
            spread([theirs / ours for theirs, ours in zip(seconds[name][beside], took, strict=True)])
            for name in ORIGINS
        )
        append_row(
            arguments.rows, bench="beside_origin", variant=variant, arch=arguments.arch, width=arguments.width,
            image_size=faces.images[0].shape[-1], batch_size=arguments.batch_size, identities=faces.num_classes,
            precision=precision, device=device, images_per_s=rates, times_the_origin=times,
            times_the_origin_keeping_memory=times_keeping, first_loss_difference=first_off,
            float64_loss_difference=off, float64_steps=arguments.compared_steps,
        )  # fmt: skip
    if far:
        print(f"a first loss is further from the origin's than {FIRST_LOSS_BOUNDS}", file=sys.stderr)
    return int(far)


def _parser() -> argparse.ArgumentParser:
    parser = bench_parser("beside_origin", __doc__)
    parser.add_argument("faces", type=Path, help="folder with train.rec and teacher_embeddings.npy")
    parser.add_argument("--arch", default="mobilefacenet")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--embedding-dim", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--variants", nargs="+", choices=sorted(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--compared-steps", type=int, default=6, help="steps whose losses are compared in float64")
    parser.add_argument("--rounds", type=int, default=6, help="timed rounds of one step of each")
    return parser


def _exact_difference(arguments: argparse.Namespace, device: torch.device) -> float:
    """Largest relative difference of the losses of some steps in float64."""
    batch_size = min(_EXACT_BATCH, arguments.batch_size)
    faces = _faces(arguments, batch_size, arguments.compared_steps, device, torch.float64)
    ours = _start("eager float64", faces, arguments, device)
    return max(loss_differences(ours, _start("origin", faces, arguments, device), arguments.compared_steps))


def _faces(
    arguments: argparse.Namespace,
    batch_size: int,
    batches: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Faces:
    return read_faces(
        arguments.faces, batch_size=batch_size, batches=batches, embedding_dim=arguments.embedding_dim, device=device,
        dtype=dtype,
    )  # fmt: skip


def _start(variant: str, faces: Faces, arguments: argparse.Namespace, device: torch.device) -> Iterator[Any]:
    """Losses of a variant from the one start that all have, in the dtype of the faces."""
    dim, dtype = arguments.embedding_dim, faces.images[0].dtype
    backbone = BackboneConfig(arch=arguments.arch, width=arguments.width, embedding_dim=dim)
    student = build_backbone(backbone, faces.images[0].shape[-1], generator=0).to(dtype)
    centres = initial_centres(faces.num_classes, dim, generator=torch.Generator().manual_seed(0), dtype=dtype)
    if variant in ORIGINS:
        return origin_steps(faces, student, centres, device)
    precision, compiled = ("float64", False) if variant == "eager float64" else VARIANTS[variant]
    return our_steps(faces, student, centres, device, precision=precision, compiled=compiled)


def _take_turns(
    group: Sequence[str], arguments: argparse.Namespace, first: dict[str, float], seconds: dict[str, list[float]]
) -> None:
    """First losses of some variants, and the seconds of their steps, round by round."""
    with ExitStack() as stack:
        running = {name: stack.enter_context(_Process(name, arguments)) for name in group}
        first.update({name: process.first_loss() for name, process in running.items()})
        for _ in range(arguments.rounds):
            for name, process in running.items():
                seconds[name].append(process.step_s())


def _rounds_beside(variant: str, arguments: argparse.Namespace) -> slice:
    """Which rounds of the origins were taken in turn with a variant: its own group's, or all for the origins."""
    if variant in ORIGINS:
        return slice(None)
    group = arguments.variants.index(variant)
    return slice(group * arguments.rounds, (group + 1) * arguments.rounds)


class _Process:
    """A variant in a process of its own, which takes a step when it is told to."""

    def __init__(self, variant: str, arguments: argparse.Namespace) -> None:
        context = multiprocessing.get_context("forkserver")  # which has imported torch, and has run nothing of it
        context.set_forkserver_preload([__name__])
        self._variant = variant
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_take_steps, args=(theirs, variant, arguments), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> _Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
        self._process.join(timeout=30)
        self._process.kill()

    def first_loss(self) -> float:
        """Of the step that also compiles and warms up."""
        return self._receive()

    def step_s(self) -> float:
        """Seconds of one more step."""
        return self._receive(ask=True)

    def _receive(self, *, ask: bool = False) -> float:
        try:
            if ask:
                self._connection.send(None)
            return float(self._connection.recv())
        except (EOFError, BrokenPipeError):
            self._process.join(timeout=30)
            raise RuntimeError(
                f"the process of `{self._variant}` has ended with {self._process.exitcode} (-9: out of memory; lower "
                "--batch-size); its own error, if any, stands above"
            ) from None


def _take_steps(connection: Connection, variant: str, arguments: argparse.Namespace) -> None:
    """In the child: the first loss, then the seconds of a step for each request, until the other end is closed."""
    if variant != "origin":
        keep_freed_memory()
    device = torch.device(arguments.device)
    steps = _start(variant, _faces(arguments, arguments.batch_size, 2, device), arguments, device)
    connection.send(float(next(steps)))
    try:
        while True:
            connection.recv()
            connection.send(seconds_of(lambda: next(steps), device))
    except EOFError:
        return


if __name__ == "__main__":
    sys.exit(main())
