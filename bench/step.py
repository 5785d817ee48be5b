"""One training step on a batch that is already on the device: what the networks, the head and the update cost.

Leaves out everything that reads or decodes. Runs a MobileFaceNet (or any other backbone) student against stored teacher
embeddings through `TrainingStep`, the very code of training, eager and compiled, in the formats asked for.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adadistill.bench.rows import append_row, spread
from adadistill.core.backbones import BackboneConfig, build_backbone
from adadistill.core.class_centres import AdaptiveCentres, CentresConfig, initial_centres
from adadistill.core.distributed import Ranks
from adadistill.core.geometry_margin import GeometryMarginConfig
from adadistill.core.heads import HeadConfig
from adadistill.core.host_memory import keep_freed_memory
from adadistill.core.non_finite import GuardConfig, NonFiniteGuard
from adadistill.core.norm_statistics import NormStatistics
from adadistill.core.objectives import DistillationObjective, GlobalSamples
from adadistill.core.optimiser import OptimConfig
from adadistill.core.precision import resolve_precision
from adadistill.core.training_step import TrainingStep
from adadistill.loaders.batch import Batch


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


def build_step(
    *, arch: str, width: float, image_size: int, batch_size: int, identities: int, precision: str, compiled: bool,
    device: torch.device,
) -> tuple[TrainingStep, Batch, GlobalSamples]:  # fmt: skip
    """A training step and a batch of noise to run it on."""
    formats = resolve_precision(precision, device)  # type: ignore[arg-type]
    ranks = Ranks(device=device)
    backbone = BackboneConfig(arch=arch, width=width)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    centres = initial_centres(identities, backbone.embedding_dim, generator=generator).to(device)
    step = TrainingStep(
        student=build_backbone(backbone, image_size, generator=0),
        objective=DistillationObjective(
            head=HeadConfig(),
            geometry=GeometryMarginConfig(mode="adaptive"),
            centres=AdaptiveCentres(
                CentresConfig(), centres, unit_dtype=None if formats.autocast_dtype is not None else formats.dtype
            ),
            teacher=RandomRows(batch_size, backbone.embedding_dim, device),
            statistics=NormStatistics.start(device=device),
            ranks=ranks,
        ),
        optim=OptimConfig(epochs=1),
        guard=NonFiniteGuard(GuardConfig(), batch_size, device),
        precision=formats,
        ranks=ranks,
        compile_student="default" if compiled else "off",
    )
    memory_format = torch.channels_last if formats.channels_last else torch.contiguous_format
    images = torch.rand(batch_size, 3, image_size, image_size, generator=generator).mul_(2).sub_(1)
    batch = Batch(
        images=images.to(device, formats.image_dtype).contiguous(memory_format=memory_format),
        labels=torch.randint(identities, (batch_size,), generator=generator).to(device),
        record_ids=torch.arange(batch_size).to(device),
        mirrored=torch.zeros(batch_size, dtype=torch.bool, device=device),
        epoch=0,
        step=0,
    )
    samples = GlobalSamples(record_ids=np.arange(batch_size), mirrored=np.zeros(batch_size, dtype=bool))
    return step, batch, samples


def measure(step: TrainingStep, batch: Batch, samples: GlobalSamples, *, warmup: int, steps: int) -> list[float]:
    """Seconds per step, in groups of steps so that launching ahead is not cut short."""
    cuda = batch.images.is_cuda
    group = 10 if cuda else 1

    def run(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            step.run(batch, samples, lr=0.01, fractional_epoch=1.0, global_step=0, stop=False)
        if cuda:
            torch.cuda.synchronize()
        return (time.perf_counter() - started) / count

    run(warmup)
    return [run(group) for _ in range(max(1, steps // group))]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and append rows."""
    parser = argparse.ArgumentParser(prog="python -m adadistill.bench.step", description=__doc__.split("\n")[0])
    parser.add_argument("--arch", default="mobilefacenet")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--identities", type=int, default=85_742)
    parser.add_argument("--precision", nargs="+", default=["auto"])
    parser.add_argument("--compile", nargs="+", choices=["eager", "compiled"], default=["eager"])
    parser.add_argument("--warmup", type=int, default=10)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", help="JSONL file for the rows (default: print only)")
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    keep_freed_memory()
    for precision in arguments.precision:
        for mode in arguments.compile:
            step, batch, samples = build_step(
                arch=arguments.arch,
                width=arguments.width,
                image_size=arguments.image_size,
                batch_size=arguments.batch_size,
                identities=arguments.identities,
                precision=precision,
                compiled=mode == "compiled",
                device=device,
            )
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            seconds = measure(step, batch, samples, warmup=arguments.warmup, steps=arguments.steps)
            rates = spread([arguments.batch_size / s for s in seconds])
            peak = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
            append_row(
                arguments.rows,
                bench="step_replayed_batch",
                arch=arguments.arch,
                width=arguments.width,
                image_size=arguments.image_size,
                batch_size=arguments.batch_size,
                identities=arguments.identities,
                precision=precision,
                mode=mode,
                images_per_s=rates,
                step_ms=1e3 * statistics.median(seconds),
                peak_mib=peak,
            )
            print(
                f"step {arguments.arch:<14} {precision:<9} {mode:<9} batch {arguments.batch_size:<5}"
                f" {rates['median']:>9.0f} images/s  (p20 {rates['p20']:.0f}, p80 {rates['p80']:.0f})"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
