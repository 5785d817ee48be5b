"""Time and memory of a call, from an idle device to an idle device: how every bench measures, and its spread."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

_BEYOND_L2_BYTES = 256 << 20


def spread(samples: Sequence[float]) -> dict[str, float]:
    """Median, p20 and p80 of repeated measurements."""
    if len(samples) == 1:
        return {"median": samples[0], "p20": samples[0], "p80": samples[0]}
    fifths = statistics.quantiles(samples, n=5, method="inclusive")
    return {"median": statistics.median(samples), "p20": fifths[0], "p80": fifths[3]}


def seconds_of(run: Callable[[], object], device: torch.device, calls: int = 1) -> float:
    """Wall time of a number of calls together, in seconds."""
    drain(device)
    started = time.perf_counter()
    for _ in range(calls):
        run()
    drain(device)
    return time.perf_counter() - started


def repeated_ms(run: Callable[[], object], device: torch.device, repeats: int, *, warm_up: int = 2) -> list[float]:
    """Milliseconds of `repeats` calls, each on its own, after some that are not counted."""
    return [1e3 * seconds_of(run, device) for _ in range(warm_up + repeats)][warm_up:]


def alternating_ms(
    runs: Mapping[str, Callable[[], object]], device: torch.device, repeats: int, *, warm_up: int = 2
) -> dict[str, list[float]]:
    """As `repeated_ms` for several calls that are compared, one of each in turn, so that a busy machine slows all.

    On CUDA every call finds a cold L2 cache: a short kernel that is run again and again would read from there what a
    step has to fetch from memory.
    """
    found: dict[str, list[float]] = {name: [] for name in runs}
    flushing = torch.empty(_BEYOND_L2_BYTES, dtype=torch.uint8, device=device) if device.type == "cuda" else None
    for _ in range(warm_up + repeats):
        for name, run in runs.items():
            if flushing is not None:
                flushing.zero_()
            found[name].append(1e3 * seconds_of(run, device))
    return {name: times[warm_up:] for name, times in found.items()}


def extra_mib(run: Callable[[], object], device: torch.device) -> float | None:
    """Peak memory of a call beside what was there before, in MiB.

    On the CPU it is what the process grows by, after the allocator has given back what earlier calls left to it; None
    where Linux's /proc or glibc does not tell.
    """
    if device.type != "cuda":
        return _grown_mib(run)
    drain(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    seconds_of(run, device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def _grown_mib(run: Callable[[], object]) -> float | None:
    reset, trim = Path("/proc/self/clear_refs"), getattr(ctypes.CDLL(None), "malloc_trim", None)
    if not reset.exists() or trim is None:
        return None
    trim(0)
    reset.write_text("5")  # the peak starts anew from what is resident now
    before = _peak_mib()
    run()
    return _peak_mib() - before


def _peak_mib() -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def drain(device: torch.device) -> None:
    """Wait for what was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
