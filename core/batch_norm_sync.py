"""Batch-norm running statistics that agree between ranks and survive a bad step.

Batch statistics stay local (the usual, fast choice); the running averages that evaluation and checkpoints use are
averaged over ranks every step, beside the gradients. So ranks agree at all times and a checkpoint needs no special
moment. As a non-finite batch has already moved the running averages when it is noticed, the last committed ones are
kept aside.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adadistill.core.distributed import Ranks, average_


class RunningStatistics:
    """The floating-point buffers of a network, as one flat vector.

    Args:
        network: its running means and variances are changed in place by `commit_`.
    """

    def __init__(self, network: nn.Module) -> None:
        self._buffers = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
        self._sizes = [buffer.numel() for buffer in self._buffers]
        self._committed = self._flat()

    def remember(self) -> None:
        """Take the buffers as they are for committed, after loading a checkpoint."""
        self._committed = self._flat()

    def commit_(self, finite: Tensor, ranks: Ranks) -> None:
        """Average the buffers over ranks; keep them where `finite` (0-dim bool), else put back the last ones kept."""
        if self._committed is None:
            return
        current = self._flat()
        assert current is not None
        average_(current, ranks)
        self._committed = torch.where(finite, current, self._committed)
        for buffer, values in zip(self._buffers, self._committed.split(self._sizes), strict=True):
            buffer.copy_(values.view_as(buffer))

    def _flat(self) -> Tensor | None:
        if not self._buffers:
            return None
        return torch.cat([buffer.flatten() for buffer in self._buffers])
