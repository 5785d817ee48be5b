"""A few integers from the device to the host, every step, without making the device wait.

Reading a CUDA tensor stalls the host until the device has caught up, and the device then until the host has queued work
again. Here a small tensor is copied to pinned memory and looked at a fixed number of steps later, when it has long
arrived. The lag is a number of steps, not "when ready", so that all ranks act on the same values at the same step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor

CUDA_LAG = 2
"""Steps: one being computed and one queued behind it; at a lag of two the copy is never waited for in steady state."""


class LaggedReadback:
    """Push one (n,) int64 tensor a step, get the host values of the one pushed `lag` steps earlier.

    Args:
        device: of the tensors.
        lag: in steps; left out it is CUDA_LAG on CUDA, and 0 on the CPU, where what is pushed comes back at once.
    """

    def __init__(self, device: torch.device, *, lag: int | None = None) -> None:
        self._cuda = device.type == "cuda"
        self.lag = (CUDA_LAG if self._cuda else 0) if lag is None else lag
        self._in_flight: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()

    def push(self, values: Tensor) -> list[int] | None:
        """Start copying `values`; the host values of `lag` pushes ago, or None while there are none."""
        host = torch.empty(values.shape, dtype=torch.int64, pin_memory=self._cuda)
        host.copy_(values, non_blocking=self._cuda)
        event = None
        if self._cuda:
            event = torch.cuda.Event()
            event.record()
        self._in_flight.append((host, event))
        return self._take() if len(self._in_flight) > self.lag else None

    def drain(self) -> Iterator[list[int]]:
        """Wait for everything in flight; the values of each push, the oldest first."""
        while self._in_flight:
            yield self._take()

    def _take(self) -> list[int]:
        host, event = self._in_flight.popleft()
        if event is not None:
            event.synchronize()
        return host.tolist()
