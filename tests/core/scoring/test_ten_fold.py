"""Published ten-fold numbers are reproduced exactly, and the interval is that of drawing other pairs."""

from __future__ import annotations

import numpy as np
import pytest
from random_pairs import random_pairs

from adadistill.core.scoring.pair_metrics import pair_distances
from adadistill.core.scoring.ten_fold import (
    ACCURACY_THRESHOLDS,
    FOLDS,
    TAR_THRESHOLDS,
    accuracy_interval,
    best_threshold,
    ten_fold_accuracy,
    ten_fold_tar,
)


def contiguous_tenths(pairs: int) -> list[np.ndarray]:
    return np.array_split(np.arange(pairs), FOLDS)


def slow_ten_fold_accuracy(distances: np.ndarray, same: np.ndarray) -> list[float]:
    """The definition: every pair judged at each of the 400 thresholds, for each of ten folds."""
    right = (distances[:, None] < ACCURACY_THRESHOLDS) == same[:, None]  # (P, 400)
    per_fold = []
    for held_out in contiguous_tenths(len(same)):
        others = np.setdiff1d(np.arange(len(same)), held_out)
        best = int(np.argmax(right[others].mean(axis=0)))
        per_fold.append(float(right[held_out, best].mean()))
    return per_fold


def slow_ten_fold_tar(distances: np.ndarray, same: np.ndarray, far: float) -> tuple[list[float], list[float]]:
    """The definition: 4000 thresholds, with the last threshold of each false-accept rate."""
    tars, fars = [], []
    accepted = distances[:, None] < TAR_THRESHOLDS  # (P, 4000)
    for held_out in contiguous_tenths(len(same)):
        others = np.setdiff1d(np.arange(len(same)), held_out)
        last = dict(zip(accepted[others][~same[others]].mean(axis=0).tolist(), TAR_THRESHOLDS.tolist(), strict=True))
        threshold = np.interp(far, list(last), list(last.values())) if max(last) >= far else 0.0
        judged_same = distances[held_out] < threshold
        tars.append(judged_same[same[held_out]].mean())
        fars.append(judged_same[~same[held_out]].mean())
    return tars, fars


def test_accuracy_equals_trying_every_threshold_on_hundreds_of_sets():
    draw = np.random.default_rng(0)
    for trial in range(240):
        # 10 pairs are the fewest; most counts make folds of unequal size; from chance to nearly perfect.
        pairs = 10 + trial % 90 if trial % 50 else 617
        unit_embeddings, same = random_pairs(pairs, seed=trial, separation=draw.choice([0.0, 0.4, 0.9]))
        distances = pair_distances(unit_embeddings)

        accuracy = ten_fold_accuracy(distances, same)

        slow = slow_ten_fold_accuracy(distances, same)
        assert accuracy.per_fold == tuple(slow)
        assert accuracy.mean == np.mean(slow)
        assert accuracy.std == np.std(slow)


@pytest.mark.parametrize("flags", ["all same", "all different", "mixed"])
def test_ties_and_distances_on_a_threshold_count_as_the_definition_counts_them(flags):
    draw = np.random.default_rng(0)
    for _ in range(15):
        pairs = int(draw.integers(10, 60))
        # Few distinct values, most of them exactly thresholds, 0 and 4 (beyond the last threshold) among them.
        distances = draw.choice([0.0, 0.01, ACCURACY_THRESHOLDS[57], ACCURACY_THRESHOLDS[58], 1.234, 3.99, 4.0], pairs)
        same = {
            "all same": np.ones(pairs, bool),
            "all different": np.zeros(pairs, bool),
            "mixed": draw.random(pairs) < 0.5,
        }[flags]
        assert ten_fold_accuracy(distances, same).per_fold == tuple(slow_ten_fold_accuracy(distances, same))


@pytest.mark.parametrize(("pairs", "far"), [(200, 1e-3), (333, 1e-2), (200, 1.0)])
def test_ten_fold_tar_equals_trying_every_threshold(pairs, far):
    for seed in range(3):
        unit_embeddings, same = random_pairs(pairs, seed=seed)
        distances = pair_distances(unit_embeddings)

        tar = ten_fold_tar(distances, same, far=far)

        tars, fars = slow_ten_fold_tar(distances, same, far)
        assert tar.mean == pytest.approx(np.mean(tars), rel=1e-12)
        assert tar.std == pytest.approx(np.std(tars), rel=1e-12)
        assert tar.far == pytest.approx(np.mean(fars), rel=1e-12)


def test_a_far_that_no_threshold_reaches_accepts_nothing():
    distances = np.full(40, 4.0)  # beyond the last threshold
    assert ten_fold_tar(distances, np.arange(40) % 2 == 0).mean == 0.0


def test_folds_are_neither_shuffled_nor_stratified():
    unit_embeddings, same = random_pairs(100, seed=5)
    distances = pair_distances(unit_embeddings)
    order = np.random.default_rng(1).permutation(100)
    assert ten_fold_accuracy(distances, same).per_fold != ten_fold_accuracy(distances[order], same[order]).per_fold


def test_best_threshold_is_the_first_of_the_best():
    distances = np.array([0.105, 0.2, 1.5, 2.0])
    assert best_threshold(distances, np.array([True, True, False, False])) == ACCURACY_THRESHOLDS[21]


def slow_resampled_accuracies(distances, same, resamples, seed):
    """The definition: draw pairs with replacement within fold and kind, then the whole ten-fold protocol again."""
    draw = np.random.default_rng(seed)
    strata = [fold[same[fold] == kind] for fold in contiguous_tenths(len(same)) for kind in (True, False)]
    accuracies = []
    for _ in range(resamples):
        chosen = [draw.choice(members, len(members)) if len(members) else members for members in strata]
        order = np.concatenate(chosen)  # fold by fold, as the strata are
        accuracies.append(ten_fold_accuracy(distances[order], same[order]).mean)
    return np.array(accuracies)


@pytest.mark.slow
@pytest.mark.parametrize(("pairs", "separation"), [(100, 0.4), (617, 0.6)])
def test_the_interval_is_that_of_resampling_pairs_and_choosing_thresholds_anew(pairs, separation):
    unit_embeddings, same = random_pairs(pairs, seed=pairs, separation=separation)
    distances = pair_distances(unit_embeddings)
    slow = slow_resampled_accuracies(distances, same, 1500, seed=1)

    for confidence in (0.5, 0.95):
        low, high = accuracy_interval(distances, same, confidence=confidence, resamples=1500)

        # Either side's ends are quantiles of 1500 draws: their standard errors are 0.03 and 0.07 of a deviation.
        ends = np.quantile(slow, [(1 - confidence) / 2, (1 + confidence) / 2])
        assert np.abs(ends - [low, high]).max() < 0.3 * slow.std()


@pytest.mark.slow
def test_the_interval_holds_the_accuracy_to_be_expected_as_often_as_it_says():
    truth = ten_fold_accuracy(*_distances_and_flags(200_000, seed=0)).mean
    hits = 0
    for seed in range(1, 61):
        low, high = accuracy_interval(*_distances_and_flags(600, seed=seed), resamples=200)
        hits += low <= truth <= high
    assert hits >= 50  # of 60: 95 % would give 57, and fewer than 50 once in ten thousand times


def _distances_and_flags(pairs: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    same = np.arange(pairs) % 2 == 0
    return np.clip(np.where(same, 1.0, 2.0) + draw.normal(scale=0.35, size=pairs), 0.0, 4.0), same


@pytest.mark.slow
def test_the_interval_repeats_with_its_seed_shrinks_with_pairs_and_closes_without_errors():
    few, many = _distances_and_flags(400, seed=3), _distances_and_flags(6400, seed=3)
    assert accuracy_interval(*few) == accuracy_interval(*few)
    assert accuracy_interval(*few) != accuracy_interval(*few, seed=1)
    widths = [high - low for low, high in (accuracy_interval(*few), accuracy_interval(*many))]
    assert widths[0] / widths[1] == pytest.approx(4.0, rel=0.35)

    same = few[1]
    assert accuracy_interval(np.where(same, 0.5, 2.0), same) == (1.0, 1.0)
    assert accuracy_interval(np.ones(40), np.ones(40, bool)) == (1.0, 1.0)  # one kind alone


def test_an_interval_of_no_resamples_or_of_no_confidence_is_refused():
    distances, same = _distances_and_flags(40, seed=0)
    for wrong in ({"resamples": 0}, {"confidence": 0.0}, {"confidence": 1.0}, {"confidence": float("nan")}):
        with pytest.raises(ValueError, match="resamples must be positive and confidence in"):
            accuracy_interval(distances, same, **wrong)
    with pytest.raises(ValueError, match="at least 10"):
        accuracy_interval(distances[:9], same[:9])
