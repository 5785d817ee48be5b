"""Runs the Triton forms in Triton's interpreter, which is chosen before Triton is imported: a process of its own.

Prints one line of JSON for each case: how far loss and gradients are from the dense reference in float64, and how far
eager PyTorch is in the same dtype. With golden files as arguments: how far they are from what those hold.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import sys
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tests_support

tests_support.make_importable()

import golden_heads
import torch
from margin_softmax_cases import ADAFACE, ARCFACE, INSIGHTFACE, Case, gradients, make_case
from torch import Tensor

from adadistill.kernels import margin_softmax_triton
from adadistill.kernels.margin_softmax import margin_softmax, margin_softmax_reference

OPTIONS = {"adaface": ADAFACE, "arcface": ARCFACE, "insightface": INSIGHTFACE}
# No samples; one class; one pair; primes; special rows; past a tile of rows and several tiles of classes.
SHAPES = [(0, 5, 16), (3, 1, 16), (1, 2, 16), (7, 17, 32), (10, 85, 48), (65, 140, 80)]
# A row is a program of the interpreter, and the options differ outside of the sweeps: the others see rows on and
# opposite to their centres in ragged chunks.
CASES = [(name, shape) for name in OPTIONS for shape in SHAPES if name == "adaface" or shape == SHAPES[4]]


def main() -> None:
    for (name, shape), trained in itertools.product(CASES, (False, True)):
        options = OPTIONS[name]
        case = make_case(*shape, special=shape[0] > 7)
        exact = gradients(margin_softmax_reference, case, trained=trained, **options)
        single = case.to(torch.float32)
        eager = gradients(margin_softmax_reference, single, trained=trained, **options)
        for form, chunk in (("chunks", 16), ("fused", None)):
            if form == "fused" and trained:
                continue  # backward runs as chunks
            if form == "chunks" and shape[0] == 65:
                continue  # a row is a program there, and has no neighbours
            found = gradients(margin_softmax, single, trained=trained, form=form, chunk_classes=chunk, **options)
            report([name, *shape, trained, form, chunk], found, exact, eager)
    many_splits()
    rounded_centres()
    half_products()
    wide_embeddings()
    scattered_inputs()


def many_splits() -> None:
    """Parts of the classes, the last of them short, give what one part gives."""
    case = make_case(17, 200, 32).to(torch.float32)
    arguments = (case.embeddings, case.centres, case.labels)
    options = {"tile": margin_softmax_triton.Tile(16, 32, 4, 2), "scale": 64.0, "limit": 1.0, "weighted": True}
    whole = margin_softmax_triton.fused_sweep(*arguments, splits=1, **options)
    for splits in (2, 3, 7):
        parts = margin_softmax_triton.fused_sweep(*arguments, splits=splits, **options)
        off = [relative(part, one) for part, one in zip(parts, whole, strict=True)]
        print(json.dumps({"case": ["splits", splits], "off": off}))


def rounded_centres() -> None:
    """bfloat16 centres under float32 embeddings, the target row from a float32 master: unit rows; and rows of any
    length, one of them of none, with their inverse lengths, in ragged chunks."""
    case = make_case(12, 83, 64)
    stored = (case.centres * torch.linspace(0.1, 3.0, 83)[:, None]).bfloat16()
    stored[7] = 0.0
    lengths = stored.double().norm(dim=1).clamp(min=1e-4)
    rounded = case.centres.bfloat16()
    own = case.centres[case.labels.clamp(min=0)]
    scaled = {"inverse_lengths": lengths.reciprocal().float(), "chunk_classes": 30}
    unit = stored.double() / lengths[:, None]
    for name, centres, exact_rows, target, options in (
        ("bfloat16", rounded, rounded.double(), own, {}),
        ("scaled", stored, unit, unit[case.labels.clamp(min=0)], scaled),
    ):
        exact = case.embeddings.clone().requires_grad_()
        wanted = margin_softmax_reference(exact, exact_rows, *case_rest(case), target_centres=target, **ADAFACE)
        (wanted_gradient,) = torch.autograd.grad(wanted.loss.sum(), exact)
        for form in ("torch", "chunks", "fused"):
            single = case.to(torch.float32)
            embeddings = single.embeddings.clone().requires_grad_()
            result = margin_softmax(
                embeddings, centres, *case_rest(single), target_centres=target.float(), form=form, **options, **ADAFACE
            )
            (gradient,) = torch.autograd.grad(result.loss.sum(), embeddings)
            off = [relative(result.loss, wanted.loss), relative(gradient, wanted_gradient)]
            print(json.dumps({"case": [name, form], "off": off}))


def half_products() -> None:
    """float32 centres multiplied in bfloat16 by the Triton form and by the plain one, which has its own tests."""
    case = make_case(12, 83, 64).to(torch.float32)
    for trained in (False, True):
        options = {"trained": trained, "product_dtype": torch.bfloat16, "chunk_classes": 30, **ADAFACE}
        wanted = gradients(margin_softmax, case, form="torch", **options)
        found = gradients(margin_softmax, case, form="chunks", **options)
        off = [relative(found[0].loss, wanted[0].loss)]
        off += [relative(one, other) for one, other in zip(found[1], wanted[1], strict=True)]
        print(json.dumps({"case": ["half products", trained], "off": off}))


def wide_embeddings() -> None:
    """D = 1024, twice what the fused form holds, and ragged chunks."""
    case = make_case(7, 50, 1024)
    for trained in (False, True):
        exact = gradients(margin_softmax_reference, case, trained=trained, **ADAFACE)
        single = case.to(torch.float32)
        eager = gradients(margin_softmax_reference, single, trained=trained, **ADAFACE)
        found = gradients(margin_softmax, single, trained=trained, form="chunks", chunk_classes=16, **ADAFACE)
        report(["wide", trained], found, exact, eager)


def scattered_inputs() -> None:
    """Columns of a packed tensor as labels and margins, and embeddings and centres with their columns side by side."""
    case = make_case(9, 40, 48).to(torch.float32)
    packed = torch.stack([case.labels, torch.zeros_like(case.labels)], dim=1)
    margins = torch.stack([case.angular, case.additive], dim=1)
    columns = case.embeddings.T.contiguous().T, case.centres.T.contiguous().T
    scattered = Case(*columns, packed[:, 0], margins[:, 0], margins[:, 1])
    for form, trained in (("chunks", False), ("chunks", True), ("fused", False)):
        wanted = gradients(margin_softmax, case, trained=trained, form=form, chunk_classes=16, **ADAFACE)
        found = gradients(margin_softmax, scattered, trained=trained, form=form, chunk_classes=16, **ADAFACE)
        off = [relative(found[0].loss, wanted[0].loss)]
        off += [relative(one, other) for one, other in zip(found[1], wanted[1], strict=True)]
        print(json.dumps({"case": ["scattered", form, trained], "off": off}))


def golden(paths: list[Path]) -> None:
    """The public implementations' steps, prepared in float64, their softmax in float32."""
    for path in paths:
        for form in ("chunks", "fused"):
            name = path.stem
            for step, case in golden_heads.prepared_steps(path):
                if form == "fused" and "centres_grad" in case:
                    continue  # backward runs as chunks
                loss, found = step.gradients(functools.partial(single, form=form))
                wanted = [case[key] for key in ("student_grad", "centres_grad") if key in case]
                off = [relative(loss, case["loss"]), *(relative(a, b) for a, b in zip(found, wanted, strict=True))]
                print(json.dumps({"case": [name, form], "off": off}))


def single(*inputs: Tensor, target_centres: Tensor | None, **options: object) -> object:
    narrow = [value.float() if value.is_floating_point() else value for value in inputs]
    target = None if target_centres is None else target_centres.float()
    return margin_softmax(*narrow, target_centres=target, **options)


def case_rest(case: object) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(case)[2:]


def report(name: list[object], found: tuple, exact: tuple, eager: tuple) -> None:
    def off(result: tuple) -> list[float]:
        losses = relative(result[0].loss, exact[0].loss)
        return [losses, *(relative(a, b) for a, b in zip(result[1], exact[1], strict=True))]

    same = torch.equal(found[0].clamped, eager[0].clamped)
    print(json.dumps({"case": name, "off": off(found), "eager": off(eager), "clamped": same}))


def relative(found: Tensor, wanted: Tensor) -> float:
    """Largest difference as a share of the largest value; NaN and infinities count as far."""
    if not wanted.numel():
        return 0.0 if found.shape == wanted.shape else float("inf")
    difference = (found.double() - wanted.double()).abs().max().item()
    largest = max(wanted.abs().max().item(), 1e-30)
    return difference / largest if difference == difference else float("inf")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        golden([Path(argument) for argument in sys.argv[1:]])
    else:
        main()
