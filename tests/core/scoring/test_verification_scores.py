"""What reports read of a verification set is the set's own numbers under the origin's keys, with nothing made up."""

from __future__ import annotations

import numpy as np
import pytest
from random_pairs import random_pairs
from tests_support import golden_files

from adadistill.core.scoring.pair_metrics import area_under_roc, pair_distances, tar_at_far
from adadistill.core.scoring.ten_fold import accuracy_interval
from adadistill.core.scoring.verification_scores import WORST_CASES, score_verification


def scored(pairs: int, *, spread: float = 1.4, name: str = "lfw", **options):
    """Result, distances and flags of random pairs, same and different in turn."""
    draw = np.random.default_rng(0)
    same = np.arange(pairs) % 2 == 0
    first = draw.normal(size=(pairs, 16))
    second = np.where(same[:, None], first + spread * draw.normal(size=(pairs, 16)), draw.normal(size=(pairs, 16)))
    rows = np.stack([first, second], axis=1).reshape(2 * pairs, 16)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return score_verification(name, rows, same, xnorm=21.5, **options), pair_distances(rows), same


def test_keys_are_the_origins_and_values_the_sets_own():
    found, _, _ = scored(6000)

    assert found.headline == "verification.lfw.Accuracy-Flip"
    values = {score.key.removeprefix("verification.lfw."): score.value for score in found.scores}
    assert len(values) == len(found.scores)
    for key, field in (
        ("Accuracy-Flip", "accuracy"), ("Accuracy-Std", "accuracy_std"), ("Threshold", "threshold"),
        ("tpr_at_fpr_0.001_10fold", "tar_10fold"), ("tpr_at_fpr_0.001_strict", "tar_strict"), ("AUC", "auc"),
        ("EER", "eer"), ("XNorm", "xnorm"),
    ):  # fmt: skip
        assert values[key] == found.details[field], key
    assert found[found.headline].deviation == values["Accuracy-Std"]
    assert all(score.protocol for score in found.scores)
    assert found.counts == {"images": 12000, "pairs": 6000, "same pairs": 3000, "different pairs": 3000}
    assert found.summary().startswith("accuracy ")
    assert found.log_fields() == found.details


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("verification_*.npz"), ids=lambda path: path.stem)
def test_insightfaces_accuracy_arrives_in_the_benchmark(path):
    with np.load(path) as case:
        found = score_verification("golden", case["embeddings"], case["same"])

        score = found["verification.golden.Accuracy-Flip"]
        assert score.value == pytest.approx(float(case["accuracy"]), rel=1e-12)
        assert score.deviation == pytest.approx(float(case["accuracy_std"]), rel=1e-12)
        low, high = score.interval
        assert low <= score.value <= high


def test_strict_rates_finer_than_the_set_are_withheld_with_the_reason():
    found, distances, same = scored(6000)
    for far in (1e-1, 1e-2, 1e-3):
        score = found[f"verification.lfw.tpr_at_fpr_{far:g}_strict"]
        assert score.value == tar_at_far(-distances, same, far=far).tar
        assert score.note is None
    withheld = found["verification.lfw.tpr_at_fpr_0.0001_strict"]
    assert withheld.value is None
    assert withheld.note == "3000 different pairs, 10000 are needed for FAR 0.0001"


def test_the_interval_is_seeded_and_is_the_accuracys():
    found, distances, same = scored(600)
    assert found[found.headline].interval == accuracy_interval(distances, same)
    assert [score.key for score in found.scores if score.interval is not None] == [found.headline]
    bare, _, _ = scored(600, intervals=False)
    assert bare[bare.headline].interval is None
    assert bare[bare.headline].value == found[found.headline].value


def test_a_perfect_set_says_that_its_interval_shows_no_spread():
    found, _, _ = scored(6000, spread=0.0)
    score = found[found.headline]
    assert (score.value, score.interval) == (1.0, (1.0, 1.0))
    assert score.note == "no pair is wrong, so resampling shows no spread; up to 0.05% may be"


def test_a_set_of_another_size_than_the_published_one_is_marked():
    assert scored(1800)[0]["verification.lfw.Accuracy-Flip"].note == (
        "1800 pairs; the published set of this name has 6000"
    )
    assert scored(1800, name="mine")[0]["verification.mine.Accuracy-Flip"].note is None


@pytest.mark.parametrize("pairs", [12, 600, 20_000])
def test_the_curve_is_the_roc_whose_corners_it_keeps(pairs):
    found, distances, same = scored(pairs, spread=2.4)
    (curve,) = found.curves

    false_rates, true_rates = curve.false_accept_rates, curve.true_accept_rates
    assert len(false_rates) <= 2000
    assert (false_rates[0], true_rates[0], false_rates[-1], true_rates[-1]) == (0.0, 0.0, 1.0, 1.0)
    assert (np.diff(false_rates) >= 0).all()
    assert (np.diff(true_rates) >= 0).all()
    area = (np.diff(false_rates) * (true_rates[1:] + true_rates[:-1])).sum() / 2
    # Up to 2000 corners are all kept, and none between them is missed; then every tenth or so draws the same line.
    assert area == pytest.approx(area_under_roc(-distances, same), abs=1e-12 if pairs <= 600 else 1e-4)


def test_the_histogram_counts_every_pair_once():
    found, distances, same = scored(600)
    (histogram,) = found.histograms
    assert histogram.same.sum() == same.sum()
    assert histogram.different.sum() == (~same).sum()
    cosines = 1 - distances / 2
    inside = (cosines >= histogram.edges[70]) & (cosines < histogram.edges[71])
    assert (histogram.same[70], histogram.different[70]) == ((inside & same).sum(), (inside & ~same).sum())


def test_worst_cases_are_the_farthest_same_and_the_nearest_different_pairs():
    found, distances, same = scored(600, spread=2.4)

    for kind, order in ((True, -distances), (False, distances)):
        listed = [case for case in found.errors if case["same"] is kind]
        expected = sorted(np.flatnonzero(same == kind), key=lambda pair: order[pair])[:WORST_CASES]
        assert [case["pair"] for case in listed] == expected
        for case in listed:
            assert case["images"] == [2 * case["pair"], 2 * case["pair"] + 1]
            assert case["cosine"] == pytest.approx(1 - distances[case["pair"]] / 2)
            assert case["wrong"] == ((distances[case["pair"]] < found.details["threshold"]) != kind)
    assert any(case["wrong"] for case in found.errors)


# One pair, too few for folds, one kind alone.
@pytest.mark.parametrize(("pairs", "same"), [(1, None), (9, None), (40, True), (40, False)])
def test_small_and_one_sided_sets_report_what_they_can(pairs, same):
    rows, _ = random_pairs(pairs, seed=0, dim=8)
    flags = np.arange(pairs) % 2 == 0 if same is None else np.full(pairs, same)

    found = score_verification("any", rows, flags)

    for score in found.scores:
        assert score.value is not None or score.note
        assert score.interval is None or score.value is not None
    assert len(found.curves) == (0 if flags.all() or not flags.any() else 1)
