"""Nothing non-finite is kept: the decision whether a step may be committed, taken on the device.

A step is finite when every sample of the global batch is (its image, embedding and teacher embedding) and so is the
gradient. Both are known on every rank without a collective of their own: sample flags travel with the gathered cosines
and norms, and the gradient has been averaged. Where the step is not finite, parameters, momentum, centres and
statistics keep their bits. With `stop` the guard also refuses every later step, so that the state stays as it was
before the first bad one, however late the host, which `LaggedReadback` tells, looks.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from adadistill.loaders.errors import WorkFailed

CUDA_LAG = 2
"""Steps: one being computed and one queued behind it; at a lag of two the copy is never waited for in steady state."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardConfig:
    """What to do about a non-finite step, which is never committed, and about a rank that stops answering."""

    on_nonfinite: Literal["stop", "skip"] = "stop"
    """stop: end the run and name the records; skip: go on, at most `max_skips` times. Stopping is the default, because
    skipping hides bad hyper-parameters."""
    max_skips: int = 10
    """Steps that may be skipped in a run before it stops after all. Not negative."""
    hang_timeout_s: float | None = 600.0
    """Seconds without a move of a rank after which the run is ended, with the stacks of all ranks in its folder; three
    times as long in first step, evaluation and saving. At least 1, or null to wait for ever. Ten minutes are longer
    than any healthy step and than most stalls of a file system; docs/reliability.md."""

    def __post_init__(self) -> None:
        if self.max_skips < 0:
            raise ValueError(f"max_skips must not be negative, got {self.max_skips}")
        if self.hang_timeout_s is not None and not 1.0 <= self.hang_timeout_s < math.inf:
            raise ValueError(f"hang_timeout_s must be at least 1 and finite, or null, got {self.hang_timeout_s}")


class NonFiniteError(WorkFailed, RuntimeError):
    """A step was not finite. `record_ids`: the samples to blame, or the whole global batch where none stands out."""

    def __init__(self, message: str, record_ids: list[int]) -> None:
        super().__init__(message)
        self.record_ids = record_ids


class NonFiniteGuard:
    """Device-side state of the decision; replicated, equal on all ranks. Not saved: a saved run was finite.

    Args:
        global_batch_size: G, samples per step over all ranks.
    """

    def __init__(self, config: GuardConfig, global_batch_size: int, device: torch.device) -> None:
        self.config = config
        self.halted = torch.zeros((), dtype=torch.bool, device=device)
        self.rejected_steps = torch.zeros((), dtype=torch.int64, device=device)
        self.last_rejected = torch.full((), -1, dtype=torch.int64, device=device)
        """Global step of the newest rejected step (with `stop`: of the first), -1 if none."""
        self._bad_samples = torch.zeros(1 + CUDA_LAG, global_batch_size, dtype=torch.bool, device=device)  # (K, G)

    def admit(self, *, finite_samples: Tensor, gradient_norm: Tensor, global_step: int) -> Tensor:
        """Whether this step may be committed, as a 0-dim bool on the device.

        Args:
            finite_samples: (G,) bool, equal on all ranks.
            gradient_norm: 0-dim, of the averaged gradient.
            global_step: 0-based step of the run.
        """
        finite = finite_samples.all() & torch.isfinite(gradient_norm)
        rejected = ~finite & ~self.halted
        self.rejected_steps += rejected
        self.last_rejected = torch.where(rejected, global_step, self.last_rejected)
        row = self._bad_samples[global_step % len(self._bad_samples)]
        row.copy_(torch.where(rejected, ~finite_samples, row))
        if self.config.on_nonfinite == "stop":
            self.halted = self.halted | rejected
        return finite & ~self.halted

    def bad_samples(self, global_step: int) -> Tensor:
        """(G,) bool on the device: samples of a rejected step that were not finite.

        Args:
            global_step: one of the last 1 + CUDA_LAG steps; the host learns of a step that late, and later ones have
                masks of their own.
        """
        return self._bad_samples[global_step % len(self._bad_samples)]

    def must_stop(self, rejected_steps: int) -> bool:
        """Host side: whether this many rejected steps end the run."""
        allowed = 0 if self.config.on_nonfinite == "stop" else self.config.max_skips
        return rejected_steps > allowed


class LaggedReadback:
    """A few integers from the device to the host, every step, without making either wait: push one (n,) int64 tensor,
    get the host values of the one pushed `lag` steps earlier.

    Reading a CUDA tensor stalls the host until the device has caught up, and the device then until the host has queued
    work again; here a copy in pinned memory is looked at once it has long arrived. The lag is a number of steps, not
    "when ready", so that all ranks act on the same values at the same step.

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
