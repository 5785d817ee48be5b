"""Margin softmax alone: loss and embedding gradient for one batch against C centres, without networks or data.

Isolates the head's sweep over the classes; leaves out the centre update, norm statistics and margins, which are O(B D).
Three forms side by side: `origin` does what the public AdaDistill head does (normalise all columns and take the whole
(B, C) matrix through acos and cos, all under autograd, the unused centre gradient included), `dense` is our reference
with fixed centres, `chunked` is what training runs. Before timing, `chunked` must agree with `dense`. Rates count the 4
B C D operations that loss and gradient need, and are set against a plain matrix product of the same shape, measured in
the same run.

    python -m adadistill.bench.kernels.bench_margin_softmax --batch 128 --classes 10572 85742
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from adadistill.bench.rows import append_row, spread
from adadistill.bench.timing import extra_mib, repeated_ms
from adadistill.core.heads import ADAFACE_EPS, HeadConfig, HeadLimits, head_limits
from adadistill.kernels.margin_softmax import MarginSoftmax, margin_softmax, margin_softmax_reference

HEAD = HeadConfig(kind="adaface")
LIMITS: HeadLimits = head_limits(HEAD)


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
    draw = torch.Generator().manual_seed(0)
    centres = normalize(torch.randn(classes, dim, generator=draw))
    labels = torch.randint(0, classes, (batch,), generator=draw)
    embeddings = normalize(normalize(torch.randn(batch, dim, generator=draw)) + centres[labels])
    scaler = torch.rand(batch, generator=draw) * 2 - 1
    tensors = (embeddings, centres, labels, -HEAD.margin * scaler, HEAD.margin * (1 + scaler))
    return Problem(*(t.to(device) for t in tensors))


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


def seam_step(problem: Problem, softmax: Callable[..., MarginSoftmax]) -> Tensor:
    """Embedding gradient of the mean loss through one of the forms behind `margin_softmax`."""
    embeddings = problem.embeddings.detach().requires_grad_()
    result = softmax(
        embeddings,
        problem.class_centres,
        problem.labels,
        problem.angular,
        problem.additive,
        logit_scale=HEAD.logit_scale,
        cosine_limit=LIMITS.cosine_limit,
        angle_limits=LIMITS.angle_limits,
        margin_grad=HEAD.margin_grad,
    )
    result.loss.mean().backward()
    assert embeddings.grad is not None
    return embeddings.grad


def bench_shape(
    batch: int, classes: int, dim: int, *, device: torch.device, repeats: int, forms: Sequence[str]
) -> list[dict[str, object]]:
    """Measured values of each form at one shape.

    Raises:
        AssertionError: the chunked form does not agree with the dense one.
    """
    problem = make_problem(batch, classes, dim, device)
    runs: dict[str, Callable[[], Tensor]] = {
        "origin": lambda: origin_step(problem),
        "dense": lambda: seam_step(problem, margin_softmax_reference),
        "chunked": lambda: seam_step(problem, margin_softmax),
    }
    if "dense" in forms and "chunked" in forms:
        torch.testing.assert_close(runs["chunked"](), runs["dense"](), rtol=1e-3, atol=1e-5)
    operations = 4 * batch * classes * dim
    product = repeated_ms(lambda: problem.embeddings @ problem.class_centres.T, device, repeats, warm_up=1)
    gemm_gflops = operations / 2 / spread(product)["median"] / 1e6
    rows: list[dict[str, object]] = []
    for form in forms:
        took = spread(repeated_ms(runs[form], device, repeats, warm_up=1))
        gflops = operations / took["median"] / 1e6
        rows.append(
            {
                "form": form,
                "batch": batch,
                "classes": classes,
                "dim": dim,
                **{f"{name}_ms": round(value, 3) for name, value in took.items()},
                "gflops": round(gflops, 2),
                "share_of_gemm_rate": round(gflops / gemm_gflops, 3),
                "extra_mib": extra_mib(runs[form], device),
            }
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and append the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128, help="samples")
    parser.add_argument("--classes", type=int, nargs="+", default=[10572], help="identities, one run each")
    parser.add_argument("--dim", type=int, default=512, help="embedding size")
    parser.add_argument("--repeats", type=int, default=10, help="timed runs after one warm-up")
    parser.add_argument(
        "--forms", nargs="+", choices=("origin", "dense", "chunked"), default=["origin", "dense", "chunked"]
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", help="JSONL file for the rows (default: print only)")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    for classes in options.classes:
        rows = bench_shape(
            options.batch, classes, options.dim, device=device, repeats=options.repeats, forms=options.forms
        )
        for row in rows:
            append_row(options.rows, bench="margin_softmax", device=str(device), **row)
            print("  ".join(f"{name} {value}" for name, value in row.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
