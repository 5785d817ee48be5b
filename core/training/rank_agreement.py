"""What all ranks must have alike: the records when a run begins, its replicated state whenever it is saved.

Sample order, record ids and class centres are functions of the records, computed by every rank for itself, and each
rank computes the same update of student, centres and statistics. A node with another copy of the records (one cut
short), or a rank whose state has drifted (a faulty device, a kernel that depends on timing), would train on unnoticed,
and a checkpoint, which takes its rows from all ranks, would mix the copies.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from adadistill.core.checkpoints import CheckpointError
from adadistill.core.distributed import Ranks, all_reduced, broadcast_text, gather_rows
from adadistill.loaders.pipelines.pipeline import DataConfig, open_store
from adadistill.loaders.records.image_source import ImageSource
from adadistill.loaders.records.label_check import LAUNCH_SECONDS, LabelClaimError, check_labels

logger = logging.getLogger(__name__)

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an element


def require_same_records(records: ImageSource, ranks: Ranks) -> None:
    """Compare this rank's records with rank 0's; all ranks call it, and all go on or none.

    Raises:
        ValueError: on every rank, where one has other records; ranks that have say both counts.
    """
    if ranks.world_size == 1:
        return
    own = _described(records)
    of_main = broadcast_text(own, ranks)
    differs = torch.tensor(float(own != of_main), device=ranks.device)
    if all_reduced(differs, "max", ranks).item() == 0.0:
        return
    if own == of_main:
        raise ValueError(f"other ranks see other records than rank {ranks.rank} ({own}): see their errors")
    raise ValueError(
        f"rank {ranks.rank} sees other records than rank 0: {own} here, {of_main} there. Every node needs the same "
        f"files under {records.path}: copy them anew, or use a file system that all share"
    )


def check_launch_labels(config: DataConfig, records: ImageSource, *, needs_several: bool) -> list[str]:
    """The look at labels of a launch: raises what it may not begin with, returns what is worth a warning.

    Args:
        config: what the records were opened with; where it names a packed store, its labels are looked at.
        needs_several: there are class centres, which one identity cannot be told apart on.

    Raises:
        LabelClaimError: a label is no class (unless damaged records are skipped, and these are not too many), one
            identity has all images, or the number of identities is another set's.
        StoreError, RecordError, ValueError, OSError: records or store cannot be opened.
    """
    labels = None if config.packed is None else open_store(config, records).labels
    found = check_labels(
        records, labels, stated=config.num_classes, needs_several=needs_several, seconds=LAUNCH_SECONDS
    )
    outside = [text for text in (found.beyond, found.odd) if text]
    skipped = config.on_damaged == "skip" and found.outside <= config.max_damaged
    refused = [*([] if skipped else outside), *found.refused]
    if refused:
        raise LabelClaimError("\n  ".join(refused))
    return [*(f"{text} (skipped: data.on_damaged)" for text in outside), *found.warnings]


def require_sound_labels(config: DataConfig, records: ImageSource, ranks: Ranks, *, needs_several: bool) -> None:
    """`check_launch_labels` on rank 0, which logs its warnings; all ranks call it, and all go on or none.

    Raises:
        LabelClaimError: on every rank; on rank 0 what else `check_launch_labels` raises, as itself.
    """
    problem: Exception | None = None
    if ranks.is_main:
        try:
            for text in check_launch_labels(config, records, needs_several=needs_several):
                logger.warning("%s: %s", config.records, text)
        except (ValueError, OSError) as error:
            problem = error
    text = broadcast_text(str(problem) if problem else "", ranks)
    if problem or text:
        raise problem or LabelClaimError(text)


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


def _described(records: ImageSource) -> str:
    return f"{len(records)} images of {records.num_classes} identities, fingerprint {records.fingerprint():.16}..."


def _sum_of_bits(tensor: Tensor) -> Tensor:
    """0-dim int64; equal for equal bits, NaNs included."""
    words = tensor.detach().contiguous().reshape(-1)
    return words.view(_WORDS[words.element_size()]).sum(dtype=torch.int64)
