"""Running mean and spread of embedding norms, against which AdaFace judges the quality of a sample.

The statistics are those of the global batch: every rank sees the same gathered norms and computes the same bits, so
nothing drifts apart and the number of ranks does not matter. (The public code takes each rank's own batch, so its
statistics change with the number of GPUs.) They are kept out of any module: two 0-dim tensors that go in and come out.

State   owned by the training loop, replicated on every rank; checkpoints hold it; committed only where a step
        is finite.
Source  AdaFace, arXiv:2204.00964; 1 - momentum is what the paper calls momentum (0.99).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adadistill.kernels.head_prologue import moved_statistics


@dataclass(frozen=True, slots=True)
class NormStatistics:
    """Moving mean and standard deviation of clipped embedding norms: 0-dim tensors, both float32 or both float64."""

    mean: Tensor
    std: Tensor

    @staticmethod
    def start(
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        mean: float = 20.0,
        std: float = 100.0,
    ) -> NormStatistics:
        """The published start, 20 and 100: so wide a spread makes the first few hundred steps nearly CosFace."""
        return NormStatistics(
            torch.tensor(mean, dtype=dtype, device=device), torch.tensor(std, dtype=dtype, device=device)
        )

    def committed(self, proposed: NormStatistics, ok: Tensor) -> NormStatistics:
        """`proposed` where `ok` (0-dim bool tensor) is true, else these; the device chooses, nobody waits for it."""
        return NormStatistics(torch.where(ok, proposed.mean, self.mean), torch.where(ok, proposed.std, self.std))

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint stores."""
        return {"norm_mean": self.mean, "norm_std": self.std}

    @staticmethod
    def from_state_dict(state: dict[str, Tensor], *, device: torch.device | str = "cpu") -> NormStatistics:
        """Statistics as `state_dict` gave them.

        Raises:
            ValueError: a key is missing or unknown, or a value is not a 0-dim float32 or float64 tensor.
        """
        if set(state) != {"norm_mean", "norm_std"}:
            raise ValueError(f"norm statistics must hold norm_mean and norm_std, got {sorted(state)}")
        for name, value in state.items():
            if value.ndim != 0 or value.dtype not in (torch.float32, torch.float64):
                raise ValueError(f"{name} must be a 0-dim float32 or float64, got {tuple(value.shape)} {value.dtype}")
        return NormStatistics(state["norm_mean"].to(device), state["norm_std"].to(device))


def updated_norm_statistics(
    statistics: NormStatistics, norms: Tensor, *, momentum: float, valid: Tensor | None = None
) -> NormStatistics:
    """Statistics after one global batch; the old ones are left as they are.

    Args:
        statistics: before the step.
        norms: (G,) or (G, 1) embedding norms of the global batch in global order; clipped to [0.001, 100] here.
        momentum: weight of the new batch, in (0, 1].
        valid: (G,) bool, False for samples to leave out (label -1); None takes all.

    Returns:
        New statistics in the dtype of the old. The unbiased deviation of fewer than two samples does not exist, so the
        old one stays; with no sample at all both stay.

    Raises:
        ValueError: shapes disagree.

    Sums run in float64 over the one gathered vector, so that ranks agree in every bit and a mask costs no accuracy.
    """
    norms = flat_norms(norms).detach()
    if valid is None:
        valid = torch.ones_like(norms, dtype=torch.bool)
    elif valid.shape != norms.shape:
        raise ValueError(f"valid must be {tuple(norms.shape)}, got {tuple(valid.shape)}")
    return NormStatistics(*moved_statistics(statistics.mean, statistics.std, norms, valid, momentum=momentum))


def flat_norms(norms: Tensor) -> Tensor:
    """(B,) float32-or-wider norms from (B,) or (B, 1).

    Raises:
        ValueError: any other shape; adding a (B, 1) to a (B,) would silently give (B, B).
    """
    if norms.ndim == 2 and norms.shape[1] == 1:
        norms = norms.squeeze(1)
    if norms.ndim != 1:
        raise ValueError(f"norms must be (B,) or (B, 1), got {tuple(norms.shape)}")
    return norms.to(torch.promote_types(norms.dtype, torch.float32))
