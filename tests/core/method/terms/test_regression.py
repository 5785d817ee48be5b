"""Cosine regression: its values, its gradient in closed form and by finite differences, the rows it leaves alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adadistill.core.method.heads import directions
from adadistill.core.method.terms.regression import RegressionConfig, cosine_regression


def _rows(count: int, dim: int, seed: int) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _loss(embeddings: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return cosine_regression(directions(embeddings).unit_embeddings, teacher, labels)


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True)


# One sample of one dimension, a batch, more dimensions than samples.
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (4, 64)])
def test_it_is_half_the_squared_distance_of_the_unit_embeddings(shape: tuple[int, int]):
    student, teacher = 20 * _rows(*shape, seed=0), _unit(_rows(*shape, seed=1))
    labels = torch.arange(shape[0])
    expected = (_unit(student) - teacher).square().sum(1) / 2
    assert torch.allclose(_loss(student, teacher, labels), expected, rtol=1e-12, atol=1e-15)


def test_it_runs_from_0_at_the_teacher_over_1_across_to_2_opposite():
    teacher = torch.tensor([[0.0, 1.0]] * 3, dtype=torch.float64)
    student = torch.tensor([[0.0, 7.0], [3.0, 0.0], [0.0, -0.1]], dtype=torch.float64)
    assert _loss(student, teacher, torch.zeros(3, dtype=torch.int64)).tolist() == [0.0, 1.0, 2.0]


def test_its_gradient_is_the_closed_form():
    student, teacher = (20 * _rows(6, 16, seed=2)).requires_grad_(), _unit(_rows(6, 16, seed=3))
    (gradient,) = torch.autograd.grad(_loss(student, teacher, torch.arange(6)).sum(), student)
    raw = student.detach()
    cosine = (_unit(raw) * teacher).sum(1, keepdim=True)
    expected = -(teacher - cosine * _unit(raw)) / raw.norm(dim=1, keepdim=True)
    assert torch.allclose(gradient, expected, rtol=1e-12, atol=1e-15)


def test_its_gradient_agrees_with_finite_differences_also_beside_ignored_samples():
    student, teacher = _rows(5, 4, seed=4).requires_grad_(), _unit(_rows(5, 4, seed=5))
    labels = torch.tensor([0, -1, 2, 2, -1])
    assert torch.autograd.gradcheck(lambda rows: _loss(rows, teacher, labels), (student,))


def test_the_teacher_gets_no_gradient():
    student, teacher = _rows(3, 4, seed=6).requires_grad_(), _unit(_rows(3, 4, seed=7)).requires_grad_()
    _loss(student, teacher, torch.arange(3)).sum().backward()
    assert student.grad is not None
    assert teacher.grad is None


@pytest.mark.parametrize("length", [0.0, 1e-300, 1e-9, 1e-7, 1e12])
def test_gradients_stay_finite_for_embeddings_of_any_length(length: float):
    student = torch.zeros(2, 8, dtype=torch.float64)
    student[:, 3] = length
    student.requires_grad_()
    loss = _loss(student, _unit(_rows(2, 8, seed=8)), torch.arange(2))
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(student.grad).all()
    if length < 1e-8:
        assert not student.grad.any(), "what has no direction is not pushed anywhere"


def test_a_teacher_without_direction_pulls_nowhere():
    student = _rows(2, 4, seed=9).requires_grad_()
    loss = _loss(student, torch.zeros(2, 4, dtype=torch.float64), torch.arange(2))
    loss.sum().backward()
    assert loss.tolist() == [1.0, 1.0]
    assert not student.grad.any()


def test_ignored_samples_give_nothing_whatever_they_hold():
    student, teacher = _unit(_rows(4, 4, seed=10)), _unit(_rows(4, 4, seed=11))
    student[1], teacher[2] = torch.nan, torch.inf
    student.requires_grad_()
    loss = cosine_regression(student, teacher, torch.tensor([0, -1, -1, 1]))
    loss.sum().backward()
    assert loss[1:3].tolist() == [0.0, 0.0]
    assert not student.grad[1:3].any()
    assert torch.isfinite(student.grad[[0, 3]]).all()
    assert student.grad[[0, 3]].any()


def test_half_precision_is_widened():
    student, teacher = _unit(_rows(3, 8, seed=12)).bfloat16(), _unit(_rows(3, 8, seed=13)).half()
    loss = cosine_regression(student, teacher, torch.arange(3))
    assert loss.dtype == torch.float32
    assert torch.allclose(loss, 1 - (student.float() * teacher.float()).sum(1))


def test_an_empty_batch_is_fine():
    assert cosine_regression(torch.zeros(0, 4), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)).shape == (0,)


@pytest.mark.parametrize(("teacher", "labels"), [((3, 5), 3), ((2, 4), 3), ((3, 4), 2)])
def test_shapes_that_disagree_are_refused(teacher: tuple[int, int], labels: int):
    with pytest.raises(ValueError, match=r"must both be \(B, D\)"):
        cosine_regression(torch.zeros(3, 4), torch.zeros(teacher), torch.zeros(labels, dtype=torch.int64))


@pytest.mark.parametrize("weight", [-0.1, float("inf"), float("nan")])
def test_a_weight_out_of_range_is_refused_by_name(weight: float):
    with pytest.raises(ValueError, match="weight must be at least 0 and finite"):
        RegressionConfig(weight=weight)
