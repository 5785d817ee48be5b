"""What `margin_softmax` refuses, by name, before it computes anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from adadistill.kernels.target_column import TargetColumn

if TYPE_CHECKING:
    from adadistill.kernels.margin_softmax import ClassShard

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_tensors(
    unit_embeddings: Tensor,
    unit_centres: Tensor,
    labels: Tensor,
    angular: Tensor,
    additive: Tensor,
    target_centres: Tensor | None,
    target: TargetColumn | None,
    shard: ClassShard | None,
) -> None:
    """Raise ValueError where shapes, dtypes or parts do not fit each other."""
    _check_tensors(unit_embeddings, unit_centres, labels, angular, additive, target_centres)
    _check_shard(shard, len(unit_centres), target_centres)
    _check_target(target, labels, unit_centres, target_centres, shard)


def _check_tensors(
    unit_embeddings: Tensor,
    unit_centres: Tensor,
    labels: Tensor,
    angular: Tensor,
    additive: Tensor,
    target_centres: Tensor | None,
) -> None:
    if unit_embeddings.ndim != 2:
        raise ValueError(f"unit_embeddings must be (B, D), got {tuple(unit_embeddings.shape)}")
    batch, dim = unit_embeddings.shape
    if unit_centres.ndim != 2 or unit_centres.shape[0] < 1 or unit_centres.shape[1] != dim:
        raise ValueError(f"unit_centres must be (C, {dim}) with C >= 1, got {tuple(unit_centres.shape)}")
    for name, vector in (("labels", labels), ("angular", angular), ("additive", additive)):
        # (B, 1) would broadcast to (B, B) and train on nonsense.
        if vector.shape != (batch,):
            raise ValueError(f"{name} must be ({batch},), got {tuple(vector.shape)}")
    if labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64, got {labels.dtype}")
    floats = [("unit_embeddings", unit_embeddings), ("unit_centres", unit_centres)]
    floats += [("angular", angular), ("additive", additive)]
    if target_centres is not None:
        if target_centres.shape != (batch, dim):
            raise ValueError(f"target_centres must be ({batch}, {dim}), got {tuple(target_centres.shape)}")
        if unit_centres.requires_grad:
            raise ValueError("target_centres must be None when unit_centres require a gradient")
        floats.append(("target_centres", target_centres))
    for name, tensor in floats:
        if tensor.dtype not in _FLOATS:
            raise ValueError(f"{name} must be float64, float32, bfloat16 or float16, got {tensor.dtype}")


def _check_shard(shard: ClassShard | None, classes: int, target_centres: Tensor | None) -> None:
    if shard is None:
        return
    if target_centres is not None:
        raise ValueError("target_centres must be None for a shard of the classes")
    if not 0 <= shard.first_class <= shard.num_classes - classes:
        raise ValueError(
            f"a shard of {classes} classes from {shard.first_class} on does not lie within {shard.num_classes}"
        )


def _check_target(
    target: TargetColumn | None,
    labels: Tensor,
    unit_centres: Tensor,
    target_centres: Tensor | None,
    shard: ClassShard | None,
) -> None:
    if target is None:
        return
    if shard is not None:
        raise ValueError("target must be None for a shard of the classes")
    if target_centres is None and not unit_centres.requires_grad:
        raise ValueError("target needs target_centres beside it when unit_centres require no gradient")
    for name, column in zip(target._fields, target, strict=True):
        if column.shape != labels.shape:
            raise ValueError(f"target.{name} must be {tuple(labels.shape)}, got {tuple(column.shape)}")


def check_operands(
    unit_centres: Tensor, target_centres: Tensor | None, inverse_lengths: Tensor | None,
    product_dtype: torch.dtype | None, accumulate: torch.dtype,
) -> None:  # fmt: skip
    """Raise ValueError where the centres' lengths or the dtype of the products do not fit."""
    if inverse_lengths is not None:
        if inverse_lengths.shape != unit_centres.shape[:1] or inverse_lengths.dtype != torch.float32:
            raise ValueError(
                f"inverse_lengths must be ({len(unit_centres)},) float32, got {tuple(inverse_lengths.shape)} "
                f"{inverse_lengths.dtype}"
            )
        if target_centres is None:
            raise ValueError("inverse_lengths need target_centres beside them: the centres' own rows are not unit")
    if product_dtype not in (None, torch.bfloat16):
        raise ValueError(f"product_dtype must be bfloat16 or None, got {product_dtype}")
    if product_dtype is not None and (unit_centres.dtype, accumulate) != (torch.float32, torch.float32):
        raise ValueError(
            f"product_dtype is for float32 centres and sums, got {unit_centres.dtype} centres and {accumulate} sums"
        )


def check_options(
    cosine_limit: float, angle_limits: tuple[float, float] | None, margin_grad: str, chunk_classes: int | None
) -> None:
    """Raise ValueError where a number is out of its range."""
    if not 0.0 < cosine_limit <= 1.0:
        raise ValueError(f"cosine_limit must be in (0, 1], got {cosine_limit}")
    if angle_limits is not None and not angle_limits[0] <= angle_limits[1]:
        raise ValueError(f"angle_limits must be (lowest, highest) in radians, got {angle_limits}")
    if margin_grad not in ("exact", "straight_through"):
        raise ValueError(f"margin_grad must be exact or straight_through, got {margin_grad!r}")
    if chunk_classes is not None and chunk_classes < 1:
        raise ValueError(f"chunk_classes must be positive, got {chunk_classes}")


def check_filter(filter_above: float, form: str) -> Literal["torch"]:
    """The one form that filters classes. Raises ValueError for another, or a bound that is none of a cosine."""
    if not 0.0 < filter_above <= 1.0:
        raise ValueError(f"filter_above must be in (0, 1], got {filter_above}")
    if form not in ("auto", "torch"):
        raise ValueError(f"form {form} filters no classes; take form torch")
    return "torch"
