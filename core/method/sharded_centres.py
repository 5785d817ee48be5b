"""Trainable class centres spread over the ranks: each holds, updates and saves its own rows, none the (C, D) whole.

The softmax is still over all identities, and exact. Every rank compares the whole global batch of G samples with its
own rows, and what a sum over all classes needs is reduced over ranks (`ClassShard` in kernels/margin_softmax.py). So
every rank has to know the batch: labels and norms are gathered anyway, with them the margins are known, and unit
embeddings are gathered here, with a way back for their gradient.

Memory    per rank, float32: parameter, gradient and momentum of C / R rows, 12 C D / R bytes; 20 while a step runs, for
          the unit rows and their gradient; a few (G, D) arrays
Exchange  sent by each rank and step, ring arithmetic, beside what the student's gradients take:
          4 (R - 1) / R (3 G D + 7 G) bytes. Embeddings gathered: G D. Their gradient, reduced: 2 G D. The target's
          cosine, the largest logit and the sum over classes, reduced: 6 G. The losses' gradient, gathered: G.
          Replicated centres send 4 (R - 1) / R (2 C D) bytes: more, where C is above about 1.5 G
Source    model-parallel softmax as insightface has it (Partial FC, arXiv:2010.05222, with all classes sampled)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from adadistill.core.checkpoints import OwnRows, RowArray
from adadistill.core.checkpoints.files import row_range
from adadistill.core.distributed import Ranks, class_shard, gather_rows, local_slice
from adadistill.core.method.class_centres import CentresConfig, load_centres_, trained_unit_rows
from adadistill.core.method.class_sample import ClassSample
from adadistill.kernels.margin_softmax import MarginSoftmax


class ShardedCentres:
    """This rank's rows [C*r//R, C*(r+1)//R) of class centres that are learned by gradient.

    Ownership: sharded. The parameter is this rank's alone. Its gradient is that of the mean loss over the global batch,
    when the softmax goes through `gathered_with_gradient` and `own_samples`, so it needs no reduction; momentum and
    update are local. Checkpoints hold the rows of all ranks, in the files of replicated centres.

    A row that is not finite makes the loss of every sample NaN on every rank, since each loss is a sum over all classes
    that is reduced over ranks. With it go the embeddings' gradient, the student's and its norm: all ranks refuse the
    step together, though one of them alone has seen the row. Where the loss is finite, so is the gradient of every row,
    as rows are divided by their lengths but by no less than 1e-12.
    """

    def __init__(
        self,
        config: CentresConfig,
        num_classes: int,
        own_rows: Tensor,
        ranks: Ranks,
        *,
        product_dtype: torch.dtype | None = None,
    ) -> None:
        """Take ownership of `own_rows` (this rank's share, D), float32 or float64; `product_dtype` as elsewhere.

        Raises:
            ValueError: the config asks for other centres, there are fewer classes than ranks, or these are not as many
                rows as the rank's share.
        """
        if config.kind != "trainable" or config.placement != "sharded":
            raise ValueError(
                f"centres.kind must be trainable and centres.placement sharded here, got {config.kind} and "
                f"{config.placement}"
            )
        self.shard = class_shard(num_classes, ranks)
        first, end = row_range(num_classes, ranks.rank, ranks.world_size)
        if own_rows.ndim != 2 or len(own_rows) != end - first:
            raise ValueError(
                f"rank {ranks.rank} of {ranks.world_size} holds {end - first} of {num_classes} centres, got "
                f"{tuple(own_rows.shape)}"
            )
        self.class_centres = nn.Parameter(own_rows.detach())
        self.product_dtype = product_dtype

    def unit_centres(self, sample: ClassSample | None = None) -> Tensor:
        """(rows of this rank, D) unit rows, or those of a sample of them, with gradient to the parameter."""
        return trained_unit_rows(self.class_centres if sample is None else self.class_centres[sample.classes])

    def state_dict(self) -> dict[str, RowArray]:
        """What a checkpoint stores: this rank's live rows."""
        return {"class_centres": OwnRows(self.class_centres.detach(), self.shard.num_classes)}

    def load_state_dict(self, state: Mapping[str, RowArray]) -> None:
        """Take over this rank's stored rows, in place.

        Raises:
            ValueError: other keys, dtype, number of classes or of rows.
        """
        load_centres_(self.class_centres, state, num_classes=self.shard.num_classes)


def gathered_with_gradient(own: Tensor, ranks: Ranks) -> Tensor:
    """(B, ...) of every rank -> (G, ...) in global order, equal on all ranks; see `_Gathered` for its gradient."""
    return _Gathered.apply(own, ranks)


def own_samples(softmax: MarginSoftmax, ranks: Ranks) -> MarginSoftmax:
    """The rank's own samples (B,) of a softmax over the global batch; see `_Own` for the gradient of their loss."""
    return MarginSoftmax(
        loss=_Own.apply(softmax.loss, ranks),
        target_cosine=local_slice(softmax.target_cosine, ranks),
        target_probability=local_slice(softmax.target_probability, ranks),
        clamped=local_slice(softmax.clamped, ranks),
    )


# The two ends of what is computed on the global batch. Outside, a rank differentiates the loss of its own samples, and
# DDP makes of the ranks' gradients that of F, the mean of the R losses, by dividing their sum by R. Inside, all ranks
# hold the same (G, ...) tensors, every gradient is that of F itself, and a shard's own gradient is used as it is.


class _Gathered(torch.autograd.Function):
    """Into the global batch: all ranks' rows, one after the other.

    Backward is given dF / d gathered, equal on all ranks, of which the rank's slice is dF / d own. DDP will divide it
    by R though no other rank adds to it, hence R times the slice. Nothing is sent.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return gather_rows(own, ranks)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return local_slice(gradient, ctx.ranks) * ctx.ranks.world_size, None


class _Own(torch.autograd.Function):
    """Out of the global batch: the rank's own slice.

    Backward is given d (loss of this rank) / d slice. Each rank's loss depends on its own slice alone, so that dF / d
    whole is all of these, gathered, over R.
    """

    @staticmethod
    def forward(ctx: Any, whole: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return local_slice(whole, ranks).clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gather_rows(gradient, ctx.ranks) / ctx.ranks.world_size, None
