"""Every number of a set is there, or says why it is not."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from random_pairs import random_pairs
from tests_support import golden_files

from adadistill.core.scoring.pair_metrics import (
    ALIKE,
    NonFiniteEmbeddingsError,
    flip_sum,
    pair_distances,
    tar_at_far,
)
from adadistill.core.scoring.ten_fold import ten_fold_accuracy
from adadistill.core.scoring.verification_numbers import verification_numbers


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("verification_*.npz"), ids=lambda path: path.stem)
def test_insightfaces_numbers_are_reproduced(path):
    with np.load(path) as case:
        result = verification_numbers(path.stem, case["embeddings"], case["same"])

        assert result.accuracy_per_fold == tuple(case["accuracy_per_fold"].tolist())
        for ours, published in (
            (result.accuracy, "accuracy"),
            (result.accuracy_std, "accuracy_std"),
            (result.tar_10fold, "val"),
            (result.tar_10fold_std, "val_std"),
            (result.far_10fold, "far"),
        ):
            assert ours == pytest.approx(float(case[published]), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_embeddings_that_are_not_finite_are_refused_by_name(value):
    unit_embeddings, same = random_pairs(20, seed=0)
    unit_embeddings[[13, 14], 2] = value
    with pytest.raises(NonFiniteEmbeddingsError, match=r"set lfw: 2 of 40 .* first image 13 \(pair 6\)"):
        verification_numbers("lfw", unit_embeddings, same)


@pytest.mark.parametrize("pairs", [1, 2, 9])
def test_fewer_than_ten_pairs_have_no_ten_fold_numbers_but_the_rest(pairs):
    unit_embeddings, same = random_pairs(pairs, seed=1)
    same[:] = np.arange(pairs) % 2 == 0

    result = verification_numbers("tiny", unit_embeddings, same, xnorm=20.0)

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

    result = verification_numbers("lopsided", unit_embeddings, np.full(30, all_are))

    assert result.notes["accuracy"].startswith(note)
    assert result.notes["auc"] == result.notes["eer"] == note
    numbers = (result.accuracy, result.auc, result.eer, result.tar_strict, result.tar_10fold)
    assert numbers == (None,) * 5
    assert {"tar_strict", "tar_10fold"} <= set(result.notes)


def test_few_folds_of_one_kind_withhold_the_ten_fold_tar_and_are_named_beside_the_accuracy():
    unit_embeddings, same = random_pairs(100, seed=2)
    same[20:30] = True

    result = verification_numbers("sorted", unit_embeddings, same)

    assert result.tar_10fold is None
    named = "1 of 10 folds hold no different pairs, the first is fold 2 (from 0)"
    assert result.notes["tar_10fold"] == result.notes["accuracy"] == named
    assert result.accuracy is not None
    assert result.auc is not None


@pytest.mark.parametrize("collapsed", [False, True])
@pytest.mark.parametrize("pairs", [10, 15, 2000])
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

    result = verification_numbers("sorted", rows, same)

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


@pytest.mark.parametrize("pairs", [4, 400])
@pytest.mark.parametrize("kind", ["constant", "zero", "float32", "noisy", "orthogonal"])
def test_embeddings_that_are_all_alike_have_no_rates(kind, pairs):
    result = verification_numbers("flat", alike_embeddings(kind, 2 * pairs), np.arange(pairs) % 2 == 0)

    for metric in ("accuracy", "accuracy_std", "tar_10fold", "tar_10fold_std", "tar_strict", "auc", "eer"):
        assert getattr(result, metric) is None, metric
    for metric in ("accuracy", "tar_10fold", "auc", "eer"):
        assert "alike" in result.notes[metric]
    assert ("xnorm" in result.notes) == (kind == "zero")
    assert "alike" in result.summary()
    assert tar_at_far(np.zeros(4000), np.arange(4000) % 2 == 0, far=1e-3).reason == ALIKE


# As many different pairs as the published sets have, and as few as the goldens; half of them in each fold.
@pytest.mark.parametrize("pairs", [300, 5000])
def test_a_far_that_ties_leap_over_is_withheld_with_what_can_be_met(pairs):
    """Embeddings of a few directions: every different pair has one of two scores."""
    draw = np.random.default_rng(1)
    same = np.arange(pairs) % 2 == 0
    rows = np.eye(4)[draw.integers(0, 4, 2 * pairs)]
    rows[1::2][same] = rows[0::2][same]

    result = verification_numbers("ties", rows, same)

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

    result = verification_numbers("collapsed", rows, same)

    assert result.tar_10fold is None
    assert "grid's step" in result.notes["tar_10fold"]
    assert "at the edge" in result.notes["threshold"]
    assert result.tar_strict is not None
    wide = verification_numbers("wide", unit_embeddings, same)
    assert not {"threshold", "accuracy", "tar_10fold"} & set(wide.notes)


@pytest.mark.parametrize("pairs", [2222, 6000])
def test_no_published_number_of_a_set_as_large_as_those_of_the_field_is_withheld(pairs):
    for seed, separation in enumerate([0.0, 0.3, 0.5, 0.7, 0.95]):
        same = np.arange(pairs) // 10 % 2 == 0
        draw = np.random.default_rng(seed)
        first, second = draw.normal(size=(2, pairs, 16))
        second[same] = separation * first[same] + (1 - separation) * second[same]
        second[7:47] = first[7:47] + 0.4 * draw.normal(size=(40, 16))  # lookalikes, all of them in one fold
        rows = np.stack([first, second], axis=1).reshape(2 * pairs, 16)
        result = verification_numbers("lfw", rows / np.linalg.norm(rows, axis=1, keepdims=True), same)
        assert None not in (result.accuracy, result.tar_10fold, result.tar_strict, result.auc, result.eer)


def test_a_far_finer_than_the_set_is_reported_as_published_with_a_warning():
    unit_embeddings, same = random_pairs(600, seed=0)
    result = verification_numbers("coarse", unit_embeddings, same)
    assert result.tar_10fold is not None
    assert result.notes["tar_10fold"].endswith("interpolated between none and one false accept")
    assert "tar_10fold" not in verification_numbers("fine", unit_embeddings, same, far=0.1).notes


def test_every_missing_number_has_its_reason_and_json_keeps_all():
    for pairs in (1, 4, 10, 40, 2500):
        unit_embeddings, same = random_pairs(pairs, seed=pairs)
        result = verification_numbers("any", unit_embeddings, same, far=1e-3)

        written = json.loads(json.dumps(dataclasses.asdict(result), allow_nan=False))

        assert written["name"] == "any"
        assert "flip-sum" in written["protocol"]
        for metric in ("accuracy", "tar_10fold", "tar_strict", "auc", "eer"):
            assert written[metric] is not None or written["notes"][metric]
        assert written["accuracy_per_fold"] == list(result.accuracy_per_fold)
        assert "accuracy" in result.summary()


def test_a_result_needs_two_rows_a_pair():
    unit_embeddings, same = random_pairs(12, seed=0)
    with pytest.raises(ValueError, match="set odd: a pair has two rows"):
        verification_numbers("odd", unit_embeddings[:-1], same)
    with pytest.raises(ValueError, match="at least 1"):
        verification_numbers("none", unit_embeddings[:0], same[:0])


def test_single_precision_embeddings_are_scored_in_double():
    unit_embeddings, same = random_pairs(100, seed=0)
    rounded = unit_embeddings.astype(np.float32)
    assert pair_distances(rounded).dtype == np.float64
    assert verification_numbers("single", rounded, same) == verification_numbers("single", rounded.astype(float), same)
