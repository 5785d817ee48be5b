"""Strict rates are what their definitions say, and are withheld where a set cannot tell them."""

from __future__ import annotations

import numpy as np
import pytest
from random_pairs import random_pairs

from adadistill.core.scoring.pair_metrics import (
    area_under_roc,
    equal_error_rate,
    flip_sum,
    mean_norm,
    pair_distances,
    roc_curve,
    tar_at_far,
)
from adadistill.core.scoring.ten_fold import accuracy_interval, best_threshold, ten_fold_accuracy, ten_fold_tar


def test_strict_tar_never_exceeds_its_false_accept_rate_and_takes_all_it_may():
    draw = np.random.default_rng(3)
    for _ in range(100):
        scores = draw.choice(np.linspace(-1, 1, int(draw.integers(3, 80))), int(draw.integers(5, 400)))
        same = draw.random(len(scores)) < 0.5
        far = float(draw.choice([0.01, 0.02, 0.1, 0.5, 1.0]))

        point = tar_at_far(scores, same, far=far)

        if point.tar is None:
            different = np.sort(scores[~same])[::-1]
            few = different.size * far < 1 or not same.any()
            assert (
                few or np.ptp(scores) == 0 or (different >= different[int(far * different.size + 1e-9) - 1]).sum() > 1
            )
            continue
        candidates = [-np.inf, *np.unique(scores)]
        allowed = [t for t in candidates if (scores[~same] > t).mean() <= far]
        best = max((scores[same] > t).mean() for t in allowed)
        assert point.far <= far
        assert point.tar == best
        assert point.tar == (scores[same] > point.threshold).mean()


def test_strict_tar_grows_with_the_false_accept_rate():
    unit_embeddings, same = random_pairs(3000, seed=0, separation=0.4)
    scores = -pair_distances(unit_embeddings)
    tars = [tar_at_far(scores, same, far=far).tar for far in (1e-3, 3e-3, 1e-2, 0.1, 1.0)]
    assert None not in tars
    assert tars == sorted(tars)
    assert tars[-1] == 1.0


# 1/FAR different pairs are just enough; floating point must not lose the one false accept that is allowed.
@pytest.mark.parametrize(("far", "needed"), [(1e-1, 10), (1e-2, 100), (1e-3, 1000), (1e-4, 10_000), (0.3, 4)])
def test_strict_tar_is_withheld_below_one_over_far_different_pairs(far, needed):
    scores = np.linspace(0, 1, needed + 1)
    same = np.zeros(needed + 1, bool)
    same[-1] = True

    assert tar_at_far(scores, same, far=far).tar == 1.0

    point = tar_at_far(scores[1:], same[1:], far=far)
    assert (point.tar, point.far, point.threshold) == (None, None, None)
    assert point.reason == f"{needed - 1} different pairs, {needed} are needed for FAR {far:g}"


def test_strict_tar_without_same_pairs_is_withheld():
    assert tar_at_far(np.zeros(5), np.zeros(5, bool), far=0.5).reason == "no same pairs"


def test_three_false_accepts_in_three_thousand_are_one_in_a_thousand():
    scores = np.concatenate([np.linspace(0, 1, 3000), [0.9995]])
    same = np.arange(3001) == 3000
    point = tar_at_far(scores, same, far=1e-3)
    assert point.far == 3 / 3000
    assert point.tar == 1.0


@pytest.mark.slow
def test_area_under_roc_counts_ordered_pairs_and_half_of_ties():
    draw = np.random.default_rng(0)
    for _ in range(50):
        scores = draw.integers(0, 12, int(draw.integers(4, 60))).astype(float)
        same = draw.random(len(scores)) < 0.5
        if same.all() or not same.any():
            continue
        difference = scores[same][:, None] - scores[~same][None, :]
        assert area_under_roc(scores, same) == pytest.approx(((difference > 0) + 0.5 * (difference == 0)).mean())


def test_the_roc_curve_accepts_equal_scores_together():
    false_rates, true_rates = roc_curve(np.array([3.0, 2, 2, 2, 1]), np.array([True, True, False, False, False]))
    assert false_rates.tolist() == [0.0, 0.0, 2 / 3, 1.0]
    assert true_rates.tolist() == [0.0, 0.5, 1.0, 1.0]


def test_equal_error_rate_of_known_cases():
    same = np.array([True, True, True, True, False, False, False, False])
    assert equal_error_rate(np.array([8, 7, 6, 5, 4, 3, 2, 1.0]), same) == 0.0
    assert equal_error_rate(np.array([1, 2, 3, 4, 5, 6, 7, 8.0]), same) == 1.0
    assert equal_error_rate(np.array([8, 7, 6, 1, 5, 4, 3, 2.0]), same) == 0.25
    assert equal_error_rate(np.zeros(8), same) == 0.5


@pytest.mark.parametrize("metric", [area_under_roc, equal_error_rate, roc_curve])
def test_roc_metrics_refuse_one_kind_of_pairs(metric):
    with pytest.raises(ValueError, match="needs same and different pairs"):
        metric(np.arange(4.0), np.ones(4, bool))


def test_flip_fusion_weighs_each_version_by_its_norm():
    plain, mirrored = np.array([[3.0, 0.0], [0.0, 0.0]]), np.array([[0.0, 4.0], [0.0, 0.0]])
    assert np.allclose(flip_sum(plain, mirrored)[0], [0.6, 0.8])
    assert np.array_equal(flip_sum(plain, mirrored)[1], [0.0, 0.0])  # a dead network scores chance, not NaN
    assert mean_norm(plain, mirrored) == (3.0 + 0.0 + 4.0 + 0.0) / 4


def test_distance_is_two_minus_two_cosines():
    unit_embeddings, _ = random_pairs(50, seed=0)
    cosine = (unit_embeddings[0::2] * unit_embeddings[1::2]).sum(axis=1)
    assert np.allclose(pair_distances(unit_embeddings), 2 - 2 * cosine)


@pytest.mark.parametrize(
    "function", [ten_fold_accuracy, accuracy_interval, ten_fold_tar, best_threshold, tar_at_far, area_under_roc]
)
def test_values_that_are_not_finite_or_do_not_fit_are_refused(function):
    values, same = np.linspace(0, 3, 20), np.arange(20) % 2 == 0
    with pytest.raises(ValueError, match="1 of 20 values are not finite"):
        function(np.where(np.arange(20) == 4, np.nan, values), same)
    with pytest.raises(ValueError, match=r"must be \(P,\)"):
        function(values[:19], same)
    with pytest.raises(ValueError, match=r"must be \(P,\)"):
        function(values, same.astype(int))


@pytest.mark.parametrize("far", [0.0, -1e-3, 1.1, float("nan")])
def test_rates_outside_their_range_are_refused(far):
    values, same = np.linspace(0, 3, 20), np.arange(20) % 2 == 0
    with pytest.raises(ValueError, match="far must be in"):
        tar_at_far(values, same, far=far)
    with pytest.raises(ValueError, match="far must be in"):
        ten_fold_tar(values, same, far=far)
