"""What reports read of a verification set is the set's own numbers under the origin's keys, with nothing made up."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import simplejpeg
import torch
from tests_support import golden_files
from torch import nn

from adadistill.core.distributed import Ranks
from adadistill.core.scoring.evaluation import VerificationSets, evaluate_sets
from adadistill.core.scoring.pair_metrics import (
    accuracy_interval,
    area_under_roc,
    pair_distances,
    tar_at_far,
    verification_result,
)
from adadistill.core.scoring.verification import WORST_CASES, evaluate_verification, verification_benchmark
from adadistill.loaders.evaluation_sets.verification_pairs import write_verification_bin

CPU = Ranks()


def scored(pairs: int, *, seed: int = 0, name: str = "lfw", spread: float = 0.35, far: float = 1e-3):
    """(result, distances, same) of random unit embeddings whose same pairs lie near each other."""
    draw = np.random.default_rng(seed)
    same = np.arange(pairs) % 2 == 0
    first = draw.normal(size=(pairs, 16))
    second = np.where(same[:, None], first + spread * 4 * draw.normal(size=(pairs, 16)), draw.normal(size=(pairs, 16)))
    rows = np.stack([first, second], axis=1).reshape(2 * pairs, 16)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return verification_result(name, rows, same, xnorm=21.5, far=far), pair_distances(rows), same


def benchmark(pairs: int, **options):
    result, distances, same = scored(pairs, **options)
    return verification_benchmark(result, distances, same, data_sha256="ab" * 32), result, distances, same


def test_keys_are_the_origins_and_values_the_sets_own():
    found, result, _, _ = benchmark(6000)

    assert found.headline == "verification.lfw.Accuracy-Flip"
    values = {score.key.removeprefix("verification.lfw."): score.value for score in found.scores}
    assert len(values) == len(found.scores)
    assert values["Accuracy-Flip"] == result.accuracy
    assert values["Accuracy-Std"] == found[found.headline].deviation == result.accuracy_std
    assert values["Threshold"] == result.threshold
    assert values["tpr_at_fpr_0.001_10fold"] == result.tar_10fold
    assert values["tpr_at_fpr_0.001_strict"] == result.tar_strict
    assert (values["AUC"], values["EER"], values["XNorm"]) == (result.auc, result.eer, 21.5)
    assert all(score.protocol for score in found.scores)
    assert found.counts == {"images": 12000, "pairs": 6000, "same pairs": 3000, "different pairs": 3000}


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("verification_*.npz"), ids=lambda path: path.stem)
def test_insightfaces_accuracy_arrives_in_the_benchmark(path):
    with np.load(path) as case:
        rows, same = case["embeddings"], case["same"]
        result = verification_result("golden", rows, same)
        found = verification_benchmark(result, pair_distances(rows), same, data_sha256="")

        score = found["verification.golden.Accuracy-Flip"]
        assert score.value == pytest.approx(float(case["accuracy"]), rel=1e-12)
        assert score.deviation == pytest.approx(float(case["accuracy_std"]), rel=1e-12)
        low, high = score.interval
        assert low <= score.value <= high


def test_strict_rates_finer_than_the_set_are_withheld_with_the_reason():
    found, _, distances, same = benchmark(6000)
    for far in (1e-1, 1e-2, 1e-3):
        score = found[f"verification.lfw.tpr_at_fpr_{far:g}_strict"]
        assert score.value == tar_at_far(-distances, same, far=far).tar
        assert score.note is None
    withheld = found["verification.lfw.tpr_at_fpr_0.0001_strict"]
    assert withheld.value is None
    assert withheld.note == "3000 different pairs, 10000 are needed for FAR 0.0001"


def test_the_interval_is_seeded_and_is_the_accuracys():
    found, _, distances, same = benchmark(600)
    assert found[found.headline].interval == accuracy_interval(distances, same)
    assert [score.key for score in found.scores if score.interval is not None] == [found.headline]


def test_a_perfect_set_says_that_its_interval_shows_no_spread():
    found, _, _, _ = benchmark(6000, spread=0.0)
    score = found[found.headline]
    assert (score.value, score.interval) == (1.0, (1.0, 1.0))
    assert score.note == "no pair is wrong, so resampling shows no spread; up to 0.05% may be"


def test_a_set_of_another_size_than_the_published_one_is_marked():
    assert benchmark(1800)[0]["verification.lfw.Accuracy-Flip"].note == (
        "1800 pairs; the published set of this name has 6000"
    )
    assert benchmark(1800, name="mine")[0]["verification.mine.Accuracy-Flip"].note is None


@pytest.mark.parametrize("pairs", [12, 600, 20_000])
def test_the_curve_is_the_roc_whose_corners_it_keeps(pairs):
    found, _, distances, same = benchmark(pairs, spread=0.6)
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
    found, _, distances, same = benchmark(600)
    (histogram,) = found.histograms
    assert histogram.same.sum() == same.sum()
    assert histogram.different.sum() == (~same).sum()
    cosines = 1 - distances / 2
    inside = (cosines >= histogram.edges[70]) & (cosines < histogram.edges[71])
    assert (histogram.same[70], histogram.different[70]) == ((inside & same).sum(), (inside & ~same).sum())


def test_worst_cases_are_the_farthest_same_and_the_nearest_different_pairs():
    found, result, distances, same = benchmark(600, spread=0.6)

    for kind, order in ((True, -distances), (False, distances)):
        listed = [case for case in found.errors if case["same"] is kind]
        expected = sorted(np.flatnonzero(same == kind), key=lambda pair: order[pair])[:WORST_CASES]
        assert [case["pair"] for case in listed] == expected
        for case in listed:
            assert case["images"] == [2 * case["pair"], 2 * case["pair"] + 1]
            assert case["cosine"] == pytest.approx(1 - distances[case["pair"]] / 2)
            assert case["wrong"] == ((distances[case["pair"]] < result.threshold) != kind)
    assert any(case["wrong"] for case in found.errors)


# One pair, too few for folds, one kind alone.
@pytest.mark.parametrize(("pairs", "same"), [(1, None), (9, None), (40, True), (40, False)])
def test_small_and_one_sided_sets_report_what_they_can(pairs, same):
    draw = np.random.default_rng(0)
    rows = draw.normal(size=(2 * pairs, 8))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    flags = np.arange(pairs) % 2 == 0 if same is None else np.full(pairs, same)
    result = verification_result("any", rows, flags)

    found = verification_benchmark(result, pair_distances(rows), flags, data_sha256="")

    for score in found.scores:
        assert score.value is not None or score.note
        assert score.interval is None or score.value is not None
    assert len(found.curves) == (0 if flags.all() or not flags.any() else 1)


def test_a_result_of_other_pairs_is_refused():
    result, distances, same = scored(40)
    with pytest.raises(ValueError, match="a result of 40 pairs does not fit 39 distances"):
        verification_benchmark(result, distances[1:], same[1:], data_sha256="")


def test_bin_and_arrow_folder_of_the_same_images_score_alike(tmp_path):
    arrow_folders = pytest.importorskip("arrow_folders", reason="pyarrow (extra arrow) is not installed")
    draw = np.random.default_rng(0)
    bodies = [simplejpeg.encode_jpeg(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(40)]
    same = [pair % 3 == 0 for pair in range(20)]
    write_verification_bin(tmp_path / "lfw.bin", bodies, same)
    order = draw.permutation(40).tolist()  # rows in any order: column index says which image each is
    arrow_folders.write_arrow_folder(
        tmp_path / "arrow" / "lfw",
        {
            "image": [bodies[index] for index in order],
            "index": order,
            "is_same": [same[index // 2] for index in order],
        },
    )
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 6))
    found = []
    for path in (tmp_path / "lfw.bin", tmp_path / "arrow" / "lfw"):
        (one,) = sets = VerificationSets.load([path], 8)
        result, report = evaluate_verification(one, network, ranks=CPU, batch_size=7)
        assert result == evaluate_sets(network, sets, ranks=CPU, batch_size=7)["lfw"]
        assert len(report.data_sha256) == 64
        assert set(report.seconds) == {"decode", "embed", "score"}
        found.append(dataclasses.replace(report, data_sha256="", seconds={}))
    assert found[0].scores == found[1].scores
    assert found[0].errors == found[1].errors
    assert np.array_equal(found[0].histograms[0].same, found[1].histograms[0].same)
