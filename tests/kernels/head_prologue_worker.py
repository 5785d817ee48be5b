"""Runs the Triton head prologue in Triton's interpreter, which is chosen before Triton is imported: its own process.

Prints one line of JSON for each case: how far every result is from the reference in float64, and how far eager PyTorch
is in float32. Tiles of the statistics and the number of programs are made small, so that few rows go around both.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tests_support

tests_support.make_importable()

import torch
from head_prologue_cases import VARIANTS, Case, as_double, make_case, parts
from objective_cases import OBJECTIVES, objective_steps
from torch import Tensor

from adadistill.bench.kernels.bench_head_prologue import counted
from adadistill.kernels import head_prologue as module
from adadistill.kernels import head_prologue_triton as triton_half
from adadistill.kernels.head_prologue import (
    Directions,
    directions,
    directions_reference,
    head_prologue,
    head_prologue_reference,
)

TILE, PROGRAMS = 16, 3
triton_half._NORMS_AT_ONCE, triton_half._MOST_PROGRAMS = TILE, PROGRAMS
# Rows, values, samples of other ranks: none; one; the last with fewer programs than most; one past the programs and
# one past a tile of the statistics; primes and several tiles; the sizes of real embeddings.
SHAPES = [(0, 16, 0), (1, 16, 0), (3, 24, 13), (4, 16, 13), (13, 31, 41), (11, 128, 0), (10, 512, 6)]


def main() -> None:
    for shape in SHAPES:
        rows_alone(shape)
    for number, shape in enumerate(SHAPES):
        # Every variant at a shape with special rows and few values, one at each other.
        chosen = list(VARIANTS) if shape == SHAPES[4] else [list(VARIANTS)[number % len(VARIANTS)]]
        for variant in chosen:
            whole_batch(make_case(shape[0], shape[1], others=shape[2]), [*shape], variant, unit=number % 2 == 0)
    ignored = make_case(5, 16)
    ignored.labels.fill_(-1)
    whole_batch(ignored, ["ignored"], "adaface, adaptive", unit=False)
    half_centres()
    same_bits()
    broken_rows()
    for name in OBJECTIVES:
        whole_objective(name)
    operators()
    launches()


def rows_alone(shape: tuple[int, int, int]) -> None:
    case = make_case(*shape[:2])
    exact, eager = gradients(directions_reference, case), gradients(directions_reference, case.to(torch.float32))
    found = gradients(directions, case.to(torch.float32))
    report(["rows", *shape[:2]], found, eager, exact)


def gradients(form: Callable[..., Directions], case: Case) -> dict[str, Tensor]:
    embeddings = case.embeddings.clone().requires_grad_()
    made = form(embeddings, case.teacher)
    weights = torch.linspace(-1.0, 2.0, embeddings.numel(), dtype=embeddings.dtype).view_as(embeddings)
    (gradient,) = torch.autograd.grad((weights * made.unit_embeddings).sum(), embeddings)
    assert not made.quality.requires_grad
    assert not made.teacher_cosine.requires_grad
    return {"unit": made.unit_embeddings.detach(), "quality": made.quality, "cosine": made.teacher_cosine,
            "gradient": gradient}  # fmt: skip


def whole_batch(case: Case, name: list[Any], variant: str, *, unit: bool) -> None:
    """All forms start from the same float32 directions, so that only the second step is compared."""
    single = case.to(torch.float32)
    student = directions_reference(single.embeddings, single.teacher)
    inputs = single.inputs(student, variant, unit=unit)
    wide = single.to(torch.float64).inputs(as_double(student), variant, unit=unit)
    if unit:  # the same rows, already rounded
        wide["store"] = module.CentreStore(inputs["store"].centres.double(), True)
    exact = parts(head_prologue_reference(**wide))
    report([variant, *name], parts(head_prologue(**inputs)), parts(head_prologue_reference(**inputs)), exact)


def half_centres() -> None:
    """A bfloat16 master is widened before it is normalised, and the statistics may be kept in float64."""
    case = make_case(11, 32)
    single = case.to(torch.float32)
    student = directions_reference(single.embeddings)
    inputs = single.inputs(student, "cosface", unit=False)
    inputs["store"] = module.CentreStore(single.centres.bfloat16(), False)
    inputs |= {"norm_mean": case.mean, "norm_std": case.std}
    wide = single.to(torch.float64).inputs(as_double(student), "cosface", unit=False)
    wide["store"] = module.CentreStore(single.centres.bfloat16().double(), False)
    report(["bfloat16"], parts(head_prologue(**inputs)), parts(head_prologue_reference(**inputs)),
           parts(head_prologue_reference(**wide)))  # fmt: skip


def same_bits() -> None:
    """The first rank's rows and the second's, each with their own number of programs, see the same statistics."""
    case = make_case(22, 16, others=9).to(torch.float32)
    student = directions_reference(case.embeddings, case.teacher)
    inputs = case.inputs(student, "adaface, static", unit=True)
    whole = parts(head_prologue(**inputs))
    same = True
    for own in (slice(0, 2), slice(2, 22)):
        part = Directions(student.unit_embeddings[own], student.quality[own], student.teacher_cosine[own])
        made = parts(
            head_prologue(**{**inputs, "student": part, "labels": case.labels[own], "confidence": case.confidence[own]})
        )
        for name, value in made.items():
            wanted = whole[name] if name.startswith("norm_") else whole[name][own]
            same &= torch.equal(value.nan_to_num(), wanted.nan_to_num())
    print(json.dumps({"case": ["same bits"], "same": same}))


def broken_rows() -> None:
    """NaN in a live row reaches everything it should, as in eager, so that the step is seen to be broken."""
    case = make_case(5, 16).to(torch.float32)
    case.embeddings[1, 3] = torch.nan
    case.embeddings[2, 0] = torch.inf
    same = True
    made = [directions(case.embeddings, case.teacher), directions_reference(case.embeddings, case.teacher)]
    inputs = case.inputs(made[1], "adaface, adaptive", unit=False)
    for one, other in (
        *(
            (getattr(made[0], name), getattr(made[1], name))
            for name in ("unit_embeddings", "quality", "teacher_cosine")
        ),
        *zip(parts(head_prologue(**inputs)).values(), parts(head_prologue_reference(**inputs)).values(), strict=True),
    ):
        same &= torch.equal(torch.isfinite(one), torch.isfinite(other))
        same &= torch.equal(torch.isnan(one), torch.isnan(other))
    print(json.dumps({"case": ["broken"], "same": same}))


def whole_objective(name: str) -> None:
    """Two steps of an objective through Triton, against plain torch in the same dtype and in float64."""
    found = objective_steps(name, torch.float32, steps=2)
    os.environ["ADADISTILL_KERNELS"] = "torch"
    eager, exact = (objective_steps(name, dtype, steps=2) for dtype in (torch.float32, torch.float64))
    del os.environ["ADADISTILL_KERNELS"]
    assert name in ("trainable", "adaptive, arcface") or exact["1 geometry"] > 0.0, "the term is in play"
    report(["objective", name], found, eager, exact)


def operators() -> None:
    """What torch's own checks say of the three operators, and that a traced graph holds them without a break."""
    case = make_case(3, 16).to(torch.float32)
    embeddings = case.embeddings.clone().requires_grad_()
    student = directions(case.embeddings, case.teacher)
    for operator, arguments in (
        (module._directions, (embeddings, case.teacher)),
        (module._directions, (embeddings.detach().bfloat16().requires_grad_(), None)),
        (module._directions_backward, (case.teacher, student.unit_embeddings, student.quality)),
        (module._prologue, (student.unit_embeddings, student.quality, case.labels, student.teacher_cosine,
                            case.confidence, student.quality, case.labels, case.mean, case.std, case.centres, False,
                            "adaface", "exact", "adaptive", [0.4, 0.333, 0.01, 64.0, 0.999, 1e-3, 3.14],
                            [1.0, 3.0, 0.8, 0.25])),
    ):  # fmt: skip
        torch.library.opcheck(operator, arguments)

    def step(embeddings: Tensor) -> Tensor:
        student = directions(embeddings, case.teacher)
        made = head_prologue(**case.inputs(student, "adaface, adaptive", unit=False))
        return (student.unit_embeddings * made.target_rows).sum() + made.target.logit.sum() + made.norm_std

    results = []
    for form in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        loss = form(embeddings)
        results.append([loss.detach(), *torch.autograd.grad(loss, embeddings)])
    same = all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    print(json.dumps({"case": ["compiled"], "same": same}))


def launches() -> None:
    """The launches of forward and backward, and every operator of forward that computes: none may stand beside ours."""
    case = make_case(12, 16).to(torch.float32)
    seen: list[str] = []

    class Counting:
        def __init__(self, name: str, kernel: Any) -> None:
            self.name, self.kernel = name, kernel

        def __getitem__(self, grid: Any) -> Any:
            seen.append(self.name)
            return self.kernel[grid]

    for name in ("directions_kernel", "prologue_kernel", "directions_backward_kernel"):
        setattr(triton_half, name, Counting(name, getattr(triton_half, name)))
    embeddings = case.embeddings.clone().requires_grad_()
    student = directions(embeddings, case.teacher)
    inputs = case.inputs(student, "adaface, adaptive", unit=False)
    seen.clear()
    operators = counted(lambda: head_prologue(**{**inputs, "student": directions(embeddings, case.teacher)}))
    forward = list(seen)
    seen.clear()
    torch.autograd.grad(student.unit_embeddings, embeddings, grad_outputs=case.teacher)
    print(json.dumps({"case": ["launches"], "forward": forward, "backward": seen, "operators": operators}))


def report(name: list[Any], found: dict[str, Tensor], eager: dict[str, Tensor], exact: dict[str, Tensor]) -> None:
    off, eager_off, flags = {}, {}, True
    for part, wanted in exact.items():
        assert found[part].shape == wanted.shape, (name, part)
        assert found[part].dtype == eager[part].dtype, (name, part)
        if wanted.dtype == torch.bool:
            flags &= torch.equal(found[part], eager[part])
        else:
            off[part], eager_off[part] = distance(found[part], wanted), distance(eager[part], wanted)
    print(json.dumps({"case": name, "off": off, "eager": eager_off, "flags": flags}))


def distance(found: Tensor, wanted: Tensor) -> float:
    """Largest difference as a share of the largest value; NaN for NaN is none, else NaN and infinities are far."""
    if not wanted.numel():
        return 0.0
    lost = torch.isnan(wanted)
    if not torch.equal(lost, torch.isnan(found)):
        return float("inf")
    difference = torch.where(lost, 0.0, (found.double() - wanted.double()).abs()).max().item()
    return difference / max(torch.where(lost, 0.0, wanted.abs()).max().item(), 1e-30)


if __name__ == "__main__":
    main()
