"""The memory bank: against its definition over several steps, what it keeps, and how it refuses what does not fit."""

from __future__ import annotations

import pytest
import torch
from term_cases import term_facts, unit_rows
from torch import Tensor

from adadistill.core.method.terms.similarities import Similarities, SimilaritiesConfig


def _term(bank: int = 10, hardest: float = 1.0) -> Similarities:
    config = SimilaritiesConfig(weight=1.0, bank=bank, hardest=hardest)
    return Similarities(config, dim=5, dtype=torch.float64, device=torch.device("cpu"))


def _step(term: Similarities, student: Tensor, teacher: Tensor, labels: Tensor, *, finite: bool = True) -> float:
    loss = term.loss(term_facts(student, teacher, labels))
    term.commit_(torch.tensor(finite))
    return float(loss)


@pytest.mark.parametrize("hardest", [1.0, 0.3])
def test_it_is_the_mean_over_the_hardest_of_the_newest_images(hardest: float):
    term, kept = _term(hardest=hardest), []
    for step in range(5):  # 20 images through a bank of 10
        student, teacher = unit_rows(4, 5, seed=step), unit_rows(4, 5, seed=100 + step)
        expected = 0.0
        if kept:
            earlier = torch.stack([pair[0] for pair in kept]), torch.stack([pair[1] for pair in kept])
            squares = (student @ earlier[0].T - teacher @ earlier[1].T).square()
            count = min(len(kept), max(1, round(hardest * 10)))
            expected = float(squares.sort(dim=1, descending=True).values[:, :count].mean())
        assert _step(term, student, teacher, torch.arange(4)) == pytest.approx(expected, rel=1e-12)
        kept = [*kept, *zip(student, teacher, strict=True)][-10:]


def test_a_step_that_is_not_finite_leaves_the_bank_as_it_was():
    term, labels = _term(), torch.arange(4)
    _step(term, unit_rows(4, 5, seed=0), unit_rows(4, 5, seed=1), labels)
    before = {name: tensor.clone() for name, tensor in term.tensors().items()}
    _step(term, unit_rows(4, 5, seed=2), torch.full((4, 5), float("nan"), dtype=torch.float64), labels, finite=False)
    assert all(torch.equal(before[name], tensor) for name, tensor in term.tensors().items())


def test_ignored_samples_have_no_loss_no_gradient_and_no_place():
    term = _term()
    _step(term, unit_rows(4, 5, seed=0), unit_rows(4, 5, seed=1), torch.arange(4))
    student = unit_rows(4, 5, seed=2).requires_grad_()
    teacher = unit_rows(4, 5, seed=3)
    teacher[1] = float("nan")
    (gradient,) = torch.autograd.grad(term.loss(term_facts(student, teacher, torch.tensor([0, -1, 1, 2]))), student)
    assert torch.equal(gradient[1], torch.zeros(5, dtype=torch.float64))
    assert torch.isfinite(gradient).all()
    term.commit_(torch.tensor(True))
    assert torch.isfinite(term.tensors()["teacher"]).all()


def test_the_gradient_is_that_of_finite_differences():
    term, teacher = _term(hardest=0.2), unit_rows(4, 5, seed=3)
    _step(term, unit_rows(4, 5, seed=0), unit_rows(4, 5, seed=1), torch.arange(4))
    student = unit_rows(4, 5, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda rows: term.loss(term_facts(rows, teacher, torch.arange(4))), (student,))


def test_it_goes_on_from_its_tensors_and_refuses_those_of_another_bank():
    first, second, labels = _term(), _term(), torch.arange(4)
    _step(first, unit_rows(4, 5, seed=0), unit_rows(4, 5, seed=1), labels)
    second.load_({name: tensor.clone() for name, tensor in first.tensors().items()})
    student, teacher = unit_rows(4, 5, seed=2), unit_rows(4, 5, seed=3)
    assert _step(first, student, teacher, labels) == _step(second, student, teacher, labels) > 0.0
    with pytest.raises(ValueError, match=r"bank of \(12, 5\) was expected"):
        _term(bank=12).load_(first.tensors())
