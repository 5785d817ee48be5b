"""The centre update alone: one global batch against C centres, repeated labels included.

Isolates the update and its undo; leaves out teacher and student. Before timing, the result must equal applying one
sample after the other in float64. `merge` is the ordered merge alone, in torch; `step` is what training does:
confidence, momentum, merge and the softmax's unit copy, one Triton launch on CUDA. `sequential` (CPU) is the loop over
samples, on the rows it touches. Forms alternate, call by call. Bytes are what no form can avoid, teacher embeddings
read, touched centres read and written; `share_of_copy_rate` sets them against a copy in the same process.

    python -m adadistill.bench kernels.bench_centre_update --batch 1024 --classes 85742
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch.nn.functional import normalize

from adadistill.bench.bench_parser import bench_parser
from adadistill.bench.kernels.forms import measure_forms
from adadistill.bench.rows import append_row
from adadistill.core.method.class_centres import AdaptiveCentres, CentresConfig
from adadistill.kernels.centre_update import centre_update_, centre_update_reference

TINY = "--batch 7 16 --classes 50 --dim 8 --repeats 2 --device cpu"

HALVES: tuple[Literal["bfloat16", "float16"] | None, ...] = (None, "bfloat16", "float16")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and append rows."""
    parser = bench_parser("kernels.bench_centre_update", __doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[1024])
    parser.add_argument("--classes", type=int, default=85_742)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--drift", action="store_true", help="compare half-precision centres with float32 ones instead")
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    if arguments.drift:
        measure_drift(device, arguments.rows)
        return 0
    for batch in arguments.batch:
        forms, moved = _forms(batch, arguments.classes, arguments.dim, device)
        measure_forms(
            forms, device, moved_bytes=moved, repeats=arguments.repeats, rows=arguments.rows, bench="centre_update",
            batch=batch, classes=arguments.classes, dim=arguments.dim,
        )  # fmt: skip
    return 0


def _forms(batch: int, classes: int, dim: int, device: torch.device) -> tuple[dict[str, Callable[[], object]], int]:
    """What is timed, and the bytes that any form must move."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(classes, dim, generator=generator).mul_(0.01)
    teacher = normalize(torch.randn(batch, dim, generator=generator), dim=1)
    labels = torch.randint(min(classes, batch), (batch,), generator=generator)
    momentum, cosines = torch.rand(batch, generator=generator), torch.rand(batch, generator=generator).to(device)
    truth = centre_update_reference(start.double(), teacher.double(), labels, momentum.double())
    moved = 4 * dim * (batch + 2 * len(labels.unique()))
    centres, teacher, labels, momentum = (tensor.to(device) for tensor in (start, teacher, labels, momentum))
    ok = torch.tensor(True, device=device)

    def merge() -> None:
        centre_update_(centres, teacher, labels, momentum).commit_(ok)

    merge()
    torch.testing.assert_close(centres.double().cpu(), truth, rtol=1e-5, atol=1e-6)
    adaptive = AdaptiveCentres(CentresConfig(), centres.clone())
    forms: dict[str, Callable[[], object]] = {
        "merge": merge,
        "step": lambda: adaptive.propose_update(teacher, labels, cosines).commit_(ok),
    }
    if device.type == "cpu":
        touched = centres[: int(labels.max()) + 1]
        forms["sequential"] = lambda: centre_update_reference(touched, teacher, labels, momentum)
    return forms, moved


def measure_drift(
    device: torch.device, rows: str | None, *, classes: int = 2000, dim: int = 512, batch: int = 256, steps: int = 4000
) -> None:
    """Centres kept in half precision beside float32 ones, through the same updates; a row for each quarter of them.

    Teacher embeddings lie at a cosine of about 0.7 to their identity; the student's to them rises from 0.3 to 0.95.
    """
    draw = torch.Generator(device).manual_seed(0)
    on: dict[str, Any] = {"generator": draw, "device": device}
    identities = normalize(torch.randn(classes, dim, **on))
    start = 0.01 * torch.randn(classes, dim, **on)
    kept = {
        half: AdaptiveCentres(
            CentresConfig(half=half), start.to(torch.float32 if half is None else getattr(torch, half))
        )
        for half in HALVES
    }
    ok = torch.tensor(True, device=device)
    for step in range(1, steps + 1):
        labels = torch.randint(classes, (batch,), **on)
        teacher = normalize(identities[labels] + torch.randn(batch, dim, **on) / dim**0.5)
        cosines = 0.3 + 0.65 * min(1.0, step / (0.375 * steps)) + 0.05 * torch.randn(batch, **on)
        for centres in kept.values():
            centres.propose_update(teacher, labels, cosines.clamp(-1.0, 1.0)).commit_(ok)
        if step % (steps // 4) == 0:
            wide = normalize(kept[None].class_centres.double())
            for half in HALVES[1:]:
                off = 1.0 - (normalize(kept[half].class_centres.double()) * wide).sum(1)
                append_row(
                    rows, bench="centre_drift", device=device, half=half, updates_each=step * batch / classes, dim=dim,
                    classes=classes, one_minus_cosine={"mean": off.mean().item(), "max": off.max().item()},
                )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
