"""Batch-norm running statistics that agree between ranks and survive a bad step.

Batch statistics stay local (the usual, fast choice); the running averages that evaluation and checkpoints use are
averaged over ranks every step, beside the gradients. So ranks agree at all times and a checkpoint needs no special
moment. They are final after the forward pass, so their average is under way while the backward pass computes. As a
non-finite batch has already moved the running averages when it is noticed, the last committed ones are kept aside.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from adadistill.core.distributed import Ranks, start_average_


class RunningStatistics:
    """The floating-point buffers of a network, as one flat vector.

    Args:
        network: its running means and variances are changed in place by `commit_`.

    A step calls `start_average` once they are final, computes its gradients, and calls `commit_`.
    """

    def __init__(self, network: nn.Module) -> None:
        self._buffers = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
        self._sizes = [buffer.numel() for buffer in self._buffers]
        self._committed = self._flat()
        self._average: Callable[[], Tensor] | None = None

    def remember(self) -> None:
        """Take the buffers as they are for committed, after loading a checkpoint."""
        self._committed = self._flat()

    def start_average(self, ranks: Ranks) -> None:
        """Begin to average the buffers over ranks, after the forward pass and before the backward pass.

        Every rank calls it at the same place among its collectives. A step that was never committed leaves nothing
        behind: the next one starts from the buffers again.
        """
        current = self._flat()
        self._average = None if current is None else start_average_(current, ranks)

    def commit_(self, finite: Tensor) -> None:
        """Keep the average of the buffers where `finite` (0-dim bool), else put back the last ones kept."""
        if self._committed is None:
            return
        assert self._average is not None, "commit_ follows start_average"
        self._committed = torch.where(finite, self._average(), self._committed)
        self._average = None
        for buffer, values in zip(self._buffers, self._committed.split(self._sizes), strict=True):
            buffer.copy_(values.view_as(buffer))

    def _flat(self) -> Tensor | None:
        if not self._buffers:
            return None
        return torch.cat([buffer.flatten() for buffer in self._buffers])
