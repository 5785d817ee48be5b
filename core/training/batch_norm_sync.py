"""Batch-norm running statistics that agree between ranks and survive a bad step.

Batch statistics stay local (the usual, fast choice); the running averages that evaluation and checkpoints use are
averaged over ranks every step, beside the gradients. So ranks agree at all times and a checkpoint needs no special
moment. They are final after the forward pass, so their average is under way while the backward pass computes. As a
non-finite batch has already moved the running averages when it is noticed, the last committed ones are kept aside.

A batch that goes through the network in parts (`micro_batches.py`) is treated as ranks are: each part moves the
averages from where the step found them, and the mean over parts counts, as one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from adadistill.core.distributed import Ranks, start_average_


class RunningStatistics:
    """The floating-point buffers of a network, as one flat vector.

    Args:
        network: its running means and variances are changed in place by `commit_`.

    A step calls `start_average` once they are final, computes its gradients, and calls `commit_`. Where it goes in
    parts, it runs each of them in `part` first; what moves the buffers after that, such as a second pass, is undone.
    """

    def __init__(self, network: nn.Module) -> None:
        self._buffers = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
        self._counters = [buffer for buffer in network.buffers() if not buffer.is_floating_point()]
        self._committed = _flat(self._buffers)
        self._average: Callable[[], Tensor] | None = None
        self._parts = 0
        self._sum_of_parts: Tensor | None = None
        self._counted: Tensor | None = None

    def remember(self) -> None:
        """Take the buffers as they are for committed, after loading a checkpoint."""
        self._committed = _flat(self._buffers)

    @contextmanager
    def part(self, number: int) -> Iterator[None]:
        """The forward pass of one part of a batch; parts are equally large and count from 0.

        Each begins at the committed buffers. Those that are no floating-point values (counts of batches) end as the
        first part leaves them: a step counts once.
        """
        if number == 0:
            self._parts, self._sum_of_parts, self._counted = 0, None, None
        _fill(self._buffers, self._committed)
        yield
        if number == 0:
            self._counted = _flat(self._counters)
        current = _flat(self._buffers)
        if current is not None:
            self._sum_of_parts = current if self._sum_of_parts is None else self._sum_of_parts + current
        self._parts += 1

    def start_average(self, ranks: Ranks) -> None:
        """Begin to average the buffers over ranks, after the forward pass and before the backward pass.

        Every rank calls it at the same place among its collectives. A step that was never committed leaves nothing
        behind: the next one starts from the buffers again.
        """
        current = _flat(self._buffers)
        if self._sum_of_parts is not None:
            current = self._sum_of_parts / self._parts
        self._parts, self._sum_of_parts = 0, None
        self._average = None if current is None else start_average_(current, ranks)

    def commit_(self, finite: Tensor) -> None:
        """Keep the average of the buffers where `finite` (0-dim bool), else put back the last ones kept."""
        if self._committed is not None:
            assert self._average is not None, "commit_ follows start_average"
            self._committed = torch.where(finite, self._average(), self._committed)
            self._average = None
        _fill(self._buffers, self._committed)
        _fill(self._counters, self._counted)
        self._counted = None


def _flat(buffers: list[Tensor]) -> Tensor | None:
    """All values in one vector, a copy; None where there are none."""
    return torch.cat([buffer.flatten() for buffer in buffers]) if buffers else None


def _fill(buffers: list[Tensor], values: Tensor | None) -> None:
    """Give the buffers the values of a vector that `_flat` made, in a launch or two; None leaves them as they are."""
    if values is not None:
        pieces = values.split([buffer.numel() for buffer in buffers])
        torch._foreach_copy_(buffers, [piece.view_as(buffer) for piece, buffer in zip(pieces, buffers, strict=True)])
