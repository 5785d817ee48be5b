"""Ordered moving-average update of class centres, repeated labels included, that can be taken back.

Sample i of identity y maps its centre affinely, w -> a_i w + (1 - a_i) t_i. Several samples of one identity are applied
in the order of the global batch, which in closed form is

    w' = (prod_i a_i) w + sum_i (1 - a_i) (prod_{l > i} a_l) t_i

How      a stable sort by label puts the samples of an identity side by side in batch order; a segmented inclusive scan
         composes their maps (A, b) by doubling, in log2 G passes; every sample then writes its identity's final row, so
         that repeated writes carry the same bits and no order of writing matters
Shapes   class_centres (C, D), teacher_embeddings (G, D), labels (G,) int64, momentum (G,); G is the global batch
Dtypes   computed in float32 (float64 for float64 centres), stored in the centres' dtype
Bits     deterministic on CPU and CUDA: no atomics, and nothing here waits for the device. With unique labels exactly
         `a * w + (1 - a) * t`. Rows of identities not seen are not touched
Ignored  labels[i] = -1 moves nothing, whatever the row and its momentum hold (NaN included)
Undo     the old rows are kept, so a step that turns out non-finite is taken back without asking the device
Cost     memory 4 G D beside the inputs; log2 G passes over (G, D)
Compile  in one graph; the passes over repeats are unrolled, so that another doubling of G is another graph
Source   AdaDistill, arXiv:2407.01332. Differs from the released code, which keeps an arbitrary one of several repeats
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LEAST_SCALED_LENGTH = 1e-4
"""A shorter centre is scaled up no further, so that softmax weights times inverse lengths stay within float16."""


@dataclass(frozen=True, slots=True)
class CentreUpdate:
    """An update that has been written and can still be taken back. Repeated `rows` hold the same values."""

    class_centres: Tensor
    """(C, D), the storage that was updated in place."""
    rows: Tensor
    """(G,) int64, the rows written; samples with label -1 repeat another sample's row, or a row written unchanged."""
    old: Tensor
    """(G, D), what those rows held before, in the dtype of the centres."""
    new: Tensor
    """(G, D), what was written."""

    def commit_(self, ok: Tensor) -> None:
        """Keep the update where `ok` (0-dim bool tensor, same device) is true, else restore the old rows bit by bit."""
        self.class_centres.index_copy_(0, self.rows, torch.where(ok, self.new, self.old))


def centre_update_reference(
    class_centres: Tensor, teacher_embeddings: Tensor, labels: Tensor, momentum: Tensor
) -> Tensor:
    """New (C, D) centres by applying one sample after the other; slow, any dtype up to float64."""
    centres = class_centres.clone()
    for teacher, label, weight in zip(teacher_embeddings, labels.tolist(), momentum, strict=True):
        if label >= 0:
            centres[label] = weight * centres[label] + (1 - weight) * teacher
    return centres


def centre_update_(class_centres: Tensor, teacher_embeddings: Tensor, labels: Tensor, momentum: Tensor) -> CentreUpdate:
    """Move each seen identity's centre towards the teacher's embeddings of it, in place.

    Args:
        class_centres: (C, D), not normalised.
        teacher_embeddings: (G, D), unit rows of the whole global batch in global order.
        labels: (G,) int64 in [0, C), or -1 to skip. Repeats are applied in batch order. Their range is checked where
            records are read; a check here would stall the GPU every step.
        momentum: (G,) in [0, 1]; 1 keeps the old centre.

    Returns:
        Handle whose `commit_(ok)` keeps or undoes the update.

    Raises:
        ValueError: shapes or dtypes disagree.
    """
    _check_inputs(class_centres, teacher_embeddings, labels, momentum)
    dtype = torch.promote_types(class_centres.dtype, torch.float32)
    with torch.no_grad():
        sorted_labels, order = torch.sort(labels, stable=True)
        weight = momentum.to(dtype)[order]  # (G,)
        offset = (1 - weight)[:, None] * teacher_embeddings.to(dtype)[order]  # (G, D)
        weight, offset = _compose_repeats(weight, offset, sorted_labels)

        # The last sample of an identity holds the whole composition. Ignored samples sort first; they repeat the write
        # of the very last sample, so that they cannot race with it. When that one is ignored too, all of them rewrite
        # row 0 as it is.
        last = torch.searchsorted(sorted_labels, sorted_labels, right=True) - 1  # (G,)
        last = torch.where(sorted_labels < 0, max(len(labels) - 1, 0), last)
        final_labels = sorted_labels[last]
        rows = final_labels.clamp(min=0)
        old = class_centres[rows]  # (G, D)
        moved = (weight[last][:, None] * old.to(dtype) + offset[last]).to(class_centres.dtype)
        new = torch.where((final_labels >= 0)[:, None], moved, old)
        class_centres.index_copy_(0, rows, new)
    return CentreUpdate(class_centres, rows, old, new)


def _compose_repeats(weight: Tensor, offset: Tensor, sorted_labels: Tensor) -> tuple[Tensor, Tensor]:
    """Segmented inclusive scan of w -> weight w + offset: position i gets its label's maps up to and with its own."""
    distance = 1
    while distance < len(sorted_labels):
        same = sorted_labels[distance:] == sorted_labels[:-distance]  # (G - distance,)
        # No equal labels at this distance means none further on. Looking is free on the CPU and would stall a GPU, and
        # torch.compile cannot; further passes change no bit.
        if same.device.type == "cpu" and not torch.compiler.is_compiling() and not bool(same.any()):
            break
        later_weight, later_offset = weight[distance:], offset[distance:]
        composed_weight = later_weight * weight[:-distance]
        composed_offset = later_weight[:, None] * offset[:-distance] + later_offset
        weight = torch.cat([weight[:distance], torch.where(same, composed_weight, later_weight)])
        offset = torch.cat([offset[:distance], torch.where(same[:, None], composed_offset, later_offset)])
        distance *= 2
    return weight, offset


def _check_inputs(class_centres: Tensor, teacher_embeddings: Tensor, labels: Tensor, momentum: Tensor) -> None:
    if class_centres.ndim != 2 or not class_centres.is_floating_point():
        raise ValueError(
            f"class_centres must be (C, D) floating, got {tuple(class_centres.shape)} {class_centres.dtype}"
        )
    dim = class_centres.shape[1]
    if teacher_embeddings.ndim != 2 or teacher_embeddings.shape[1] != dim:
        raise ValueError(f"teacher_embeddings must be (G, {dim}), got {tuple(teacher_embeddings.shape)}")
    batch = len(teacher_embeddings)
    for name, vector in (("labels", labels), ("momentum", momentum)):
        if vector.shape != (batch,):
            raise ValueError(f"{name} must be ({batch},), got {tuple(vector.shape)}")
    if labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64, got {labels.dtype}")
    if not momentum.is_floating_point() or not teacher_embeddings.is_floating_point():
        raise ValueError(
            f"momentum and teacher_embeddings must be floating, got {momentum.dtype} and {teacher_embeddings.dtype}"
        )
