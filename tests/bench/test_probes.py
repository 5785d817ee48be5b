"""Probes are plausible, quick, measured once a process, and leave torch as they found it."""

from __future__ import annotations

import time

import pytest
import torch

from adadistill.bench import probes
from adadistill.bench.probes import copy_gb_per_s, gemm_tflop_per_s, machine_probes

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")],
    ),
]


@pytest.mark.parametrize("device", DEVICES)
def test_each_is_a_spread_and_measured_once(device: str):
    found = machine_probes(torch.device(device))
    expected = {"gemm_float32_tflop_per_s", "gemm_bfloat16_tflop_per_s", "copy_gb_per_s"}
    if device == "cuda":
        expected |= {"gemm_tf32_tflop_per_s", "host_to_device_gb_per_s"}
    assert set(found) == expected
    assert all(0.0 < one["p20"] <= one["median"] <= one["p80"] for one in found.values())
    found.clear()  # the caller's own copy
    started = time.perf_counter()
    again = machine_probes(torch.device(device))
    assert time.perf_counter() - started < 0.05
    assert set(again) == expected
    assert gemm_tflop_per_s(torch.device(device), torch.bfloat16) == again["gemm_bfloat16_tflop_per_s"]["median"]
    assert copy_gb_per_s(torch.device(device)) == again["copy_gb_per_s"]["median"]


def test_the_product_that_is_timed_is_long_enough_and_counted_right(monkeypatch: pytest.MonkeyPatch):
    sides = []

    def seconds_of(run, device, calls=1):
        sides.append(run.args[0].shape[0])
        return calls * 1e-12 * sides[-1] ** 3

    monkeypatch.setattr(probes, "seconds_of", seconds_of)
    monkeypatch.setattr(probes, "_LARGEST_SIDE", 512)
    rate = probes._gemm(torch.device("cpu"), torch.float32)
    assert sorted(set(sides)) == [128, 256, 512]
    assert rate["median"] == pytest.approx(2.0)  # 2 side^3 operations in side^3 picoseconds


def test_tf32_is_as_it_was_before():
    before = torch.backends.cuda.matmul.allow_tf32
    with probes._tf32_products(not before):
        assert torch.backends.cuda.matmul.allow_tf32 is not before
    assert torch.backends.cuda.matmul.allow_tf32 is before
