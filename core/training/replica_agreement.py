"""What every rank keeps a copy of is the same on all of them, or nothing more is saved.

Why: student, class centres and statistics are replicated, and each rank computes the same update for itself. A rank
whose copy has drifted (a faulty device, a kernel whose result depends on timing) trains on, and a checkpoint, which
takes its rows from all ranks, would mix the copies without a word.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from adadistill.core.checkpoints import CheckpointError
from adadistill.core.distributed import Ranks, gather_rows

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an element


def require_equal_replicas(replicated: Mapping[str, Tensor], ranks: Ranks) -> None:
    """Compare the bits of replicated tensors by a sum of each; all ranks call it with the same names.

    It reads every tensor once on its device, and waits for the device: for a save, not for a step.

    Raises:
        CheckpointError: on every rank, naming the first tensor that differs and the ranks that have another one.
    """
    if ranks.world_size == 1 or not replicated:
        return
    own = torch.stack([_sum_of_bits(tensor).to(ranks.device) for tensor in replicated.values()])
    sums = gather_rows(own[None], ranks).cpu()  # (R, tensors)
    differs = (sums != sums[0]).any(dim=0)
    if not differs.any():
        return
    first = int(differs.nonzero()[0])
    others = (sums[:, first] != sums[0, first]).nonzero().flatten().tolist()
    raise CheckpointError(
        f"ranks no longer hold the same state: {list(replicated)[first]} of rank(s) {others} differs from rank 0's "
        f"({int(differs.sum())} of {len(replicated)} tensors differ). Nothing was saved; go on from the last "
        "checkpoint with --resume auto, and if it happens again, look at the device of that rank"
    )


def _sum_of_bits(tensor: Tensor) -> Tensor:
    """0-dim int64; equal for equal bits, NaNs included."""
    words = tensor.detach().contiguous().reshape(-1)
    return words.view(_WORDS[words.element_size()]).sum(dtype=torch.int64)
