"""The objectives put heads, centres, geometry and softmax together as the public implementations do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from head_step import geometry_term
from objective_cases import FixedTeacher, batch_of
from term_cases import regression_terms
from tests_support import golden_files
from torch import Tensor

from adadistill.core.distributed import Ranks
from adadistill.core.method.centre_files import stored_centres
from adadistill.core.method.class_centres import (
    AdaptiveCentres,
    CentresConfig,
    TrainableCentres,
    centre_confidence,
    initial_centres,
)
from adadistill.core.method.classification import ClassificationObjective
from adadistill.core.method.distillation import DistillationObjective
from adadistill.core.method.frozen_centres import FrozenCentres
from adadistill.core.method.geometry_margin import GeometryMarginConfig
from adadistill.core.method.heads import HeadConfig, directions, margins
from adadistill.core.method.lesson import own_teacher_embeddings
from adadistill.core.method.norm_statistics import NormStatistics, updated_norm_statistics
from adadistill.core.method.objective import Objective
from adadistill.core.method.slow_centres import SlowCentres
from adadistill.core.method.terms.sum import NO_TERMS, TermSum
from adadistill.core.method.terms_alone import TermsObjective
from adadistill.kernels.margin_softmax import margin_softmax_reference

RANKS = Ranks()
YES, NO = torch.tensor(True), torch.tensor(False)


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
            batch_of(case["labels"][step]),
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

    out = objective.step(student, batch_of(labels), fractional_epoch=0.0, stop=False)
    objective.commit_(NO)

    assert out.finite_samples.tolist() == [True, True, False, True, True, False, True, True]
    after = {**objective.row_sharded(), **objective.tensors()}
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(unit_before, objective.centres.unit_centres())


def test_a_non_finite_image_is_blamed_even_where_the_embedding_is_finite():
    student, teacher, labels, centres = _random_case()
    batch = batch_of(labels)
    batch.images[6, 1, 0, 1] = torch.nan
    out = _objective(teacher, centres).step(student, batch, fractional_epoch=0.0, stop=False)
    assert out.finite_samples.tolist() == [True] * 6 + [False, True]


def test_the_target_centre_already_knows_this_step_s_teacher():
    _, teacher, labels, centres = _random_case()
    objective = _objective(teacher, centres, geometry=GeometryMarginConfig())
    out = objective.step(teacher.clone() * 20, batch_of(labels), fractional_epoch=0.0, stop=False)
    # A student equal to the teacher has cosine 1 to it, so the untouched centres jump to the teacher's embeddings.
    assert out.metrics["student_teacher_cosine"] == pytest.approx(1.0)
    assert out.metrics["target_cosine"] > 0.6


def test_a_stop_request_is_reported():
    student, teacher, labels, centres = _random_case()
    objective = _objective(teacher, centres)
    for stop in (False, True):
        out = objective.step(student, batch_of(labels), fractional_epoch=0.0, stop=stop)
        objective.commit_(YES)
        assert bool(out.stop_requested) == stop


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_labels_survive_the_trip_through_the_gathered_floats(dtype: torch.dtype):
    labels = torch.tensor([-1, 0, 1, 2, 16_777_217, 2_059_905, 7, 2**31 - 1])
    from adadistill.core.method.gathered_facts import GatheredFacts

    zeros = torch.zeros(8, dtype=dtype)
    assert torch.equal(
        GatheredFacts.gather(zeros, zeros, batch_of(labels, dtype), stop=False, ranks=RANKS).labels, labels
    )


def test_state_round_trips():
    student, teacher, labels, centres = _random_case()
    trained = _objective(teacher, centres.clone())
    trained.step(student, batch_of(labels), fractional_epoch=0.5, stop=False)
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
    out = objective.step(raw, batch_of(labels), fractional_epoch=0.0, stop=False)
    out.loss.backward()
    objective.reduce_gradients_(RANKS)
    objective.commit_(YES)
    parameter = objective.parameters()["class_centres"]
    assert parameter.grad is not None
    assert parameter.grad.abs().sum() > 0
    assert set(objective.row_sharded()) == {"class_centres"}


# Slow centres

HEADROOM = GeometryMarginConfig(mode="headroom", warmup_epochs=0.0, headroom_momentum=0.8)


def _headroom(teacher: Tensor, centres: Tensor) -> DistillationObjective:
    slow = SlowCentres(*centres.shape, momentum=0.8, dtype=centres.dtype, device=torch.device("cpu"))
    return _objective(teacher, centres, geometry=HEADROOM, slow_centres=slow)


def test_headroom_takes_its_confidence_from_the_slow_centres_and_all_else_from_the_adaptive_ones():
    student, teacher, labels, centres = _random_case()
    ours, plain = (
        _headroom(teacher, centres.clone()),
        _objective(teacher, centres.clone(), geometry=GeometryMarginConfig()),
    )
    for _ in range(3):
        before = ours.slow_centres.slow_centres.clone()
        metrics, _, _ = _loss_and_gradient(ours, student, labels)
        expected, _, _ = _loss_and_gradient(plain, student, labels)
        slow = centre_confidence(before[labels], _unit(teacher))
        term = geometry_term(HEADROOM, slow, torch.cosine_similarity(student, teacher), 0.0)
        assert metrics["slow_confidence"] == pytest.approx(float(slow.mean()))
        assert metrics["geometry"] == pytest.approx(float(term.mean()))
        assert metrics["geometry_active"] == pytest.approx(float((term > 0).double().mean()))
        for name in ("confidence", "centre_momentum", "student_teacher_cosine"):
            assert torch.equal(metrics[name], expected[name]), name
    assert torch.equal(ours.centres.class_centres, plain.centres.class_centres)
    assert metrics["geometry"] > 0.0


def test_slow_centres_are_undone_and_restored_with_the_others():
    student, teacher, labels, centres = _random_case()
    objective = _headroom(teacher, centres.clone())
    _loss_and_gradient(objective, student, labels)
    before = {name: rows.clone() for name, rows in objective.row_sharded().items()}
    assert before.keys() == {"class_centres", "slow_centres"}

    objective.step(student * torch.nan, batch_of(labels), fractional_epoch=1.0, stop=False)
    objective.commit_(NO)
    assert all(torch.equal(rows, before[name]) for name, rows in objective.row_sharded().items())

    fresh = _headroom(teacher, centres.clone())
    fresh.load(row_sharded=before, tensors=objective.tensors())
    assert all(torch.equal(rows, before[name]) for name, rows in fresh.row_sharded().items())
    with pytest.raises(ValueError, match="must hold slow_centres alone"):
        fresh.load(row_sharded={"class_centres": before["class_centres"]}, tensors=objective.tensors())
    with pytest.raises(ValueError, match=r"must hold class_centres alone, got \['class_centres', 'slow_centres'\]"):
        _objective(teacher, centres.clone()).load(row_sharded=before, tensors=objective.tensors())


def test_slow_centres_and_headroom_come_together():
    _, teacher, _, centres = _random_case()
    with pytest.raises(ValueError, match="slow centres are for geometry mode headroom alone"):
        _objective(teacher, centres, geometry=HEADROOM)
    slow = SlowCentres(6, 16, momentum=0.8, dtype=torch.float64, device=torch.device("cpu"))
    with pytest.raises(ValueError, match="which needs them; got adaptive"):
        _objective(teacher, centres, slow_centres=slow)
    with pytest.raises(ValueError, match="geometry mode headroom needs adaptive centres"):
        _frozen(centres, teacher=FixedTeacher(_unit(teacher)), geometry=HEADROOM)


# Frozen centres


def _frozen(centres: Tensor, **parts: object) -> ClassificationObjective:
    settings = {"head": HeadConfig(), "statistics": NormStatistics.start(dtype=centres.dtype), "ranks": RANKS, **parts}
    return ClassificationObjective(
        centres=FrozenCentres(stored_centres(centres.clone(), "teacher"), dtype=centres.dtype),
        **settings,  # type: ignore[arg-type]
    )


def _trainable(centres: Tensor, **parts: object) -> ClassificationObjective:
    settings = {"head": HeadConfig(), "statistics": NormStatistics.start(dtype=centres.dtype), "ranks": RANKS, **parts}
    return ClassificationObjective(
        centres=TrainableCentres(CentresConfig(kind="trainable"), centres),
        **settings,  # type: ignore[arg-type]
    )


def _loss_and_gradient(
    objective: Objective, student: Tensor, labels: Tensor, epoch: float = 0.0
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Metrics, loss and gradient to the raw student embeddings of one committed step."""
    raw = student.clone().requires_grad_()
    out = objective.step(raw, batch_of(labels), fractional_epoch=epoch, stop=False)
    out.loss.backward()
    objective.reduce_gradients_(RANKS)
    objective.commit_(YES)
    assert torch.equal(out.metrics["loss"], out.loss.detach()), "the reported loss is the one that is minimised"
    return out.metrics, out.loss.detach(), raw.grad


@pytest.mark.parametrize("head", [HeadConfig(), HeadConfig(kind="arcface", margin=0.5), HeadConfig(kind="cosface")])
def test_frozen_centres_give_the_loss_of_trained_ones_that_stand_still(head: HeadConfig):
    student, _, labels, centres = _random_case()
    frozen, trained = _frozen(centres, head=head), _trainable(centres, head=head)
    for step in range(3):
        moved = student + step
        ours, theirs = (_loss_and_gradient(objective, moved, labels) for objective in (frozen, trained))
        assert ours[0].keys() == theirs[0].keys()
        assert torch.allclose(ours[1], theirs[1], rtol=1e-12, atol=0)
        assert torch.allclose(ours[2], theirs[2], rtol=1e-12, atol=1e-14)
        assert torch.equal(frozen.statistics.std, trained.statistics.std)


def test_frozen_centres_never_move_and_are_in_no_checkpoint():
    student, teacher, labels, centres = _random_case()
    objective = _frozen(
        centres,
        teacher=FixedTeacher(_unit(teacher)),
        geometry=GeometryMarginConfig(mode="adaptive"),
        terms=regression_terms(3.0),
    )
    before = objective.centres.unit_centres().clone()
    for _ in range(3):
        _loss_and_gradient(objective, student, labels, epoch=2.0)
    assert torch.equal(objective.centres.unit_centres(), before)
    assert objective.parameters() == {}
    assert objective.row_sharded() == {}
    assert objective.tensors().keys() == {"norm_mean", "norm_std"}


def test_the_confidence_of_frozen_centres_makes_the_geometry_margin():
    """Against the formula, put together here from its published parts."""
    student, teacher, labels, centres = _random_case()
    teacher, head = _unit(teacher), HeadConfig()
    centres[labels] += 0.02 * teacher  # so that some centres know the teacher and the term is not 0
    geometry = GeometryMarginConfig(mode="adaptive", weight=0.7, scale=2.0, warmup_epochs=2.0)
    metrics, loss, gradient = _loss_and_gradient(
        _frozen(centres, teacher=FixedTeacher(teacher), geometry=geometry), student, labels, epoch=0.5
    )

    raw = student.clone().requires_grad_()
    unit, quality = directions(raw).unit_embeddings, directions(raw).quality
    confidence = centre_confidence(centres[labels], teacher)
    cosine = (unit.detach() * teacher).sum(1)
    term = geometry_term(geometry, confidence, cosine, 0.5)
    statistics = updated_norm_statistics(NormStatistics.start(dtype=torch.float64), quality, momentum=0.01)
    margin = margins(head, quality, statistics, term)
    expected = margin_softmax_reference(
        unit, _unit(centres), labels, margin.angular, margin.additive,
        logit_scale=64.0, cosine_limit=1 - 1e-3, angle_limits=(1e-3, np.pi - 1e-3), margin_grad="exact",
    ).loss.mean()  # fmt: skip
    expected.backward()

    assert (term > 0).any()
    assert torch.allclose(loss, expected.detach(), rtol=1e-12)
    assert torch.allclose(gradient, raw.grad, rtol=1e-9, atol=1e-14)
    assert torch.allclose(metrics["confidence"], confidence.mean())
    assert torch.allclose(metrics["geometry"], term.mean())
    assert torch.allclose(metrics["geometry_active"], (term > 0).float().mean())
    assert torch.allclose(metrics["student_teacher_cosine"], cosine.mean())


# Regression


def _without_and_with(kind: str, teacher: Tensor, centres: Tensor, terms: TermSum) -> list[Objective]:
    teacher = _unit(teacher)
    made: list[Objective] = []
    for chosen in (NO_TERMS, terms):
        if kind == "adaptive":
            made.append(_objective(teacher, centres.clone(), terms=chosen))
        else:
            make = _frozen if kind == "frozen" else _trainable
            made.append(make(centres.clone(), teacher=FixedTeacher(teacher), terms=chosen))
    return made


@pytest.mark.parametrize("kind", ["adaptive", "trainable", "frozen"])
def test_beside_the_softmax_regression_adds_its_weighted_loss_and_gradient_and_nothing_else(kind: str):
    student, teacher, labels, centres = _random_case()
    labels[6] = -1
    without, with_it = _without_and_with(kind, teacher, centres, regression_terms(2.5))
    plain, summed = (_loss_and_gradient(objective, student, labels) for objective in (without, with_it))

    raw = student.clone().requires_grad_()
    distance = (_unit(raw) - _unit(teacher)).square().sum(1) / 2
    mean = torch.where(labels >= 0, distance, 0.0).sum() / len(labels)
    mean.backward()

    assert torch.allclose(summed[1], plain[1] + 2.5 * mean.detach(), rtol=1e-12)
    assert torch.allclose(summed[2], plain[2] + 2.5 * raw.grad, rtol=1e-9, atol=1e-14)
    assert summed[0].keys() - plain[0].keys() == {"regression"}
    assert torch.allclose(summed[0]["regression"], mean.detach())
    assert "student_teacher_cosine" in plain[0]
    for name, value in {**without.row_sharded(), **without.tensors()}.items():
        assert torch.equal(value, {**with_it.row_sharded(), **with_it.tensors()}[name]), name


def test_regression_alone_is_the_whole_loss_and_leaves_no_state():
    student, teacher, labels, _ = _random_case()
    objective = TermsObjective(terms=regression_terms(64.0), teacher=FixedTeacher(_unit(teacher)), ranks=RANKS)
    metrics, loss, gradient = _loss_and_gradient(objective, student, labels)

    raw = student.clone().requires_grad_()
    expected = 64.0 * (1.0 - torch.cosine_similarity(raw, teacher)).mean()
    expected.backward()
    assert torch.allclose(loss, expected.detach(), rtol=1e-12)
    assert torch.allclose(gradient, raw.grad, rtol=1e-9, atol=1e-14)
    assert metrics.keys() == {"loss", "regression", "student_teacher_cosine", "quality"}
    assert torch.allclose(metrics["regression"] + metrics["student_teacher_cosine"], torch.ones(()).double())
    assert (objective.row_sharded(), objective.tensors(), objective.parameters()) == ({}, {}, {})
    objective.load(row_sharded={}, tensors={})
    with pytest.raises(ValueError, match=r"no class centres, but the checkpoint holds \['norm_mean'\]"):
        objective.load(row_sharded={}, tensors={"norm_mean": torch.zeros(())})


@pytest.mark.parametrize("kind", ["frozen", "trainable", "alone"])
def test_non_finite_teachers_and_images_are_blamed_and_stops_reported_in_every_objective(kind: str):
    student, teacher, labels, centres = _random_case()
    teacher, terms = _unit(teacher), regression_terms(1.0)
    teacher[5] = torch.nan
    if kind == "alone":
        objective: Objective = TermsObjective(terms=terms, teacher=FixedTeacher(teacher), ranks=RANKS)
    else:
        make = _frozen if kind == "frozen" else _trainable
        objective = make(centres, teacher=FixedTeacher(teacher), terms=terms)
    batch = batch_of(labels)
    batch.images[2, 0, 0, 0] = torch.inf
    before = {name: value.clone() for name, value in objective.tensors().items()}

    out = objective.step(student, batch, fractional_epoch=0.0, stop=True)
    objective.commit_(NO)

    assert out.finite_samples.tolist() == [True, True, False, True, True, False, True, True]
    assert bool(out.stop_requested)
    assert all(torch.equal(value, objective.tensors()[name]) for name, value in before.items())


def test_a_rank_asks_a_store_for_its_own_samples_alone_and_a_network_for_its_own_images():
    class Network:
        embedding_dim = 16

        def embed(self, images: Tensor) -> Tensor:
            return images

    rows, ranks = torch.arange(12.0)[:, None], Ranks(rank=1, world_size=3)
    batch = replace(
        batch_of(torch.zeros(4, dtype=torch.int64)), global_record_ids=np.arange(12), global_mirrored=np.zeros(12, bool)
    )
    assert own_teacher_embeddings(FixedTeacher(rows), batch, ranks).squeeze(1).tolist() == [4, 5, 6, 7]
    assert own_teacher_embeddings(Network(), batch, ranks) is batch.images


def test_parts_that_nothing_can_serve_are_refused():
    _, teacher, _, centres = _random_case()
    with pytest.raises(ValueError, match="need a teacher"):
        _frozen(centres, terms=regression_terms(1.0))
    with pytest.raises(ValueError, match="needs frozen centres here, got trainable"):
        _trainable(centres, teacher=FixedTeacher(teacher), geometry=GeometryMarginConfig(mode="static"))
    with pytest.raises(ValueError, match=r"need at least one term"):
        TermsObjective(terms=NO_TERMS, teacher=FixedTeacher(teacher), ranks=RANKS)
