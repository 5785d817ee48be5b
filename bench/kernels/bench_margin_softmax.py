"""Margin softmax alone: loss and embedding gradient for one batch against C centres, without networks or data.

Isolates the head's sweep over the classes; leaves out the centre update, norm statistics and margins, which are O(B D).
Forms, side by side in each round of a shape:

    origin                what the public AdaDistill head does: normalise all columns, take the whole (B, C) matrix
                          through acos and cos under autograd, with the centres' gradient that nobody uses
    origin compiled       the same under torch.compile
    dense                 our reference, fixed centres
    linear_cross_entropy  torch's own, where it has one: no margin, fixed centres
    torch, chunks, fused  ours, see `form` of kernels/margin_softmax.py; on CUDA with bfloat16 centres

Before timing, ours must agree with float64 on some rows; how far they are off is reported. Rates count the 4 B C D
operations that loss and gradient need, and are set against a plain product of (B, D) and (C, D) in the dtype of the
centres, measured in the same run. A form that runs out of memory gets a row that says so.

    python -m adadistill.bench kernels.bench_margin_softmax --batch 384 1024 --classes 85742 360232
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from adadistill.bench.bench_parser import bench_parser
from adadistill.bench.rows import append_row
from adadistill.bench.timing import extra_mib, repeated_ms, seconds_of, spread
from adadistill.core.method.heads import HeadConfig
from adadistill.kernels.head_margins import ADAFACE_EPS
from adadistill.kernels.margin_softmax import Form, MarginSoftmax, margin_softmax, margin_softmax_reference

TINY = "--batch 4 --classes 30 --dim 8 --repeats 2 --device cpu"

HEAD = HeadConfig(kind="adaface")
LIMITS = HEAD.limits
OURS: tuple[Form, ...] = ("torch", "chunks", "fused")
_CHECKED_ROWS = 16


@dataclass(frozen=True, slots=True)
class Problem:
    """Inputs of one shape on one device."""

    embeddings: Tensor
    class_centres: Tensor
    labels: Tensor
    angular: Tensor
    additive: Tensor


def make_problem(batch: int, classes: int, dim: int, device: torch.device) -> Problem:
    """Random float32 problem with embeddings near their centres, as in the middle of training."""
    draw = torch.Generator(device).manual_seed(0)  # two million centres would take the host half a minute
    options: dict[str, Any] = {"generator": draw, "device": device}
    centres = torch.randn(classes, dim, **options)
    centres /= torch.linalg.vector_norm(centres, dim=1, keepdim=True)
    labels = torch.randint(0, classes, (batch,), **options)
    embeddings = normalize(normalize(torch.randn(batch, dim, **options)) + centres[labels])
    scaler = torch.rand(batch, **options) * 2 - 1
    return Problem(embeddings, centres, labels, -HEAD.margin * scaler, HEAD.margin * (1 + scaler))


def origin_step(problem: Problem) -> Tensor:
    """Embedding gradient of the mean loss by the public head's operations, the centres' gradient computed beside it."""
    embeddings = problem.embeddings.detach().requires_grad_()
    centres = problem.class_centres.detach().requires_grad_()
    limit = LIMITS.cosine_limit
    cosine = (embeddings @ normalize(centres).T).clamp(-limit, limit)  # (B, C)
    one_hot = torch.zeros_like(cosine).scatter_(1, problem.labels[:, None], 1.0)
    angle = torch.acos(cosine) + one_hot * problem.angular[:, None]
    margined = torch.cos(angle.clamp(ADAFACE_EPS, torch.pi - ADAFACE_EPS)) - one_hot * problem.additive[:, None]
    cross_entropy(HEAD.logit_scale * margined, problem.labels).backward()
    assert embeddings.grad is not None
    return embeddings.grad


def seam_step(problem: Problem, softmax: Callable[..., MarginSoftmax], form: Form | None = None) -> Tensor:
    """Embedding gradient of the mean loss through one of the forms behind `margin_softmax`."""
    embeddings = problem.embeddings.detach().requires_grad_()
    result = _softmax(problem, embeddings, softmax, form)
    result.loss.mean().backward()
    assert embeddings.grad is not None
    return embeddings.grad


def library_step(problem: Problem) -> Tensor:
    """The same without a margin by torch's own fused loss."""
    embeddings = problem.embeddings.detach().requires_grad_()
    functional: Any = torch.nn.functional  # from torch 2.13 on
    options = {} if problem.embeddings.device.type == "cpu" else {"options": functional.LinearCrossEntropyOptions()}
    scaled = (HEAD.logit_scale * embeddings).to(problem.class_centres.dtype)
    functional.linear_cross_entropy(scaled, problem.class_centres, problem.labels, **options).backward()
    assert embeddings.grad is not None
    return embeddings.grad


def possible_forms(device: torch.device) -> list[str]:
    """What can run here."""
    forms = ["origin", "dense", *OURS[:1]]
    if hasattr(torch.nn.functional, "linear_cross_entropy"):
        forms.append("linear_cross_entropy")
    if device.type == "cuda":
        forms += ["origin compiled", *OURS[1:]]
    return forms


def bench_shape(
    batch: int, classes: int, dim: int, *, device: torch.device, repeats: int, forms: Sequence[str]
) -> list[dict[str, object]]:
    """Measured values of each form at one shape.

    Raises:
        ValueError: one of ours is not what the dense reference gives in float64.
    """
    problem = make_problem(batch, classes, dim, device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    stored = Problem(
        problem.embeddings, problem.class_centres.to(dtype), problem.labels, problem.angular, problem.additive
    )
    compiled = torch.compile(origin_step) if "origin compiled" in forms else origin_step
    runs: dict[str, Callable[[], Tensor]] = {
        "origin": lambda: origin_step(problem),
        "origin compiled": lambda: compiled(problem),
        "dense": lambda: seam_step(problem, margin_softmax_reference),
        "linear_cross_entropy": lambda: library_step(stored),
        "torch": lambda: seam_step(stored, margin_softmax, "torch"),
        "chunks": lambda: seam_step(stored, margin_softmax, "chunks"),
        "fused": lambda: seam_step(stored, margin_softmax, "fused"),
    }
    operations = 4 * batch * classes * dim
    operand = problem.embeddings.to(dtype)
    product = repeated_ms(lambda: operand @ stored.class_centres.T, device, repeats, warm_up=1)
    gemm_gflops = operations / 2 / spread(product)["median"] / 1e6
    rows: dict[str, dict[str, object]] = {
        form: {"form": form, "batch": batch, "classes": classes, "dim": dim, "out_of_memory": False} for form in forms
    }
    times: dict[str, list[float]] = {form: [] for form in forms}
    for number in range(1 + repeats):  # the first round warms up
        for form in forms:
            if rows[form]["out_of_memory"]:
                continue
            try:
                for ours in OURS if number == 0 else ():
                    if form == ours:
                        rows[form]["loss_off"] = _loss_off(stored, ours)
                times[form].append(1e3 * seconds_of(runs[form], device))
            except torch.OutOfMemoryError:
                rows[form]["out_of_memory"] = True
    for form, row in rows.items():
        if not row["out_of_memory"]:
            took = spread(times[form][1:])
            gflops = operations / took["median"] / 1e6
            row |= {
                "ms": {name: round(value, 3) for name, value in took.items()},
                "gflops": round(gflops, 2),
                "share_of_gemm_rate": round(gflops / gemm_gflops, 3),
                "extra_mib": extra_mib(runs[form], device),
            }
    return list(rows.values())


def _softmax(
    problem: Problem, embeddings: Tensor, softmax: Callable[..., MarginSoftmax], form: Form | None = None
) -> MarginSoftmax:
    return softmax(
        embeddings,
        problem.class_centres,
        problem.labels,
        problem.angular,
        problem.additive,
        logit_scale=HEAD.logit_scale,
        cosine_limit=LIMITS.cosine_limit,
        angle_limits=LIMITS.angle_limits,
        margin_grad=HEAD.margin_grad,
        **({} if form is None else {"form": form}),
    )


def _loss_off(problem: Problem, form: Form) -> float:
    """Largest difference of the loss to the dense one in float64, on some rows, as a share of the largest loss."""
    rows = np.linspace(0, len(problem.labels) - 1, min(_CHECKED_ROWS, len(problem.labels))).astype(int)
    chosen = torch.from_numpy(rows).to(problem.labels.device)
    whole = _softmax(problem, problem.embeddings, margin_softmax, form).loss[chosen]
    wide = [value[chosen].double() if value.is_floating_point() else value[chosen] for value in (
        problem.embeddings, problem.labels, problem.angular, problem.additive)]  # fmt: skip
    few = Problem(wide[0], problem.class_centres.double(), *wide[1:])
    exact = _softmax(few, few.embeddings, margin_softmax).loss
    off = float((whole.double() - exact).abs().max() / exact.abs().max())
    if not off <= (2e-2 if problem.class_centres.dtype == torch.bfloat16 else 1e-5):
        raise ValueError(f"form {form}: the loss is off by {off:.1e} of the largest; nothing was timed")
    return off


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and append the rows."""
    parser = bench_parser("kernels.bench_margin_softmax", __doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[128], help="samples, one run each")
    parser.add_argument("--classes", type=int, nargs="+", default=[10572], help="identities, one run each")
    parser.add_argument("--dim", type=int, default=512, help="embedding size")
    parser.add_argument("--repeats", type=int, default=10, help="timed runs after one warm-up")
    parser.add_argument("--forms", nargs="+", help="default: all that can run here")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    forms = possible_forms(device)
    if unknown := sorted(set(options.forms or []) - set(forms)):
        parser.error(f"--forms {' '.join(unknown)}: here can run {', '.join(forms)}")
    for classes in options.classes:
        for batch in options.batch:
            rows = bench_shape(
                batch, classes, options.dim, device=device, repeats=options.repeats, forms=options.forms or forms
            )
            for row in rows:
                append_row(options.rows, bench="margin_softmax", device=device, **row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
