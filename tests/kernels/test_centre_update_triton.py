"""The Triton centre update: what the ordered rule gives in float64, undone in every bit, compiled for Hopper."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from hopper_code import compiled_without_spill
from interpreter import interpreted
from torch.nn.functional import normalize

from adadistill.core.method.class_centres import AdaptiveCentres, CentresConfig

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


@pytest.fixture(scope="module")
def cases() -> list[dict]:
    return interpreted("centre_update")


def test_the_update_is_that_of_one_sample_after_the_other(cases: list[dict]):
    """Confidence, momentum, centres and unit rows; repeated, ignored and single identities, no samples."""
    updates = [case for case in cases if case["case"][0] not in ("half", "lengths", "beyond")]
    assert len(updates) == 7
    for case in updates:
        assert max(case["off"]) <= 5e-7, case
        assert case["untouched"], case


def test_a_step_that_is_not_finite_is_undone_in_every_bit(cases: list[dict]):
    assert all(case["undone"] for case in cases if "undone" in case)


def test_half_precision_is_rounded_once(cases: list[dict]):
    off = {case["case"][1]: case["off"] for case in cases if case["case"][0] == "half"}
    assert off["torch.float32"][0] <= 5e-7
    assert off["torch.float32"][1] <= 2**-11  # the unit copy is float16
    assert max(off["torch.float16"]) <= 2**-10


def test_inverse_lengths_take_the_place_of_unit_rows(cases: list[dict]):
    found = [case for case in cases if case["case"][0] == "lengths"]
    assert [case["case"][1] for case in found] == ["bfloat16", "float16"]
    for case in found:
        assert case["same"] == [True] * 3, case
        assert case["off"][0] <= 1e-6, case
        assert case["off"][1] <= (2**-9 if case["case"][1] == "bfloat16" else 2**-12), case


def test_rows_may_lie_beyond_2_to_the_31_values_and_cosines_in_a_packed_tensor(cases: list[dict]):
    (beyond,) = [case for case in cases if case["case"][0] == "beyond"]
    assert beyond["same"] == [True] * 5
    assert beyond["column"]


@pytest.mark.parametrize("kernel", ["update_kernel", "undo_kernel"])
@pytest.mark.parametrize("unit", ["bf16", "fp32", "lengths"])
def test_the_kernels_compile_for_hopper_without_spilling(kernel: str, unit: str, tmp_path: Path):
    from adadistill.kernels import centre_update_triton

    function = getattr(centre_update_triton, kernel)
    scaled = unit == "lengths"
    centre, derived = ("*bf16", "*fp32") if scaled else ("*fp32", f"*{unit}")
    types = {"centres": centre, "derived": derived, "old": centre, "old_derived": derived, "sorted_labels": "*i64"}
    constants = {"D": 512, "WIDE": 512, "LENGTHS": scaled}
    if kernel == "update_kernel":
        types |= {**dict.fromkeys(("teacher", "cosines", "confidences", "momenta"), "*fp32"), "order": "*i64"}
        constants["WEIGHTED"] = True
    else:
        types["ok"] = "*i1"
    compiled_without_spill(function, types, constants, tmp_path, num_warps=4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("unit_dtype", [torch.float32, torch.bfloat16])
def test_on_cuda_the_update_is_the_cpu_s_and_can_be_undone(unit_dtype: torch.dtype):
    draw = torch.Generator().manual_seed(3)
    stored = torch.randn(200, 512, generator=draw)
    teacher = normalize(torch.randn(300, 512, generator=draw) + 0.5)
    labels = torch.randint(-1, 60, (300,), generator=draw)
    cosines = torch.rand(300, generator=draw)
    exact = AdaptiveCentres(CentresConfig(), stored.double())
    wanted = exact.propose_update(teacher.double(), labels, cosines.double())
    centres = AdaptiveCentres(CentresConfig(), stored.cuda(), unit_dtype=unit_dtype)
    before = centres.class_centres.clone(), centres.unit_centres().clone()
    inputs = teacher.cuda(), labels.cuda(), cosines.cuda()
    step = centres.propose_update(*inputs)
    assert (step.momentum.double().cpu() - wanted.momentum).abs().max() <= 5e-7
    assert (centres.class_centres.double().cpu() - exact.class_centres).abs().max() <= 1e-6
    off = (centres.unit_centres().double().cpu() - exact.unit_centres()).abs().max()
    assert off <= (1e-6 if unit_dtype == torch.float32 else 2**-9)
    step.commit_(torch.tensor(False, device="cuda"))
    assert torch.equal(centres.class_centres, before[0])
    assert torch.equal(centres.unit_centres(), before[1])
    centres.propose_update(*inputs).commit_(torch.tensor(True, device="cuda"))
    assert (centres.class_centres.double().cpu() - exact.class_centres).abs().max() <= 1e-6
