"""The Triton forms of the margin softmax: as exact as eager in float32, and code for Hopper that does not spill."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from hopper_code import compiled_without_spill, products_of
from interpreter import interpreted
from margin_softmax_cases import ADAFACE, gradients, make_case
from tests_support import golden_files

from adadistill.kernels.margin_softmax import margin_softmax, margin_softmax_reference

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

LOSS, GRADIENT = 2e-6, 1e-5
"""Shares of the largest value, in float32."""


@pytest.fixture(scope="module")
def cases() -> list[dict]:
    return interpreted("margin_softmax")


def test_the_triton_forms_are_no_further_from_float64_than_eager_is(cases: list[dict]):
    """Odd and prime sizes, one past a tile, no samples, one class, rows on and opposite to centres, ignored rows; D up
    to 1024."""
    compared = [case for case in cases if "eager" in case]
    assert len(compared) == (5 + 2) * 3 + 1 + 2
    for case in compared:
        assert case["clamped"], case
        for off, eager, limit in zip(case["off"], case["eager"], (LOSS, GRADIENT, GRADIENT), strict=False):
            assert off <= max(limit, 1.05 * eager), case


def test_parts_of_the_classes_give_what_the_whole_gives(cases: list[dict]):
    parts = [case for case in cases if case["case"][0] == "splits"]
    assert [case["case"][1] for case in parts] == [2, 3, 7]
    assert all(max(case["off"]) <= 1e-6 for case in parts), parts


def test_inputs_may_lie_scattered_in_memory(cases: list[dict]):
    """A label that is a column of a packed tensor was once read from its neighbour's place."""
    scattered = [case for case in cases if case["case"][0] == "scattered"]
    assert len(scattered) == 3
    assert all(max(case["off"]) <= 1e-5 for case in scattered), scattered


@pytest.mark.parametrize("name", ["bfloat16", "scaled"])
def test_half_precision_centres_lose_what_their_rounding_loses_also_at_any_length(cases: list[dict], name: str):
    """fused rounds the embeddings to bfloat16 as well, 2^-9 of each value; the others widen on the CPU."""
    off = {case["case"][1]: case["off"] for case in cases if case["case"][0] == name}
    assert max(*off["torch"], *off["chunks"]) <= GRADIENT
    assert off["fused"][0] <= 4e-3
    assert off["fused"][1] <= 2e-2


def test_products_in_bfloat16_are_those_of_the_plain_form(cases: list[dict]):
    """But for weights before and after their common factor, which are rounded at other places."""
    found = [case for case in cases if case["case"][0] == "half products"]
    assert [case["case"][1] for case in found] == [False, True]
    for case in found:
        assert case["off"][0] <= LOSS, case
        assert max(case["off"][1:]) <= 8e-3, case


@pytest.mark.golden
def test_golden_heads_through_triton_in_float32():
    files = [str(path) for pattern in ("adadistill_*.npz", "trainable_*.npz") for path in golden_files(pattern)]
    if not files:
        pytest.skip("no golden cases (ADADISTILL_GOLDEN)")
    cases = interpreted("margin_softmax", files)
    assert {case["case"][1] for case in cases} == {"chunks", "fused"}
    for case in cases:
        # Their own clamps of 1e-4 differ from the heads we ship.
        slack = 10.0 if "_repo_" in case["case"][0] else 1.0
        assert case["off"][0] <= slack * LOSS, case
        assert max(case["off"][1:]) <= slack * GRADIENT, case


HOPPER, ADA = (90, 227 * 1024), (89, 99 * 1024)


@pytest.mark.parametrize(
    ("capability", "shared", "dim", "weighted", "scaled"),
    [(*HOPPER, 512, True, False), (*HOPPER, 512, True, True), (*HOPPER, 256, True, True), (*ADA, 512, True, True)],
)  # fmt: skip
def test_fused_makes_each_product_once_and_keeps_its_sums_in_registers(
    capability: int,
    shared: int,
    dim: int,
    weighted: bool,
    scaled: bool,
    tmp_path: Path,
):
    """Compiled ahead of time, without a GPU. At D 512 a compiler that saw the products' chain once gave each of 8 warps
    16 of 64 rows, and made the first product twice."""
    from adadistill.kernels import margin_softmax_triton

    tile = margin_softmax_triton.tile_of(dim, shared)
    constants = {"D": dim, "WIDE": dim, "ROWS": tile.rows, "CLASSES": tile.classes, "WEIGHTED": weighted,
                 "SCALED": scaled, "SPREADS": 16 * tile.warps > tile.rows, "WIDENS": False}  # fmt: skip
    types = {"tiles": f"tensordesc<bf16[{tile.classes}, {dim}]>", "embeddings": "*bf16", "labels": "*i64",
             **dict.fromkeys(("lengths", "totals", "weighted"), "*fp32"), "scale": "fp32", "limit": "fp32"}  # fmt: skip
    # Inverse lengths beside (32, 512) sums are 14 numbers too many for the older products.
    spilt = 64 if (capability, dim, weighted, scaled) == (89, 512, True, True) else 0
    compiled = compiled_without_spill(
        margin_softmax_triton.fused_sweep_kernel, types, constants, tmp_path, stack=spilt, capability=capability,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    assert ("wgmma" in compiled.asm["ptx"]) == (capability == 90)
    assert products_of(compiled, tile.warps) == tile.rows * tile.classes * dim * (2 if weighted else 1)
    assert compiled.metadata.shared <= shared


@pytest.mark.parametrize("scaled", [False, True], ids=["unit", "scaled"])
@pytest.mark.parametrize("gradient", [False, True], ids=["weights", "gradients"])
def test_the_pass_between_products_spills_nothing(gradient: bool, scaled: bool, tmp_path: Path):
    from adadistill.kernels import margin_softmax_triton

    constants = {"GRADIENT": gradient, "SCALED": scaled, "BLOCK": 1024}
    types = {**dict.fromkeys(("cosines", "totals", "lse", "target", "factor", "lengths"), "*fp32"), "weights": "*bf16",
             "labels": "*i64", "scale": "fp32", "limit": "fp32"}  # fmt: skip
    compiled_without_spill(margin_softmax_triton.class_weights_kernel, types, constants, tmp_path, num_warps=4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("form", ["torch", "chunks", "fused"])
@pytest.mark.parametrize("shape", [(1, 2, 16), (67, 331, 80), (384, 5000, 512)])
def test_on_cuda_bfloat16_centres_give_what_their_rounding_allows(form: str, shape: tuple[int, int, int]):
    case = make_case(*shape)
    rounded, own = case.centres.bfloat16(), case.centres[case.labels.clamp(min=0)]
    exact = case.embeddings.clone().requires_grad_()
    rest = tuple(case)[2:]
    wanted = margin_softmax_reference(exact, rounded.double(), *rest, target_centres=own, **ADAFACE)
    (wanted_gradient,) = torch.autograd.grad(wanted.loss.sum(), exact)
    single = case.to(torch.float32, "cuda")
    runs = []
    for _ in range(2):
        embeddings = single.embeddings.clone().requires_grad_()
        result = margin_softmax(
            embeddings, rounded.cuda(), *tuple(single)[2:], target_centres=own.float().cuda(), form=form, **ADAFACE
        )
        runs.append((result.loss, *torch.autograd.grad(result.loss.sum(), embeddings)))
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True)), "the same bits every time"
    loss, gradient = (value.double().cpu() for value in runs[0])
    assert (loss - wanted.loss).abs().max() <= 4e-3 * wanted.loss.abs().max() + 1e-3
    assert (gradient - wanted_gradient).abs().max() <= 2e-2 * wanted_gradient.abs().max()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("trained", [False, True])
def test_on_cuda_float32_chunks_are_as_exact_as_eager(trained: bool):
    case = make_case(67, 331, 80)
    exact = gradients(margin_softmax_reference, case, trained=trained, **ADAFACE)
    single = case.to(torch.float32, "cuda")
    found = gradients(margin_softmax, single, trained=trained, form="chunks", **ADAFACE)
    pairs = [(found[0].loss, exact[0].loss), *zip(found[1], exact[1], strict=True)]
    for (one, other), limit in zip(pairs, (LOSS, GRADIENT, GRADIENT), strict=False):
        assert (one.double().cpu() - other).abs().max() <= limit * other.abs().max()
