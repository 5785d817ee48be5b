"""The Triton head prologue: as exact as eager in float32, three launches in all, and code for Hopper without spills."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest
import torch
from hopper_code import compile_for_hopper, compiled_without_spill
from interpreter import interpreted
from objective_cases import OBJECTIVES, objective_steps

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

ROUNDING, SWEPT = 2e-7, 4e-6
"""Shares of the largest value in float32: a last place and a half; what a sweep over the classes makes of it."""


@pytest.fixture(scope="module")
def cases() -> list[dict]:
    return interpreted("head_prologue")


def _named(cases: list[dict], first: str) -> dict:
    (case,) = [case for case in cases if case["case"][0] == first]
    return case


def test_directions_and_their_gradient_are_no_further_from_float64_than_eager_is(cases: list[dict]):
    """No rows, one, primes, real sizes; on and opposite the centre, zero, too short for a direction, NaN."""
    compared = [case for case in cases if case["case"][0] == "rows"]
    assert len(compared) == 7
    _check(compared, ROUNDING)


def test_everything_after_the_gather_is_no_further_from_float64_than_eager_is(cases: list[dict]):
    """Five heads and geometry modes, both kinds of centres, samples of other ranks, all ignored; flags are equal."""
    compared = [case for case in cases if "adaface" in case["case"][0] or len(case["case"]) == 4]
    assert len(compared) == 12
    assert {name for case in compared for name in case["off"]} >= {"norm_std", "geometry", "logit", "slope"}
    _check(compared, ROUNDING)


def test_half_precision_masters_and_statistics_in_float64_are_rounded_once(cases: list[dict]):
    case = _named(cases, "bfloat16")
    _check([case], ROUNDING)
    assert max(case["off"]["norm_mean"], case["off"]["norm_std"]) <= 1e-12


def test_whole_objectives_take_the_same_steps_as_in_plain_torch(cases: list[dict]):
    """Loss, every metric, gradients, centres and statistics after two steps."""
    compared = [case for case in cases if case["case"][0] == "objective"]
    assert [case["case"][1] for case in compared] == list(OBJECTIVES)
    _check(compared, SWEPT)


def _check(compared: list[dict], slack: float) -> None:
    for case in compared:
        assert case["flags"], case["case"]
        for name, off in case["off"].items():
            assert off <= 2 * case["eager"][name] + slack, (case["case"], name, off, case["eager"][name])


def test_all_ranks_get_the_same_bits_however_many_rows_they_hold(cases: list[dict]):
    assert _named(cases, "same bits")["same"]


def test_what_is_not_finite_spreads_as_far_as_in_eager(cases: list[dict]):
    assert _named(cases, "broken")["same"]


def test_torch_accepts_the_operators_and_compiles_them_without_a_break(cases: list[dict]):
    """opcheck of the three has passed where this line was printed."""
    assert _named(cases, "compiled")["same"]


def test_two_launches_forward_and_one_backward_and_no_torch_operation_beside_them(cases: list[dict]):
    counted = _named(cases, "launches")
    assert counted["forward"] == ["directions_kernel", "prologue_kernel"]
    assert counted["backward"] == ["directions_backward_kernel"]
    assert counted["operators"] == ["adadistill::head_directions", "adadistill::head_prologue"]


LIMITS = {"LOWEST": 1e-3, "HIGHEST": math.pi - 1e-3, "SIN_HALF_LOWEST": 5e-4, "COS_HALF_LOWEST": 1.0,
          "SIN_HALF_HIGHEST": 1.0, "COS_HALF_HIGHEST": 5e-4}  # fmt: skip
NUMBERS = {"MARGIN": 0.4, "CONCENTRATION": 0.333, "MOMENTUM": 0.01, "SCALE": 64.0, "LIMIT": 0.999,
           "GEOMETRY_SCALE": 3.0, "MASK": 0.8, "BASELINE": 0.25, "TILE": 1024}  # fmt: skip
VARIANTS = {
    "directions": {"TAUGHT": True},
    "directions, backward": {},
    "adaface, adaptive": {"KIND": "adaface", "GEOMETRY": "adaptive", "HAS_ANGLES": True, "STRAIGHT_THROUGH": False},
    "adaface, static": {"KIND": "adaface", "GEOMETRY": "static", "HAS_ANGLES": True, "STRAIGHT_THROUGH": False},
    "arcface": {"KIND": "arcface", "GEOMETRY": "off", "HAS_ANGLES": False, "STRAIGHT_THROUGH": False},
}


@pytest.mark.parametrize(("name", "dim"), [*((name, 512) for name in VARIANTS), ("adaface, adaptive", 1024)])
def test_hopper_code_does_not_spill_and_divides_exactly(name: str, dim: int, tmp_path: Path):
    """Compiled ahead of time for compute capability 9.0, without a GPU."""
    from adadistill.kernels import head_prologue_triton

    kernels = {"directions": "directions_kernel", "directions, backward": "directions_backward_kernel"}
    function = getattr(head_prologue_triton, kernels.get(name, "prologue_kernel"))
    constants = {**VARIANTS[name], "D": dim, "WIDE": dim}
    if name not in kernels:
        constants |= {**LIMITS, **NUMBERS, "UNIT": False}
    known = {"labels": "*i64", "all_labels": "*i64", "clipped": "*i1", "clamped": "*i1", "gain": "fp32"}
    whole = {"batch", "count", "row_stride", "teacher_stride", "grad_stride"}
    types = {name: known.get(name, "*fp32") for name in function.arg_names if name not in {*constants, *whole}}
    compiled = compiled_without_spill(function, types, constants, tmp_path, num_warps=4)
    assert "div.full" not in compiled.asm["ptx"], "an approximate division is off by two units in the last place"
    assert ".approx" not in compiled.asm["ptx"]


@pytest.mark.parametrize(("key", "message"), [("KIND", "no margin is known"), ("GEOMETRY", "no formula is known")])
def test_a_kind_or_mode_without_a_branch_does_not_compile(key: str, message: str):
    """It trained without a margin."""
    from adadistill.kernels.head_prologue_triton import prologue_kernel

    constants = {**VARIANTS["arcface"], **LIMITS, **NUMBERS, "UNIT": False, "D": 16, "WIDE": 16, key: "own"}
    known = {"labels": "*i64", "all_labels": "*i64", "clipped": "*i1", "clamped": "*i1", "gain": "fp32"}
    others = {*constants, "batch", "count"}
    types = {name: known.get(name, "*fp32") for name in prologue_kernel.arg_names if name not in others}
    with pytest.raises(Exception, match=message):
        compile_for_hopper(prologue_kernel, types, constants)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", OBJECTIVES)
def test_on_cuda_whole_objectives_take_the_same_steps_as_in_plain_torch(name: str, monkeypatch: pytest.MonkeyPatch):
    found, exact = objective_steps(name, torch.float32, "cuda"), objective_steps(name, torch.float64)
    monkeypatch.setenv("ADADISTILL_KERNELS", "torch")
    eager = objective_steps(name, torch.float32, "cuda")
    for part, wanted in exact.items():
        largest = wanted.abs().max().item() + 1e-30
        off, eager_off = ((made[part].double().cpu() - wanted).abs().max().item() for made in (found, eager))
        assert off <= 2 * eager_off + SWEPT * largest, part
