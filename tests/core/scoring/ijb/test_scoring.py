"""IJB scores against the public implementations, scikit-learn, and loops."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tests_support
from hypothesis import given, settings
from hypothesis import strategies as st

from adadistill.bench import ijb as ijb_loops
from adadistill.core.scoring.ijb import pair_scores as pair_scores_module
from adadistill.core.scoring.ijb import roc as roc_module
from adadistill.core.scoring.ijb.identification import search_gallery
from adadistill.core.scoring.ijb.pair_scores import pair_scores, plan_pairs
from adadistill.core.scoring.ijb.pooling import ALL_MODES, PoolingMode, pool_templates
from adadistill.core.scoring.ijb.roc import nearest_point, roc_points, thinned
from adadistill.core.scoring.ijb.scoring import score_ijb
from adadistill.core.scoring.pair_metrics import NonFiniteEmbeddingsError
from adadistill.loaders.evaluation_sets.ijb.annotations import IjbAnnotations, TemplateSubjects, make_annotations


def _drawn(
    seed: int, *, images: int = 300, templates: int = 40, pairs: int = 500, dim: int = 16
) -> tuple[np.ndarray, dict[str, np.ndarray], IjbAnnotations]:
    """Embeddings, what the files would say, and the annotations."""
    random = np.random.default_rng(seed)
    numbers = np.sort(random.choice(10_000, templates, replace=False))
    sides = np.triu_indices(templates, 1)  # each pair once: a repeated one would tie with itself but for rounding
    chosen = random.permutation(len(sides[0]))[:pairs]
    said = {
        "templates": random.permutation(np.concatenate([numbers, random.choice(numbers, images - templates)])),
        "medias": random.integers(0, 5, images),
        "detector_scores": random.uniform(0.2, 1, images),
        "first": numbers[sides[0][chosen]],
        "second": numbers[sides[1][chosen]],
        "same": random.integers(0, 2, len(chosen)),
    }
    return random.normal(size=(images, dim)), said, make_annotations(name="IJBC", where="drawn", **said)


def _golden(path: Path) -> tuple[np.ndarray, IjbAnnotations, dict[str, float]]:
    held = np.load(path)
    annotations = make_annotations(
        name="golden", where=path, templates=held["templates"], medias=held["medias"],
        detector_scores=held["detector_scores"], first=held["p1"], second=held["p2"], same=held["label"],
    )  # fmt: skip
    return held["embeddings"], annotations, json.loads(str(held["expected"].reshape(-1)[0]))


@pytest.mark.golden
@pytest.mark.parametrize("path", tests_support.golden_files("ijb_verification*.npz"), ids=lambda path: path.stem)
@pytest.mark.parametrize("dense_above", [0.0, 2.0], ids=["by blocks", "by pairs"])
def test_rates_and_thresholds_are_the_origins(path: Path, dense_above: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pair_scores_module, "_DENSE_ABOVE", dense_above)
    embeddings, annotations, expected = _golden(path)
    result = score_ijb(embeddings, annotations, data_sha256="")
    assert expected
    for key, value in expected.items():
        found = result[f"ijb.golden.{key}"].value
        assert found is not None
        if "_tpr_" in key:
            assert 100.0 * found == value
        else:
            assert abs(found - value) <= 1e-9


@pytest.mark.golden
@pytest.mark.parametrize("path", tests_support.golden_files("ijb_identification*.npz"), ids=lambda path: path.stem)
def test_identification_is_insightfaces(path: Path):
    held = np.load(path)
    found = search_gallery(
        held["gallery"], held["gallery_ids"], held["probes"], held["probe_ids"], fpirs=held["fpir"].tolist()
    )
    assert found.hits == tuple(int(held[name].item()) for name in ("top1", "top5", "top10"))
    assert found.mated_probes == held["mated_probes"].item()
    np.testing.assert_allclose(found.thresholds, held["thresholds"], rtol=1e-12)
    np.testing.assert_array_equal(found.tpirs, held["tpir"])


# One image for each template; many; more images than are widened at once.
@pytest.mark.parametrize(("images", "templates"), [(40, 40), (300, 40), (5000, 3)])
@pytest.mark.parametrize("mode", ALL_MODES, ids=lambda mode: mode.name)
def test_pooling_in_one_pass_is_the_loops(images: int, templates: int, mode: PoolingMode):
    embeddings, said, annotations = _drawn(0, images=images, templates=templates)
    found = pool_templates(embeddings, annotations, [mode])[mode]
    expected = ijb_loops.pooled(
        embeddings, said["templates"], said["medias"], said["detector_scores"], norm=mode.norm, det=mode.det
    )
    assert annotations.template_ids.tolist() == sorted(expected)
    np.testing.assert_allclose(found, [expected[number] for number in sorted(expected)], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dense_above", [0.0, 2.0], ids=["by blocks", "by pairs"])
@pytest.mark.parametrize("block_bytes", [1, 4096])
def test_pair_scores_are_the_loops_for_every_size_of_block(
    dense_above: float, block_bytes: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pair_scores_module, "_DENSE_ABOVE", dense_above)
    monkeypatch.setattr(pair_scores_module, "_BLOCK_BYTES", block_bytes)
    embeddings, said, annotations = _drawn(1)
    mode = PoolingMode(norm=True, det=True)
    plan = plan_pairs(annotations)
    found = pair_scores(pool_templates(embeddings, annotations, [mode])[mode], plan)
    vectors = ijb_loops.pooled(
        embeddings, said["templates"], said["medias"], said["detector_scores"], norm=True, det=True
    )
    expected = ijb_loops.cosines(vectors, said["first"], said["second"])
    np.testing.assert_allclose(found, expected[plan.order], atol=1e-13)
    np.testing.assert_array_equal(plan.same, said["same"][plan.order])


LEVELS = st.integers(0, 40).map(lambda level: level / 41)  # few, so that scores tie within and across both kinds


@settings(max_examples=80)
@given(st.lists(LEVELS, min_size=1, max_size=30), st.lists(LEVELS, min_size=1, max_size=60), st.integers(1, 100))
def test_roc_points_are_scikit_learns_in_every_bit(same: list[float], different: list[float], at_once: int):
    from sklearn.metrics import roc_curve

    flags = np.repeat([1, 0], [len(same), len(different)])
    fpr, tpr, thresholds = roc_curve(flags, np.array(same + different))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roc_module, "_SCORES_AT_ONCE", at_once)
        found = roc_points(np.sort(same), np.sort(different))
    np.testing.assert_array_equal(found.false_accept_rates, fpr)
    np.testing.assert_array_equal(found.true_accept_rates, tpr)
    np.testing.assert_array_equal(found.thresholds, thresholds)
    for far in (1e-6, 0.05, 0.1, 0.5):
        flipped_fpr, flipped_tpr = fpr[::-1], tpr[::-1]
        place = min(range(len(fpr)), key=lambda number: (abs(flipped_fpr[number] - far), number))
        assert nearest_point(found, far).tar == flipped_tpr[place]


def test_a_thinned_curve_keeps_its_ends_and_lies_on_the_curve():
    random = np.random.default_rng(0)
    points = roc_points(np.sort(random.normal(1, 1, 5000)), np.sort(random.normal(0, 1, 50_000)))
    fars, tars = thinned(points, 100)
    assert len(fars) <= 101
    assert (fars[0], fars[-1], tars[-1]) == (0.0, 1.0, 1.0)
    assert (np.diff(fars) > 0).all()
    on_curve = set(zip(points.false_accept_rates, points.true_accept_rates, strict=True))
    assert set(zip(fars, tars, strict=True)) <= on_curve


def test_strict_rates_never_exceed_their_target_and_are_withheld_where_pairs_are_too_few():
    embeddings, _, annotations = _drawn(2, templates=120, pairs=3000)
    result = score_ijb(embeddings, annotations, data_sha256="")
    prefix = "ijb.IJBC.Norm:True_Det:True_tpr_at_fpr"
    withheld = result[f"{prefix}_1e-06_strict"]
    assert withheld.value is None
    assert "different pairs" in (withheld.note or "")
    assert result[f"{prefix}_1e-06"].value is not None
    rates = [result[f"{prefix}_{far}_strict"].value for far in (0.01, 0.1)]
    assert rates[0] is not None
    assert rates[1] is not None
    assert rates[0] <= rates[1]


def test_the_order_of_images_changes_nothing_but_rounding():
    embeddings, _, annotations = _drawn(3)
    order = np.random.default_rng(9).permutation(len(embeddings))
    one = score_ijb(embeddings, annotations, data_sha256="")
    other = score_ijb(embeddings[order], annotations.in_order(order), data_sha256="")
    assert [score.value for score in one.scores] == pytest.approx([score.value for score in other.scores], abs=1e-12)


def test_modes_scored_at_once_are_those_scored_one_after_the_other():
    embeddings, _, annotations = _drawn(6)
    alone, together = (score_ijb(embeddings, annotations, data_sha256="", threads=n) for n in (1, 4))
    assert alone.scores == together.scores
    assert [curve.name for curve in alone.curves] == [curve.name for curve in together.curves]
    assert alone.errors == together.errors


def test_the_headline_is_cvlfaces_and_every_score_says_its_mode():
    embeddings, _, annotations = _drawn(4)
    result = score_ijb(embeddings, annotations, data_sha256="", note="other counts")
    assert result.headline == "ijb.IJBC.Norm:False_Det:True_tpr_at_fpr_0.0001"
    assert result[result.headline].value is not None
    assert len({score.key for score in result.scores}) == len(result.scores)
    for score in result.scores:
        assert score.key.split(".")[2].split("_tp")[0].split("_thresh")[0] in score.protocol
        assert score.note
    alone = score_ijb(embeddings, annotations, data_sha256="", modes=[PoolingMode(norm=True, det=True)])
    assert alone.headline == "ijb.IJBC.Norm:True_Det:True_tpr_at_fpr_0.0001"


def test_histograms_count_every_pair_and_the_worst_pairs_are_the_worst():
    embeddings, said, annotations = _drawn(5)
    result = score_ijb(embeddings, annotations, data_sha256="")
    for histogram in result.histograms:
        assert (histogram.same.sum(), histogram.different.sum()) == (said["same"].sum(), (1 - said["same"]).sum())
    vectors = ijb_loops.pooled(
        embeddings, said["templates"], said["medias"], said["detector_scores"], norm=False, det=True
    )
    expected = ijb_loops.cosines(vectors, said["first"], said["second"])
    hardest = min((score, place) for place, score in enumerate(expected) if said["same"][place])
    assert result.errors[0]["pair"] == hardest[1]
    assert result.errors[0]["templates"] == [said["first"][hardest[1]], said["second"][hardest[1]]]
    assert max(expected[said["same"] == 0]) == pytest.approx(result.errors[10]["score"])


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_an_embedding_without_direction_is_named_with_its_template(value: float):
    embeddings, said, annotations = _drawn(6)
    embeddings[123] = value
    with pytest.raises(NonFiniteEmbeddingsError, match=rf"image 123 \(template {said['templates'][123]}\)"):
        score_ijb(embeddings, annotations, data_sha256="")


@pytest.mark.parametrize("value", [0.0, -0.5])
def test_detector_scores_that_serve_nobody_withhold_the_modes_that_use_them_alone(value: float):
    embeddings, said, whole = _drawn(7)
    said["detector_scores"][said["templates"] == said["templates"][0]] = value
    annotations = make_annotations(name="IJBC", where="drawn", **said)
    assert whole.detector_problem is None
    assert annotations.detector_problem is not None
    assert str(said["templates"][0]) in annotations.detector_problem

    found, expected = (score_ijb(embeddings, one, data_sha256="") for one in (annotations, whole))

    assert [score.key for score in found.scores] == [score.key for score in expected.scores]
    for score in found.scores:
        if "Det:True" in score.key:
            assert (score.value, score.note) == (None, annotations.detector_problem)
        else:
            assert score == expected[score.key]
    for drawn in (found.curves, found.histograms):
        assert [one.name for one in drawn] == ["IJBC Norm:True_Det:False", "IJBC Norm:False_Det:False"]
    assert found.headline == expected.headline


def test_a_template_whose_images_cancel_is_named_and_withholds_its_modes():
    embeddings, said, _ = _drawn(7, images=41, templates=40)
    number = next(n for n in said["templates"] if (said["templates"] == n).sum() == 2)
    one, other = np.flatnonzero(said["templates"] == number)
    said["medias"][[one, other]] = 1
    embeddings[other] = -2 * embeddings[one]
    annotations = make_annotations(name="IJBC", where="drawn", **said)
    found = score_ijb(embeddings, annotations, data_sha256="")
    for score in found.scores:
        if "Norm:False_Det:False" in score.key:
            assert score.value is None
            assert f"template {number}" in (score.note or "")
    assert found["ijb.IJBC.Norm:True_Det:False_tpr_at_fpr_0.1"].value is not None


def _identified(annotations: IjbAnnotations, probes: int) -> IjbAnnotations:
    """With a 1:N protocol whose gallery knows every second probe."""
    places = np.arange(probes, dtype=np.int32)
    subjects = np.arange(probes, dtype=np.int64)
    gallery = TemplateSubjects(name="G1", templates=places[::2], subjects=subjects[::2])
    probe_side = TemplateSubjects(name="probe_mixed", templates=places, subjects=subjects)
    return replace(annotations, galleries=(gallery,), probes=probe_side)


def test_a_network_that_gives_all_images_the_same_embedding_has_no_scores():
    embeddings, _, annotations = _drawn(3, templates=120, pairs=3000)
    embeddings[:] = embeddings[0] * np.random.default_rng(0).uniform(1, 2, (len(embeddings), 1))
    found = score_ijb(embeddings, _identified(annotations, 120), data_sha256="")
    assert any("rank-1" in score.key for score in found.scores)
    for score in found.scores:
        assert score.value is None
        assert "alike" in (score.note or "")


def test_rates_that_ties_leap_over_are_withheld_and_those_of_few_pairs_say_so():
    embeddings, _, annotations = _drawn(3, images=800, templates=400, pairs=60_000)
    tied = embeddings.copy()
    tied[:] = np.eye(16)[annotations.templates % 3]
    prefix = "ijb.IJBC.Norm:True_Det:True_"
    found, plain = (score_ijb(one, _identified(annotations, 400), data_sha256="") for one in (tied, embeddings))
    for key in ("tpr_at_fpr_0.001", "thresh_at_fpr_0.001", "tpr_at_fpr_0.001_strict", "tpr_at_fpr_0.1"):
        assert found[prefix + key].value is None
        assert "have the same score" in (found[prefix + key].note or "")
        assert plain[prefix + key].value is not None
        assert plain[prefix + key].note is None
    assert "1000000 are needed for FAR 1e-06" in (plain[f"{prefix}tpr_at_fpr_1e-06"].note or "")
    assert plain[f"{prefix}tpr_at_fpr_1e-06"].value is not None
    assert "have the same score" in (found[f"{prefix}tpir_at_fpir_0.01"].note or "")
    assert plain[f"{prefix}tpir_at_fpir_0.01"].value is not None


def test_too_few_strangers_withhold_the_rate_of_a_search():
    embeddings, _, annotations = _drawn(3, templates=40)
    found = score_ijb(embeddings, _identified(annotations, 40), data_sha256="")
    score = found["ijb.IJBC.Norm:True_Det:True_tpir_at_fpir_0.01"]
    assert (score.value, score.note) == (None, "20 non-mated probes, 100 are needed for FPIR 0.01")
    assert found["ijb.IJBC.Norm:True_Det:True_tpir_at_fpir_0.1"].value is not None


def test_who_ties_with_the_whole_gallery_finds_nobody():
    gallery = np.eye(4)[:3]
    probes = np.stack([np.eye(4)[3], np.ones(4) / 2, np.eye(4)[1]])
    found = search_gallery(gallery, np.array([7, 8, 9]), probes, np.array([7, 8, 8]), ranks=[1, 2, 3])
    assert found.hits == (1, 1, 3)


def test_a_probe_that_ties_with_its_own_subject_is_not_passed_by_it():
    gallery = np.eye(3)
    probes = np.array([[0.6, 0.6, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    found = search_gallery(gallery, np.array([7, 8, 9]), probes, np.array([7, 9, 1]), fpirs=[0.5], ranks=[1, 2])
    assert (found.mated_probes, found.non_mated_probes) == (2, 1)
    assert found.hits == (1, 2)
    assert found.thresholds == (1.0,)
    assert found.tpirs == (0.0,)


def test_a_gallery_that_everybody_is_in_has_no_threshold():
    found = search_gallery(np.eye(2), np.array([1, 2]), np.eye(2), np.array([1, 2]))
    assert found.tpirs == (None, None)
    assert found.hits == (2, 2, 2)
    with pytest.raises(ValueError, match="twice"):
        search_gallery(np.eye(2), np.array([1, 1]), np.eye(2), np.array([1, 2]))
