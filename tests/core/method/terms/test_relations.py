"""Distances and angles against their definitions written as loops, their gradients, and the samples they leave out."""

from __future__ import annotations

import itertools

import pytest
import torch
from term_cases import term_facts, unit_rows
from torch import Tensor

from adadistill.core.method.terms.relations import Angles, AnglesConfig, Distances, DistancesConfig


def _huber(x: float) -> float:
    return x * x / 2 if abs(x) < 1 else abs(x) - 0.5


def _distances_by_loops(student: Tensor, teacher: Tensor, valid: list[int]) -> float:
    pairs = list(itertools.permutations(valid, 2))
    relative = []
    for rows in (student, teacher):
        found = [float((rows[i] - rows[j]).norm()) for i, j in pairs]
        relative.append([one / (sum(found) / len(found)) for one in found])
    return sum(_huber(s - t) for s, t in zip(*relative, strict=True)) / len(pairs)


def _angles_by_loops(student: Tensor, teacher: Tensor, groups: list[list[int]]) -> float:
    losses = []
    for group in groups:
        for i, j, k in itertools.permutations(group, 3):
            cosines = [
                float(torch.nn.functional.cosine_similarity(rows[i] - rows[j], rows[k] - rows[j], dim=0))
                for rows in (student, teacher)
            ]
            losses.append(_huber(cosines[0] - cosines[1]))
    return sum(losses) / len(losses)


LABELS = torch.tensor([0, 1, -1, 1, 2, 0, 3])
VALID = [0, 1, 3, 4, 5, 6]


def test_distances_are_those_of_the_definition():
    student, teacher = unit_rows(7, 5, seed=0), unit_rows(7, 5, seed=1)
    found = Distances(DistancesConfig(weight=1.0)).loss(term_facts(student, teacher, LABELS))
    assert float(found) == pytest.approx(_distances_by_loops(student, teacher, VALID), rel=1e-12)


def test_angles_are_those_of_the_definition_within_groups_the_last_of_which_is_short():
    student, teacher = unit_rows(7, 5, seed=2), unit_rows(7, 5, seed=3)
    found = Angles(AnglesConfig(weight=1.0, group=4)).loss(term_facts(student, teacher, LABELS))
    assert float(found) == pytest.approx(_angles_by_loops(student, teacher, [[0, 1, 3], [4, 5, 6]]), rel=1e-10)


@pytest.mark.parametrize("term", [Distances(DistancesConfig(weight=1.0)), Angles(AnglesConfig(weight=1.0, group=4))])
def test_the_gradient_is_that_of_finite_differences_and_reaches_no_ignored_sample(term: Distances | Angles):
    student, teacher = unit_rows(7, 5, seed=4).requires_grad_(), unit_rows(7, 5, seed=5)
    assert torch.autograd.gradcheck(lambda rows: term.loss(term_facts(rows, teacher, LABELS)), (student,))
    teacher[2], broken = float("nan"), student.detach().clone()
    broken[2] = float("nan")
    broken.requires_grad_()
    (gradient,) = torch.autograd.grad(term.loss(term_facts(broken, teacher, LABELS)), broken)
    kept = [row for row in range(7) if row != 2]
    assert torch.isfinite(gradient[kept]).all()
    assert (gradient[kept].abs().sum(1) > 0).all()


@pytest.mark.parametrize("term", [Distances(DistancesConfig(weight=1.0)), Angles(AnglesConfig(weight=1.0))])
def test_a_turned_copy_of_the_teacher_has_no_loss(term: Distances | Angles):
    teacher = unit_rows(9, 4, seed=6)
    turn = torch.linalg.qr(unit_rows(4, 4, seed=7)).Q
    assert float(term.loss(term_facts(teacher @ turn, teacher, torch.arange(9)))) < 1e-12


@pytest.mark.parametrize("term", [Distances(DistancesConfig(weight=1.0)), Angles(AnglesConfig(weight=1.0))])
def test_equal_images_and_batches_without_two_samples_have_finite_gradients(term: Distances | Angles):
    teacher = unit_rows(1, 4, seed=8).expand(6, 4).contiguous()
    for labels in (torch.arange(6), torch.tensor([0, -1, -1, -1, -1, -1])):
        student = unit_rows(1, 4, seed=9).repeat(6, 1).requires_grad_()
        loss = term.loss(term_facts(student, teacher, labels))
        (gradient,) = torch.autograd.grad(loss, student)
        assert loss.item() == 0.0
        assert torch.equal(gradient, torch.zeros_like(gradient))
