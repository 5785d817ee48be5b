"""What ranks send each other in a training step: the formula, and a counter that sees every collective.

With G samples in the global batch, R ranks, P student parameters, S floating-point running statistics, C classes, D
dimensions and w bytes per value (4; 8 in float64), a step hands to its collectives

    student gradient                 all-reduce   w P           DDP's buckets, during backward
    running statistics               all-reduce   w S           during backward
    per-sample packet                all-gather   5 w G         cosine, norm, label, finite, stop
    teacher embeddings               all-gather   w G D         adaptive centres whose teacher runs in the loop
    centre gradient                  all-reduce   w C D         trainable centres, replicated
    sharded centres                  all-gather   w G (D + 1)   trainable centres, sharded: unit embeddings and the
                                     all-reduce   w G (D + 3)   losses' gradient; sums, maxima and gradients of rows
    store exchange                   all-to-all   I G / R       packed store of I bytes an image, spread over the ranks

Bytes are those of the larger buffer of a collective: the tensor of an all-reduce, the output of an all-gather, the
input of a reduce-scatter, the rows that an all-to-all delivers. On a ring each rank sends (R - 1) / R of them, twice
for an all-reduce. Log lines, checkpoints and evaluation come on top, but not in every step.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal, TypeAlias

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from adadistill.core.recipe import Recipe

Collective: TypeAlias = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "barrier"]
Placement: TypeAlias = Literal["replicated", "sharded"]

STUDENT_GRADIENT = "student gradient"
RUNNING_STATISTICS = "running statistics"
SAMPLE_PACKET = "per-sample packet"
TEACHER_EMBEDDINGS = "teacher embeddings"
CENTRE_GRADIENT = "centre gradient"
SHARDED_CENTRES = "sharded centres"
STORE_EXCHANGE = "store exchange"
LOG_LINE = "log line"

_PACKET_VALUES = 5


@dataclass(frozen=True, slots=True)
class Transfer:
    """One kind of collective of a step, all its calls together."""

    part: str
    """What it carries."""
    collective: Collective
    bytes: int
    """Handed over by each rank: size of the larger buffer."""

    def wire_bytes(self, ranks: int) -> float:
        """Bytes that a rank sends on a ring of `ranks`; 0 for one rank."""
        passes = {"all_reduce": 2, "barrier": 0}.get(self.collective, 1)
        return passes * self.bytes * (ranks - 1) / ranks


def step_transfers(
    recipe: Recipe,
    *,
    parameters: int,
    running_statistics: int,
    num_classes: int,
    ranks: int,
    placement: Placement | None = None,
    store_image_bytes: int | None = None,
    value_bytes: int = 4,
) -> list[Transfer]:
    """What a rank hands over in one step of a recipe, see the module's table. Nothing with one rank.

    Args:
        parameters: trained values of the student, P.
        running_statistics: floating-point buffer values of the student, S.
        num_classes: C.
        placement: of trainable centres; None takes the recipe's.
        store_image_bytes: of one image of the packed store; needed where that is spread over the ranks.
        value_bytes: per gradient, statistic and embedding value: 4, or 8 in float64.

    Raises:
        ValueError: the global batch does not divide by the ranks, or the size of a spread store's images is missing.
    """
    samples, dim = recipe.data.global_batch_size, recipe.student.embedding_dim
    placement = placement or recipe.centres.placement
    if ranks < 1 or samples % ranks:
        raise ValueError(f"data.global_batch_size {samples} does not divide by {ranks} ranks")
    if ranks == 1:
        return []
    found = [
        Transfer(STUDENT_GRADIENT, "all_reduce", value_bytes * parameters),
        Transfer(RUNNING_STATISTICS, "all_reduce", value_bytes * running_statistics),
        Transfer(SAMPLE_PACKET, "all_gather", _PACKET_VALUES * value_bytes * samples),
    ]
    if recipe.centres.kind == "adaptive" and runs_teacher(recipe):
        found.append(Transfer(TEACHER_EMBEDDINGS, "all_gather", value_bytes * samples * dim))
    if recipe.centres.kind == "trainable" and placement == "replicated":
        found.append(Transfer(CENTRE_GRADIENT, "all_reduce", value_bytes * num_classes * dim))
    if recipe.centres.kind == "trainable" and placement == "sharded":
        found.append(Transfer(SHARDED_CENTRES, "all_gather", value_bytes * samples * (dim + 1)))
        found.append(Transfer(SHARDED_CENTRES, "all_reduce", value_bytes * samples * (dim + 3)))
    if recipe.data.packed is not None and recipe.data.packed_in == "device_share":
        if store_image_bytes is None:
            raise ValueError("data.packed_in device_share needs the size of a stored image")
        found.append(Transfer(STORE_EXCHANGE, "all_to_all", store_image_bytes * samples // ranks))
    return [transfer for transfer in found if transfer.bytes]


def runs_teacher(recipe: Recipe) -> bool:
    """Whether a teacher network computes in every step, rather than being read from a store."""
    return recipe.teacher is not None and recipe.teacher.source is not None and recipe.teacher.cache is None


def handed_bytes(transfers: Iterable[Transfer]) -> int:
    """Bytes of all transfers together."""
    return sum(transfer.bytes for transfer in transfers)


def wire_bytes(transfers: Iterable[Transfer], ranks: int) -> float:
    """Bytes that a rank sends for all transfers together, on a ring."""
    return sum(transfer.wire_bytes(ranks) for transfer in transfers)


def bytes_by_part(transfers: Iterable[Transfer]) -> dict[str, int]:
    """Handed bytes of each part."""
    parts: Counter[str] = Counter()
    for transfer in transfers:
        parts[transfer.part] += transfer.bytes
    return dict(parts)


def by_step(transfers: Iterable[Transfer]) -> list[list[Transfer]]:
    """What was counted in a run that logs every step (`log.every` 1), cut at its log lines: one list a step.

    The first step holds what came before it too; what follows the last line belongs to no step.
    """
    steps: list[list[Transfer]] = [[]]
    for transfer in transfers:
        if transfer.part == LOG_LINE:
            steps.append([])
        else:
            steps[-1].append(transfer)
    return steps[:-1]


# Module, and function where a module sends several things -> part. Who is not listed appears under its own name.
_SENDERS: Mapping[str, str] = {
    "core.training.training_step": STUDENT_GRADIENT,
    "core.training.micro_batches": STUDENT_GRADIENT,
    "core.training.batch_norm_sync": RUNNING_STATISTICS,
    "core.method.gathered_facts.gather": SAMPLE_PACKET,
    "core.method.lesson.global_teacher_embeddings": TEACHER_EMBEDDINGS,
    "core.method.classification._begin_average": CENTRE_GRADIENT,
    "core.method.sharded_centres": SHARDED_CENTRES,
    "kernels.margin_softmax": SHARDED_CENTRES,
    "loaders.pipelines.packed_pipeline": STORE_EXCHANGE,
    "core.training.metrics_log": LOG_LINE,
}
_CARRIERS = ("adadistill.core.distributed", "adadistill.core.communication")
_COLLECTIVES: Mapping[str, Collective] = {
    "allreduce_": "all_reduce",
    "allreduce_coalesced_": "all_reduce",
    "allgather_": "all_gather",
    "_allgather_base_": "all_gather",
    "allgather_into_tensor_coalesced_": "all_gather",
    "reduce_scatter_": "reduce_scatter",
    "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_tensor_coalesced_": "reduce_scatter",
    "alltoall_": "all_to_all",
    "alltoall_base_": "all_to_all",
    "broadcast_": "broadcast",
    "barrier": "barrier",
}


class CollectiveCounter(TorchDispatchMode):
    """While it is entered, records every collective that this process takes part in, whoever starts it.

    All collectives of torch pass its dispatcher, those of DDP's reducer, which is C++, too; so nothing has to be
    wrapped, and DDP keeps its own way of reducing. It sees each operator of the step besides and slows it: time nothing
    under it. The first three steps of a run also settle DDP's buckets; count later ones.
    """

    def __init__(self) -> None:
        super().__init__()
        self.transfers: list[Transfer] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Record a collective, and do what was asked."""
        if func.namespace == "c10d":
            name = func.__name__.split(".")[0]
            collective = _COLLECTIVES.get(name)
            if collective is None:
                raise NotImplementedError(f"CollectiveCounter does not know the collective {name}")
            size = 0 if collective == "barrier" else max(_tensor_bytes(argument) for argument in args)
            if collective == "all_to_all":
                size = _tensor_bytes(args[0])
            self.transfers.append(Transfer(_sender(sys._getframe(1)), collective, size))
        return func(*args, **(kwargs or {}))

    def take(self) -> list[Transfer]:
        """What was recorded since the last call."""
        taken, self.transfers = self.transfers, []
        return taken


def _tensor_bytes(argument: Any) -> int:
    if isinstance(argument, Tensor):
        return argument.numel() * argument.element_size()
    return sum(map(_tensor_bytes, argument)) if isinstance(argument, list | tuple) else 0


def _sender(frame: FrameType | None) -> str:
    """The part that the nearest of our functions on the stack sends; backward's own threads have none of ours."""
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith("adadistill.") and not module.startswith(_CARRIERS):
            place = module.removeprefix("adadistill.")
            named = f"{place}.{frame.f_code.co_name}"
            return _SENDERS.get(named) or _SENDERS.get(place) or named
        frame = frame.f_back
    return STUDENT_GRADIENT
