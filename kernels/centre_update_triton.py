"""The Triton half of the centre update: confidence, momentum, ordered merge, both copies of the centres, in one launch.

    confidence_i = clip(cos(w, t_i), 1e-6, 1)       w as it was before the step
    momentum_i   = clip(cosine_i confidence_i, 1e-6, 1)                        (unweighted: without the confidence)
    w           <- momentum_i w + (1 - momentum_i) t_i                         samples of an identity in batch order

A stable sort puts the samples of an identity side by side; the program of the first of them reads the centre once,
applies them all, and writes master and unit row, or inverse length. Nobody else touches that row, so there are no
atomics and the bits do not depend on timing. An identity that fills a whole batch is one long loop, which real batches
do not have. What was there before is kept, and `undo` puts it back where the step turns out not to be finite, without
asking the device.

Shapes   class_centres (C, D), unit rows (C, D) or inverse lengths (C,) float32, teacher_embeddings (G, D), labels (G,)
         int64, cosines (G,) float32
Dtypes   computed in float32 whatever is stored: float32, bfloat16 or float16 each
Ops      `adadistill::update_centres` and `adadistill::undo_centres`, registered with what they write in place, so that
         torch.compile and CUDA graphs may hold the update, the loss that reads it and the commit
Cost     four rows of D a sample; two launches beside the sort, the second of which does nothing in a finite step
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from adadistill.kernels.centre_update import LEAST_SCALED_LENGTH

_LEAST_MOMENTUM = tl.constexpr(1e-6)
_LEAST_NORM = tl.constexpr(1e-12)
_LEAST_LENGTH = tl.constexpr(LEAST_SCALED_LENGTH)


@dataclass(frozen=True, slots=True)
class AdaptiveUpdate:
    """An update that was written and can still be taken back."""

    confidence: Tensor
    """(G,) float32, 0 for ignored samples."""
    momentum: Tensor
    """(G,) float32, 1 for ignored samples."""
    class_centres: Tensor
    derived: Tensor
    sorted_labels: Tensor
    """(G,) int64."""
    old: Tensor
    """(G, D) rows of the centres as they were, where the sample is the first of its identity in `sorted_labels`."""
    old_derived: Tensor
    """(G, D) of the unit rows, or (G,) of the inverse lengths."""

    def commit_(self, ok: Tensor) -> None:
        """Keep the update where `ok` (0-dim bool on the same device) is true, else restore every bit of both."""
        _undo_centres(self.class_centres, self.derived, self.sorted_labels, self.old, self.old_derived, ok)


@triton.jit
def _leads(sorted_labels, place, label):
    """Whether a sample is the first of its identity, and not ignored."""
    before = tl.load(sorted_labels + place - 1, mask=place > 0, other=-1)
    return (label >= 0) & (before != label)


@triton.jit
def update_kernel(
    centres,
    derived,
    teacher,
    cosines,
    sorted_labels,
    order,
    confidences,
    momenta,
    old,
    old_derived,
    count,
    WEIGHTED: tl.constexpr,
    LENGTHS: tl.constexpr,
    D: tl.constexpr,
    WIDE: tl.constexpr,
):
    """One program for each sample in sorted order; those that do not lead their identity have nothing to do.

    What is derived from a centre is its inverse length with LENGTHS, else its unit row.
    """
    place = tl.program_id(0)
    label = tl.load(sorted_labels + place)
    value = tl.arange(0, WIDE)
    exists = value < D
    if label < 0:
        sample = tl.load(order + place)
        tl.store(confidences + sample, 0.0)
        tl.store(momenta + sample, 1.0)
    if _leads(sorted_labels, place, label):
        row = label * D + value  # label is 64 bits wide
        stored = tl.load(centres + row, mask=exists, other=0.0)
        kept = place.to(tl.int64) * D + value
        tl.store(old + kept, stored, mask=exists)
        if LENGTHS:
            tl.store(old_derived + place, tl.load(derived + label))
        else:
            tl.store(old_derived + kept, tl.load(derived + row, mask=exists, other=0.0), mask=exists)
        before = stored.to(tl.float32)
        before_norm = tl.sqrt(tl.sum(before * before, axis=0))
        centre = before
        at = place
        same = True
        while same:
            sample = tl.load(order + at)
            target = tl.load(teacher + sample * D + value, mask=exists, other=0.0).to(tl.float32)
            lengths = before_norm * tl.sqrt(tl.sum(target * target, axis=0))
            confidence = tl.sum(before * target, axis=0) / tl.where(lengths < _LEAST_NORM, _LEAST_NORM, lengths)
            # Comparisons that a NaN fails leave it as it is: the step is then not finite, and is undone.
            confidence = tl.where(confidence < _LEAST_MOMENTUM, _LEAST_MOMENTUM, confidence)
            confidence = tl.where(confidence > 1.0, 1.0, confidence)
            momentum = tl.load(cosines + sample)
            if WEIGHTED:
                momentum = momentum * confidence
            momentum = tl.where(momentum < _LEAST_MOMENTUM, _LEAST_MOMENTUM, momentum)
            momentum = tl.where(momentum > 1.0, 1.0, momentum)
            centre = momentum * centre + (1.0 - momentum) * target
            tl.store(confidences + sample, confidence)
            tl.store(momenta + sample, momentum)
            at += 1
            same = tl.load(sorted_labels + at, mask=at < count, other=-2) == label
        rounded = centre.to(centres.dtype.element_ty)
        tl.store(centres + row, rounded, mask=exists)
        # What is derived follows what is stored, so that it can be made again from a checkpoint.
        centre = rounded.to(tl.float32)
        norm = tl.sqrt(tl.sum(centre * centre, axis=0))
        if LENGTHS:
            tl.store(derived + label, 1.0 / tl.where(norm < _LEAST_LENGTH, _LEAST_LENGTH, norm))
        else:
            unit = centre / tl.where(norm < _LEAST_NORM, _LEAST_NORM, norm)
            tl.store(derived + row, unit.to(derived.dtype.element_ty), mask=exists)


@triton.jit
def undo_kernel(
    centres, derived, sorted_labels, old, old_derived, ok, LENGTHS: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr
):
    """Restore the rows of the identities that samples lead, unless `ok`."""
    if tl.load(ok).to(tl.int32) == 0:
        place = tl.program_id(0)
        label = tl.load(sorted_labels + place)
        if _leads(sorted_labels, place, label):
            value = tl.arange(0, WIDE)
            exists = value < D
            row, kept = label * D + value, place.to(tl.int64) * D + value
            tl.store(centres + row, tl.load(old + kept, mask=exists), mask=exists)
            if LENGTHS:
                tl.store(derived + label, tl.load(old_derived + place))
            else:
                tl.store(derived + row, tl.load(old_derived + kept, mask=exists), mask=exists)


def adaptive_update_(
    class_centres: Tensor,
    derived: Tensor,
    teacher_embeddings: Tensor,
    labels: Tensor,
    cosines: Tensor,
    *,
    weighted: bool,
) -> AdaptiveUpdate:
    """Move each seen identity's centre towards the teacher's embeddings of it, and what is derived with it, in place.

    Args:
        class_centres: (C, D) float32, bfloat16 or float16, contiguous.
        derived: (C, D) unit rows of them, or (C,) float32 inverse lengths, contiguous.
        teacher_embeddings: (G, D) unit rows of the whole global batch, contiguous.
        labels: (G,) int64 in [0, C), or -1 to skip. Their range is checked where records are read.
        cosines: (G,) float32 student-teacher cosines in [-1, 1].
        weighted: whether the momentum is weighted by the confidence.

    Returns:
        Handle whose `commit_(ok)` keeps or undoes the update.
    """
    confidence, momentum, sorted_labels, old, old_derived = _update_centres(
        class_centres, derived, teacher_embeddings, labels, cosines, weighted
    )
    return AdaptiveUpdate(confidence, momentum, class_centres, derived, sorted_labels, old, old_derived)


@torch.library.custom_op("adadistill::update_centres", mutates_args=("class_centres", "derived"))
def _update_centres(
    class_centres: Tensor,
    derived: Tensor,
    teacher_embeddings: Tensor,
    labels: Tensor,
    cosines: Tensor,
    weighted: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Confidence, momentum, sorted labels, old rows and what was derived from them, of `AdaptiveUpdate`."""
    count, dim = teacher_embeddings.shape
    sorted_labels, order = torch.sort(labels, stable=True)
    confidence, momentum = (torch.empty(count, dtype=torch.float32, device=labels.device) for _ in range(2))
    old, old_derived = (rows.new_empty(count, *rows.shape[1:]) for rows in (class_centres, derived))
    if count:
        update_kernel[(count,)](
            class_centres, derived, teacher_embeddings.contiguous(), cosines.contiguous(), sorted_labels, order,
            confidence, momentum, old, old_derived, count, WEIGHTED=weighted, LENGTHS=derived.ndim == 1, D=dim,
            WIDE=triton.next_power_of_2(dim), num_warps=4,
        )  # fmt: skip
    return confidence, momentum, sorted_labels, old, old_derived


@_update_centres.register_fake
def _(
    class_centres: Tensor,
    derived: Tensor,
    teacher_embeddings: Tensor,
    labels: Tensor,
    cosines: Tensor,
    weighted: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    count, dim = teacher_embeddings.shape
    confidence, momentum = (torch.empty(count, dtype=torch.float32, device=labels.device) for _ in range(2))
    return (
        confidence,
        momentum,
        torch.empty_like(labels),
        class_centres.new_empty(count, dim),
        derived.new_empty(count, *derived.shape[1:]),
    )


@torch.library.custom_op("adadistill::undo_centres", mutates_args=("class_centres", "derived"))
def _undo_centres(
    class_centres: Tensor, derived: Tensor, sorted_labels: Tensor, old: Tensor, old_derived: Tensor, ok: Tensor
) -> None:
    count, dim = old.shape
    if count:
        undo_kernel[(count,)](
            class_centres, derived, sorted_labels, old, old_derived, ok, LENGTHS=derived.ndim == 1, D=dim,
            WIDE=triton.next_power_of_2(dim), num_warps=4,
        )  # fmt: skip


@_undo_centres.register_fake
def _(
    class_centres: Tensor, derived: Tensor, sorted_labels: Tensor, old: Tensor, old_derived: Tensor, ok: Tensor
) -> None:
    return None
