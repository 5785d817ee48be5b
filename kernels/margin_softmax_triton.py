"""The Triton half of margin_softmax.py: an elementwise pass between two library products, or the whole sweep at once.

`class_weights` turns a block of cosines, which a library product left in cache, into the weights of the next product
and adds up its rows: one read and one write where eager PyTorch makes eleven. `fused_sweep` never writes cosines at
all: a program keeps 64 embeddings and their (64, D) sums in registers, and streams centres past them, each tile once
for both products. It is split over the classes, since a batch alone gives too few programs, and the parts are added in
order.

Neither looks for a maximum. Logits lie in [-s L, s L], so exp(z) itself neither overflows nor underflows in float32 as
long as 2 s L + log C stays under 160 (`needs_no_shift`): with s = 64 that holds for any number of classes in use. The
sums then need no rescaling, and the parts of a split are merged by adding them.

Every offset into (C, D) or (B, C) is 64 bits wide, or the copy engine's own (row, column).

Each way through the classes is one registered operator, `adadistill::sweep_chunks`, `sweep_chunks_gradients` and
`sweep_fused`: torch.compile keeps it whole, and its fake gives shapes without a device. One for a whole sweep, as every
call costs the host tens of microseconds. They have no gradient of their own: margin_softmax.py calls them inside its
autograd Functions, which the torch form shares and torch.compile traces. None waits for the device, so a CUDA graph may
hold them.

Dropped: `fused_sweep` for float32 and tf32 operands. Their tiles are twice as large, and the sums spill to memory (half
a kilobyte a thread and more on sm_90); library products serve them.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from adadistill.kernels.class_products import ClassChunk, class_chunks, gradients_by_chunks, product

_LOG2_E = tl.constexpr(1.4426950408889634)
_LOG2_E_REST = tl.constexpr(1.9259629911783e-08)  # what float32 leaves of it
_LN_2 = tl.constexpr(0.6931471805599453)

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton's interpreter would multiply the bits of bfloat16 as whole numbers; there tiles are widened first."""
_BLOCK_COLUMNS = 1024
"""Columns of a row that `class_weights` works on at a time: 8 for each of 128 threads. Not tuned on a GPU."""
_HOPPERS_SHARED, _LEAST_SHARED = 227 * 1024, 99 * 1024
"""What programs get on compute capability 9.0 and 10.0, and on the least of 8 and 12."""
_EXPONENT_RANGE = 160.0
"""Of float32, e^-87 to e^88, less a margin for sums of products."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Shape of a program of `fused_sweep`. Not tuned on a GPU: chosen by the registers and the memory it takes."""

    rows: int
    classes: int
    warps: int
    stages: int


def needs_no_shift(logit_scale: float, cosine_limit: float, classes: int) -> bool:
    """Whether sums of exp(logit) over all classes stay inside float32 as they are."""
    return 2.0 * logit_scale * cosine_limit + math.log(max(classes, 1)) <= _EXPONENT_RANGE


def fits_dtype(dtype: torch.dtype) -> bool:
    """Whether weights of exp(logit) fit the centres' dtype, which they are multiplied in: float16 ends at e^11."""
    return dtype in (torch.float32, torch.bfloat16)


def fused_misfit(centres: Tensor, product_dtype: torch.dtype | None = None) -> str | None:
    """What `fused_sweep` would take instead of these centres; None where it takes them.

    Its sums stay in registers, so that tiles must be bfloat16, half as large as float32; the interpreter has none.
    """
    dim, dtype = centres.shape[1], centres.dtype
    fits = product_dtype is None and (dtype == torch.bfloat16 or _INTERPRETED)
    if not fits or dim % 16 or not 16 <= dim <= 512:
        return f"bfloat16 centres with D a multiple of 16 up to 512, got {dtype} and D {dim}"
    if tile_of(dim, own := shared_memory(centres.device)) is None:
        return f"{_LEAST_SHARED} bytes of shared memory a program, {centres.device} has {own}"
    return None


def shared_memory(device: torch.device) -> int:
    """Bytes of it that one program may have."""
    if device.type != "cuda":
        return _HOPPERS_SHARED  # the interpreter's is the host's
    properties: Any = torch.cuda.get_device_properties(device)  # torch's stubs lack the field
    return int(properties.shared_memory_per_block_optin)


def tile_of(dim: int, shared: int) -> Tile | None:
    """The program shape for embeddings of `dim` values where a program may have `shared` bytes; None where none fits.

    64 x 512 sums are half of an SM's registers. With 32 classes a tile the rest fits beside them without spilling (64
    classes spill in the loop with some compilers), and three tiles in flight take 164 KB. Where there is less memory,
    products take their operands from registers too, which leaves room for half the rows.
    """
    if shared < _HOPPERS_SHARED:
        return Tile(32, 32, 8, 2) if shared >= _LEAST_SHARED else None
    return Tile(64, 32, 8, 3) if dim > 256 else Tile(64, 64, 4, 3)


@triton.jit
def _exp(value):
    """exp to the last bits at large arguments too, where rounding value * log2(e) alone would cost 4e-6."""
    power = value * _LOG2_E
    rest = tl.fma(value, _LOG2_E, -power) + value * _LOG2_E_REST
    result = tl.exp2(power)
    return tl.where(result < float("inf"), tl.fma(result, rest * _LN_2, result), result)


@triton.jit
def class_weights_kernel(
    cosines,
    weights,
    totals,
    labels,
    lse,
    target,
    factor,
    lengths,
    first,
    count,
    width,
    cosine_row,
    weight_row,
    scale,
    limit,
    GRADIENT: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row a program. Without GRADIENT: exp(z), summed into `totals`, cut cosines and the target weighing nothing.

    With GRADIENT: probabilities exp(z - lse) times `factor`, the target's weight replaced by `target`. Of `width`
    columns, those from `count` on are nobody's and weigh nothing. SCALED columns are multiplied by `lengths` on the way
    in and, as what they weigh has that length, on the way out.
    """
    row = tl.program_id(0).to(tl.int64)
    own = tl.load(labels + row) - first
    total = tl.zeros((), dtype=tl.float32)
    if GRADIENT:
        shift = tl.load(lse + row)
        own_weight = tl.load(target + row)
        row_factor = tl.load(factor + row)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < width
        lives = column < count
        cosine = tl.load(cosines + row * cosine_row + column, mask=inside, other=0.0)
        if SCALED:
            length = tl.load(lengths + first + column, mask=lives, other=0.0)
            cosine *= length
        passes = tl.abs(cosine) <= limit
        # A NaN must stay one: min and max alone would let the other operand through.
        cut = tl.where(cosine != cosine, cosine, tl.minimum(tl.maximum(cosine, -limit), limit))
        logit = cut * scale
        if GRADIENT:
            weight = _exp(logit - shift)
            weight = tl.where(passes | (cosine != cosine), weight, 0.0)
            weight = tl.where(column == own, own_weight, weight) * row_factor
            weight = tl.where(lives, weight, 0.0)
        else:
            weight = _exp(logit)
            weight = tl.where(lives & (column != own), weight, 0.0)
            total += tl.sum(weight, axis=0)
            weight = tl.where(passes | (cosine != cosine), weight, 0.0)
        if SCALED:
            weight *= length
        tl.store(weights + row * weight_row + column, weight.to(weights.dtype.element_ty), mask=inside)
    if not GRADIENT:
        # One program a row and one launch after the other: added in the same order every time.
        tl.store(totals + row, tl.load(totals + row) + total)


@triton.jit
def fused_sweep_kernel(
    tiles,
    embeddings,
    labels,
    lengths,
    totals,
    weighted,
    batch,
    classes,
    classes_per_split,
    scale,
    limit,
    D: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SCALED: tl.constexpr,
    SPREADS: tl.constexpr,
    WIDENS: tl.constexpr,
):
    """ROWS embeddings against one part of the classes; WIDE is D rounded up to a power of two."""
    split = tl.program_id(1)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    lives = row < batch
    value = tl.arange(0, WIDE)
    row_offset = row.to(tl.int64)[:, None] * D + value[None, :]
    row_mask = lives[:, None] & (value < D)[None, :]
    tile_column = tl.arange(0, CLASSES)
    own_rows = tl.load(embeddings + row_offset, mask=row_mask, other=0.0)  # stays in shared memory throughout
    if WIDENS:
        own_rows = own_rows.to(tl.float32)
    own = tl.load(labels + row, mask=lives, other=-1)
    total = tl.zeros((ROWS,), dtype=tl.float32)
    sums = tl.zeros((ROWS, WIDE), dtype=tl.float32)
    start = split * classes_per_split
    stop = tl.minimum(start + classes_per_split, classes)
    for first in range(start, stop, CLASSES):
        # One load serves both products: keys and values are the same rows. The copy engine computes its addresses and
        # fills what lies beyond C or D with zeros: pointers and masks of the tile would take registers from the sums.
        tile = tiles.load([first, 0])
        if WIDENS:
            tile = tile.to(tl.float32)
        if SPREADS:
            # Always taken, which the compiler cannot know. Where it sees one product flow into the next, it gives every
            # warp 16 rows of its own: with more warps than that, it would make this product several times over.
            cosine = tl.zeros((ROWS, CLASSES), dtype=tl.float32)
            if limit > 0.0:
                cosine = tl.dot(own_rows, tl.trans(tile))
        else:
            cosine = tl.dot(own_rows, tl.trans(tile))
        if SCALED:
            length = tl.load(lengths + first + tile_column, mask=tile_column < stop - first, other=0.0)
            cosine *= length[None, :]
        cut = tl.where(cosine != cosine, cosine, tl.minimum(tl.maximum(cosine, -limit), limit))
        weight = tl.exp2(cut * (scale * _LOG2_E))
        others = (tile_column < stop - first)[None, :] & (tile_column[None, :] != (own - first)[:, None])
        weight = tl.where(others, weight, 0.0)
        total += tl.sum(weight, axis=1)
        if WEIGHTED:
            weight = tl.where(tl.abs(cosine) > limit, 0.0, weight)
            if SCALED:
                weight *= length[None, :]
            sums = tl.dot(weight.to(tile.dtype), tile, sums)
    part = split.to(tl.int64) * batch
    tl.store(totals + part + row, total, mask=lives)
    if WEIGHTED:
        tl.store(weighted + part * D + row_offset, sums, mask=row_mask)


@torch.library.custom_op("adadistill::sweep_chunks", mutates_args=())
def sweep_chunks(
    embeddings: Tensor, centres: Tensor, labels: Tensor, scale: float, limit: float, chunk_classes: int, weighted: bool,
    operands: torch.dtype, inverse_lengths: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Sums over all classes but the target: library products with one Triton pass between them.

    Args:
        embeddings: (B, D) float32.
        centres: (C, D) float32 or bfloat16.
        labels: (B,) int64.
        scale, limit: of the logits; `needs_no_shift` must hold.
        chunk_classes: classes at a time, at least 1.
        weighted: also give the weighted rows.
        operands: dtype of the products' operands.
        inverse_lengths: as `margin_softmax`.

    Returns:
        (B,) float32 sums of exp(logit); (B, D) float32 sums of exp(logit) times unit centre where the cosine is not
        cut, or no rows where they are not asked for.
    """
    totals = embeddings.new_zeros(len(embeddings))
    sums = torch.zeros_like(embeddings) if weighted else embeddings.new_empty(0, embeddings.shape[1])
    operand, labels = embeddings.to(operands), labels.contiguous()
    for chunk in class_chunks(centres, chunk_classes, operands):
        cosines = product(operand, chunk.rows.T, embeddings.dtype)  # (B, n)
        weights = class_weights(
            cosines, chunk, labels, inverse_lengths, scale=scale, limit=limit, dtype=operands, totals=totals
        )
        if weighted:
            sums.add_(product(weights, chunk.rows, embeddings.dtype))
    return totals, sums


@torch.library.custom_op("adadistill::sweep_fused", mutates_args=())
def sweep_fused(
    embeddings: Tensor, centres: Tensor, labels: Tensor, scale: float, limit: float, weighted: bool,
    inverse_lengths: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As `sweep_chunks`, by `fused_sweep`, for centres of which `fused_misfit` has nothing to say."""
    device, dim = centres.device, centres.shape[1]
    tile = tile_of(dim, shared_memory(device))
    assert tile is not None, "fused_misfit was asked"
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
    totals, sums = fused_sweep(
        embeddings.to(centres.dtype).contiguous(),
        centres.contiguous(),
        labels.contiguous(),
        inverse_lengths,
        tile=tile,
        scale=scale,
        limit=limit,
        weighted=weighted,
        splits=default_splits(len(embeddings), len(centres), tile, processors),
    )
    return totals, embeddings.new_empty(0, dim) if sums is None else sums


@torch.library.custom_op("adadistill::sweep_chunks_gradients", mutates_args=())
def sweep_chunks_gradients(
    embeddings: Tensor, centres: Tensor, labels: Tensor, lse: Tensor, target: Tensor, factor: Tensor, scale: float,
    limit: float, chunk_classes: int, operands: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of the loss to the embeddings (B, D) and to the centres (C, D), as `gradients_by_chunks`.

    Arguments as `sweep_chunks` and `class_weights`.
    """
    labels, lse, target, factor = (vector.contiguous() for vector in (labels, lse, target, factor))

    def cosine_gradients(cosines: Tensor, chunk: ClassChunk) -> Tensor:
        row = (lse, target, factor)
        return class_weights(cosines, chunk, labels, None, scale=scale, limit=limit, dtype=operands, gradient=row)

    return gradients_by_chunks(embeddings, centres, chunk_classes, operands, cosine_gradients)


@sweep_chunks.register_fake
def _(embeddings: Tensor, centres: Tensor, labels: Tensor, scale: float, limit: float, chunk_classes: int,
      weighted: bool, *others: Any) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _fake_sums(embeddings, weighted)


@sweep_fused.register_fake
def _(embeddings: Tensor, centres: Tensor, labels: Tensor, scale: float, limit: float, weighted: bool,
      inverse_lengths: Tensor | None) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _fake_sums(embeddings, weighted)


def _fake_sums(embeddings: Tensor, weighted: bool) -> tuple[Tensor, Tensor]:
    batch, dim = embeddings.shape
    return embeddings.new_empty(batch), embeddings.new_empty(batch if weighted else 0, dim)


@sweep_chunks_gradients.register_fake
def _(embeddings: Tensor, centres: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(embeddings), torch.empty_like(centres)


def class_weights(
    cosines: Tensor, chunk: ClassChunk, labels: Tensor, inverse_lengths: Tensor | None, *, scale: float, limit: float,
    dtype: torch.dtype, totals: Tensor | None = None, gradient: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """Weights of a block of classes for the second product of a sweep, or the loss's gradient to its cosines.

    Args:
        cosines: (B, n) float32, rows contiguous; overwritten where `dtype`, that of the result, is float32.
        chunk: the columns' classes; `labels`: (B,) int64; `inverse_lengths`: as `margin_softmax`.
        scale, limit: of the logits; `needs_no_shift` must hold for weights.
        totals: for weights, (B,) float32; sums of exp(logit) over the classes other than the target are added.
        gradient: for the gradient, (B,) float32 each: log-sum-exp over all classes, what stands in the target's column,
            and what multiplies each row.

    Returns:
        (B, n) exp(logit), 0 for the target and where the cosine is cut, or the gradient.
    """
    weights = cosines if dtype == torch.float32 else torch.empty_like(cosines, dtype=dtype)
    unread = labels  # in place of what the kernel does not touch
    lse, target, factor = gradient or (unread, unread, unread)
    if len(cosines):
        class_weights_kernel[(len(cosines),)](
            cosines, weights, unread if totals is None else totals, labels, lse, target, factor,
            unread if inverse_lengths is None else inverse_lengths, chunk.first, chunk.classes, cosines.shape[1],
            cosines.stride(0), weights.stride(0), scale, limit, GRADIENT=gradient is not None,
            SCALED=inverse_lengths is not None, BLOCK=_BLOCK_COLUMNS, num_warps=4,
        )  # fmt: skip
    return weights


def fused_sweep(
    embeddings: Tensor, centres: Tensor, labels: Tensor, inverse_lengths: Tensor | None = None, *, tile: Tile,
    scale: float, limit: float, weighted: bool, splits: int,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Sums over all classes but the target, without a block of cosines anywhere.

    Args:
        embeddings: (B, D) in the dtype of the centres, contiguous.
        centres: (C, D) float32 or bfloat16, contiguous; see `fused_misfit`.
        labels: (B,) int64.
        inverse_lengths: as `margin_softmax`.
        tile: see `tile_of`.
        scale, limit: of the logits; `needs_no_shift` must hold.
        weighted: also give the weighted rows.
        splits: parts that the classes are cut into; see `default_splits`.

    Returns:
        (B,) float32 sums of exp(logit); (B, D) float32 sums of exp(logit) times centre where the cosine is not cut.
    """
    batch, dim = embeddings.shape
    wide = triton.next_power_of_2(dim)
    num_tiles = -(-len(centres) // tile.classes)
    classes_per_split = -(-num_tiles // splits) * tile.classes
    splits = -(-len(centres) // classes_per_split)  # none of them empty
    totals = torch.zeros((splits, batch), dtype=torch.float32, device=embeddings.device)
    sums = torch.empty((splits, batch, dim) if weighted else (1,), dtype=torch.float32, device=embeddings.device)
    if batch:
        tiles = TensorDescriptor.from_tensor(centres, [tile.classes, wide])
        fused_sweep_kernel[(-(-batch // tile.rows), splits)](
            tiles, embeddings, labels, totals if inverse_lengths is None else inverse_lengths, totals, sums, batch,
            len(centres), classes_per_split, scale, limit, D=dim, WIDE=wide, ROWS=tile.rows, CLASSES=tile.classes,
            WEIGHTED=weighted, SCALED=inverse_lengths is not None, SPREADS=16 * tile.warps > tile.rows,
            WIDENS=_INTERPRETED, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return totals.sum(0), sums.sum(0) if weighted else None


def default_splits(batch: int, classes: int, tile: Tile, processors: int) -> int:
    """Parts of the classes such that every processor of the GPU has a program, and none fewer than four tiles."""
    row_tiles = max(1, -(-batch // tile.rows))
    return max(1, min(processors // row_tiles, classes // (4 * tile.classes)))
