"""The head prologue in plain torch: the published parts put together, and a target column that the softmax can take."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from head_prologue_cases import VARIANTS, as_double, make_case, parts
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize

from adadistill.kernels.head_margins import HEADS_IN_TRITON, Head, HeadNumbers, Margins
from adadistill.kernels.head_prologue import (
    LEAST_DIRECTED_NORM,
    CentreStore,
    Directions,
    directions,
    directions_reference,
    head_prologue,
    head_prologue_reference,
)
from adadistill.kernels.margin_softmax import margin_softmax
from adadistill.kernels.target_column import TargetColumn


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_softmax_that_is_given_its_target_column_returns_the_same_bits(variant: str, dtype: torch.dtype):
    """Loss, statistics and gradient, fixed centres and trained ones, ignored and special rows."""
    case = make_case(13, 16).to(dtype)
    head = VARIANTS[variant][0]
    options = {
        "logit_scale": head.logit_scale, "cosine_limit": head.limits.cosine_limit,
        "angle_limits": head.limits.angle_limits, "margin_grad": head.margin_grad,
    }  # fmt: skip
    for trained in (False, True):
        results = []
        for is_given in (False, True):
            embeddings = case.embeddings.clone().requires_grad_()
            student = directions(embeddings, case.teacher)
            made = head_prologue(**case.inputs(student, variant, unit=True))
            centres = normalize(case.centres).requires_grad_(trained)
            column = (
                {"target": made.target, "target_centres": None if trained else made.target_rows} if is_given else {}
            )
            result = margin_softmax(
                student.unit_embeddings, centres, case.labels, made.margins.angular, made.margins.additive, **options,
                **column,
            )  # fmt: skip
            # Norms of ignored rows may be NaN, and so are their margins.
            loss = torch.where(case.labels >= 0, result.loss, 0.0).sum()
            wanted = [embeddings, centres] if trained else [embeddings]
            results.append([*vars_of(result), *torch.autograd.grad(loss, wanted)])
        assert all(torch.equal(one.nan_to_num(), other.nan_to_num()) for one, other in zip(*results, strict=True))


def vars_of(result: object) -> list[torch.Tensor]:
    return [getattr(result, name).detach() for name in ("loss", "target_cosine", "target_probability", "clamped")]


def test_a_column_that_the_softmax_cannot_use_is_refused():
    case = make_case(4, 16)
    student = directions(case.embeddings, case.teacher)
    made = head_prologue(**case.inputs(student, "arcface", unit=True))
    arguments = (student.unit_embeddings, normalize(case.centres), case.labels, made.margins.angular,
                 made.margins.additive)  # fmt: skip
    options = {"logit_scale": 64.0, "cosine_limit": 1.0, "angle_limits": None, "margin_grad": "exact"}
    with pytest.raises(ValueError, match="target needs target_centres beside it"):
        margin_softmax(*arguments, **options, target=made.target)
    short = TargetColumn(*(value[:3] for value in made.target))
    with pytest.raises(ValueError, match=r"target.cosine must be \(4,\), got \(3,\)"):
        margin_softmax(*arguments, **options, target=short, target_centres=made.target_rows)


@pytest.mark.parametrize("variant", ["adaface, adaptive", "straight through"])
def test_the_special_rows_are_cut_and_clipped_at_both_ends(variant: str):
    """So that the tests of both forms see every branch of the target column."""
    case = make_case(13, 64)
    case.confidence.zero_()
    student = directions(case.embeddings, case.teacher)
    made = head_prologue(**case.inputs(student, variant, unit=False))
    assert made.target.cosine[:2].tolist() == [1.0, -1.0]
    assert made.margins.scaler[[5, 7, 8]].tolist() == [1.0, 1.0, -1.0]
    assert made.target.clamped[[0, 1, 7, 8]].all()
    assert made.target.slope[[0, 1]].tolist() == [0.0, 0.0]
    assert made.target.slope[[7, 8]].tolist() == ([1.0, 1.0] if variant == "straight through" else [0.0, 0.0])


def test_float32_is_the_float64_result_rounded():
    case = make_case(13, 64, others=11).to(torch.float32)
    student = directions_reference(case.embeddings, case.teacher)
    found = parts(head_prologue_reference(**case.inputs(student, "adaface, adaptive", unit=False)))
    wide = case.to(torch.float64).inputs(as_double(student), "adaface, adaptive", unit=False)
    for name, wanted in parts(head_prologue_reference(**wide)).items():
        torch.testing.assert_close(found[name].to(wanted.dtype), wanted, rtol=2e-6, atol=2e-6, equal_nan=True, msg=name)


def test_ignored_rows_have_no_part_in_the_statistics_and_an_empty_column():
    case = make_case(6, 16)
    case.labels[2] = -1
    case.embeddings[2] = torch.nan
    student = directions(case.embeddings, case.teacher)
    made = head_prologue(**case.inputs(student, "adaface, adaptive", unit=False))
    norms = case.embeddings[case.labels >= 0].norm(dim=1).clamp(0.001, 100.0)
    head = VARIANTS["adaface, adaptive"][0]
    torch.testing.assert_close(made.norm_mean, 20.0 + head.norm_momentum * (norms.mean() - 20.0))
    torch.testing.assert_close(made.norm_std, 4.0 + head.norm_momentum * (norms.std() - 4.0))
    assert not made.target_rows[2].any()
    assert [float(value[2]) for value in made.target] == [0.0, 0.0, 1.0, 0.0]


def test_statistics_of_too_few_samples_stay():
    case = make_case(1, 16)
    student = directions(case.embeddings, case.teacher)
    one = head_prologue(**case.inputs(student, "cosface", unit=False))
    assert torch.equal(one.norm_std, case.std)
    assert not torch.equal(one.norm_mean, case.mean)
    case.labels[0] = -1
    none = head_prologue(**case.inputs(student, "cosface", unit=False))
    assert torch.equal(none.norm_std, case.std)
    assert torch.equal(none.norm_mean, case.mean)


@given(st.integers(0, 2**16), st.sampled_from(sorted(VARIANTS)))
def test_permuting_the_batch_permutes_everything_but_the_statistics(seed: int, variant: str):
    case = make_case(12, 16, seed=seed)
    student = directions(case.embeddings, case.teacher)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    shuffled = replace(
        case, embeddings=case.embeddings[order], teacher=case.teacher[order], labels=case.labels[order],
        confidence=case.confidence[order],
    )  # fmt: skip
    whole = parts(head_prologue(**case.inputs(student, variant, unit=False)))
    moved = directions(shuffled.embeddings, shuffled.teacher)
    for name, value in parts(head_prologue(**shuffled.inputs(moved, variant, unit=False))).items():
        wanted = whole[name] if name.startswith("norm_") else whole[name][order]
        torch.testing.assert_close(value, wanted, rtol=1e-12, atol=1e-12, equal_nan=True, msg=name)


def test_nothing_but_the_unit_embeddings_has_a_gradient():
    case = make_case(5, 16)
    student = directions(case.embeddings.requires_grad_(), case.teacher.requires_grad_())
    made = head_prologue(**case.inputs(student, "adaface, adaptive", unit=False))
    assert student.unit_embeddings.requires_grad
    assert not student.quality.requires_grad
    assert not student.teacher_cosine.requires_grad
    assert not any(value.requires_grad for value in parts(made).values())


def test_without_a_teacher_the_cosines_are_zeros():
    assert directions(make_case(3, 16).embeddings).teacher_cosine.tolist() == [0.0, 0.0, 0.0]


def test_the_shortest_embedding_with_a_direction_is_where_gradients_begin():
    rows = torch.tensor([[0.0, 0.5], [0.0, 1.0], [0.0, 2.0]]).double() * LEAST_DIRECTED_NORM
    made = directions(rows.requires_grad_())
    (gradient,) = torch.autograd.grad(made.unit_embeddings[:, 0].sum(), rows)
    torch.testing.assert_close(made.unit_embeddings[:, 1], torch.tensor([0.5, 1.0, 1.0]).double())
    torch.testing.assert_close(gradient[:, 0] * LEAST_DIRECTED_NORM, torch.tensor([0.0, 1.0, 0.5]).double())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.zeros(4, 1, dtype=torch.int64)}, r"labels must be \(4,\), got \(4, 1\)"),
        ({"labels": torch.zeros(4)}, "labels must be int64, got torch.float32"),
        ({"confidence": torch.zeros(3)}, r"confidence must be \(4,\), got \(3,\)"),
        ({"confidence": None}, "confidence must be given for the geometry margin, mode adaptive"),
        ({"global_quality": torch.zeros(5)}, r"global_quality \(5,\) and global_labels \(4,\) must both be \(G,\)"),
        ({"store": CentreStore(torch.zeros(3, 9), unit=True)}, r"centres must be \(C, 16\) with C >= 1, got \(3, 9\)"),
        ({"head": VARIANTS["arcface"][0]}, "needs a head that heeds it, got a geometry term for arcface"),
        ({"student": Directions(torch.zeros(16), torch.zeros(1), torch.zeros(1))}, r"unit_embeddings must be \(B, D\)"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change: dict[str, object], message: str):
    case = make_case(4, 16)
    inputs = case.inputs(directions(case.embeddings, case.teacher), "adaface, adaptive", unit=False)
    with pytest.raises(ValueError, match=message):
        head_prologue(**{**inputs, **change})


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda norms: Margins.unscaled(norms[:, None], norms), r"head own must give angular .* got \(4, 1\)"),
        (lambda norms: Margins.unscaled(norms, norms.float()), r"additive .* got \(4,\) torch.float32"),
        (lambda norms: Margins.unscaled(norms, norms.mean()), r"additive .* got \(\) torch.float64"),
    ],
)
def test_margins_of_another_shape_or_dtype_are_refused_before_they_broadcast(made, message: str):
    case = make_case(4, 16)

    @dataclass(frozen=True, kw_only=True)
    class OwnHead(HeadNumbers):
        heads: ClassVar = {"own": Head(title="Own", margins=lambda _, facts: made(facts.norms), in_triton=False)}

    inputs = case.inputs(directions(case.embeddings, case.teacher), "arcface", unit=False)
    with pytest.raises(ValueError, match=message):
        head_prologue(**{**inputs, "head": OwnHead(kind="own")})


def test_every_head_with_a_branch_in_triton_is_among_the_variants_that_are_compared():
    assert {head.kind for head, _ in VARIANTS.values()} == HEADS_IN_TRITON.keys()


def test_a_teacher_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"student \(4, 16\) and teacher \(3, 16\) must both be \(B, D\)"):
        directions(torch.zeros(4, 16), torch.zeros(3, 16))
    with pytest.raises(ValueError, match=r"embeddings must be \(B, D\), got \(4,\)"):
        directions(torch.zeros(4))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", [(1, 16, 0), (13, 31, 41), (1031, 512, 2047)])
def test_on_cuda_it_is_no_less_accurate_than_eager_and_the_same_every_time(variant: str, shape: tuple[int, int, int]):
    case = make_case(shape[0], shape[1], others=shape[2], classes=50).to(torch.float32, "cuda")
    student = directions_reference(case.embeddings, case.teacher)
    inputs = case.inputs(student, variant, unit=False)
    wide = case.to(torch.float64, "cuda").inputs(as_double(student), variant, unit=False)
    exact, eager = (parts(head_prologue_reference(**given)) for given in (wide, inputs))
    found, again = parts(head_prologue(**inputs)), parts(head_prologue(**inputs))
    for name, wanted in exact.items():
        assert torch.equal(found[name].nan_to_num(), again[name].nan_to_num()), name
        if wanted.dtype != torch.bool:
            assert far(found[name], wanted) <= 2 * far(eager[name], wanted) + 1e-6, name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_cuda_directions_and_their_gradient_are_no_less_accurate_than_eager(dtype: torch.dtype):
    case = make_case(301, 512).to(dtype, "cuda")
    results = []
    for form, embeddings in (
        (directions, case.embeddings), (directions_reference, case.embeddings),
        (directions_reference, case.embeddings.double()),
    ):  # fmt: skip
        leaf = embeddings.clone().requires_grad_()
        made = form(leaf, case.teacher)
        weights = torch.linspace(-1.0, 2.0, leaf.numel(), device="cuda").view_as(leaf).to(made.unit_embeddings.dtype)
        (gradient,) = torch.autograd.grad((weights * made.unit_embeddings).sum(), leaf)
        results.append([made.unit_embeddings.detach(), made.quality, made.teacher_cosine, gradient])
    for found, eager, exact in zip(*results, strict=True):
        assert far(found, exact) <= 2 * far(eager, exact) + 1e-6


def far(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference as a share of the largest value, NaN for NaN being none."""
    lost = torch.isnan(wanted)
    assert torch.equal(lost, torch.isnan(found))
    difference = torch.where(lost, 0.0, (found.double() - wanted.double()).abs()).max().item()
    return difference / max(torch.where(lost, 0.0, wanted.double().abs()).max().item(), 1e-30)
