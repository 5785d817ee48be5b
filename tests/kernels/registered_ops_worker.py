"""Runs the registered operators in Triton's interpreter, which is chosen before Triton is imported: its own process.

Prints one line of JSON for each case: what `torch.library.opcheck` holds against an operator, how its fakes differ from
real results, and whether torch.compile gave the bits of eager through one graph.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tests_support

tests_support.make_importable()

import planar_cases
import torch
from margin_softmax_cases import ADAFACE, make_case
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import normalize
from torch.utils._pytree import tree_leaves, tree_map_only

from adadistill.core.method.class_centres import AdaptiveCentres, CentresConfig
from adadistill.kernels import centre_update_triton, margin_softmax_triton, planar_augment
from adadistill.kernels.margin_softmax import margin_softmax

BATCHES = (8, 11, 13)
"""The first graph is made for one size, the second for any."""
CLASSES, DIM = 70, 16
ONLY_FAKES = ("0 torch.float32", "7 torch.bfloat16")
"""An opcheck traces an operator four times: one without samples and one with, in either precision, are enough."""


def main() -> None:
    for name, operator, arguments in operator_calls():
        if name.split(" ", 1)[-1] not in ONLY_FAKES:
            print(json.dumps({"case": ["op", name], "against": complaints(operator, arguments)}))
        print(json.dumps({"case": ["fake", name], "differ": fake_differences(operator, arguments)}))
    compiled_trained_centres("chunks")  # which backward runs as, whatever the form
    for form in ("chunks", "fused"):
        compiled_step(form)


def operator_calls() -> Iterator[tuple[str, Any, tuple[object, ...]]]:
    kinds = (0, torch.bfloat16, False), (0, torch.float32, True), (7, torch.float32, True), (7, torch.bfloat16, False)
    for batch, dtype, weighted in kinds:
        case = make_case(batch, 20, 16).to(torch.float32)
        inputs = case.embeddings, case.centres.to(dtype), case.labels
        name = f"{batch} {dtype}"
        lengths = None if weighted else torch.ones(20)
        operands = torch.float32 if weighted else torch.bfloat16
        swept = (*inputs, 64.0, 1.0, 9, weighted, operands, lengths)
        yield f"sweep_chunks {name}", margin_softmax_triton.sweep_chunks, swept
        yield f"sweep_fused {name}", margin_softmax_triton.sweep_fused, (*inputs, 64.0, 1.0, weighted, lengths)
        vectors = torch.full((batch,), 64.0), torch.full((batch,), -0.5), torch.ones(batch)
        gradients = (*inputs, *vectors, 64.0, 1.0, 9, operands)
        yield f"sweep_chunks_gradients {name}", margin_softmax_triton.sweep_chunks_gradients, gradients
        # No identity twice: rows of `old` that no sample leads are left as the memory was.
        units, labels = case.centres.to(dtype) if weighted else torch.ones(20), torch.arange(batch)
        update = case.centres, units, case.embeddings, labels, torch.rand(batch), weighted
        yield f"update_centres {name}", centre_update_triton._update_centres, update
        undo = case.centres, units, labels, torch.zeros(batch, 16), units.new_zeros(batch, *units.shape[1:])
        yield f"undo_centres {name}", centre_update_triton._undo_centres, (*undo, torch.tensor(weighted))
    call = planar_cases.make_case("rgb", "mirror", 16)
    arguments = call["store"], call["rows"], call["mirrored"], None, None, None, False, 16, torch.float32, True
    yield "planar_augment", planar_augment._augment, arguments


def complaints(operator: Any, arguments: tuple[object, ...]) -> dict[str, str]:
    """Schema and mutations, autograd registration, fake results, dispatch with static and dynamic shapes."""
    found = torch.library.opcheck(operator, tree_map_only(Tensor, Tensor.clone, arguments), raise_exception=False)
    return {check: str(result) for check, result in found.items() if result != "SUCCESS"}


def fake_differences(operator: Any, arguments: tuple[object, ...]) -> list[str]:
    """On fake CUDA tensors: no device is needed, only what the fake says."""
    real = operator(*tree_map_only(Tensor, Tensor.clone, arguments))
    with FakeTensorMode():
        fake = operator(*tree_map_only(Tensor, on_cuda, arguments))
    pairs = zip(tree_leaves(real), tree_leaves(fake), strict=True)
    seen = [(described(one), described(other), other.device.type) for one, other in pairs if one is not None]
    return [str(case) for case in seen if case[0] != case[1] or case[2] != "cuda"]


def on_cuda(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")


def described(tensor: Tensor) -> tuple[object, ...]:
    return tensor.dtype, tuple(tensor.shape), tensor.stride()


class Compiled:
    """A function through torch.compile in one graph, and how often it was compiled."""

    def __init__(self, function: Callable[..., Any]) -> None:
        torch.compiler.reset()
        torch._dynamo.utils.counters.clear()
        self.run = torch.compile(function, fullgraph=True, backend="aot_eager")

    def report(self, name: list[object], equal: list[bool]) -> None:
        counters = torch._dynamo.utils.counters
        print(
            json.dumps(
                {
                    "case": ["compiled", *name],
                    "equal": all(equal),
                    "graphs": counters["stats"]["unique_graphs"],
                    "breaks": dict(counters["graph_break"]),
                }
            )
        )


def compiled_trained_centres(form: str) -> None:
    def results_of(*inputs: Tensor) -> tuple[Tensor, ...]:
        result = margin_softmax(*inputs, form=form, **ADAFACE)
        return result.loss, result.target_probability, result.clamped

    compiled, equal = Compiled(results_of), []
    for batch in BATCHES:
        case = make_case(batch, CLASSES, DIM, seed=batch, special=True).to(torch.float32)
        results = []
        for function in (compiled.run, results_of):
            embeddings, centres = case.embeddings.clone().requires_grad_(), case.centres.clone().requires_grad_()
            values = function(embeddings, centres, *tuple(case)[2:])
            (values[0] * torch.linspace(1.0, 2.0, batch)).sum().backward()
            results.append([*values, embeddings.grad, centres.grad])
        equal += [torch.equal(one, other) for one, other in zip(*results, strict=True)]
    compiled.report(["trained centres", form], equal)


def compiled_step(form: str) -> None:
    """Update of the centres, loss, and commit or undo, in one graph; then backward."""

    def step(
        centres: AdaptiveCentres, teacher: Tensor, ok: Tensor, embeddings: Tensor, labels: Tensor, *margin: Tensor
    ) -> tuple[Tensor, ...]:
        proposed = centres.propose_update(teacher, labels, (embeddings.detach() * teacher).sum(-1))
        target, unit_centres = centres.target_store().rows_of(labels), centres.unit_centres()
        result = margin_softmax(embeddings, unit_centres, labels, *margin, form=form, target_centres=target, **ADAFACE)
        loss = result.loss.mean()
        proposed.commit_(ok & torch.isfinite(loss.detach()))
        return loss, proposed.confidence, proposed.momentum, result.target_probability

    compiled, equal = Compiled(step), []
    start = make_case(8, CLASSES, DIM).to(torch.float32).centres
    both = [AdaptiveCentres(CentresConfig(), start.clone(), unit_dtype=torch.bfloat16) for _ in range(2)]
    for number, batch in enumerate(BATCHES):
        case = make_case(batch, CLASSES, DIM, seed=batch, special=True).to(torch.float32)
        teacher, results = normalize(case.embeddings + 0.1), []
        for function, centres in zip((compiled.run, step), both, strict=True):
            embeddings = case.embeddings.clone().requires_grad_()
            rest = case.labels, case.angular, case.additive
            values = function(centres, teacher, torch.tensor(number != 1), embeddings, *rest)
            values[0].backward()
            results.append([*values, embeddings.grad, centres.class_centres, centres.unit_centres()])
        equal += [torch.equal(one, other) for one, other in zip(*results, strict=True)]
    equal.append(not torch.equal(both[0].class_centres, start))
    compiled.report(["step", form], equal)


if __name__ == "__main__":
    main()
