"""Margins of the heads, their limits, and whole head steps on batches that break lesser code."""

from __future__ import annotations

import math

import pytest
import torch
from head_step import prepare_step
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adadistill.core.method.class_centres import AdaptiveCentres, CentresConfig
from adadistill.core.method.geometry_margin import GeometryMarginConfig
from adadistill.core.method.heads import HeadConfig, directions, margins
from adadistill.core.method.norm_statistics import NormStatistics, updated_norm_statistics
from adadistill.kernels.margin_softmax import margin_softmax, margin_softmax_reference

ADAFACE = HeadConfig(kind="adaface", margin=0.4)
HEADS = [ADAFACE, HeadConfig(kind="arcface", margin=0.45), HeadConfig(kind="cosface", margin=0.35)]


def kind(head: HeadConfig) -> str:
    return head.kind


def test_arcface_and_cosface_are_constants():
    quality = torch.tensor([1.0, 20.0, 90.0])
    arcface, cosface = margins(HEADS[1], quality), margins(HEADS[2], quality)
    torch.testing.assert_close(arcface.angular, torch.full((3,), 0.45))
    assert arcface.additive.tolist() == [0.0, 0.0, 0.0]
    assert cosface.angular.tolist() == [0.0, 0.0, 0.0]
    torch.testing.assert_close(cosface.additive, torch.full((3,), 0.35))
    assert arcface.scaler.tolist() == [0.0, 0.0, 0.0]
    assert not cosface.clipped.any()


def test_adaface_scaler_of_the_worked_example():
    norms = torch.tensor([10.0, 20.0, 30.0], dtype=torch.float64)
    statistics = updated_norm_statistics(NormStatistics.start(dtype=torch.float64), norms, momentum=0.01)
    margin = margins(ADAFACE, norms, statistics)
    expected = 0.333 * 10 / (99.1 + 0.001)
    torch.testing.assert_close(margin.scaler, torch.tensor([-expected, 0.0, expected], dtype=torch.float64))
    assert margin.scaler[2].item() == pytest.approx(0.0336, abs=5e-5)
    torch.testing.assert_close(margin.angular, -0.4 * margin.scaler)
    torch.testing.assert_close(margin.additive, 0.4 + 0.4 * margin.scaler)


def test_adaface_saturates_on_both_sides_and_says_so():
    statistics = NormStatistics.start(mean=18.0, std=2.0)
    margin = margins(ADAFACE, torch.tensor([0.0, 18.0, 260.0]), statistics)
    torch.testing.assert_close(margin.scaler, torch.tensor([-1.0, 0.0, 1.0]))
    assert margin.clipped.tolist() == [True, False, True]
    torch.testing.assert_close(margin.angular, torch.tensor([0.4, 0.0, -0.4]))
    torch.testing.assert_close(margin.additive, torch.tensor([0.0, 0.4, 0.8]))


def test_the_geometry_term_is_added_before_the_one_clip():
    statistics = NormStatistics.start(mean=18.0, std=2.0)
    quality = torch.tensor([18.0, 6.0, 6.0])
    term = torch.tensor([1.2627, 1.5, 0.5])
    margin = margins(ADAFACE, quality, statistics, term)
    raw = 0.333 * (quality - 18.0) / 2.001
    torch.testing.assert_close(margin.scaler, (raw + term).clamp(-1, 1))
    assert margin.scaler.tolist()[0] == 1.0
    assert margin.clipped.tolist() == [True, False, True]


@pytest.mark.parametrize("head", HEADS, ids=kind)
def test_columns_of_norms_give_rows_of_margins_and_never_a_square(head):
    quality = torch.tensor([10.0, 20.0, 30.0])
    geometry = torch.tensor([0.1, 0.2, 0.3]) if head.kind == "adaface" else None
    flat = margins(head, quality, NormStatistics.start(), geometry)
    column = margins(head, quality[:, None], NormStatistics.start(), None if geometry is None else geometry[:, None])
    for name in ("angular", "additive", "scaler", "clipped"):
        assert getattr(column, name).shape == (3,)
        assert torch.equal(getattr(column, name), getattr(flat, name))


def test_inputs_that_do_not_fit_are_refused():
    quality = torch.tensor([10.0, 20.0])
    with pytest.raises(ValueError, match="needs norm statistics"):
        margins(ADAFACE, quality)
    with pytest.raises(ValueError, match=r"geometry must be \(2,\), got \(3,\)"):
        margins(ADAFACE, quality, NormStatistics.start(), torch.zeros(3))
    with pytest.raises(ValueError, match="geometry margin needs a head that heeds it, got a geometry term for arcface"):
        margins(HEADS[1], quality, geometry=torch.zeros(2))
    with pytest.raises(ValueError, match=r"norms must be \(B,\) or \(B, 1\)"):
        margins(ADAFACE, quality[None], NormStatistics.start())


def test_margins_are_float32_or_wider_and_carry_no_gradient():
    quality = torch.tensor([10.0, 20.0], dtype=torch.bfloat16, requires_grad=True)
    margin = margins(ADAFACE, quality, NormStatistics.start(), torch.zeros(2, requires_grad=True))
    assert margin.angular.dtype == torch.float32
    assert not margin.angular.requires_grad
    assert margins(ADAFACE, quality.double(), NormStatistics.start()).additive.dtype == torch.float64


@settings(deadline=None)
@given(norm=st.floats(0.0, 300.0), better=st.floats(0.0, 100.0))
def test_higher_quality_never_lowers_the_additive_part_nor_raises_the_angular_one(norm, better):
    margin = margins(ADAFACE, torch.tensor([norm, norm + better]), NormStatistics.start(mean=18.0, std=2.0))
    assert margin.additive[1] >= margin.additive[0]
    assert margin.angular[1] <= margin.angular[0]


def test_limits_are_those_of_the_public_heads():
    assert ADAFACE.limits.cosine_limit == 1 - 1e-3
    assert ADAFACE.limits.angle_limits == (1e-3, math.pi - 1e-3)
    cvlface = HeadConfig(kind="adaface", margin_grad="straight_through")
    for head in (*HEADS[1:], cvlface):
        assert head.limits.cosine_limit == 1.0
        assert head.limits.angle_limits is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", "sphereface"),
        ("margin", 1.0),
        ("margin", -0.1),
        ("margin", math.nan),
        ("logit_scale", 0.0),
        ("logit_scale", math.inf),
        ("quality_concentration", -1.0),
        ("norm_momentum", 0.0),
        ("norm_momentum", 1.5),
        ("margin_grad", "none"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field} must be"):
        HeadConfig(**{field: value})


def test_directions_split_embeddings_into_unit_rows_and_lengths():
    embeddings = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)) * 9
    parts = directions(embeddings)
    torch.testing.assert_close(parts.unit_embeddings.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(parts.unit_embeddings * parts.quality[:, None], embeddings)
    assert directions(embeddings.bfloat16()).unit_embeddings.dtype == torch.float32


def test_the_gradient_of_a_direction_is_tangential_and_gradcheck_agrees():
    embeddings = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: directions(x).unit_embeddings, (embeddings,))
    weights = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad((directions(embeddings).unit_embeddings * weights).sum(), embeddings)
    torch.testing.assert_close((gradient * embeddings).sum(1), torch.zeros(3, dtype=torch.float64))


def test_an_embedding_without_a_direction_passes_no_gradient():
    for length in (0.0, 1e-30, 1e-9):
        embeddings = (torch.ones(1, 4) * length).requires_grad_()
        parts = directions(embeddings)
        (gradient,) = torch.autograd.grad(parts.unit_embeddings.sum(), embeddings)
        assert torch.isfinite(parts.unit_embeddings).all()
        assert gradient.eq(0).all()
    (gradient,) = torch.autograd.grad(
        directions(broken := torch.full((1, 4), torch.nan, requires_grad=True)).unit_embeddings.sum(), broken
    )
    assert gradient.isnan().all(), "a broken embedding must not look healthy"


# Student rows, teacher rows, labels: each a state that turned the public code into NaN, or looks as if it could.
AXES = torch.eye(4, dtype=torch.float64)
DEGENERATE = {
    "zero embedding": (torch.zeros(2, 4).double(), AXES[:2], [0, 1]),
    "student equals teacher": (9 * AXES[:2], AXES[:2], [0, 1]),
    "student opposite to teacher": (-9 * AXES[:2], AXES[:2], [0, 1]),
    "batch of one": (torch.full((1, 4), 3.0).double(), AXES[:1], [2]),
    "one label": (
        torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).double(),
        AXES[[0, 1, 2, 3, 0]],
        [1] * 5,
    ),
    "norm 1e-30": (1e-30 * AXES[:2], AXES[1:3], [0, 1]),
    "norm 1e30": (1e30 * AXES[:2], AXES[1:3], [0, 1]),
    "all ignored": (AXES[:2], AXES[:2], [-1, -1]),
}


@pytest.mark.parametrize("classes", [3, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head", HEADS, ids=kind)
@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_batches_give_finite_losses_and_gradients_as_the_reference_does(name, head, dtype, classes):
    student, teacher, labels = DEGENERATE[name]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    centres = AdaptiveCentres(CentresConfig(), torch.full((classes, 4), 0.01, dtype=wide))
    geometry = GeometryMarginConfig(mode="adaptive" if head.kind == "adaface" else "off")
    for epoch in (0.0, 2.0):  # twice, so that the second step meets centres that equal teachers
        step = prepare_step(
            head,
            centres,
            NormStatistics.start(dtype=wide),
            student.to(dtype),
            torch.tensor(labels).clamp(max=classes - 1),
            teacher=teacher.to(dtype),
            geometry=geometry,
            epoch=epoch,
        )
        loss, (gradient,) = step.gradients(margin_softmax)
        dense_loss, (dense_gradient,) = step.gradients(margin_softmax_reference)

        assert bool(torch.isfinite(loss)), f"epoch {epoch}"
        assert bool(torch.isfinite(gradient).all()), f"epoch {epoch}"
        assert bool(torch.isfinite(centres.class_centres).all())
        ulp = torch.finfo(wide).eps
        torch.testing.assert_close(loss, dense_loss, rtol=256 * ulp, atol=64 * 256 * ulp)
        scale = dense_gradient.abs().max().item()
        grain = max(256 * ulp, torch.finfo(dtype).eps)
        # At the pole the exact slope amplifies rounding by 1 / sin(theta), up to 1 / sqrt(2 ulp) a unit off it; whether
        # a product of unit rows is 1 or a unit less is the processor's choice.
        torch.testing.assert_close(gradient, dense_gradient, rtol=grain, atol=max(scale * grain, 96 * ulp**0.5))


def test_a_nan_teacher_row_spoils_the_loss_and_is_undone_without_a_trace():
    before = torch.randn(6, 4, generator=torch.Generator().manual_seed(3))
    centres = AdaptiveCentres(CentresConfig(), before.clone())
    unit_before = centres.unit_centres().clone()
    statistics = NormStatistics.start()
    teacher = AXES[:3].float().clone()
    teacher[1, 2] = torch.nan
    step = prepare_step(ADAFACE, centres, statistics, AXES[1:].float() * 9, torch.tensor([0, 4, 5]), teacher=teacher)

    loss, _ = step.gradients(margin_softmax)
    assert loss.isnan(), "a broken step must be seen to be broken"
    assert step.centre_step is not None
    ok: Tensor = torch.isfinite(loss)
    step.centre_step.commit_(ok)

    assert torch.equal(centres.class_centres, before)
    assert torch.equal(centres.unit_centres(), unit_before)
    kept = statistics.committed(step.statistics, ok)
    assert torch.equal(kept.mean, statistics.mean)
