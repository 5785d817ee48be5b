"""The fused kernels as torch.compile and CUDA graphs see them: operators that keep what they declare, in one graph.

The plain torch forms, which torch.compile traces, have the same tests beside those of their values.
"""

from __future__ import annotations

import importlib.util

import planar_cases
import pytest
import torch
from interpreter import interpreted
from margin_softmax_cases import ADAFACE, make_case
from torch import Tensor
from torch.nn.functional import normalize

from adadistill.core.method.class_centres import AdaptiveCentres, CentresConfig
from adadistill.kernels.margin_softmax import margin_softmax
from adadistill.kernels.planar_augment import planar_augment_u8

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

OPERATORS = {
    "sweep_chunks", "sweep_fused", "sweep_chunks_gradients", "update_centres", "undo_centres", "planar_augment",
}  # fmt: skip


@pytest.fixture(scope="module")
def cases() -> list[dict]:
    return interpreted("registered_ops")


def _named(cases: list[dict], kind: str) -> list[dict]:
    return [case for case in cases if case["case"][0] == kind]


def test_operators_write_alias_and_answer_what_they_declare(cases: list[dict]):
    """`torch.library.opcheck`, with samples and without, in both precisions."""
    checked = _named(cases, "op")
    assert {case["case"][1].split()[0] for case in checked} == OPERATORS
    assert [case for case in checked if case["against"]] == []


def test_fakes_on_cuda_are_like_real_results_in_shape_strides_and_dtype(cases: list[dict]):
    checked = _named(cases, "fake")
    assert {case["case"][1].split()[0] for case in checked} == OPERATORS
    assert [case for case in checked if case["differ"]] == []


def test_a_step_compiles_to_one_graph_that_gives_the_bits_of_eager(cases: list[dict]):
    """Centre update, loss, commit or undo, backward; trained centres. One graph for the first batch size, one for any
    other."""
    compiled = _named(cases, "compiled")
    names = [["step", "chunks"], ["step", "fused"], ["trained centres", "chunks"]]
    assert sorted(case["case"][1:] for case in compiled) == names
    for case in compiled:
        assert (case["equal"], case["graphs"], case["breaks"]) == (True, 2, {}), case


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("form", ["torch", "chunks", "fused"])
def test_a_cuda_graph_holds_update_loss_backward_and_commit(form: str):
    case = make_case(96, 500, 64, special=True).to(torch.float32, "cuda")
    embeddings, teacher = case.embeddings.requires_grad_(), normalize(case.embeddings.detach() + 0.1)
    ok = torch.tensor(True, device="cuda")

    def step(centres: AdaptiveCentres) -> tuple[Tensor, Tensor]:
        proposed = centres.propose_update(teacher, case.labels, (embeddings.detach() * teacher).sum(-1))
        target, unit_centres = centres.target_store().rows_of(case.labels), centres.unit_centres()
        rest = case.labels, case.angular, case.additive
        result = margin_softmax(embeddings, unit_centres, *rest, form=form, target_centres=target, **ADAFACE)
        (gradient,) = torch.autograd.grad(result.loss.mean(), embeddings)
        proposed.commit_(ok)
        return result.loss.detach(), gradient

    warm, eager, held = (AdaptiveCentres(CentresConfig(), case.centres.clone()) for _ in range(3))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(warm)  # compiles the kernels and makes the libraries' workspaces
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(held)
    for finite in (True, True, False, True):
        ok.fill_(finite)
        graph.replay()
        wanted = step(eager)
        found = (*captured, held.class_centres, held.unit_centres())
        for one, other in zip(found, (*wanted, eager.class_centres, eager.unit_centres()), strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.gpu
@needs_gpu
def test_a_cuda_graph_does_not_take_augmentation_that_reads_host_memory():
    call = planar_cases.make_case("rgb", "everything", 16, device="cuda")
    planar_augment_u8(**call)
    with pytest.raises(RuntimeError, match="replay for ever"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        planar_augment_u8(**call)
