"""How well embeddings tell people apart: one statistic, for whether a teacher knows people and for its colour order.

A few hundred pairs hold too few errors for accuracy to decide anything. The separation of the cosines of same and
different pairs does, as every pair contributes to it:

    d' = (mean same - mean different) / sqrt((variance same + variance different) / 2)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adadistill.core.distributed import Ranks
from adadistill.core.scoring.embedding import Forward, embed_images
from adadistill.core.scoring.pair_metrics import area_under_roc
from adadistill.core.scoring.ten_fold import FOLDS, ten_fold_accuracy
from adadistill.core.teachers.face_pairs import evenly_spread
from adadistill.core.teachers.interface import LoadedTeacher

Floats: TypeAlias = npt.NDArray[np.float64]
Integers: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]

_SMALLEST_DEVIATION: Final = 1e-6  # cosines closer than float32 embeddings can tell


@dataclass(frozen=True, kw_only=True, slots=True)
class PeopleScore:
    """How well embeddings tell people apart."""

    separation: float
    """d', see above."""
    auc: float
    """Area under the ROC curve."""
    accuracy: float | None
    """Ten-fold accuracy in [0, 1], on as many different pairs as there are same ones; None where they are too few."""
    same_cosine: float
    """Mean over the same pairs."""
    different_cosine: float
    """Mean over the different pairs."""
    same_pairs: int
    different_pairs: int

    def summary(self) -> str:
        """The numbers in a line."""
        return (
            f"mean cosine {self.same_cosine:.4f} within a person and {self.different_cosine:.4f} between people, d' "
            f"{self.separation:.2f} ({self.same_pairs} same and {self.different_pairs} different pairs)"
        )


def people_score(cosines: Floats, same: Bools) -> PeopleScore:
    """The score of (P,) cosines, of which the flagged ones are of same pairs; there are some of each kind."""
    alike, unlike = cosines[same], cosines[~same]
    balanced = np.sort(np.concatenate([np.flatnonzero(same), evenly_spread(np.flatnonzero(~same), len(alike))]))
    accuracy = None
    if len(balanced) >= FOLDS:
        accuracy = ten_fold_accuracy(2.0 - 2.0 * cosines[balanced], same[balanced]).mean
    return PeopleScore(
        separation=float(separation(alike.mean(), unlike.mean(), alike.var(), unlike.var())),
        auc=area_under_roc(cosines, same),
        accuracy=accuracy,
        same_cosine=float(alike.mean()),
        different_cosine=float(unlike.mean()),
        same_pairs=len(alike),
        different_pairs=len(unlike),
    )


def separation(same_mean: Any, different_mean: Any, same_variance: Any, different_variance: Any) -> Any:
    """d', elementwise."""
    deviation = np.sqrt(np.maximum(0.0, same_variance + different_variance) / 2.0)
    return (same_mean - different_mean) / np.maximum(deviation, _SMALLEST_DEVIATION)


def pair_cosines(rows: Floats, pairs: Integers) -> Floats:
    """(P,) cosines of the (P, 2) pairs among (n, D) rows; a zero row has cosine 0 to everything."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.where(norms == 0.0, 1.0, norms)
    return (unit[pairs[:, 0]] * unit[pairs[:, 1]]).sum(axis=1)


def embeddings_of(loaded: LoadedTeacher, images_u8: Tensor, device: torch.device, batch_size: int = 64) -> Floats:
    """(n, D) raw embeddings of (n, H, W, 3) images, computed in float32; the network is on the CPU afterwards."""
    network = loaded.network().to(device)
    try:
        rows = embed_images(network, images_u8, Forward(ranks=Ranks(device=device), batch_size=batch_size))
        return rows.numpy().astype(np.float64)
    finally:
        loaded.body.to("cpu")
