"""The centre update alone: one global batch against C centres, repeated labels included.

Isolates the update and its undo; leaves out teacher and student. Before timing, the result must equal applying one
sample after the other in float64. `merge` is the ordered merge alone, in torch; `step` is what training does:
confidence, momentum, merge and the softmax's unit copy, one Triton launch on CUDA. `sequential` (CPU) is the loop over
samples, on the rows it touches. Forms alternate, call by call. Bytes are what no form can avoid, teacher embeddings
read, touched centres read and written; `share_of_copy_rate` sets them against a copy in the same process.

    python -m adadistill.bench kernels.bench_centre_update --batch 1024 --classes 85742
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch.nn.functional import normalize

from adadistill.bench.probes import copy_gb_per_s
from adadistill.bench.rows import append_row, spread
from adadistill.bench.timing import alternating_ms
from adadistill.core.method.class_centres import AdaptiveCentres, CentresConfig
from adadistill.kernels.centre_update import centre_update_, centre_update_reference

TINY = "--batch 7 16 --classes 50 --dim 8 --repeats 2 --device cpu"

HALVES: tuple[Literal["bfloat16", "float16"] | None, ...] = (None, "bfloat16", "float16")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and append rows."""
    parser = argparse.ArgumentParser(
        prog="python -m adadistill.bench kernels.bench_centre_update",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1024])
    parser.add_argument("--classes", type=int, default=85_742)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--drift", action="store_true", help="compare half-precision centres with float32 ones instead")
    parser.add_argument("--rows", help="JSONL file for the rows (default: print only)")
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    if arguments.drift:
        measure_drift(device, arguments.rows)
        return 0
    for batch in arguments.batch:
        generator = torch.Generator().manual_seed(0)
        centres = torch.randn(arguments.classes, arguments.dim, generator=generator).mul_(0.01)
        teacher = torch.nn.functional.normalize(torch.randn(batch, arguments.dim, generator=generator), dim=1)
        labels = torch.randint(min(arguments.classes, batch), (batch,), generator=generator)
        momentum = torch.rand(batch, generator=generator)
        truth = centre_update_reference(centres.double(), teacher.double(), labels, momentum.double())
        inputs = [tensor.to(device) for tensor in (centres, teacher, labels, momentum)]
        ok = torch.tensor(True, device=device)

        def update(inputs: list[torch.Tensor] = inputs, ok: torch.Tensor = ok) -> None:
            centre_update_(*inputs).commit_(ok)

        update()
        torch.testing.assert_close(inputs[0].double().cpu(), truth, rtol=1e-5, atol=1e-6)
        adaptive = AdaptiveCentres(CentresConfig(), inputs[0].clone())
        cosines = torch.rand(batch, generator=generator).to(device)

        step = partial(_step, adaptive, inputs[1], inputs[2], cosines, ok)
        forms: dict[str, Callable[[], object]] = {"merge": update, "step": step}
        if device.type == "cpu":
            few = [tensor[: labels.max() + 1] if index == 0 else tensor for index, tensor in enumerate(inputs)]
            forms["sequential"] = lambda few=few: centre_update_reference(*few)  # type: ignore[misc]
        moved = 4 * arguments.dim * (batch + 2 * len(labels.unique()))
        for name, measured in alternating_ms(forms, device, arguments.repeats).items():
            times = spread(measured)
            gb_per_s = moved / times["median"] / 1e6
            share = gb_per_s / copy_gb_per_s(device)
            append_row(
                arguments.rows, bench="centre_update", form=name, batch=batch, classes=arguments.classes,
                dim=arguments.dim, device=device, ms=times, gb_per_s=gb_per_s, share_of_copy_rate=share,
            )  # fmt: skip
            print(
                f"centre update  batch {batch:<5} {name:<11} {times['median']:>9.3f} ms"
                f"  {share:>6.1%} of the rate of a copy"
            )
    return 0


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
                values = {"mean": off.mean().item(), "max": off.max().item()}
                updates = step * batch / classes
                append_row(
                    rows, bench="centre_drift", half=half, updates_each=updates, one_minus_cosine=values, dim=dim,
                    classes=classes, device=device,
                )  # fmt: skip
                print(f"{half:<9} {updates:>6.0f} updates each: 1 - cosine to float32 {values}")


def _step(
    centres: AdaptiveCentres, teacher: torch.Tensor, labels: torch.Tensor, cosines: torch.Tensor, ok: torch.Tensor
) -> None:
    centres.propose_update(teacher, labels, cosines).commit_(ok)


if __name__ == "__main__":
    sys.exit(main())
