"""What the machine can do at the moment of measuring: the roofs that a bench's own rates are set against.

Data sheets do not know how many cores a container was given, which clocks a card holds, or who else is at work. So each
process measures for itself, in less than two seconds for each probe and once: a square matrix product in float32,
bfloat16 and, on CUDA, TF32; a copy within the memory of the device; on CUDA a copy from page-locked host memory to it.
Each is a spread over several groups: a wide one says that the machine was not quiet.

    gemm_<format>_tflop_per_s    2 side^3 operations, the side grown until one product takes long enough to be timed
    copy_gb_per_s                bytes read plus bytes written, of a buffer beyond any cache
    host_to_device_gb_per_s      bytes moved
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial

import torch

from adadistill.bench.timing import drain, seconds_of, spread

_GROUPS = 5
_GROUP_S = 0.04
"""Seconds of one group, about."""
_LONG_ENOUGH_S = {"cpu": 0.01, "cuda": 0.0005}
"""A product that takes so long is not dominated by starting it."""
_LARGEST_SIDE = 8192
_COPIED_BYTES = {"cpu": 64 << 20, "cuda": 1 << 30}
"""Half of it is read and half is written."""

Probes = dict[str, dict[str, float]]


def machine_probes(device: torch.device) -> Probes:
    """All probes of a device, by name; each {median, p20, p80}. Measured once a process, then remembered.

    CPU probes use as many threads as torch does now; another number of threads is another machine.
    """
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    found = _measured(device, torch.get_num_threads())
    return {name: dict(values) for name, values in found.items()}


def gemm_tflop_per_s(device: torch.device, dtype: torch.dtype) -> float:
    """Median rate of the matrix product in a format, of `machine_probes`."""
    return machine_probes(device)[f"gemm_{str(dtype).removeprefix('torch.')}_tflop_per_s"]["median"]


def copy_gb_per_s(device: torch.device) -> float:
    """Median rate of a copy within a device, bytes read plus bytes written, of `machine_probes`."""
    return machine_probes(device)["copy_gb_per_s"]["median"]


@cache
def _measured(device: torch.device, threads: int) -> Probes:
    probes = {
        "gemm_float32_tflop_per_s": _gemm(device, torch.float32),
        "gemm_bfloat16_tflop_per_s": _gemm(device, torch.bfloat16),
        "copy_gb_per_s": _copy(device),
    }
    if device.type == "cuda":
        probes["gemm_tf32_tflop_per_s"] = _gemm(device, torch.float32, tf32=True)
        probes["host_to_device_gb_per_s"] = _host_to_device(device)
    return probes


def _gemm(device: torch.device, dtype: torch.dtype, *, tf32: bool = False) -> dict[str, float]:
    with _tf32_products(tf32):
        side = 128
        while True:
            factors = torch.rand(2, side, side, device=device).to(dtype)
            product = partial(torch.matmul, factors[0], factors[1])
            seconds_of(product, device)  # the library chooses and prepares its kernel
            if seconds_of(product, device) >= _LONG_ENOUGH_S[device.type] or side == _LARGEST_SIDE:
                return _rates(product, device, 2 * side**3 / 1e12)
            side *= 2


def _copy(device: torch.device) -> dict[str, float]:
    half = _COPIED_BYTES[device.type] // 2
    source = torch.ones(half, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)  # written once, so that the system has given the pages
    return _rates(partial(target.copy_, source), device, 2 * half / 1e9)


def _host_to_device(device: torch.device) -> dict[str, float]:
    host = torch.ones(_COPIED_BYTES["cpu"], dtype=torch.uint8).pin_memory()
    target = torch.empty_like(host, device=device)
    return _rates(partial(target.copy_, host, non_blocking=True), device, host.nbytes / 1e9)


def _rates(run: Callable[[], object], device: torch.device, amount: float) -> dict[str, float]:
    """Amount a second, over groups of calls."""
    drain(device)
    started = time.perf_counter()
    run()
    drain(device)
    calls = max(1, min(1000, round(_GROUP_S / (time.perf_counter() - started + 1e-9))))
    rates = [calls * amount / seconds_of(run, device, calls) for _ in range(_GROUPS)]
    return {name: float(f"{value:.4g}") for name, value in spread(rates).items()}


@contextmanager
def _tf32_products(allowed: bool) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
