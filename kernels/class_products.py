"""The library products of a sweep over the classes, one chunk of centres at a time, in whatever precision they are.

`accumulate` is the dtype of the embeddings, of every sum and of every result: float64 where an input is, else float32.
Operands of a product are rounded to one dtype, see `operand_dtype`.

Half       half-precision operands are multiplied as they are on CUDA, with float32 sums; elsewhere they are widened
           first, which gives the same products
TF32       float32 products on CUDA are what torch says they are: exact unless `torch.set_float32_matmul_precision` or
           `torch.backends.cuda.matmul` allows TF32, which nothing here does. It would round both operands to 11 bits,
           up to 64 * 2^-10 = 0.06 in a logit of scale 64, and the gradient of trained centres as well
Alignment  tensor cores are fed 16 bytes at a time: (B, n) blocks whose n is no multiple of 8 take slow products. So on
           CUDA a ragged chunk gets rows of zeros below its classes, and its block columns that weigh nothing
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from adadistill.kernels.triton_use import runs_triton

_ALIGNED_CLASSES = 8


class ClassChunk(NamedTuple):
    """Consecutive centres, as the products take them."""

    first: int
    """Class of the first row."""
    classes: int
    """How many; rows after them are zeros that stand for nobody."""
    rows: Tensor
    """(n, D), n >= classes, in the dtype of the products' operands."""


def class_chunks(centres: Tensor, chunk_classes: int, operands: torch.dtype) -> Iterator[ClassChunk]:
    """All of (C, D) centres, some classes at a time."""
    aligned = _feeds_tensor_cores(centres)
    for first in range(0, len(centres), chunk_classes):
        rows = centres[first : first + chunk_classes].to(operands)
        count = len(rows)
        if aligned and count % _ALIGNED_CLASSES:
            rows = torch.nn.functional.pad(rows, (0, 0, 0, -count % _ALIGNED_CLASSES))
        yield ClassChunk(first, count, rows)


def _feeds_tensor_cores(centres: Tensor) -> bool:
    return centres.is_cuda or runs_triton(centres)


def operand_dtype(centres: Tensor, accumulate: torch.dtype, asked: torch.dtype | None = None) -> torch.dtype:
    """In which the products read both operands: as asked, as half-precision centres are stored on CUDA, else wide."""
    if asked is not None:
        return asked
    stored_half = centres.is_cuda and centres.dtype in (torch.bfloat16, torch.float16) and accumulate == torch.float32
    return centres.dtype if stored_half else accumulate


def product(left: Tensor, right: Tensor, accumulate: torch.dtype) -> Tensor:
    """left @ right of operands of one dtype, with sums in `accumulate`."""
    if left.dtype != accumulate and left.is_cuda:
        return torch.mm(left, right, out_dtype=accumulate)
    return left.to(accumulate) @ right.to(accumulate)


def gradients_by_chunks(
    embeddings: Tensor,
    centres: Tensor,
    chunk_classes: int,
    operands: torch.dtype,
    cosine_gradients: Callable[[Tensor, ClassChunk], Tensor],
) -> tuple[Tensor, Tensor]:
    """Gradients to the embeddings and to the centres, without a (B, C) matrix.

    Args:
        embeddings: (B, D) in the accumulation dtype.
        centres: (C, D).
        chunk_classes: classes at a time.
        operands: see `operand_dtype`.
        cosine_gradients: gets (B, n) cosines to a chunk, which it may overwrite; gives the gradient with respect to
            them, 0 beyond its classes.

    Returns:
        (B, D) in the accumulation dtype, (C, D) in the centres' dtype.
    """
    accumulate, operand = embeddings.dtype, embeddings.to(operands)
    embedding_grad = torch.zeros_like(embeddings)
    centre_grad = torch.empty_like(centres)
    for chunk in class_chunks(centres, chunk_classes, operands):
        block = cosine_gradients(product(operand, chunk.rows.T, accumulate), chunk).to(operands)  # (B, n)
        embedding_grad.add_(product(block, chunk.rows, accumulate))
        own = product(block.T, operand, accumulate)  # (n, D)
        centre_grad[chunk.first : chunk.first + chunk.classes] = own[: chunk.classes]
    return embedding_grad, centre_grad
