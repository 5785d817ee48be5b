"""What ranks tell each other of their samples in a step: a few numbers each, in one collective."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adadistill.core.distributed import Ranks, gather_rows
from adadistill.core.method.objective import ObjectiveStep
from adadistill.loaders.batch import Batch


@dataclass(frozen=True, slots=True)
class GatheredFacts:
    """Per-sample facts of the global batch, in its order."""

    cosine: Tensor  # (G,) student-teacher
    quality: Tensor  # (G,) embedding norm
    labels: Tensor  # (G,) int64
    finite: Tensor  # (G,) bool
    stop: Tensor  # () bool

    @staticmethod
    def gather(cosine: Tensor, quality: Tensor, batch: Batch, *, stop: bool, ranks: Ranks) -> GatheredFacts:
        """Tell all ranks of the own samples, (B,) each, and hear of theirs."""
        # Integers travel as bits of the floating dtype: gathering copies bytes, so they arrive as they were.
        bits = torch.int64 if cosine.dtype == torch.float64 else torch.int32
        images_finite = torch.isfinite(batch.images.sum(dim=(1, 2, 3), dtype=torch.float32))
        columns = [
            cosine,
            quality,
            batch.labels.to(bits).view(cosine.dtype),
            images_finite.to(cosine.dtype),
            torch.full_like(cosine, float(stop)),
        ]
        packed = gather_rows(torch.stack(columns, dim=1), ranks)  # (G, 5)
        cosine_global, quality_global = packed[:, 0].contiguous(), packed[:, 1].contiguous()
        return GatheredFacts(
            cosine=cosine_global,
            quality=quality_global,
            labels=packed[:, 2].contiguous().view(bits).to(torch.int64),
            finite=torch.isfinite(cosine_global) & torch.isfinite(quality_global) & (packed[:, 3] > 0),
            stop=(packed[:, 4] > 0).any(),
        )

    def outcome(self, loss: Tensor, metrics: dict[str, Tensor]) -> ObjectiveStep:
        """What `Objective.step` returns for this batch; `metrics` are of the rank's own samples."""
        return ObjectiveStep(
            loss=loss,
            finite_samples=self.finite,
            stop_requested=self.stop,
            metrics={"loss": loss.detach(), **metrics},
        )
