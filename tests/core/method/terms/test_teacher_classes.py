"""The teacher's softmax over class centres, against the dense divergence with its groups, and its gradient."""

from __future__ import annotations

import pytest
import torch
from term_cases import term_facts, unit_rows
from torch import Tensor

from adadistill.core.method.terms import teacher_classes
from adadistill.core.method.terms.teacher_classes import TeacherClasses, TeacherClassesConfig

LABELS = torch.tensor([3, -1, 0, 8])


def _dense(student: Tensor, teacher: Tensor, centres: Tensor, *, scale: float, classes: int) -> float:
    total = 0.0
    for x, t, label in zip(student, teacher, LABELS.tolist(), strict=True):
        if label < 0:
            continue
        p, q = (scale * centres @ t).softmax(0), (scale * centres @ x).softmax(0)
        chosen = p.argsort(descending=True)[:classes]
        groups = [torch.cat([one[chosen], (1.0 - one[chosen].sum())[None].clamp(min=1e-16)]) for one in (p, q)]
        total += float((groups[0] * (groups[0] / groups[1]).log()).sum())
    return total / len(LABELS)


@pytest.mark.parametrize("classes", [1, 3, 9, 50])
def test_it_is_the_divergence_of_the_teachers_likeliest_classes_and_the_rest(
    classes: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(teacher_classes, "_CHUNK", 4)  # the largest of nine classes are found in three chunks
    student, teacher, centres = unit_rows(4, 6, seed=0), unit_rows(4, 6, seed=1), unit_rows(9, 6, seed=2)
    term = TeacherClasses(TeacherClassesConfig(weight=1.0, scale=8.0, classes=classes))
    found = term.loss(term_facts(student, teacher, LABELS, centres))
    assert float(found) == pytest.approx(_dense(student, teacher, centres, scale=8.0, classes=classes), rel=1e-9)


def test_the_gradient_is_that_of_finite_differences_and_none_for_ignored_samples():
    student, teacher, centres = (
        unit_rows(4, 6, seed=0).requires_grad_(),
        unit_rows(4, 6, seed=1),
        unit_rows(9, 6, seed=2),
    )
    term = TeacherClasses(TeacherClassesConfig(weight=1.0, scale=8.0, classes=3))
    assert torch.autograd.gradcheck(lambda rows: term.loss(term_facts(rows, teacher, LABELS, centres)), (student,))
    teacher[1] = float("nan")
    (gradient,) = torch.autograd.grad(term.loss(term_facts(student, teacher, LABELS, centres)), student)
    assert torch.equal(gradient[1], torch.zeros(6, dtype=torch.float64))
    assert torch.isfinite(gradient).all()


def test_a_student_that_answers_as_the_teacher_has_no_loss():
    teacher, centres = unit_rows(4, 6, seed=1), unit_rows(9, 6, seed=2)
    term = TeacherClasses(TeacherClassesConfig(weight=1.0))
    assert abs(float(term.loss(term_facts(teacher, teacher, LABELS, centres)))) < 1e-12
