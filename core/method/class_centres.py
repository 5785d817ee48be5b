"""Class centres: one direction per identity, against which the student is taught.

Adaptive centres are moving averages of the teacher's embeddings, with a momentum per sample: the closer the student is
to the teacher, and the centre to this image's teacher embedding, the less the centre moves. They take no gradient. With
student s, teacher t (unit vectors) and the identity's stored centre w:

    student_teacher_cosine = clip(s . t, -1, 1)        confidence = clip(cos(w, t), 1e-6, 1)
    momentum = clip(student_teacher_cosine * confidence, 1e-6, 1)    (unweighted: without the confidence)
    w <- momentum w + (1 - momentum) t                 before the logits of the same step

Trainable centres are ordinary parameters, for students and teachers trained without a teacher. Frozen ones come from
a file and never move (`core/method/frozen_centres.py`).

Source: AdaDistill, arXiv:2407.01332. Differs from the released code, where every rank holds other centres and one
arbitrary sample of several with the same label survives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from adadistill.core.checkpoints import OwnRows, RowArray
from adadistill.core.method.class_sample import ClassSample
from adadistill.kernels.centre_update import LEAST_SCALED_LENGTH, CentreUpdate, centre_update_
from adadistill.kernels.head_prologue import LEAST_CENTRE_NORM, CentreStore, unit_rows
from adadistill.kernels.head_prologue import student_teacher_cosine as student_teacher_cosine
from adadistill.kernels.triton_use import runs_triton

LEAST_MOMENTUM = 1e-6
INITIAL_STD = 0.01
# 64 MiB of float32 rows of 512.
_PIECE_ROWS = 2**15


@dataclass(frozen=True, kw_only=True, slots=True)
class CentresConfig:
    """Where the class centres come from."""

    kind: Literal["adaptive", "trainable", "frozen", "none"] = "adaptive"
    """`adaptive` averages the teacher's embeddings; `trainable` learns the centres by gradient; `frozen` takes them
    from `path` and never moves them, as AdaDistill's baseline with the teacher's own centres does; `none` trains
    without centres and softmax, by `regression` alone (`head` is then not used)."""
    momentum: Literal["weighted", "unweighted"] = "weighted"
    """Adaptive centres: is the momentum weighted by the confidence? Weighted scored better in the paper."""
    half: Literal["bfloat16", "float16"] | None = None
    """Adaptive centres: keep them in this format, which the softmax then reads without a copy, for identity counts
    whose float32 centres do not fit: 2 C D + 4 C bytes in all, where float32 takes 6 C D on CUDA and 8 C D elsewhere.
    Left out: float32."""
    placement: Literal["replicated", "sharded"] = "replicated"
    """Trainable centres: does every rank hold all of them, or its share of the rows alone? Replicated, each rank keeps
    12 C D bytes, for parameter, gradient and momentum in float32, and needs 20 while a step runs: 0.9 GB for 85,742
    identities of 512 dimensions, 21 GB for two million. Sharded over R ranks it is 1/R of that and a few (G, D) arrays,
    as the embeddings of the global batch G are gathered; the loss is still exact, over all identities. Shard where
    memory asks for it; fewer bytes travel where C is above 1.5 G. What is computed is the same, so that a run may go on
    with the other placement, on any number of ranks."""
    sample_rate: float = 1.0
    """Share of the identities that a step compares with, in (0, 1]: those of its images and random others, as Partial
    FC does, which reports it for speed and for noisy labels; neither is measured here. 1 compares with all. Sharded
    centres draw from each rank's own rows, so that which are drawn depends on the number of ranks."""
    path: str | None = None
    """Frozen centres: where they come from. A run folder or checkpoint of ours that trained its centres on the same
    records, a file that `adadistill centres export` made, or a `.npy` file, (C, D) floating point, row = label."""

    def __post_init__(self) -> None:
        if self.kind not in ("adaptive", "trainable", "frozen", "none"):
            raise ValueError(f"kind must be adaptive, trainable, frozen or none, got {self.kind!r}")
        if self.momentum not in ("weighted", "unweighted"):
            raise ValueError(f"momentum must be weighted or unweighted, got {self.momentum!r}")
        if self.half not in (None, "bfloat16", "float16"):
            raise ValueError(f"half must be bfloat16, float16 or left out, got {self.half!r}")
        if self.half is not None and self.kind != "adaptive":
            raise ValueError(f"half is for kind adaptive, got {self.half} with kind {self.kind}; remove it (null)")
        if self.placement not in ("replicated", "sharded"):
            raise ValueError(f"placement must be replicated or sharded, got {self.placement!r}")
        if self.placement == "sharded" and self.kind != "trainable":
            raise ValueError(
                f"placement sharded is for kind trainable, got kind {self.kind}, whose centres every rank holds; set "
                "placement to replicated"
            )
        if not 0.0 < self.sample_rate <= 1.0:
            raise ValueError(f"sample_rate must be in (0, 1], got {self.sample_rate}")
        if self.sample_rate < 1.0 and self.kind == "none":
            raise ValueError("sample_rate is for kinds with class centres, got it with kind none; remove it")
        if self.kind == "frozen" and not self.path:
            raise ValueError("path must name the file or run folder that kind frozen takes its centres from")
        if self.kind != "frozen" and self.path is not None:
            raise ValueError(f"path is for kind frozen, got {self.path!r} with kind {self.kind}; remove it (null)")


def initial_centres(
    num_classes: int,
    dim: int,
    *,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
    rows: tuple[int, int] | None = None,
) -> Tensor:
    """(C, D) random centres, N(0, 0.01^2), or rows [first, end) of them, on the CPU.

    Drawn in float32 whatever the dtype, so that runs of other precisions start alike. An adaptive centre forgets its
    start at its first image; until then it is a random negative.

    Args:
        generator: of the CPU. It ends where it would have after one draw of the whole.
        rows: the bits of a row are the same whichever are asked for: all C are drawn, in pieces, and the others
            dropped. That takes the memory of `rows` and one piece, and some 15 ns a value.
    """
    if num_classes < 1 or dim < 1:
        raise ValueError(f"num_classes and dim must be positive, got {num_classes} and {dim}")
    first, end = (0, num_classes) if rows is None else rows
    if not 0 <= first <= end <= num_classes:
        raise ValueError(f"rows must lie in [0, {num_classes}], got {first} to {end}")
    wanted = torch.empty(end - first, dim, dtype=dtype)
    for piece in _stream_pieces(num_classes):
        drawn = torch.randn(piece.stop - piece.start, dim, generator=generator, dtype=torch.float32)
        kept_first, kept_end = max(first, piece.start), min(end, piece.stop)
        if kept_first < kept_end:
            kept = drawn[kept_first - piece.start : kept_end - piece.start]
            wanted[kept_first - first : kept_end - first] = kept.mul_(INITIAL_STD)
    return wanted


def _stream_pieces(count: int) -> Iterator[slice]:
    """Pieces of rows whose draws, one after the other, are the draw of all rows at once.

    torch makes normal numbers on the CPU in blocks of 16; a tensor that is no multiple of that redraws its last 16, and
    one below 16 values goes another way. So every piece but the last is a multiple of 16 rows, and the last has at
    least 16 unless there is but one.
    """
    first = 0
    while first < count:
        end = first + _PIECE_ROWS if count - first >= _PIECE_ROWS + 16 else count
        yield slice(first, end)
        first = end


def centre_confidence(centre_rows: Tensor, teacher_embeddings: Tensor) -> Tensor:
    """(B,) cosine of each stored centre row (not unit) to its sample's teacher embedding (B, D), cut to [1e-6, 1]."""
    dtype = torch.promote_types(centre_rows.dtype, torch.float32)
    rows, teacher = centre_rows.to(dtype), teacher_embeddings.to(dtype)
    lengths = torch.linalg.vector_norm(rows, dim=-1) * torch.linalg.vector_norm(teacher, dim=-1)
    return ((rows * teacher).sum(-1) / lengths.clamp(min=LEAST_CENTRE_NORM)).clamp(LEAST_MOMENTUM, 1.0)


def centre_momentum(student_teacher_cosine: Tensor, confidence: Tensor, weighted: bool) -> Tensor:
    """(B,) weight of the old centre, in [1e-6, 1]: the student-teacher cosine, times the confidence when weighted."""
    cosine = student_teacher_cosine * confidence if weighted else student_teacher_cosine
    return cosine.clamp(LEAST_MOMENTUM, 1.0)


def row_pieces(count: int) -> Iterator[slice]:
    """Consecutive slices of `count` rows, so that what is made of large (C, D) arrays on the way stays small."""
    for first in range(0, count, _PIECE_ROWS):
        yield slice(first, min(count, first + _PIECE_ROWS))


def write_unit_rows_(into: Tensor, rows: Tensor) -> None:
    """Fill `into` (C, D) of any floating dtype with the rows divided by their norms. It may be `rows` itself."""
    for piece in row_pieces(len(rows)):
        into[piece] = unit_rows(rows[piece])


def inverse_lengths(rows: Tensor) -> Tensor:
    """(N,) float32 that make rows (N, D) unit; rows shorter than 1e-4 stay shorter."""
    result = torch.empty(len(rows), dtype=torch.float32, device=rows.device)
    for piece in row_pieces(len(rows)):
        lengths = torch.linalg.vector_norm(rows[piece], dim=1, dtype=torch.float32)
        result[piece] = lengths.clamp(min=LEAST_SCALED_LENGTH).reciprocal()
    return result


def adaptive_centre_bytes(num_classes: int, dim: int, master: torch.dtype, unit: torch.dtype | None) -> int:
    """What `AdaptiveCentres` keep between steps; `unit` None for half-precision masters, which have no unit copy."""
    derived = 4 if unit is None else unit.itemsize * dim
    return num_classes * (master.itemsize * dim + derived)


def trained_unit_rows(rows: Tensor) -> Tensor:
    """`unit_rows` of a parameter (C, D), float32 or float64, whose backward makes one (C, D) tensor, its result."""
    return _TrainedUnitRows.apply(rows)


class _TrainedUnitRows(torch.autograd.Function):
    """Through `unit_rows` itself a step peaks at 7.2 (C, D) arrays (CPU, C 500,000, D 64), with this at 5.2."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        unit = torch.empty_like(rows)
        write_unit_rows_(unit, rows)
        ctx.save_for_backward(rows, unit)
        return unit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        rows, unit = ctx.saved_tensors
        result = torch.empty_like(rows)
        for piece in row_pieces(len(rows)):
            lengths = torch.linalg.vector_norm(rows[piece], dim=1, keepdim=True)
            along = (gradient[piece] * unit[piece]).sum(1, keepdim=True)
            # A row shorter than the least norm is divided by a constant, which has no part along the row to take off.
            along = torch.where(lengths >= LEAST_CENTRE_NORM, along, 0.0)
            across = torch.addcmul(gradient[piece], along, unit[piece], value=-1.0)
            torch.div(across, lengths.clamp(min=LEAST_CENTRE_NORM), out=result[piece])
        return result


def softmax_dtype(class_centres: Tensor) -> torch.dtype:
    """In which the softmax reads centres: bfloat16 for float32 ones on CUDA, else as they are."""
    half = class_centres.is_cuda and class_centres.dtype == torch.float32
    return torch.bfloat16 if half else class_centres.dtype


def trained_product_dtype(autocast_dtype: torch.dtype | None, device: torch.device) -> torch.dtype | None:
    """In which the softmax multiplies trained centres: as the backbone's autocast says on CUDA, else in float32."""
    return autocast_dtype if device.type == "cuda" else None


@dataclass(frozen=True, slots=True)
class CentreStep:
    """One step's update of the adaptive centres, written but not yet final."""

    confidence: Tensor
    """(G,) cosine of the centre as it was to the teacher's embedding, in [1e-6, 1]; 0 for ignored samples."""
    momentum: Tensor
    """(G,) weight the old centre kept, in [1e-6, 1]; 1 for ignored samples."""
    commit_: Callable[[Tensor], None]
    """Keep the step where its argument (0-dim bool on the centres' device) is true, else restore every bit."""


class AdaptiveCentres:
    """Moving-average class centres, and what makes unit rows of them for the softmax.

    Ownership: replicated. Every rank holds all (C, D) centres outside DDP and applies the same update of the whole
    global batch, from gathered cosines and teacher embeddings, so that replicas stay equal in every bit and nothing is
    averaged. Samples of one identity are applied in the order of the global batch, each with the momentum computed from
    the centre as it was before the step. Rows are not renormalised in storage: their length is the weight of their
    memory. Checkpoints hold the (C, D) tensor; what is derived from it is made again.

    Memory: (C, D) in the master's dtype, beside it a unit copy (C, D) in `unit_dtype`, or for half-precision masters
    the inverse lengths (C,), by which the softmax scales its columns. Per step only touched rows of both are rewritten.
    See `adaptive_centre_bytes`.
    """

    def __init__(self, config: CentresConfig, class_centres: Tensor, *, unit_dtype: torch.dtype | None = None) -> None:
        """Take ownership of `class_centres` (C, D), float32, float64, or the config's `half`.

        `unit_dtype` is what the softmax reads; None takes `softmax_dtype`. Half-precision centres are read themselves.

        Raises:
            ValueError: the config asks for other centres, or the tensor is not (C, D) of such a dtype.
        """
        if config.kind != "adaptive":
            raise ValueError(f"centres.kind must be adaptive here, got {config.kind}")
        allowed = (torch.float32, torch.float64) if config.half is None else (getattr(torch, config.half),)
        if class_centres.ndim != 2 or class_centres.dtype not in allowed:
            raise ValueError(
                f"class_centres must be (C, D) {' or '.join(str(dtype).removeprefix('torch.') for dtype in allowed)}, "
                f"got {tuple(class_centres.shape)} {class_centres.dtype}"
            )
        self.config = config
        self.class_centres = class_centres.detach()
        if config.half is not None:
            self._derived = torch.empty(len(class_centres), dtype=torch.float32, device=class_centres.device)
        else:
            self._derived = torch.empty_like(self.class_centres, dtype=unit_dtype or softmax_dtype(class_centres))
        self._derive_all_()

    @torch.no_grad()
    def propose_update(self, teacher_embeddings: Tensor, labels: Tensor, student_teacher_cosine: Tensor) -> CentreStep:
        """Apply one global batch, to be kept or undone by the step's `commit_`. Call it before the logits of the step.

        Args:
            teacher_embeddings: (G, D) unit rows in global order.
            labels: (G,) int64 in [0, C), or -1 to skip.
            student_teacher_cosine: (G,) in [-1, 1].

        Raises:
            ValueError: shapes disagree.
        """
        if student_teacher_cosine.shape != labels.shape or labels.ndim != 1:
            raise ValueError(
                f"labels {tuple(labels.shape)} and student_teacher_cosine {tuple(student_teacher_cosine.shape)} "
                "must both be (G,)"
            )
        if teacher_embeddings.shape != (len(labels), self.class_centres.shape[1]):
            raise ValueError(
                f"teacher_embeddings must be ({len(labels)}, {self.class_centres.shape[1]}), "
                f"got {tuple(teacher_embeddings.shape)}"
            )
        weighted = self.config.momentum == "weighted"
        if runs_triton(self.class_centres) and self.class_centres.dtype != torch.float64:
            from adadistill.kernels.centre_update_triton import adaptive_update_

            made = adaptive_update_(
                self.class_centres,
                self._derived,
                teacher_embeddings.contiguous(),
                labels,
                student_teacher_cosine.float(),
                weighted=weighted,
            )
            return CentreStep(made.confidence, made.momentum, made.commit_)
        valid = labels >= 0
        teacher = teacher_embeddings.to(torch.promote_types(self.class_centres.dtype, torch.float32))
        confidence = centre_confidence(self.class_centres[labels.clamp(min=0)], teacher)
        cosine = student_teacher_cosine.to(confidence.dtype)
        momentum = centre_momentum(cosine, confidence, weighted=weighted)
        update = centre_update_(self.class_centres, teacher, labels, momentum)
        self._derive_(update.rows, update.new)
        return CentreStep(
            confidence=torch.where(valid, confidence, 0.0),
            momentum=torch.where(valid, momentum, 1.0),
            commit_=partial(self._commit_, update),
        )

    def _commit_(self, update: CentreUpdate, ok: Tensor) -> None:
        update.commit_(ok)
        self._derive_(update.rows, torch.where(ok, update.new, update.old))

    def _derive_(self, labels: Tensor, rows: Tensor) -> None:
        """After `rows` (G, D) were written to the centres of `labels`."""
        derived = unit_rows(rows) if self.config.half is None else inverse_lengths(rows)
        self._derived.index_copy_(0, labels, derived.to(self._derived.dtype))

    def _derive_all_(self) -> None:
        if self.config.half is None:
            write_unit_rows_(self._derived, self.class_centres)
        else:
            self._derived.copy_(inverse_lengths(self.class_centres))

    def unit_centres(self) -> Tensor:
        """(C, D) rows the softmax reads, live and not to be written: unit, or to be scaled by `inverse_lengths`."""
        return self._derived if self.config.half is None else self.class_centres

    @property
    def inverse_lengths(self) -> Tensor | None:
        """(C,) float32 that make `unit_centres` unit rows, live; None where they are."""
        return None if self.config.half is None else self._derived

    def target_store(self) -> CentreStore:
        """Where target rows are read: the master, or the unit copy where it is as precise.

        A bfloat16 row is off by up to 0.25 in a logit of scale 64, which matters for the target alone.
        """
        if self._derived.dtype == self.class_centres.dtype and self.config.half is None:
            return CentreStore(self._derived, unit=True)
        return CentreStore(self.class_centres, unit=False)

    def state_dict(self) -> dict[str, RowArray]:
        """What a checkpoint stores: the live (C, D) centres."""
        return {"class_centres": self.class_centres}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, RowArray]) -> None:
        """Take over stored centres, in place.

        Raises:
            ValueError: other keys, shape or dtype than this object's.
        """
        load_centres_(self.class_centres, state, num_classes=len(self.class_centres))
        self._derive_all_()


class TrainableCentres:
    """Class centres learned by gradient.

    Ownership: an ordinary (C, D) parameter, replicated; whoever reduces gradients over ranks reduces this one too. One
    that is spread over the ranks is in `core/method/sharded_centres.py`.
    """

    def __init__(
        self, config: CentresConfig, class_centres: Tensor, *, product_dtype: torch.dtype | None = None
    ) -> None:
        """Start from `class_centres` (C, D), float32 or float64.

        `product_dtype` is that of the softmax's operands, see `trained_product_dtype` and `margin_softmax`.

        Raises:
            ValueError: the config asks for other centres.
        """
        if config.kind != "trainable":
            raise ValueError(f"centres.kind must be trainable here, got {config.kind}")
        self.class_centres = nn.Parameter(class_centres.detach().clone())
        self.product_dtype = product_dtype

    def unit_centres(self, sample: ClassSample | None = None) -> Tensor:
        """(C, D) unit rows, or those of a sample of the classes, with gradient to the parameter."""
        return trained_unit_rows(self.class_centres if sample is None else self.class_centres[sample.classes])

    def state_dict(self) -> dict[str, RowArray]:
        """What a checkpoint stores: the live (C, D) centres."""
        return {"class_centres": self.class_centres.detach()}

    def load_state_dict(self, state: Mapping[str, RowArray]) -> None:
        """As `AdaptiveCentres.load_state_dict`."""
        load_centres_(self.class_centres, state, num_classes=len(self.class_centres))


@torch.no_grad()
def load_centres_(
    into: Tensor, state: Mapping[str, RowArray], *, num_classes: int, name: str = "class_centres"
) -> None:
    """Copy stored centres into all (C, D) centres of a run, or into the rows of them that this rank holds.

    Raises:
        ValueError: other keys, shape or dtype.
    """
    if set(state) != {name}:
        raise ValueError(f"their state must hold {name} alone, got {sorted(state)}")
    stored = state[name]
    rows, total = (stored.rows, stored.total) if isinstance(stored, OwnRows) else (stored, len(stored))
    if (total, *rows.shape[1:]) != (num_classes, *into.shape[1:]) or rows.dtype != into.dtype:
        raise ValueError(
            f"stored {name} are {(total, *rows.shape[1:])} {rows.dtype}, "
            f"this run has {(num_classes, *into.shape[1:])} {into.dtype}"
        )
    if len(rows) != len(into):
        raise ValueError(f"{len(rows)} rows of the stored {name} were read, this rank holds {len(into)}")
    into.copy_(rows)
