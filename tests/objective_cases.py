"""Objectives put together on small data, and what a few steps of each leave behind, for tests in several processes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from term_cases import regression_terms
from torch import Tensor
from torch.nn.functional import normalize

from adadistill.core.distributed import Ranks
from adadistill.core.method.centre_files import stored_centres
from adadistill.core.method.class_centres import AdaptiveCentres, CentresConfig, TrainableCentres
from adadistill.core.method.classification import ClassificationObjective
from adadistill.core.method.distillation import DistillationObjective
from adadistill.core.method.frozen_centres import FrozenCentres
from adadistill.core.method.geometry_margin import GeometryMarginConfig
from adadistill.core.method.heads import HeadConfig
from adadistill.core.method.norm_statistics import NormStatistics
from adadistill.core.method.objective import Objective
from adadistill.loaders.batch import Batch

BATCH, DIM, CLASSES = 9, 16, 12
OBJECTIVES = ("adaptive", "adaptive, static", "adaptive, half", "adaptive, arcface", "frozen", "trainable")


class FixedTeacher:
    """Hands out the embeddings it was given, as a store of embeddings does."""

    def __init__(self, unit_embeddings: Tensor) -> None:
        self.unit_embeddings = unit_embeddings
        self.embedding_dim = unit_embeddings.shape[1]

    def rows(
        self, record_ids: npt.NDArray[np.int64], mirrored: npt.NDArray[np.bool_], view: int | None = None
    ) -> Tensor:
        return self.unit_embeddings[torch.from_numpy(record_ids)]


def batch_of(labels: Tensor, dtype: torch.dtype = torch.float64, step: int = 0) -> Batch:
    """Black images, all of this rank, with these labels."""
    count = len(labels)
    return Batch(
        images=torch.zeros(count, 3, 2, 2, dtype=dtype),
        labels=labels,
        record_ids=torch.arange(count),
        mirrored=torch.zeros(count, dtype=torch.bool),
        epoch=0,
        step=step,
        global_record_ids=np.arange(count),
        global_mirrored=np.zeros(count, dtype=bool),
    )


def objective_steps(name: str, dtype: torch.dtype, device: str = "cpu", steps: int = 3) -> dict[str, Tensor]:
    """Loss, metrics and gradient of each step, and the state after the last, by name."""
    draw = torch.Generator().manual_seed(3)
    teacher = normalize(torch.randn(BATCH, DIM, generator=draw)).to(device, dtype)
    centres = torch.randn(CLASSES, DIM, generator=draw).to(device, dtype)
    centres[:BATCH] += 8.0 * teacher  # centres know the teacher better than the student does: the geometry term is on
    objective = _objective(name, teacher, centres)
    found: dict[str, Tensor] = {}
    for step in range(steps):
        labels = torch.arange(BATCH)
        labels[2], labels[4], labels[5] = 1, -1, CLASSES - 1
        student = 15.0 * (teacher + 0.2 * torch.randn(BATCH, DIM, generator=draw).to(device, dtype))
        student.requires_grad_()
        batch = batch_of(labels, torch.float32, step).to(torch.device(device))
        out = objective.step(student, batch, fractional_epoch=0.4 + step, stop=False)
        trained = [objective.centres.class_centres] if name == "trainable" else []
        wanted = [student, *trained]
        gradients = torch.autograd.grad(out.loss, wanted)
        objective.commit_(torch.tensor(True, device=device))
        found |= {f"{step} {key}": value.detach() for key, value in out.metrics.items()}
        found |= {f"{step} gradient {index}": value for index, value in enumerate(gradients)}
    return {**found, **objective.tensors(), **{key: value.detach() for key, value in objective.row_sharded().items()}}


def _objective(name: str, teacher: Tensor, centres: Tensor) -> Objective:
    statistics = NormStatistics.start(dtype=centres.dtype, device=centres.device, std=4.0)
    ranks = Ranks(device=centres.device)
    geometry, teaches = GeometryMarginConfig(mode="adaptive"), FixedTeacher(teacher)
    if name == "trainable":
        trained = TrainableCentres(CentresConfig(kind="trainable"), centres)
        return ClassificationObjective(head=HeadConfig(), centres=trained, statistics=statistics, ranks=ranks)
    if name == "frozen":
        return ClassificationObjective(
            head=HeadConfig(),
            centres=FrozenCentres(
                stored_centres(centres.cpu(), "teacher"),
                dtype=centres.dtype,
                device=centres.device,
                unit_dtype=centres.dtype,
            ),
            statistics=statistics,
            ranks=ranks,
            teacher=teaches,
            geometry=geometry,
            terms=regression_terms(2.0),
        )
    if name == "adaptive, static":
        geometry = GeometryMarginConfig(mode="static", weight=0.8, scale=1.4)
    arcface = name == "adaptive, arcface"
    # The softmax reads another copy than the target, as on CUDA; there bfloat16, which the interpreter cuts off.
    unit_dtype = torch.float16 if name == "adaptive, half" else centres.dtype
    return DistillationObjective(
        head=HeadConfig(kind="arcface", margin=0.45) if arcface else HeadConfig(),
        geometry=GeometryMarginConfig() if arcface else geometry,
        centres=AdaptiveCentres(CentresConfig(), centres, unit_dtype=unit_dtype),
        teacher=teaches,
        statistics=statistics,
        ranks=ranks,
    )
