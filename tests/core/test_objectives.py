"""The objectives put heads, centres, geometry and softmax together as the public implementations do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tests_support import golden_files
from torch import Tensor

from adadistill.core.class_centres import AdaptiveCentres, CentresConfig, TrainableCentres, initial_centres
from adadistill.core.distributed import Ranks
from adadistill.core.geometry_margin import GeometryMarginConfig
from adadistill.core.heads import HeadConfig
from adadistill.core.norm_statistics import NormStatistics
from adadistill.core.objectives import ClassificationObjective, DistillationObjective, GlobalSamples
from adadistill.loaders.batch import Batch

RANKS = Ranks()
YES, NO = torch.tensor(True), torch.tensor(False)


class FixedTeacher:
    """Hands out the embeddings it was given, as a store of embeddings does."""

    def __init__(self, unit_embeddings: Tensor) -> None:
        self.unit_embeddings = unit_embeddings
        self.embedding_dim = unit_embeddings.shape[1]

    def rows(self, record_ids: npt.NDArray[np.int64], mirrored: npt.NDArray[np.bool_]) -> Tensor:
        return self.unit_embeddings[torch.from_numpy(record_ids)]


def _batch(labels: Tensor, dtype: torch.dtype = torch.float64) -> Batch:
    count = len(labels)
    return Batch(
        images=torch.zeros(count, 3, 2, 2, dtype=dtype),
        labels=labels,
        record_ids=torch.arange(count),
        mirrored=torch.zeros(count, dtype=torch.bool),
        epoch=0,
        step=0,
    )


def _samples(count: int) -> GlobalSamples:
    return GlobalSamples(record_ids=np.arange(count), mirrored=np.zeros(count, dtype=bool))


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True)


def _objective(teacher: Tensor, centres: Tensor, **parts: object) -> DistillationObjective:
    settings = {
        "head": HeadConfig(),
        "geometry": GeometryMarginConfig(mode="adaptive"),
        "statistics": NormStatistics.start(dtype=centres.dtype),
        "ranks": RANKS,
        **parts,
    }
    return DistillationObjective(
        centres=AdaptiveCentres(CentresConfig(), centres),
        teacher=FixedTeacher(_unit(teacher)),
        **settings,  # type: ignore[arg-type]
    )


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("adadistill_adaface_geometry*.npz"), ids=lambda path: path.stem)
def test_distillation_agrees_with_the_origin_over_consecutive_steps(path: Path):
    case = {name: torch.from_numpy(np.asarray(value)) for name, value in np.load(path).items()}
    words = path.stem.split("_")
    geometry = GeometryMarginConfig(mode="adaptive", weight=1.0, scale=3.0, warmup_epochs=1.0)
    if "k1" in words:
        geometry = GeometryMarginConfig(mode="adaptive", weight=0.2, scale=1.0, warmup_epochs=3.0)
    if "static" in words:
        geometry = GeometryMarginConfig(mode="static", weight=0.2, scale=1.0, warmup_epochs=1.0)
    statistics = NormStatistics(case["norm_mean_before"].clone(), case["norm_std_before"].clone())
    objective = _objective(case["teacher"][0], case["centres_before"].clone(), geometry=geometry, statistics=statistics)

    for step in range(len(case["loss"])):
        objective.teacher = FixedTeacher(_unit(case["teacher"][step]))
        student = case["student"][step].clone().requires_grad_()
        out = objective.step(
            student,
            _batch(case["labels"][step]),
            _samples(len(student)),
            fractional_epoch=float(case["epoch"][step]),
            stop=False,
        )
        out.loss.backward()
        objective.commit_(YES)

        scale = case["student_grad"][step].abs().max()
        assert torch.allclose(out.loss, case["loss"][step], rtol=1e-9, atol=0)
        assert (student.grad - case["student_grad"][step]).abs().max() <= 1e-9 * scale
        assert torch.allclose(objective.centres.class_centres, case["centres"][step], rtol=1e-9, atol=1e-12)
        assert torch.allclose(objective.statistics.mean, case["norm_mean"][step], rtol=1e-9)
        assert torch.allclose(objective.statistics.std, case["norm_std"][step], rtol=1e-9)
        assert torch.allclose(out.metrics["confidence"], case["confidence_mean"][step], rtol=1e-9)


def _random_case(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student = 20 * torch.randn(8, 16, generator=generator, dtype=torch.float64)
    teacher = torch.randn(8, 16, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 3, 3, 1, 4, 0, 2, 4])
    centres = initial_centres(6, 16, generator=generator, dtype=torch.float64)
    return student, teacher, labels, centres


def test_a_rejected_step_leaves_centres_and_statistics_bit_for_bit():
    student, teacher, labels, centres = _random_case()
    student[2] = torch.nan
    teacher[5] = torch.inf
    objective = _objective(teacher, centres.clone())
    before = {**objective.row_sharded(), **objective.tensors()}
    before = {name: value.clone() for name, value in before.items()}
    unit_before = objective.centres.unit_centres().clone()

    out = objective.step(student, _batch(labels), _samples(8), fractional_epoch=0.0, stop=False)
    objective.commit_(NO)

    assert out.finite_samples.tolist() == [True, True, False, True, True, False, True, True]
    after = {**objective.row_sharded(), **objective.tensors()}
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(unit_before, objective.centres.unit_centres())


def test_a_non_finite_image_is_blamed_even_where_the_embedding_is_finite():
    student, teacher, labels, centres = _random_case()
    batch = _batch(labels)
    batch.images[6, 1, 0, 1] = torch.nan
    out = _objective(teacher, centres).step(student, batch, _samples(8), fractional_epoch=0.0, stop=False)
    assert out.finite_samples.tolist() == [True] * 6 + [False, True]


def test_the_target_centre_already_knows_this_step_s_teacher():
    _, teacher, labels, centres = _random_case()
    objective = _objective(teacher, centres, geometry=GeometryMarginConfig())
    out = objective.step(teacher.clone() * 20, _batch(labels), _samples(8), fractional_epoch=0.0, stop=False)
    # A student equal to the teacher has cosine 1 to it, so the untouched centres jump to the teacher's embeddings.
    assert out.metrics["student_teacher_cosine"] == pytest.approx(1.0)
    assert out.metrics["target_cosine"] > 0.6


def test_a_stop_request_is_reported():
    student, teacher, labels, centres = _random_case()
    objective = _objective(teacher, centres)
    for stop in (False, True):
        out = objective.step(student, _batch(labels), _samples(8), fractional_epoch=0.0, stop=stop)
        objective.commit_(YES)
        assert bool(out.stop_requested) == stop


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_labels_survive_the_trip_through_the_gathered_floats(dtype: torch.dtype):
    labels = torch.tensor([-1, 0, 1, 2, 16_777_217, 2_059_905, 7, 2**31 - 1])
    from adadistill.core.objectives import _Shared

    zeros = torch.zeros(8, dtype=dtype)
    assert torch.equal(_Shared.gather(zeros, zeros, _batch(labels, dtype), stop=False, ranks=RANKS).labels, labels)


def test_state_round_trips():
    student, teacher, labels, centres = _random_case()
    trained = _objective(teacher, centres.clone())
    trained.step(student, _batch(labels), _samples(8), fractional_epoch=0.5, stop=False)
    trained.commit_(YES)
    fresh = _objective(teacher, centres.clone())
    fresh.load(row_sharded=trained.row_sharded(), tensors=trained.tensors())
    for name, value in {**trained.row_sharded(), **trained.tensors()}.items():
        assert torch.equal(value, {**fresh.row_sharded(), **fresh.tensors()}[name])
    assert torch.equal(trained.centres.unit_centres(), fresh.centres.unit_centres())


def test_classification_trains_its_centres():
    student, _, labels, centres = _random_case()
    objective = ClassificationObjective(
        head=HeadConfig(kind="arcface", margin=0.5),
        centres=TrainableCentres(CentresConfig(kind="trainable"), centres),
        statistics=NormStatistics.start(dtype=torch.float64),
        ranks=RANKS,
    )
    raw = student.requires_grad_()
    out = objective.step(raw, _batch(labels), _samples(8), fractional_epoch=0.0, stop=False)
    out.loss.backward()
    objective.reduce_gradients_(RANKS)
    objective.commit_(YES)
    (parameter,) = objective.parameters()
    assert parameter.grad is not None
    assert parameter.grad.abs().sum() > 0
    assert set(objective.row_sharded()) == {"class_centres"}
