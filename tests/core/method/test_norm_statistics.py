"""AdaFace's norm statistics: the published update, its edges, and commits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adadistill.core.method.norm_statistics import NormStatistics, updated_norm_statistics

START = NormStatistics.start(dtype=torch.float64)


def test_norms_of_ten_twenty_thirty_give_the_values_worked_out_by_hand():
    new = updated_norm_statistics(START, torch.tensor([10.0, 20.0, 30.0]).double(), momentum=0.01)
    assert new.mean.item() == pytest.approx(20.0)
    assert new.std.item() == pytest.approx(99.1)
    assert START.mean.item() == 20.0
    assert START.std.item() == 100.0


def test_norms_are_clipped_before_they_count():
    new = updated_norm_statistics(START, torch.tensor([0.0, 260.0]), momentum=1.0)
    expected = torch.tensor([0.001, 100.0])
    assert new.mean.item() == pytest.approx(expected.mean().item())
    assert new.std.item() == pytest.approx(expected.std().item())


def test_a_column_of_norms_is_the_same_as_a_row_and_other_shapes_are_refused():
    norms = torch.tensor([10.0, 21.0, 33.0])
    flat = updated_norm_statistics(START, norms, momentum=0.5)
    column = updated_norm_statistics(START, norms[:, None], momentum=0.5)
    assert torch.equal(flat.mean, column.mean)
    assert torch.equal(flat.std, column.std)
    with pytest.raises(ValueError, match=r"norms must be \(B,\) or \(B, 1\), got \(1, 3\)"):
        updated_norm_statistics(START, norms[None], momentum=0.5)
    with pytest.raises(ValueError, match=r"valid must be \(3,\), got \(2,\)"):
        updated_norm_statistics(START, norms, momentum=0.5, valid=torch.tensor([True, False]))


def test_a_global_batch_of_one_keeps_the_old_deviation():
    new = updated_norm_statistics(START, torch.tensor([40.0]), momentum=0.5)
    assert new.mean.item() == 30.0
    assert torch.equal(new.std, START.std)


@pytest.mark.parametrize("norms", [torch.zeros(0), torch.tensor([3.0, torch.nan])])
def test_a_batch_without_valid_samples_keeps_both(norms):
    new = updated_norm_statistics(START, norms, momentum=0.5, valid=torch.zeros(len(norms), dtype=torch.bool))
    assert torch.equal(new.mean, START.mean)
    assert torch.equal(new.std, START.std)


def test_masked_samples_are_left_out_whatever_their_norm():
    valid = torch.tensor([True, False, True, True, False])
    norms = torch.tensor([12.0, torch.nan, 25.0, 18.0, torch.inf]).double()
    masked = updated_norm_statistics(START, norms, momentum=0.1, valid=valid)
    alone = updated_norm_statistics(START, norms[valid], momentum=0.1)
    assert masked.mean.item() == pytest.approx(alone.mean.item(), rel=1e-14)
    assert masked.std.item() == pytest.approx(alone.std.item(), rel=1e-14)


@settings(deadline=None)
@given(st.lists(st.floats(0.5, 90.0, width=32), min_size=2, max_size=64), st.sampled_from([0.01, 0.5, 1.0]))
def test_float32_statistics_are_the_float64_ones_rounded_once(norms, momentum):
    start = NormStatistics.start()
    actual = updated_norm_statistics(start, torch.tensor(norms), momentum=momentum)
    exact = updated_norm_statistics(START, torch.tensor(norms).double(), momentum=momentum)
    assert actual.mean.dtype == torch.float32
    torch.testing.assert_close(actual.mean.double(), exact.mean, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(actual.std.double(), exact.std, rtol=1e-7, atol=1e-9)


@settings(deadline=None)
@given(st.lists(st.floats(0.5, 90.0, width=32), min_size=2, max_size=64), st.randoms())
def test_the_order_of_samples_does_not_matter_in_float32(norms, random):
    shuffled = list(norms)
    random.shuffle(shuffled)
    one = updated_norm_statistics(NormStatistics.start(), torch.tensor(norms), momentum=0.01)
    other = updated_norm_statistics(NormStatistics.start(), torch.tensor(shuffled), momentum=0.01)
    torch.testing.assert_close(one.mean, other.mean, rtol=2e-7, atol=0)
    torch.testing.assert_close(one.std, other.std, rtol=2e-7, atol=0)


def test_norms_carry_no_gradient_into_the_statistics():
    norms = torch.tensor([10.0, 20.0], requires_grad=True)
    assert not updated_norm_statistics(START, norms, momentum=0.5).mean.requires_grad


def test_a_step_with_a_nan_norm_is_not_committed():
    broken = updated_norm_statistics(START, torch.tensor([10.0, torch.nan]), momentum=0.01)
    assert broken.mean.isnan()
    kept = START.committed(broken, torch.tensor(False))
    assert torch.equal(kept.mean, START.mean)
    assert torch.equal(kept.std, START.std)
    assert START.committed(broken, torch.tensor(True)).mean.isnan()


def test_state_survives_a_round_trip_and_a_foreign_one_is_refused():
    statistics = NormStatistics.start(mean=18.0, std=2.0)
    back = NormStatistics.from_state_dict(statistics.state_dict())
    assert torch.equal(back.mean, statistics.mean)
    assert torch.equal(back.std, statistics.std)
    with pytest.raises(ValueError, match=r"must hold norm_mean and norm_std, got \['norm_mean'\]"):
        NormStatistics.from_state_dict({"norm_mean": torch.tensor(1.0)})
    with pytest.raises(ValueError, match="norm_std must be a 0-dim"):
        NormStatistics.from_state_dict({"norm_mean": torch.tensor(1.0), "norm_std": torch.ones(2)})
