"""Everything of a margin head that is one number per sample: what comes before the sweep over the class centres.

Two steps, because the whole batch has to be known between them (one collective, and the update of the centres). For a
row x with teacher t, first, on its own:

    n = |x|      u = x / max(n, 1e-8)      cosine = clip(u . t, -1, 1)

then, with the norms of the global batch, the centre w_y of the row's label and the centre's confidence in the teacher:

    mean, std <- moving averages of the mean and the unbiased deviation of clip(n, 0.001, 100)
    geometry  = weight scale confidence max(confidence - cosine, 0)                                     adaptive
                weight max(clip(scale (1 - cosine), 0, 1) [cosine < mask] - baseline, 0)                static
    q         = clip(h (clip(n) - mean) / (std + 1e-3) + geometry, -1, 1)
    angular, additive = -m q, m (1 + q) for adaface;  m, 0 for arcface;  0, m for cosface
    target    = cosine c = u . w_y / |w_y|, logit and slope as in margin_softmax.py

Eager torch launches dozens of kernels for it on a GPU, each of which moves next to nothing. Triton takes one launch for
either step and one for the backward of the first (head_prologue_triton.py).

Shapes    embeddings and teacher (B, D), class centres (C, D), norms and labels of the global batch (G,)
          -> unit embeddings and target rows (B, D), all else (B,) or 0-dim
Dtypes    float32, and float64 where an input is; the statistics are summed in float64 whatever they are kept in
Gradient  of the unit embeddings: (g - u (u . g)) / n, and none to a row shorter than 1e-8, which has no direction worth
          the name: dividing by its norm would blow its gradient up. Of nothing else: margins and target are constants
          of the step, and margin_softmax puts the target's slope into its own gradient. No second derivative in Triton
Ignored   label -1: no part in the statistics, a target column of zeros with slope 1; margins are made all the same
Bits      statistics are summed by every program in one order from the gathered norms, so all ranks get the same bits
Cost      reads two (B, D) and B rows of the centres, writes two (B, D); next to nothing beside its launches
Source    AdaFace, arXiv:2204.00964; ArcFace and CosFace as in AdaDistill, arXiv:2407.01332; the geometry term from
          github.com/rayyichen310/adadistill_with_adaface_loss, re-derived from its description
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adadistill.kernels.head_margins import (
    GeometryMarginConfig,
    HeadNumbers,
    Margins,
    clipped_norms,
    geometry_values,
    margins_of,
)
from adadistill.kernels.target_column import TargetColumn, target_column
from adadistill.kernels.triton_use import runs_triton

LEAST_DIRECTED_NORM = 1e-8
"""A shorter embedding keeps what direction it has, scaled by 1e8, and passes no gradient."""
LEAST_CENTRE_NORM = 1e-12
"""Below any row a centre can reach; keeps the direction of a zero row finite."""


@dataclass(frozen=True, slots=True)
class CentreStore:
    """Where rows of target centres are read."""

    centres: Tensor
    """(C, D), any floating dtype."""
    unit: bool
    """Whether rows are unit length as they are stored; else they are normalised."""

    def rows_of(self, labels: Tensor) -> Tensor:
        """(B, D) unit rows of the labels, normalised in float32 or wider; any row for -1."""
        rows = self.centres[labels.clamp(min=0)]
        return rows if self.unit else unit_rows(rows)


@dataclass(frozen=True, slots=True)
class Directions:
    """A batch of embeddings taken apart into direction and length."""

    unit_embeddings: Tensor
    """(B, D) unit rows, with gradient."""
    quality: Tensor
    """(B,) norms, without gradient."""
    teacher_cosine: Tensor
    """(B,) cosines to the teacher's embeddings, without gradient; zeros where there is no teacher."""


@dataclass(frozen=True, slots=True)
class HeadPrologue:
    """What a head knows of a batch before it looks at other classes. Nothing here has a gradient."""

    norm_mean: Tensor
    """0-dim, the statistics with this batch in them, in the dtype of the old ones."""
    norm_std: Tensor
    geometry: Tensor
    """(B,) what was added to the quality scaler; zeros where the mode is off."""
    margins: Margins
    target_rows: Tensor
    """(B, D) unit centres of the labels; zeros for ignored samples."""
    target: TargetColumn


# The plain forms. They are the reference, and what runs wherever Triton does not.


def directions_reference(embeddings: Tensor, teacher_embeddings: Tensor | None = None) -> Directions:
    """`directions` in plain torch, differentiated by autograd."""
    wide = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    norms = torch.linalg.vector_norm(wide.detach(), dim=1)  # (B,)
    directed = torch.where((norms < LEAST_DIRECTED_NORM)[:, None], wide.detach(), wide)
    lengths = torch.linalg.vector_norm(directed, dim=1, keepdim=True)  # (B, 1)
    unit = directed / lengths.clamp(min=LEAST_DIRECTED_NORM)
    if teacher_embeddings is None:
        return Directions(unit, norms, torch.zeros_like(norms))
    return Directions(unit, norms, student_teacher_cosine(unit, teacher_embeddings))


def student_teacher_cosine(student_unit_embeddings: Tensor, teacher_unit_embeddings: Tensor) -> Tensor:
    """(B,) cosines in [-1, 1] of unit rows (B, D), without gradient, in float32 or wider."""
    student, teacher = student_unit_embeddings.detach(), teacher_unit_embeddings.detach()
    if student.shape != teacher.shape or student.ndim != 2:
        raise ValueError(f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must both be (B, D)")
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    return (student.to(dtype) * teacher.to(dtype)).sum(-1).clamp(-1.0, 1.0)


def moved_statistics(
    mean: Tensor, std: Tensor, norms: Tensor, valid: Tensor, *, momentum: float
) -> tuple[Tensor, Tensor]:
    """Mean and deviation of norms after a batch: (G,) norms of which those that are `valid` (G,) count."""
    wide = clipped_norms(norms).double()
    count = valid.sum()
    batch_mean = torch.where(valid, wide, 0.0).sum() / count.clamp(min=1)
    squares = torch.where(valid, (wide - batch_mean).square(), 0.0).sum()
    batch_std = (squares / (count - 1).clamp(min=1)).sqrt()
    moved_mean = momentum * batch_mean + (1 - momentum) * mean.double()
    moved_std = momentum * batch_std + (1 - momentum) * std.double()
    dtype = mean.dtype
    return torch.where(count >= 1, moved_mean.to(dtype), mean), torch.where(count >= 2, moved_std.to(dtype), std)


def unit_rows(rows: Tensor) -> Tensor:
    """(N, D) rows divided by their norms, in float32 or wider; a zero row stays zero. Differentiable."""
    wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
    return wide / torch.linalg.vector_norm(wide, dim=1, keepdim=True).clamp(min=LEAST_CENTRE_NORM)


@torch.no_grad()
def head_prologue_reference(
    student: Directions,
    labels: Tensor,
    *,
    confidence: Tensor | None,
    global_quality: Tensor,
    global_labels: Tensor,
    norm_mean: Tensor,
    norm_std: Tensor,
    store: CentreStore,
    head: HeadNumbers,
    geometry: GeometryMarginConfig,
    geometry_ramp: float = 1.0,
) -> HeadPrologue:
    """`head_prologue` in plain torch, any dtype up to float64."""
    mean, std = moved_statistics(norm_mean, norm_std, global_quality, global_labels >= 0, momentum=head.norm_momentum)
    quality, cosine = student.quality, student.teacher_cosine
    term = geometry_values(geometry, geometry_ramp, cosine if confidence is None else confidence, cosine)
    margins = margins_of(head, quality, mean, std, None if geometry.mode == "off" else term)

    valid = labels >= 0
    dtype = torch.promote_types(torch.promote_types(student.unit_embeddings.dtype, store.centres.dtype), torch.float32)
    rows = torch.where(valid[:, None], store.rows_of(labels).to(dtype), 0.0)  # (B, D)
    # An ignored row may hold anything, NaN included.
    target = target_column(
        (torch.where(valid[:, None], student.unit_embeddings.to(dtype), 0.0) * rows).sum(-1),
        torch.where(valid, margins.angular.to(dtype), 0.0),
        torch.where(valid, margins.additive.to(dtype), 0.0),
        head.logit_scale,
        head.limits.cosine_limit,
        head.limits.angle_limits,
        head.margin_grad,
    )
    return HeadPrologue(mean, std, term, margins, rows, target)


# The Triton forms as operators, so that torch.compile and autograd see one node each.


@torch.library.custom_op("adadistill::head_directions", mutates_args=())
def _directions(embeddings: Tensor, teacher_embeddings: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    from adadistill.kernels.head_prologue_triton import directions_forward

    return directions_forward(embeddings, teacher_embeddings)


@_directions.register_fake
def _(embeddings: Tensor, teacher_embeddings: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    unit = torch.empty_like(embeddings, dtype=torch.float32, memory_format=torch.contiguous_format)
    return unit, unit.new_empty(len(unit)), unit.new_empty(len(unit))


@torch.library.custom_op("adadistill::head_directions_backward", mutates_args=())
def _directions_backward(grad: Tensor, unit_embeddings: Tensor, norms: Tensor) -> Tensor:
    from adadistill.kernels.head_prologue_triton import directions_backward

    return directions_backward(grad, unit_embeddings, norms)


@_directions_backward.register_fake
def _(grad: Tensor, unit_embeddings: Tensor, norms: Tensor) -> Tensor:
    return torch.empty_like(unit_embeddings)


def _keep_directions(ctx: Any, inputs: tuple[Tensor, Tensor | None], output: tuple[Tensor, Tensor, Tensor]) -> None:
    unit, norms, _ = output
    ctx.save_for_backward(unit, norms)
    ctx.dtype = inputs[0].dtype


def _differentiate_directions(ctx: Any, unit_grad: Tensor, _norms: Tensor, _cosine: Tensor) -> tuple[Tensor, None]:
    return _directions_backward(unit_grad, *ctx.saved_tensors).to(ctx.dtype), None


_directions.register_autograd(_differentiate_directions, setup_context=_keep_directions)


class _Launched(NamedTuple):
    """Order of the second operator's results."""

    norm_mean: Tensor
    norm_std: Tensor
    geometry: Tensor
    angular: Tensor
    additive: Tensor
    scaler: Tensor
    clipped: Tensor
    target_rows: Tensor
    cosine: Tensor
    logit: Tensor
    slope: Tensor
    clamped: Tensor


@torch.library.custom_op("adadistill::head_prologue", mutates_args=())
def _prologue(
    unit_embeddings: Tensor,
    quality: Tensor,
    labels: Tensor,
    cosine: Tensor,
    confidence: Tensor,
    global_quality: Tensor,
    global_labels: Tensor,
    norm_mean: Tensor,
    norm_std: Tensor,
    centres: Tensor,
    unit_centres: bool,
    kind: str,
    margin_grad: str,
    geometry_mode: str,
    head_numbers: list[float],
    geometry_numbers: list[float],
) -> list[Tensor]:
    from adadistill.kernels.head_prologue_triton import prologue

    *numbers, lowest, highest = head_numbers
    made: list[Tensor] = prologue(
        unit_embeddings, quality, labels, cosine, confidence, global_quality, global_labels, norm_mean, norm_std,
        centres, unit_centres=unit_centres, kind=kind, margin_grad=margin_grad, numbers=numbers,
        angle_limits=(lowest, highest), geometry_mode=geometry_mode, geometry_numbers=geometry_numbers,
    )  # fmt: skip
    return made


@_prologue.register_fake
def _(unit_embeddings: Tensor, quality: Tensor, labels: Tensor, *others: Any) -> list[Tensor]:
    norm_mean, norm_std = others[4:6]
    like = {"norm_mean": norm_mean, "norm_std": norm_std, "target_rows": unit_embeddings}
    kinds = {"clipped": torch.bool, "clamped": torch.bool}
    made = [(like.get(name, quality), kinds.get(name)) for name in _Launched._fields]
    return [tensor.new_empty(tensor.shape, dtype=dtype) for tensor, dtype in made]


# What callers take.


def directions(embeddings: Tensor, teacher_embeddings: Tensor | None = None) -> Directions:
    """Unit rows and norms of raw embeddings, and their cosines to the teacher's, in float32 or wider.

    Args:
        embeddings: (B, D), any floating dtype; gets a gradient through the unit rows.
        teacher_embeddings: (B, D) unit rows of the same samples, without gradient; None where nobody teaches.

    Raises:
        ValueError: shapes disagree.
    """
    if embeddings.ndim != 2:
        raise ValueError(f"embeddings must be (B, D), got {tuple(embeddings.shape)}")
    if teacher_embeddings is not None and teacher_embeddings.shape != embeddings.shape:
        raise ValueError(
            f"student {tuple(embeddings.shape)} and teacher {tuple(teacher_embeddings.shape)} must both be (B, D)"
        )
    given = [embeddings] if teacher_embeddings is None else [embeddings, teacher_embeddings]
    if not runs_triton(embeddings) or any(tensor.dtype == torch.float64 for tensor in given):
        return directions_reference(embeddings, teacher_embeddings)
    teacher = None if teacher_embeddings is None else teacher_embeddings.detach()
    unit, norms, cosine = _directions(embeddings, teacher)
    return Directions(unit, norms.detach(), cosine.detach())


def head_prologue(
    student: Directions,
    labels: Tensor,
    *,
    confidence: Tensor | None,
    global_quality: Tensor,
    global_labels: Tensor,
    norm_mean: Tensor,
    norm_std: Tensor,
    store: CentreStore,
    head: HeadNumbers,
    geometry: GeometryMarginConfig,
    geometry_ramp: float = 1.0,
) -> HeadPrologue:
    """Statistics, geometry term, margins and target column of a batch; detached throughout.

    Args:
        student: of `directions`, B rows.
        labels: (B,) int64 in [0, C), or -1 to ignore the row. Their range is checked where records are read.
        confidence: (B,) cosine of the pre-step centre to the teacher's embedding, for the geometry term; None where
            that is off.
        global_quality: (G,) norms of the global batch in global order; `global_labels`: (G,) int64, -1 is left out.
        norm_mean: 0-dim, before this batch; `norm_std`: likewise, of the same dtype. They are left as they are.
        store: the centres that targets are compared with, after the step's update.
        head, geometry: the numbers of both.
        geometry_ramp: share of the geometry term in force, in [0, 1].

    Returns:
        All of it in float32, or float64 where an input is. The statistics keep their dtype; the deviation of fewer than
        two samples does not exist, so the old one stays, and with no sample at all both stay.

    Raises:
        ValueError: shapes disagree, a geometry term is asked of a head without a quality scaler or without a
            confidence.
    """
    _check_inputs(student, labels, confidence, global_quality, global_labels, store)
    if geometry.mode != "off" and not head.head.takes_geometry:
        raise ValueError(f"the geometry margin needs a head that heeds it, got a geometry term for {head.kind}")
    if geometry.mode != "off" and confidence is None:
        raise ValueError(f"confidence must be given for the geometry margin, mode {geometry.mode}")
    own = (student.unit_embeddings, student.quality, student.teacher_cosine)
    given = [*own, global_quality, store.centres, *([] if confidence is None else [confidence])]
    in_torch = not head.head.in_triton or any(tensor.dtype == torch.float64 for tensor in given)
    if in_torch or not runs_triton(student.unit_embeddings):
        return head_prologue_reference(
            student, labels, confidence=confidence, global_quality=global_quality, global_labels=global_labels,
            norm_mean=norm_mean, norm_std=norm_std, store=store, head=head, geometry=geometry,
            geometry_ramp=geometry_ramp,
        )  # fmt: skip
    unit, quality, cosine = (tensor.detach() for tensor in own)
    made = _Launched(
        *_prologue(
            unit, quality, labels, cosine, cosine if confidence is None else confidence.detach(),
            global_quality.detach(), global_labels, norm_mean, norm_std, store.centres.detach(), store.unit, head.kind,
            head.margin_grad, geometry.formula,
            [head.margin, head.quality_concentration, head.norm_momentum, head.logit_scale,
             head.limits.cosine_limit, *(head.limits.angle_limits or (-math.inf, math.inf))],
            [geometry.weight * geometry_ramp, geometry.scale, geometry.mask, geometry.baseline],
        )
    )  # fmt: skip
    return HeadPrologue(
        made.norm_mean,
        made.norm_std,
        made.geometry,
        Margins(made.angular, made.additive, made.scaler, made.clipped),
        made.target_rows,
        TargetColumn(made.cosine, made.logit, made.slope, made.clamped),
    )


def _check_inputs(
    student: Directions,
    labels: Tensor,
    confidence: Tensor | None,
    global_quality: Tensor,
    global_labels: Tensor,
    store: CentreStore,
) -> None:
    if student.unit_embeddings.ndim != 2:
        raise ValueError(f"unit_embeddings must be (B, D), got {tuple(student.unit_embeddings.shape)}")
    batch, dim = student.unit_embeddings.shape
    own = {"quality": student.quality, "teacher_cosine": student.teacher_cosine, "labels": labels}
    for name, vector in (own if confidence is None else {**own, "confidence": confidence}).items():
        # (B, 1) would broadcast to (B, B) and train on nonsense.
        if vector.shape != (batch,):
            raise ValueError(f"{name} must be ({batch},), got {tuple(vector.shape)}")
    if global_quality.ndim != 1 or global_labels.shape != global_quality.shape:
        raise ValueError(
            f"global_quality {tuple(global_quality.shape)} and global_labels {tuple(global_labels.shape)} must both be "
            "(G,)"
        )
    for name, vector in (("labels", labels), ("global_labels", global_labels)):
        if vector.dtype != torch.int64:
            raise ValueError(f"{name} must be int64, got {vector.dtype}")
    if store.centres.ndim != 2 or len(store.centres) < 1 or store.centres.shape[1] != dim:
        raise ValueError(f"centres must be (C, {dim}) with C >= 1, got {tuple(store.centres.shape)}")
