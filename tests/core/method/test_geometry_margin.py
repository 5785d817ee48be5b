"""The geometry term: formulas and ramps."""

from __future__ import annotations

import math

import pytest
import torch
from head_step import geometry_term
from hypothesis import given, settings
from hypothesis import strategies as st

from adadistill.core.method.geometry_margin import GeometryMarginConfig, geometry_ramp

ADAPTIVE = GeometryMarginConfig(mode="adaptive")
STATIC = GeometryMarginConfig(mode="static", weight=0.2, scale=1.0)


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_a_lagging_student_of_a_confident_teacher_gets_the_term_worked_out_by_hand():
    term = geometry_term(ADAPTIVE, column(0.69), column(0.08), 1.0)
    assert term.item() == pytest.approx(3 * 0.69 * 0.61)
    assert term.item() == pytest.approx(1.2627)


def test_a_student_ahead_of_the_confidence_gets_nothing():
    term = geometry_term(ADAPTIVE, column(0.69, 0.69, 1e-6), column(0.69, 0.9, 0.5), 2.0)
    assert term.tolist() == [0.0, 0.0, 0.0]


def test_the_adaptive_ramp_starts_from_zero_and_stays_at_one():
    config = GeometryMarginConfig(mode="adaptive", warmup_epochs=3.0)
    ramp = [geometry_ramp(config, epoch) for epoch in (0.0, 0.75, 1.5, 3.0, 20.0)]
    assert ramp == [0.0, 0.25, 0.5, 1.0, 1.0]


def test_the_static_ramp_starts_as_it_was_published():
    config = GeometryMarginConfig(mode="static", warmup_epochs=1.0)
    assert [geometry_ramp(config, epoch) for epoch in (0.0, 0.5, 1.0, 7.0)] == [0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize("mode", ["adaptive", "static"])
def test_no_warm_up_means_the_full_term_at_once(mode):
    assert geometry_ramp(GeometryMarginConfig(mode=mode, warmup_epochs=0.0), 0.0) == 1.0


def test_the_static_term_is_masked_cut_and_lowered_by_its_baseline():
    cosine = column(-0.5, 0.3, 0.75, 0.799, 0.8, 0.95)
    term = geometry_term(STATIC, torch.ones(6, dtype=torch.float64), cosine, 1.0)
    expected = [0.2 * (1.0 - 0.25), 0.2 * (0.7 - 0.25), 0.0, 0.0, 0.0, 0.0]
    torch.testing.assert_close(term, column(*expected))


@pytest.mark.parametrize("epoch", [0.0, 0.4, 1.0, 7.0])
def test_headroom_is_the_adaptive_term_of_another_confidence(epoch):
    confidence, cosine = column(0.8, 0.69, 1e-6, 1.0), column(0.7, 0.75, -1.0, -1.0)
    term = geometry_term(GeometryMarginConfig(mode="headroom"), confidence, cosine, epoch)
    assert torch.equal(term, geometry_term(ADAPTIVE, confidence, cosine, epoch))
    assert term[0].item() == pytest.approx(min(1.0, epoch) * 3 * 0.8 * 0.1)


def test_off_gives_zeros():
    assert geometry_term(GeometryMarginConfig(), column(0.9, 0.9), column(0.0, -1.0), 5.0).tolist() == [0.0, 0.0]


@settings(deadline=None)
@given(
    confidence=st.floats(1e-6, 1.0),
    cosine=st.floats(-1.0, 1.0),
    epoch=st.floats(0.0, 30.0),
    mode=st.sampled_from(["adaptive", "static", "headroom"]),
)
def test_the_term_is_never_negative_and_never_falls_as_the_student_lags_more(confidence, cosine, epoch, mode):
    config = GeometryMarginConfig(mode=mode)
    lagging = max(-1.0, cosine - 0.1)
    term = geometry_term(config, column(confidence, confidence), column(cosine, lagging), epoch)
    assert 0.0 <= term[0] <= term[1]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mode", "headroom2"),
        ("weight", -0.1),
        ("scale", math.inf),
        ("warmup_epochs", -1.0),
        ("weight", math.nan),
        ("mask", 1.5),
        ("baseline", -0.1),
        ("headroom_momentum", 1.0),
        ("headroom_momentum", math.nan),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field} must be"):
        GeometryMarginConfig(**{field: value})
