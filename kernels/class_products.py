"""The library products of a sweep over the classes, one chunk of centres at a time, in whatever precision they are.

`accumulate` is the dtype of the embeddings, of every sum and of every result: float64 where an input is, else float32.

Half       half-precision centres on CUDA are multiplied as they are, with float32 sums (the other operand is rounded to
           them); elsewhere a chunk is widened first
TF32       float32 products on CUDA are what torch says they are: exact unless `torch.set_float32_matmul_precision` or
           `torch.backends.cuda.matmul` allows TF32, which nothing here does. It would round both operands to 11 bits,
           up to 64 * 2^-10 = 0.06 in a logit of scale 64, and the gradient of trained centres as well
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def reads_half(centres: Tensor, accumulate: torch.dtype) -> bool:
    """Whether the products run on half-precision operands with wide sums, which only CUDA's can."""
    return centres.is_cuda and centres.dtype in (torch.bfloat16, torch.float16) and accumulate == torch.float32


def product_operand(embeddings: Tensor, centres: Tensor) -> Tensor:
    """The embeddings (B, D) in the dtype that `chunk_cosines` reads beside these centres."""
    return embeddings.to(centres.dtype) if reads_half(centres, embeddings.dtype) else embeddings


def chunk_cosines(operand: Tensor, chunk: Tensor, accumulate: torch.dtype) -> Tensor:
    """(B, n) cosines of the `product_operand` to n centres."""
    if reads_half(chunk, accumulate):
        return torch.mm(operand, chunk.T, out_dtype=accumulate)
    return operand @ chunk.to(accumulate).T


def weighted_rows(weights: Tensor, chunk: Tensor, accumulate: torch.dtype) -> Tensor:
    """(B, D) sum over the chunk of weights (B, n) times its rows."""
    if reads_half(chunk, accumulate):
        return torch.mm(weights.to(chunk.dtype), chunk, out_dtype=accumulate)
    return weights.to(accumulate) @ chunk.to(accumulate)


def gradients_by_chunks(
    embeddings: Tensor, centres: Tensor, chunk_classes: int, cosine_gradients: Callable[[Tensor, int], Tensor]
) -> tuple[Tensor, Tensor]:
    """Gradients to the embeddings and to the centres, without a (B, C) matrix.

    Args:
        embeddings: (B, D) in the accumulation dtype.
        centres: (C, D).
        chunk_classes: classes at a time.
        cosine_gradients: gets (B, n) cosines, which it may overwrite, and the class of their first column; gives the
            gradient with respect to them.

    Returns:
        (B, D) in the accumulation dtype, (C, D) in the centres' dtype.
    """
    accumulate, operand = embeddings.dtype, product_operand(embeddings, centres)
    embedding_grad = torch.zeros_like(embeddings)
    centre_grad = torch.empty_like(centres)
    for first in range(0, len(centres), chunk_classes):
        chunk = centres[first : first + chunk_classes]
        block = cosine_gradients(chunk_cosines(operand, chunk, accumulate), first)  # (B, n)
        embedding_grad.add_(weighted_rows(block, chunk, accumulate))
        centre_grad[first : first + chunk_classes] = block.T @ embeddings
    return embedding_grad, centre_grad
