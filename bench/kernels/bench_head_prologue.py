"""The head prologue alone: norms, statistics, quality, geometry, margins and target of one batch, with its backward.

Isolates what a head does to (B,) and (B, D) tensors before the sweep over the classes; leaves out teacher, centre
update, the collective between the two steps, and the sweep. So little is moved that on a GPU the number of launches is
what takes the time, so it is reported too. Forms, side by side in each round of a batch size:

    eager     the reference in plain torch: one launch for each torch operation
    compiled  the same through torch.compile, one graph for either step; Inductor decides on the launches
    triton    what training runs on CUDA: two launches, and one for the backward of the first

Before timing, each form must agree with the reference in float64. Launches are those of one step with its backward:
torch's operations, or the kernels that Inductor writes for this device. Bytes are those that any form must move.

Forms alternate, call by call.

    python -m adadistill.bench kernels.bench_head_prologue --batch 384 1024 4096
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from adadistill.bench.bench_parser import bench_parser
from adadistill.bench.kernels.forms import measure_forms
from adadistill.core.method.geometry_margin import GeometryMarginConfig
from adadistill.core.method.heads import HeadConfig
from adadistill.kernels.head_prologue import (
    CentreStore,
    Directions,
    HeadPrologue,
    directions,
    directions_reference,
    head_prologue,
    head_prologue_reference,
)

TINY = "--batch 5 9 --classes 20 --dim 16 --repeats 2 --forms eager --device cpu"

HEAD = HeadConfig()
GEOMETRY = GeometryMarginConfig(mode="adaptive")
TRITON_LAUNCHES = 3  # what tests/kernels/test_head_prologue_triton.py counts
_PASSES = 9
"""Over (B, D): the first step reads two and writes one, the second likewise, and so does backward."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A batch on one device; the global batch is this one."""

    embeddings: Tensor
    teacher: Tensor
    labels: Tensor
    confidence: Tensor
    centres: Tensor
    mean: Tensor
    std: Tensor
    upstream: Tensor
    """(B, D), gradient that reaches the unit embeddings."""

    def double(self) -> Problem:
        """In float64."""
        values = (getattr(self, field.name) for field in fields(self))
        return Problem(*(value.double() if value.is_floating_point() else value for value in values))


def make_problem(batch: int, classes: int, dim: int, device: torch.device) -> Problem:
    """Random float32 batch with norms around 20 and students half way to their teacher."""
    draw = torch.Generator(device).manual_seed(0)
    options: dict[str, Any] = {"generator": draw, "device": device}
    teacher = normalize(torch.randn(batch, dim, **options))
    lengths = 20.0 + 3.0 * torch.randn(batch, 1, **options)
    return Problem(
        lengths * normalize(teacher + normalize(torch.randn(batch, dim, **options))),
        teacher,
        torch.randint(0, classes, (batch,), **options),
        torch.rand(batch, **options),
        0.5 * torch.randn(classes, dim, **options),
        torch.tensor(20.0, device=device),
        torch.tensor(3.0, device=device),
        torch.randn(batch, dim, **options),
    )


Rows = Callable[[Tensor, Tensor], Directions]
Whole = Callable[..., HeadPrologue]


def forward(problem: Problem, rows: Rows, whole: Whole) -> tuple[Tensor, Directions, HeadPrologue]:
    """Both steps on embeddings that take a gradient."""
    embeddings = problem.embeddings.detach().requires_grad_()
    student = rows(embeddings, problem.teacher)
    made = whole(
        student,
        problem.labels,
        confidence=problem.confidence,
        global_quality=student.quality,
        global_labels=problem.labels,
        norm_mean=problem.mean,
        norm_std=problem.std,
        store=CentreStore(problem.centres, unit=False),
        head=HEAD,
        geometry=GEOMETRY,
    )
    return embeddings, student, made


def step(problem: Problem, rows: Rows, whole: Whole) -> tuple[HeadPrologue, Tensor]:
    """Both steps and the gradient of the embeddings."""
    embeddings, student, made = forward(problem, rows, whole)
    return made, torch.autograd.grad(student.unit_embeddings, embeddings, grad_outputs=problem.upstream)[0]


def forms_on(device: torch.device) -> dict[str, tuple[Rows, Whole]]:
    """What can run here, by name; compiled anew for the shapes of each batch, as a run of one batch size has it."""
    torch.compiler.reset()
    forms: dict[str, tuple[Rows, Whole]] = {
        "eager": (directions_reference, head_prologue_reference),
        "compiled": (
            torch.compile(directions_reference, dynamic=False),
            torch.compile(head_prologue_reference, dynamic=False),
        ),
    }
    if device.type == "cuda":
        forms["triton"] = (directions, head_prologue)
    return forms


class _Launches(TorchDispatchMode):
    """Notes every torch operation that computes a tensor: no views, no allocations, nothing of the host's."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        returned = func._schema.returns
        is_view = any(value.alias_info is not None and not value.alias_info.is_write for value in returned)
        gives_tensors = any("Tensor" in str(value.type) for value in returned)
        name = func._schema.name.removeprefix("aten::")
        if gives_tensors and not is_view and not name.startswith(("empty", "new_empty")):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def counted(run: Callable[[], object]) -> list[str]:
    """Names of the torch operations of a call, each of which is a launch on a GPU, or several."""
    with _Launches() as launches:
        run()
    return launches.names


def launches_of(form: str, run: Callable[[], object]) -> int:
    """Launches of the first call of a step, with its backward: torch's operations, or the kernels Inductor writes."""
    if form == "triton":
        return TRITON_LAUNCHES
    if form == "eager":
        return len(counted(run))
    from torch._inductor import metrics

    metrics.reset()
    run()
    return metrics.generated_kernel_count


def check(problem: Problem, found: tuple[HeadPrologue, Tensor]) -> float:
    """Largest error of target logits and gradients as a share of the largest value.

    Raises:
        ValueError: it is more than float32 explains.
    """
    made, gradient = step(problem.double(), directions_reference, head_prologue_reference)
    pairs = [(found[0].target.logit, made.target.logit), (found[0].norm_std, made.norm_std), (found[1], gradient)]
    off = max(float((one.double() - other).abs().max() / other.abs().max()) for one, other in pairs)
    if not off <= 1e-5:
        raise ValueError(f"logits, statistics or gradients are off by {off:.1e} of the largest; nothing was timed")
    return off


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and append rows."""
    parser = bench_parser("kernels.bench_head_prologue", __doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[384, 1024, 4096], help="samples, one run each")
    parser.add_argument("--classes", type=int, default=85_742)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--forms", nargs="+", help="default: all that can run here")
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    possible = forms_on(device)
    if unknown := sorted(set(arguments.forms or []) - set(possible)):
        parser.error(f"--forms {' '.join(unknown)}: here can run {', '.join(possible)}")
    for batch in arguments.batch:
        problem, forms = make_problem(batch, arguments.classes, arguments.dim, device), forms_on(device)
        runs = {name: partial(step, problem, *forms[name]) for name in arguments.forms or forms}
        found = {name: {"launches": launches_of(name, run), "off": check(problem, run())} for name, run in runs.items()}
        measure_forms(
            runs, device, moved_bytes=_PASSES * 4 * batch * arguments.dim, repeats=arguments.repeats,
            rows=arguments.rows, bench="head_prologue", batch=batch, classes=arguments.classes, dim=arguments.dim,
            of_form=found,
        )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
