"""Margin softmax cross-entropy over all class centres that never holds the (B, C) logits.

With y = labels[i], c = x_i . w_j cut to [-L, L] (L = cosine_limit) and theta = acos c_y:

    z_ij = s c_ij  (j != y)      z_iy = s (cos(theta') - additive_i),  theta' = clip(theta + angular_i)
    loss_i = logsumexp_j z_ij - z_iy

Every head of this field is a choice of the two numbers per sample. The target is a (B,) side computation; what remains
is a log-sum-exp over the other classes, computed chunk by chunk: in plain torch with a running maximum, or by one of
two Triton forms that need none (margin_softmax_triton.py). For centres without gradient the embedding gradient comes
out of the same sweep (it is attention with keys = values = centres):

    d loss_i / d x_i = s (sum_{j != y} p_ij [c_ij not cut] w_j + (p_iy - 1) slope_i w_y)
    slope_i          = sin(theta') / sin(theta),  0 where c_iy is cut or theta' clipped

Shapes    unit_embeddings (B, D), unit_centres (C, D), labels (B,) int64, angular and additive (B,) -> loss (B,)
Dtypes    float64 in, float64 out; everything else accumulates and answers in float32. Half-precision centres are read
          as they are: on CUDA both GEMMs run in their dtype with float32 sums, elsewhere chunks are widened first
Gradient  embeddings always, centres where they ask for it (one more sweep, in backward), margins never (AdaFace
          detaches them). A cosine beyond its limit passes none (at the limit it does, as torch.clamp), nor does a
          clipped angle. `exact` is the slope above, made finite: 1 where angular = 0, else 0 where sin(theta) = 0,
          where acos has no derivative. `straight_through` takes slope = 1 (insightface and CVLface write the margin
          into the logits without autograd)
Ignored   labels[i] = -1 gives loss 0 and no gradient, whatever the row holds; B = 0 and C = 1 are fine
Numerics  loss = log(1 + exp(lse_others - z_y)), so that a small loss and 1 - p_y keep their relative accuracy
Cost      4 B C D operations (8 B C D with a gradient to the centres), memory O(B D + B chunk) beside the inputs
Compile   one graph: the torch form as it is, its chunks unrolled; the Triton forms as one registered operator a sweep
Source    ArcFace arXiv:1801.07698, CosFace 1801.09414, AdaFace 2204.00964; online log-sum-exp after Milakov,
          arXiv:1805.02867
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from adadistill.kernels.class_products import ClassChunk, class_chunks, gradients_by_chunks, operand_dtype, product
from adadistill.kernels.margin_softmax_checks import check_filter, check_operands, check_options, check_tensors
from adadistill.kernels.target_column import MarginGrad, TargetColumn, target_column
from adadistill.kernels.triton_use import runs_triton

Form = Literal["auto", "torch", "chunks", "fused"]

# Values of the (B, chunk) block, the working set of a sweep. CPU: 2**18 float32 values (1 MiB) stay in a core's cache
# between the two GEMMs; on one busy EPYC core, D 512, C 10,572, that was 1.3x to 1.7x faster than the dense product at
# B 128 and 512 and within noise of the best of 2**14 to 2**22. CUDA: 2**22 (16 MiB) fill the machine, fit the cache and
# keep all temporaries under 64 MiB; not measured.
_BLOCK_VALUES = {"cpu": 2**18, "cuda": 2**22}
# Narrower chunks waste the GEMMs, however large the batch is.
_LEAST_CHUNK = 256
# Widths are multiples of this. CUDA: rows of a (B, chunk) block start where tensor cores can load them, and no tile of
# the library's is cut but in the last chunk. On the CPU it buys nothing.
_CHUNK_STEP = {"cpu": 1, "cuda": 128}


@dataclass(frozen=True, slots=True, eq=False)
class ClassShard:
    """The part of the classes that this rank holds, where they are spread over several."""

    first_class: int
    """Label of this rank's first centre."""
    num_classes: int
    """C, of all ranks together."""
    all_reduce: Callable[[Tensor, Literal["sum", "max"]], Tensor]
    """Combines a tensor of one shape over all ranks; the same bits on each. Three calls a step for (B,) and one for
    (B, D) tensors."""


@dataclass(frozen=True, slots=True)
class MarginSoftmax:
    """Per-sample loss and what the log line needs; rows with label -1 hold zeros."""

    loss: Tensor
    """(B,) float32 or float64, cross-entropy; the only field with a gradient."""
    target_cosine: Tensor
    """(B,) cosine of each embedding to its own centre, not cut to the limit."""
    target_probability: Tensor
    """(B,) softmax probability of the label, margin included."""
    clamped: Tensor
    """(B,) bool, the target's cosine or angle was beyond its limit (without gradient there in `exact` mode)."""


def margin_logits_reference(
    unit_embeddings: Tensor,
    unit_centres: Tensor,
    labels: Tensor,
    angular: Tensor,
    additive: Tensor,
    *,
    logit_scale: float,
    cosine_limit: float,
    angle_limits: tuple[float, float] | None,
    margin_grad: MarginGrad,
    target_centres: Tensor | None = None,
    filter_above: float | None = None,
) -> Tensor:
    """Dense (B, C) logits with autograd through acos and cos, for tests and small problems.

    Arguments as `margin_softmax`. Rows with label -1 carry no margin.
    """
    unit_embeddings = torch.where((labels >= 0)[:, None], unit_embeddings, 0.0)
    raw = unit_embeddings @ unit_centres.T  # (B, C)
    rows = torch.arange(len(labels), device=labels.device)
    own = labels.clamp(min=0)
    if target_centres is None:
        target = raw[rows, own]  # (B,)
    else:
        target = (unit_embeddings * target_centres).sum(-1)  # (B,)
    target = target.clamp(-cosine_limit, cosine_limit)

    # acos has no derivative at +-1: there the angle is a constant, formed without the graph.
    at_pole = target.detach().abs() >= 1.0
    angle = torch.where(at_pole, torch.acos(target.detach()), torch.acos(torch.where(at_pole, 0.0, target)))
    margined_angle = angle + angular.detach()
    if angle_limits is not None:
        margined_angle = margined_angle.clamp(*angle_limits)
    margined = torch.cos(margined_angle)
    margined = torch.where(margined_angle.detach() == angle.detach(), target, margined)
    if margin_grad == "straight_through":
        margined = target + (margined - target).detach()
    margined = margined - additive.detach()

    cosine = raw.clamp(-cosine_limit, cosine_limit)
    if filter_above is not None:
        cosine = torch.where(cosine.detach() > filter_above, 0.0, cosine)
    is_target = (labels[:, None] == torch.arange(len(unit_centres), device=labels.device)) & (labels >= 0)[:, None]
    return logit_scale * torch.where(is_target, margined[:, None], cosine)


def margin_softmax_reference(
    unit_embeddings: Tensor,
    unit_centres: Tensor,
    labels: Tensor,
    angular: Tensor,
    additive: Tensor,
    *,
    logit_scale: float,
    cosine_limit: float,
    angle_limits: tuple[float, float] | None,
    margin_grad: MarginGrad,
    target_centres: Tensor | None = None,
    filter_above: float | None = None,
) -> MarginSoftmax:
    """`margin_softmax` through the dense logits and plain autograd, in the dtype it is given (up to float64)."""
    logits = margin_logits_reference(
        unit_embeddings,
        unit_centres,
        labels,
        angular,
        additive,
        logit_scale=logit_scale,
        cosine_limit=cosine_limit,
        angle_limits=angle_limits,
        margin_grad=margin_grad,
        target_centres=target_centres,
        filter_above=filter_above,
    )
    valid = labels >= 0
    own = labels.clamp(min=0)
    target_logit = logits.gather(1, own[:, None]).squeeze(1)  # (B,)
    loss = torch.where(valid, logits.logsumexp(1) - target_logit, 0.0)
    with torch.no_grad():
        target_rows = unit_centres[own] if target_centres is None else target_centres
        cosine = torch.where(valid, (unit_embeddings * target_rows).sum(-1), 0.0)
        clamped = cosine.abs() > cosine_limit
        if angle_limits is not None:
            margined_angle = torch.acos(cosine.clamp(-cosine_limit, cosine_limit)) + angular
            clamped |= (margined_angle < angle_limits[0]) | (margined_angle > angle_limits[1])
        return MarginSoftmax(
            loss=loss,
            target_cosine=cosine,
            target_probability=torch.where(valid, torch.exp(-loss), 0.0),
            clamped=clamped & valid,
        )


class _Settings(NamedTuple):
    logit_scale: float
    cosine_limit: float
    chunk_classes: int
    form: Literal["torch", "chunks", "fused"]
    operands: torch.dtype
    inverse_lengths: Tensor | None
    filter_above: float | None


class _Columns:
    """Where each row's target lies in a chunk of classes, found without asking the device anything."""

    def __init__(self, labels: Tensor, chunk: ClassChunk) -> None:
        local = labels - chunk.first
        self.inside = ((local >= 0) & (local < chunk.classes))[:, None]  # (B, 1)
        self.column = local.clamp(0, chunk.classes - 1)[:, None]  # (B, 1)

    def replace_(self, block: Tensor, value: Tensor | float) -> Tensor:
        """Overwrite the target entry of rows whose target lies in this chunk; the others write back what they hold."""
        return block.scatter_(1, self.column, torch.where(self.inside, value, block.gather(1, self.column)))


class _Sweep(NamedTuple):
    """What one pass over the classes other than the target leaves behind."""

    lse_others: Tensor
    shift: Tensor | None
    """(B,) that the weights lie above; None where they are exp(z) itself."""
    weighted_rows: Tensor | None


def _sweep_classes(embeddings: Tensor, centres: Tensor, labels: Tensor, settings: _Settings, *, rows: bool) -> _Sweep:
    """Log-sum-exp over non-target classes; with `rows`, also sum_j exp(z_j - shift) [not cut] w_j, (B, D)."""
    if settings.form == "torch":
        return _sweep_online(embeddings, centres, labels, settings, rows=rows)
    # One registered operator each, opaque to torch.compile: their Triton launches are no torch operations to trace.
    from adadistill.kernels.margin_softmax_triton import sweep_chunks, sweep_fused

    scale, limit, width, form, operands, lengths, _ = settings
    if form == "chunks":
        totals, weighted = sweep_chunks(embeddings, centres, labels, scale, limit, width, rows, operands, lengths)
    else:
        totals, weighted = sweep_fused(embeddings, centres, labels, scale, limit, rows, lengths)
    return _Sweep(torch.log(totals), None, weighted if rows else None)


def _filter_(block: Tensor, above: float) -> Tensor:
    """Make logits above a bound 0; which of them were not, bool."""
    noise = block > above
    block.masked_fill_(noise, 0.0)
    return ~noise


def _sweep_online(embeddings: Tensor, centres: Tensor, labels: Tensor, settings: _Settings, *, rows: bool) -> _Sweep:
    """The sweep in plain torch, with a running maximum.

    It starts at the least possible logit, so it is finite even when a row has no other class.
    """
    accumulate = embeddings.dtype
    scale, limit, width, _, operands, lengths, above = settings
    shift = torch.full_like(embeddings[:, 0], -scale * limit)  # (B,)
    total = torch.zeros_like(shift)
    weighted = torch.zeros_like(embeddings) if rows else None
    operand = embeddings.to(operands)
    for chunk in class_chunks(centres, width, operands):
        block = product(operand, chunk.rows.T, accumulate)  # (B, n)
        columns = None if lengths is None else lengths[chunk.first : chunk.first + chunk.classes].to(accumulate)
        if columns is not None:
            block[:, : chunk.classes].mul_(columns)
        passes = None if weighted is None else block.abs() <= limit
        block = block.clamp_(-limit, limit).mul_(scale)
        if above is not None:
            kept = _filter_(block, scale * above)
            passes = None if passes is None else passes & kept
        _Columns(labels, chunk).replace_(block, float("-inf"))
        block[:, chunk.classes :] = float("-inf")
        new_shift = torch.maximum(shift, block.amax(1))
        decay = torch.exp(shift - new_shift)
        block = block.sub_(new_shift[:, None]).exp_()
        total = total * decay + block.sum(1)
        if weighted is not None and passes is not None:
            block = block.mul_(passes)
            if columns is not None:
                block[:, : chunk.classes].mul_(columns)
            weighted = weighted.mul_(decay[:, None]).add_(product(block.to(operands), chunk.rows, accumulate))
        shift = new_shift
    return _Sweep(shift + torch.log(total), shift, weighted)


class _FixedCentres(torch.autograd.Function):
    """Loss and embedding gradient from one sweep; the gradient waits for backward as a (B, D) tensor."""

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        centres: Tensor,
        labels: Tensor,
        target_rows: Tensor,
        target: TargetColumn,
        settings: _Settings,
        shard: ClassShard | None,
    ) -> tuple[Tensor, Tensor]:
        wants_gradient = ctx.needs_input_grad[0]
        sweep = _sweep_classes(embeddings, centres, labels, settings, rows=wants_gradient)
        excess = _of_all_shards(sweep.lse_others, shard) - target.logit  # (B,)
        loss = torch.logaddexp(excess, torch.zeros_like(excess))
        probability = torch.sigmoid(-excess)
        ctx.mark_non_differentiable(probability)
        if sweep.weighted_rows is not None:
            # p_j = exp(z_j - shift) exp(shift - lse_all), and lse_all is the target's logit and the loss.
            if sweep.shift is None:
                to_probability = torch.exp(-target.logit - loss)
            else:  # the exponent is positive only where all weights are 0
                to_probability = torch.exp((sweep.shift - target.logit - loss).clamp(max=0.0))
            pull = -torch.sigmoid(excess) * target.slope  # (B,) (p_y - 1) slope
            gradient = sweep.weighted_rows.mul_(to_probability[:, None]).add_(pull[:, None] * target_rows)
            if shard is not None:  # a row's own centre adds its pull on the one rank that holds it
                gradient = shard.all_reduce(gradient, "sum")
            ctx.save_for_backward(gradient.mul_(settings.logit_scale))
        return loss, probability

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * loss_grad[:, None], None, None, None, None, None, None


class _TrainedCentres(torch.autograd.Function):
    """Loss from one sweep; backward sweeps again, because the centre gradient needs the final probabilities."""

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        centres: Tensor,
        labels: Tensor,
        target: TargetColumn,
        settings: _Settings,
        shard: ClassShard | None,
    ) -> tuple[Tensor, Tensor]:
        sweep = _sweep_classes(embeddings, centres, labels, settings, rows=False)
        excess = _of_all_shards(sweep.lse_others, shard) - target.logit  # (B,)
        loss = torch.logaddexp(excess, torch.zeros_like(excess))
        probability = torch.sigmoid(-excess)
        ctx.mark_non_differentiable(probability)
        pull = -torch.sigmoid(excess) * target.slope
        ctx.save_for_backward(embeddings, centres, labels, target.logit + loss, pull)
        ctx.settings, ctx.shard = settings, shard
        return loss, probability

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        embeddings, centres, labels, lse, pull = ctx.saved_tensors
        scale, limit, width, form, operands, _, above = ctx.settings
        row_factor = scale * loss_grad  # (B,)
        with torch.autocast(embeddings.device.type, enabled=False):
            if form == "torch":

                def cosine_gradients(block: Tensor, chunk: ClassChunk) -> Tensor:
                    passes = block.abs() <= limit
                    block = block.clamp_(-limit, limit).mul_(scale)
                    if above is not None:
                        passes = passes & _filter_(block, scale * above)
                    block = block.sub_(lse[:, None]).exp_().mul_(passes)
                    # The target's weight goes into the block, so no scattered sum is needed: deterministic.
                    _Columns(labels, chunk).replace_(block, pull[:, None])
                    block[:, chunk.classes :] = 0.0
                    return block.mul_(row_factor[:, None])

                embedding_grad, centre_grad = gradients_by_chunks(
                    embeddings, centres, width, operands, cosine_gradients
                )
            else:
                from adadistill.kernels.margin_softmax_triton import sweep_chunks_gradients

                embedding_grad, centre_grad = sweep_chunks_gradients(
                    embeddings, centres, labels, lse, pull, row_factor, scale, limit, width, operands
                )
        if ctx.shard is not None:
            embedding_grad = ctx.shard.all_reduce(embedding_grad, "sum")
        return embedding_grad, centre_grad, None, None, None, None


def _of_all_shards(lse_others: Tensor, shard: ClassShard | None) -> Tensor:
    """(B,) log-sum-exp over the other classes of all ranks."""
    if shard is None:
        return lse_others
    # A shard whose only class is the target has -inf; where all have, the differences must not become NaN.
    highest = shard.all_reduce(lse_others, "max").clamp(min=torch.finfo(lse_others.dtype).min)
    return highest + torch.log(shard.all_reduce(torch.exp(lse_others - highest), "sum"))


def margin_softmax(
    unit_embeddings: Tensor,
    unit_centres: Tensor,
    labels: Tensor,
    angular: Tensor,
    additive: Tensor,
    *,
    logit_scale: float,
    cosine_limit: float,
    angle_limits: tuple[float, float] | None,
    margin_grad: MarginGrad,
    target_centres: Tensor | None = None,
    chunk_classes: int | None = None,
    form: Form = "auto",
    shard: ClassShard | None = None,
    target: TargetColumn | None = None,
    inverse_lengths: Tensor | None = None,
    product_dtype: torch.dtype | None = None,
    filter_above: float | None = None,
) -> MarginSoftmax:
    """Per-sample margin softmax loss against all centres, by chunks of classes; docs/method.md says more of options.

    Args:
        unit_embeddings: (B, D) unit rows, any floating dtype; gets a gradient.
        unit_centres: (C, D) unit rows, C >= 1; gets a gradient only where it requires one.
        labels: (B,) int64 in [0, C), or -1 to ignore the row. Their range is checked where records are read.
        angular: (B,) radians added to the target's angle; additive: (B,) cosine subtracted from its. Detached.
        logit_scale: s, multiplies cosines, which are cut to [-cosine_limit, cosine_limit], the limit in (0, 1].
        angle_limits: the margined angle is clipped to these radians; None leaves it alone.
        target_centres: (B, D) rows standing in for unit_centres[labels], for centres without gradient.
        chunk_classes: classes per chunk, None picks by device and B; form: how they are swept, `auto` picks.
        shard: `unit_centres` are only this part of the classes; every rank calls with the whole global batch.
        target: the target's column where it was made before (`head_prologue.py`). Not with a shard.
        inverse_lengths: (C,) float32 that make `unit_centres`, of any length, unit rows. With `target_centres`.
        product_dtype: bfloat16 rounds float32 operands of every product to it; None reads them as they are.
        filter_above: cosines to other classes above it count as 0, without gradient; None filters nothing. Form torch.

    Raises:
        ValueError: shapes, dtypes or options disagree, or the form cannot take them.
    """
    check_tensors(unit_embeddings, unit_centres, labels, angular, additive, target_centres, target, shard)
    check_options(cosine_limit, angle_limits, margin_grad, chunk_classes)
    dtype = torch.promote_types(torch.promote_types(unit_embeddings.dtype, unit_centres.dtype), torch.float32)
    check_operands(unit_centres, target_centres, inverse_lengths, product_dtype, dtype)
    if filter_above is not None:
        form = check_filter(filter_above, form)
    form = _checked_form(form, unit_embeddings, unit_centres, dtype, logit_scale * cosine_limit, product_dtype)
    chunk_classes = chunk_classes or _chunk_classes(form, unit_embeddings, unit_centres)
    operands = operand_dtype(unit_centres, dtype, product_dtype)
    settings = _Settings(logit_scale, cosine_limit, chunk_classes, form, operands, inverse_lengths, filter_above)
    with torch.autocast(unit_embeddings.device.type, enabled=False):
        # An ignored row may hold anything, NaN included, and 0 * NaN would reach the centres' gradient.
        embeddings = torch.where((labels >= 0)[:, None], unit_embeddings.to(dtype), 0.0)  # (B, D)
        if target is not None:
            own, target_rows = labels, None if target_centres is None else target_centres.to(dtype)
            cosine, logit, slope, clamped = target
            target = TargetColumn(cosine.to(dtype), logit.to(dtype), slope.to(dtype), clamped)
        else:
            own, target_rows, cosine = _own_centres(embeddings, unit_centres, labels, target_centres, shard)
            angular = torch.where(labels >= 0, angular.detach().to(dtype), 0.0)
            additive = torch.where(labels >= 0, additive.detach().to(dtype), 0.0)
            target = target_column(cosine, angular, additive, logit_scale, cosine_limit, angle_limits, margin_grad)
        return _softmax(embeddings, unit_centres, labels, own, target_rows, target, settings, shard)


def _softmax(
    embeddings: Tensor,
    centres: Tensor,
    labels: Tensor,
    own: Tensor,
    target_rows: Tensor | None,
    target: TargetColumn,
    settings: _Settings,
    shard: ClassShard | None,
) -> MarginSoftmax:
    """The softmax of rows whose own centre is row `own` here (-1: none) and holds `target_rows`."""
    if centres.requires_grad and torch.is_grad_enabled():
        loss, probability = _TrainedCentres.apply(embeddings, centres, own, target, settings, shard)
    else:
        loss, probability = _FixedCentres.apply(embeddings, centres, own, target_rows, target, settings, shard)
    valid = labels >= 0
    return MarginSoftmax(
        loss=torch.where(valid, loss, 0.0),
        target_cosine=target.cosine,
        target_probability=torch.where(valid, probability, 0.0),
        clamped=target.clamped & valid,
    )


@torch.no_grad()
def _own_centres(
    embeddings: Tensor, centres: Tensor, labels: Tensor, target_centres: Tensor | None, shard: ClassShard | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Row of each sample's own centre (-1 where it is not here), what it holds (B, D), and the cosine to it (B,)."""
    own, held = labels, labels >= 0
    if shard is not None:
        own = labels - shard.first_class
        held = held & (own >= 0) & (own < len(centres))
        own = torch.where(held, own, -1)
    rows = centres[own.clamp(min=0)] if target_centres is None else target_centres  # (B, D)
    rows = torch.where(held[:, None], rows.to(embeddings.dtype), 0.0)
    cosine = (embeddings * rows).sum(-1)
    return own, rows, cosine if shard is None else shard.all_reduce(cosine, "sum")


def _chunk_classes(form: str, embeddings: Tensor, centres: Tensor) -> int:
    rows = len(embeddings)
    if form == "torch" and torch.compiler.is_compiling():
        rows = _rounded_batch(rows)
    return default_chunk_classes(rows, len(centres), embeddings.device.type)


def _checked_form(
    form: Form, embeddings: Tensor, centres: Tensor, accumulate: torch.dtype, largest_logit: float,
    product_dtype: torch.dtype | None,
) -> Literal["torch", "chunks", "fused"]:  # fmt: skip
    """The form that runs. Raises ValueError where the one asked for cannot take these inputs."""
    if form not in get_args(Form):
        raise ValueError(f"form must be one of {', '.join(get_args(Form))}, got {form!r}")
    if form == "torch" or (form == "auto" and not runs_triton(embeddings)):
        return "torch"
    if not runs_triton(embeddings):
        raise ValueError(
            f"form {form} runs on CUDA or in Triton's interpreter, unless ADADISTILL_KERNELS=torch; these tensors are "
            f"on {embeddings.device}"
        )
    from adadistill.kernels.margin_softmax_triton import fits_dtype, fused_misfit, needs_no_shift

    fits = (
        accumulate == torch.float32 and fits_dtype(centres.dtype) and needs_no_shift(largest_logit, 1.0, len(centres))
    )
    if form == "auto":
        return "chunks" if fits else "torch"
    if not fits:
        raise ValueError(
            f"form {form} sums exp(logit) in float32: not for {centres.dtype} centres and logits up to "
            f"{largest_logit:g} over {len(centres)} classes; take form torch"
        )
    if form == "fused" and (misfit := fused_misfit(centres, product_dtype)):
        raise ValueError(f"form fused takes {misfit}; take form chunks")
    return form


def default_chunk_classes(batch: int, classes: int, device_type: str) -> int:
    """Classes per chunk such that the (batch, chunk) block has the device's number of values."""
    block = _BLOCK_VALUES.get(device_type, _BLOCK_VALUES["cpu"])
    width = max(_LEAST_CHUNK, block // max(batch, 1))
    return min(classes, width - width % _CHUNK_STEP.get(device_type, 1))


def _rounded_batch(batch: int) -> int:
    """The next power of two. torch.compile unrolls the chunks, so that each width is another graph: this way one for
    each doubling of the batch, where it would be one for each batch."""
    rows = 1
    while rows < batch:
        rows *= 2
    return rows
