"""Published numbers are reproduced exactly, strict ones are what their definitions say, the rest is withheld."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tests_support import golden_files

from adadistill.core.scoring.pair_metrics import (
    ACCURACY_THRESHOLDS,
    ALIKE,
    FOLDS,
    TAR_THRESHOLDS,
    NonFiniteEmbeddingsError,
    accuracy_interval,
    area_under_roc,
    best_threshold,
    equal_error_rate,
    flip_sum,
    mean_norm,
    pair_distances,
    roc_curve,
    tar_at_far,
    ten_fold_accuracy,
    ten_fold_tar,
    verification_result,
)


def random_pairs(pairs: int, *, seed: int, separation: float = 0.5, dim: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """(2P, D) unit embeddings and (P,) flags; same pairs share `separation` of their direction."""
    draw = np.random.default_rng(seed)
    same = draw.random(pairs) < 0.5
    first, second = draw.normal(size=(2, pairs, dim))
    second[same] = separation * first[same] + (1 - separation) * second[same]
    rows = np.stack([first, second], axis=1).reshape(2 * pairs, dim)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True), same


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


# --- published numbers -------------------------------------------------------------------------------------------


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("verification_*.npz"), ids=lambda path: path.stem)
def test_insightfaces_numbers_are_reproduced(path):
    with np.load(path) as case:
        result = verification_result(path.stem, case["embeddings"], case["same"])

        assert result.accuracy_per_fold == tuple(case["accuracy_per_fold"].tolist())
        for ours, published in (
            (result.accuracy, "accuracy"),
            (result.accuracy_std, "accuracy_std"),
            (result.tar_10fold, "val"),
            (result.tar_10fold_std, "val_std"),
            (result.far_10fold, "far"),
        ):
            assert ours == pytest.approx(float(case[published]), rel=1e-9, abs=1e-12)


def test_accuracy_equals_trying_every_threshold_on_a_thousand_sets():
    draw = np.random.default_rng(0)
    for trial in range(1000):
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
    for _ in range(40):
        pairs = int(draw.integers(10, 60))
        # Few distinct values, most of them exactly thresholds, 0 and 4 (beyond the last threshold) among them.
        distances = draw.choice([0.0, 0.01, ACCURACY_THRESHOLDS[57], ACCURACY_THRESHOLDS[58], 1.234, 3.99, 4.0], pairs)
        same = {
            "all same": np.ones(pairs, bool),
            "all different": np.zeros(pairs, bool),
            "mixed": draw.random(pairs) < 0.5,
        }[flags]
        assert ten_fold_accuracy(distances, same).per_fold == tuple(slow_ten_fold_accuracy(distances, same))


@pytest.mark.parametrize(("pairs", "far"), [(200, 1e-3), (333, 1e-2), (1207, 1e-2), (200, 0.5), (200, 1.0)])
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


# --- the interval of the accuracy --------------------------------------------------------------------------------


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


@pytest.mark.parametrize(("pairs", "separation"), [(100, 0.4), (617, 0.3), (617, 0.6)])
def test_the_interval_is_that_of_resampling_pairs_and_choosing_thresholds_anew(pairs, separation):
    unit_embeddings, same = random_pairs(pairs, seed=pairs, separation=separation)
    distances = pair_distances(unit_embeddings)
    slow = slow_resampled_accuracies(distances, same, 1500, seed=1)

    for confidence in (0.5, 0.95):
        low, high = accuracy_interval(distances, same, confidence=confidence, resamples=1500)

        # Either side's ends are quantiles of 1500 draws: their standard errors are 0.03 and 0.07 of a deviation.
        ends = np.quantile(slow, [(1 - confidence) / 2, (1 + confidence) / 2])
        assert np.abs(ends - [low, high]).max() < 0.3 * slow.std()


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


# --- strict numbers ----------------------------------------------------------------------------------------------


def test_strict_tar_never_exceeds_its_false_accept_rate_and_takes_all_it_may():
    draw = np.random.default_rng(3)
    for _ in range(200):
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


# --- embeddings --------------------------------------------------------------------------------------------------


def test_flip_fusion_weighs_each_version_by_its_norm():
    plain, mirrored = np.array([[3.0, 0.0], [0.0, 0.0]]), np.array([[0.0, 4.0], [0.0, 0.0]])
    assert np.allclose(flip_sum(plain, mirrored)[0], [0.6, 0.8])
    assert np.array_equal(flip_sum(plain, mirrored)[1], [0.0, 0.0])  # a dead network scores chance, not NaN
    assert mean_norm(plain, mirrored) == (3.0 + 0.0 + 4.0 + 0.0) / 4


def test_distance_is_two_minus_two_cosines():
    unit_embeddings, _ = random_pairs(50, seed=0)
    cosine = (unit_embeddings[0::2] * unit_embeddings[1::2]).sum(axis=1)
    assert np.allclose(pair_distances(unit_embeddings), 2 - 2 * cosine)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_embeddings_that_are_not_finite_are_refused_by_name(value):
    unit_embeddings, same = random_pairs(20, seed=0)
    unit_embeddings[[13, 14], 2] = value
    with pytest.raises(NonFiniteEmbeddingsError, match=r"set lfw: 2 of 40 .* first image 13 \(pair 6\)"):
        verification_result("lfw", unit_embeddings, same)


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


# --- results -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pairs", range(1, 10))
def test_fewer_than_ten_pairs_have_no_ten_fold_numbers_but_the_rest(pairs):
    unit_embeddings, same = random_pairs(pairs, seed=1)
    same[:] = np.arange(pairs) % 2 == 0

    result = verification_result("tiny", unit_embeddings, same, xnorm=20.0)

    assert (result.accuracy, result.accuracy_std, result.accuracy_per_fold) == (None, None, ())
    assert (result.tar_10fold, result.tar_10fold_std, result.far_10fold) == (None, None, None)
    assert result.notes["accuracy"] == f"{pairs} pairs cannot be cut into 10 folds"
    assert (result.auc is None) == (pairs == 1)
    assert result.xnorm == 20.0
    with pytest.raises(ValueError, match="at least 10"):
        ten_fold_accuracy(pair_distances(unit_embeddings), same)


@pytest.mark.parametrize(("all_are", "note"), [(True, "no different pairs"), (False, "no same pairs")])
def test_one_kind_of_pairs_has_no_rates_but_a_reason_for_each(all_are, note):
    unit_embeddings, _ = random_pairs(30, seed=2)

    result = verification_result("lopsided", unit_embeddings, np.full(30, all_are))

    assert result.notes["accuracy"].startswith(note)
    assert result.notes["auc"] == result.notes["eer"] == note
    numbers = (result.accuracy, result.auc, result.eer, result.tar_strict, result.tar_10fold)
    assert numbers == (None,) * 5
    assert {"tar_strict", "tar_10fold"} <= set(result.notes)


def test_few_folds_of_one_kind_withhold_the_ten_fold_tar_and_are_named_beside_the_accuracy():
    unit_embeddings, same = random_pairs(100, seed=2)
    same[20:30] = True

    result = verification_result("sorted", unit_embeddings, same)

    assert result.tar_10fold is None
    named = "1 of 10 folds hold no different pairs, the first is fold 2 (from 0)"
    assert result.notes["tar_10fold"] == result.notes["accuracy"] == named
    assert result.accuracy is not None
    assert result.auc is not None


@pytest.mark.parametrize("collapsed", [False, True])
@pytest.mark.parametrize("pairs", [10, 15, 100, 2000])
def test_pairs_sorted_by_kind_have_no_ten_fold_accuracy(pairs, collapsed):
    """Of a collapsed network the folds score 0 %, as each is judged by what is most among the others."""
    same = np.arange(pairs) < pairs // 2
    draw = np.random.default_rng(0)
    first, second = draw.normal(size=(2, pairs, 16))
    second[same] = 0.7 * first[same] + 0.3 * second[same]
    rows = np.stack([first, second], axis=1).reshape(2 * pairs, 16)
    if collapsed:
        rows = rows * 1e-3 + np.eye(16)[0]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    if collapsed and pairs == 2000:
        assert ten_fold_accuracy(pair_distances(rows), same).mean == 0.0

    result = verification_result("sorted", rows, same)

    assert (result.accuracy, result.accuracy_std, result.accuracy_per_fold, result.tar_10fold) == (None, None, (), None)
    assert f"{9 if pairs == 15 else 10} of 10 folds hold one kind of pairs only" in result.notes["accuracy"]
    assert result.auc is not None
    assert result.auc > 0.9
    assert "withheld" in result.summary()
    assert ("threshold" in result.notes) == collapsed


def alike_embeddings(kind: str, count: int) -> np.ndarray:
    draw = np.random.default_rng(0)
    one = draw.normal(size=64)
    rows = {
        "constant": np.tile(one, (count, 1)),
        "zero": np.zeros((count, 64)),
        "float32": (np.tile(one, (count, 1)) * draw.uniform(1, 9, (count, 1))).astype(np.float32),
        "noisy": np.tile(one, (count, 1)) + draw.normal(scale=1e-6, size=(count, 64)),
        "orthogonal": np.eye(64)[np.arange(count) % 64],
    }[kind]
    return flip_sum(rows, rows)


@pytest.mark.parametrize("pairs", [4, 40, 6000])
@pytest.mark.parametrize("kind", ["constant", "zero", "float32", "noisy", "orthogonal"])
def test_embeddings_that_are_all_alike_have_no_rates(kind, pairs):
    result = verification_result("flat", alike_embeddings(kind, 2 * pairs), np.arange(pairs) % 2 == 0)

    for metric in ("accuracy", "accuracy_std", "tar_10fold", "tar_10fold_std", "tar_strict", "auc", "eer"):
        assert getattr(result, metric) is None, metric
    for metric in ("accuracy", "tar_10fold", "auc", "eer"):
        assert "alike" in result.notes[metric]
    assert ("xnorm" in result.notes) == (kind == "zero")
    assert "alike" in result.summary()
    assert tar_at_far(np.zeros(4000), np.arange(4000) % 2 == 0, far=1e-3).reason == ALIKE


# As many different pairs as the published sets have, and as few as the goldens; half of them in each fold.
@pytest.mark.parametrize("pairs", [300, 5000, 7000])
def test_a_far_that_ties_leap_over_is_withheld_with_what_can_be_met(pairs):
    """Embeddings of a few directions: every different pair has one of two scores."""
    draw = np.random.default_rng(1)
    same = np.arange(pairs) % 2 == 0
    rows = np.eye(4)[draw.integers(0, 4, 2 * pairs)]
    rows[1::2][same] = rows[0::2][same]

    result = verification_result("ties", rows, same)

    assert result.tar_10fold is None
    assert "distances tie" in result.notes["tar_10fold"]
    assert result.tar_strict is None
    assert result.accuracy is not None
    if pairs > 2000:
        assert "have the same score: FAR can be 0 or 0.2" in result.notes["tar_strict"]


def test_a_collapsed_network_has_no_ten_fold_tar_and_its_threshold_at_the_edge_is_said():
    """All distances lie within the first step of the grid, where it accepts all or nothing."""
    unit_embeddings, same = random_pairs(4000, seed=3, separation=0.8)
    rows = unit_embeddings * 1e-3 + np.eye(16)[0]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)

    result = verification_result("collapsed", rows, same)

    assert result.tar_10fold is None
    assert "grid's step" in result.notes["tar_10fold"]
    assert "at the edge" in result.notes["threshold"]
    assert result.tar_strict is not None
    wide = verification_result("wide", unit_embeddings, same)
    assert not {"threshold", "accuracy", "tar_10fold"} & set(wide.notes)


@pytest.mark.parametrize("pairs", [2222, 5000, 6000, 7000])
def test_no_published_number_of_a_set_as_large_as_those_of_the_field_is_withheld(pairs):
    for seed, separation in enumerate([0.0, 0.3, 0.5, 0.7, 0.95]):
        same = np.arange(pairs) // 10 % 2 == 0
        draw = np.random.default_rng(seed)
        first, second = draw.normal(size=(2, pairs, 16))
        second[same] = separation * first[same] + (1 - separation) * second[same]
        second[7:47] = first[7:47] + 0.4 * draw.normal(size=(40, 16))  # lookalikes, all of them in one fold
        rows = np.stack([first, second], axis=1).reshape(2 * pairs, 16)
        result = verification_result("lfw", rows / np.linalg.norm(rows, axis=1, keepdims=True), same)
        assert None not in (result.accuracy, result.tar_10fold, result.tar_strict, result.auc, result.eer)


def test_a_far_finer_than_the_set_is_reported_as_published_with_a_warning():
    unit_embeddings, same = random_pairs(600, seed=0)
    result = verification_result("coarse", unit_embeddings, same)
    assert result.tar_10fold is not None
    assert result.notes["tar_10fold"].endswith("interpolated between none and one false accept")
    assert "tar_10fold" not in verification_result("fine", unit_embeddings, same, far=0.1).notes


def test_every_missing_number_has_its_reason_and_json_keeps_all():
    for pairs in (1, 4, 10, 40, 2500):
        unit_embeddings, same = random_pairs(pairs, seed=pairs)
        result = verification_result("any", unit_embeddings, same, far=1e-3)

        written = json.loads(json.dumps(result.to_json(), allow_nan=False))

        assert written["name"] == "any"
        assert "flip-sum" in written["protocol"]
        for metric in ("accuracy", "tar_10fold", "tar_strict", "auc", "eer"):
            assert written[metric] is not None or written["notes"][metric]
        assert written["accuracy_per_fold"] == list(result.accuracy_per_fold)
        assert "accuracy" in result.summary()


def test_a_result_needs_two_rows_a_pair():
    unit_embeddings, same = random_pairs(12, seed=0)
    with pytest.raises(ValueError, match="set odd: a pair has two rows"):
        verification_result("odd", unit_embeddings[:-1], same)
    with pytest.raises(ValueError, match="at least 1"):
        verification_result("none", unit_embeddings[:0], same[:0])


def test_single_precision_embeddings_are_scored_in_double():
    unit_embeddings, same = random_pairs(100, seed=0)
    rounded = unit_embeddings.astype(np.float32)
    assert pair_distances(rounded).dtype == np.float64
    assert verification_result("single", rounded, same) == verification_result("single", rounded.astype(float), same)
