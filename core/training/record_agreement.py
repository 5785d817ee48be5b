"""All ranks train on the same records, or none does.

Why: sample order, record ids and class centres are functions of the records, computed by every rank for itself. Nodes
that each have their own copy may have different ones (a copy that was cut short, a folder with one image more), and
nothing later would notice: ranks would train on other images than the cache, the centres and the log say.
"""

from __future__ import annotations

import torch

from adadistill.core.distributed import Ranks, all_reduced, broadcast_text
from adadistill.loaders.image_source import ImageSource


class RecordAgreementError(ValueError):
    """Ranks see different records under the recipe's path."""


def require_same_records(records: ImageSource, ranks: Ranks) -> None:
    """Compare this rank's records with rank 0's; all ranks call it, and all go on or none.

    Raises:
        RecordAgreementError: on every rank, where one has other records; ranks that have say both counts.
    """
    if ranks.world_size == 1:
        return
    own = _described(records)
    of_main = broadcast_text(own, ranks)
    differs = torch.tensor(float(own != of_main), device=ranks.device)
    if all_reduced(differs, "max", ranks).item() == 0.0:
        return
    if own == of_main:
        raise RecordAgreementError(f"other ranks see other records than rank {ranks.rank} ({own}): see their errors")
    raise RecordAgreementError(
        f"rank {ranks.rank} sees other records than rank 0: {own} here, {of_main} there. Every node needs the same "
        f"files under {records.path}: copy them anew, or use a file system that all share"
    )


def _described(records: ImageSource) -> str:
    return f"{len(records)} images of {records.num_classes} identities, fingerprint {records.fingerprint():.16}..."
