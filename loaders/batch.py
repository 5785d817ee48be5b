"""What a pipeline hands to training: a rank's share of a global batch, with enough to name and replay every sample."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's slice of the global batch of (epoch, step); B samples, in global batch order."""

    images: Tensor
    """(B, 3, H, W) floating point RGB in [-1, 1], mirrored where `mirrored` says so, on the training device."""
    labels: Tensor
    """(B,) int64 in [0, C); -1 marks a sample the loss ignores."""
    record_ids: Tensor
    """(B,) int64, ordinals among the image records of the file: the key of the teacher cache and of every error."""
    mirrored: Tensor
    """(B,) bool, True where the image was flipped left to right."""
    epoch: int
    """0-based."""
    step: int
    """0-based step within the epoch."""
    global_record_ids: npt.NDArray[np.int64]
    """(G,) record ids of the whole global batch, on the host: every rank knows them without communication."""
    global_mirrored: npt.NDArray[np.bool_]
    """(G,) its mirror flags."""
    view: int | None = None
    """Number of the fixed view that the step shows of every record; None where each epoch draws anew."""

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Batch:
        """The same batch with every tensor on `device`."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=non_blocking),
            labels=self.labels.to(device, non_blocking=non_blocking),
            record_ids=self.record_ids.to(device, non_blocking=non_blocking),
            mirrored=self.mirrored.to(device, non_blocking=non_blocking),
        )
