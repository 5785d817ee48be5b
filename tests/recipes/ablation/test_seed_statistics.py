"""Student's interval of paired differences, against scipy's test, printed tables and numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from adadistill.recipes.ablation.seed_statistics import (
    paired_difference,
    proportion_standard_error,
    seeds_to_tell,
    spread,
)


def test_three_paired_seeds_by_hand():
    """Differences 1, 2, 3: mean 2, deviation 1, so 2 +- 4.3027 / sqrt(3)."""
    found = paired_difference([11.0, 22.0, 33.0], [10.0, 20.0, 30.0])
    assert found.differences == (1.0, 2.0, 3.0)
    assert (found.mean, found.std) == (2.0, 1.0)
    assert found.interval == pytest.approx((2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)), abs=1e-6)
    assert not found.excludes_zero, "-0.48 to 4.48"


@pytest.mark.parametrize(
    ("ours", "level", "interval"),
    [
        # What the closed form of Student's distribution gave, with which earlier reports were written.
        ([0.757, 0.765, 0.747], 0.95, (-0.016767498201580303, 0.028767498201580314)),
        ([0.757, 0.765, 0.747], 1 - 0.05 / 7, (-0.056273992799652194, 0.06827399279965221)),
        ([0.757, 0.765, 0.747, 0.761, 0.7531], 0.99, (-0.01097885267765497, 0.021818852677654973)),
    ],
)
def test_intervals_are_those_of_earlier_reports(ours, level, interval):
    theirs = [0.741, 0.761, 0.749, 0.75, 0.755][: len(ours)]
    assert paired_difference(ours, theirs, level=level).interval == pytest.approx(interval, rel=0, abs=1e-12)


def test_the_interval_is_that_of_scipy_s_paired_test():
    ours, theirs = [0.757, 0.765, 0.747, 0.761], [0.741, 0.761, 0.749, 0.750]
    judge = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    found = paired_difference(ours, theirs)
    assert found.interval == pytest.approx((judge.low, judge.high), rel=1e-9)
    assert found.excludes_zero == (judge.low > 0)


def test_one_seed_has_no_interval():
    found = paired_difference([0.8], [0.7])
    assert found.mean == pytest.approx(0.1)
    assert (found.std, found.interval, found.excludes_zero) == (None, None, False)


def test_differences_without_spread_have_an_interval_of_no_width():
    assert paired_difference([2.0, 3.0], [1.0, 2.0]).interval == (1.0, 1.0)
    assert not paired_difference([2.0, 3.0], [2.0, 3.0]).excludes_zero


@settings(max_examples=30)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=8))
def test_swapping_the_sides_mirrors_the_interval_and_a_higher_level_widens_it(pairs: list[tuple[float, float]]):
    ours, theirs = zip(*pairs, strict=True)
    one, other, wide = (
        paired_difference(ours, theirs),
        paired_difference(theirs, ours),
        paired_difference(ours, theirs, level=0.99),
    )
    assert one.interval == pytest.approx((-other.interval[1], -other.interval[0]), abs=1e-12)
    assert wide.interval[0] <= one.interval[0] <= one.mean <= one.interval[1] <= wide.interval[1]


def test_seeds_for_a_gain_grow_with_the_square_of_the_spread():
    """With 0.2 points of spread a gain of 0.2 points: t quantiles 2.26 and 0.88 at n = 10, 3.14 / sqrt(10) < 1."""
    assert seeds_to_tell(0.2, 0.2) == 10
    for gain, std in ((0.2, 0.3), (0.2, 0.8), (1.0, 1.2)):
        count = seeds_to_tell(gain, std)
        reach = [(stats.t.ppf(0.975, n - 1) + stats.t.ppf(0.8, n - 1)) * std / math.sqrt(n) for n in (count - 1, count)]
        assert reach[1] <= gain < reach[0]
    assert seeds_to_tell(0.2, 0.0) == 2
    assert seeds_to_tell(0.001, 1.0) is None


def test_a_rate_over_pairs_has_the_binomial_error_and_one_seed_no_spread():
    assert proportion_standard_error(0.5, 2500) == pytest.approx(0.01)
    assert proportion_standard_error(1.0, 10) == 0.0
    assert (spread([1.0, 3.0]).mean, spread([1.0, 3.0]).std, spread([5.0]).std) == (2.0, pytest.approx(2**0.5), None)
