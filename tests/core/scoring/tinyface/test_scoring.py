"""The origin's rates are reproduced; a result says what its numbers are worth."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests_support import GOLDEN, golden_files

from adadistill.core.scoring.pair_metrics import NonFiniteEmbeddingsError
from adadistill.core.scoring.tinyface.scoring import score_tinyface
from adadistill.loaders.evaluation_sets.image_sets import ImageFiles
from adadistill.loaders.evaluation_sets.tinyface import TinyFace, tinyface_of_lists


def from_lists(image_paths, probe_paths, gallery_paths, distractor_paths) -> TinyFace:
    lists = {
        "probe_paths": [str(path) for path in probe_paths],
        "gallery_paths": [str(path) for path in gallery_paths],
        "distractor_paths": [str(path) for path in distractor_paths],
    }
    names = tuple(str(path) for path in image_paths)
    folder = Path("tinyface_aligned_pad_0.1")
    return tinyface_of_lists(folder, ImageFiles(folder, names), names, lists)


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("tinyface*.npz"), ids=lambda path: path.stem)
def test_the_origins_rates_are_reproduced(path):
    with np.load(path) as case:
        lists = [case[name].tolist() for name in ("image_paths", "probe_paths", "gallery_paths", "distractor_paths")]
        features, expected = case["features"], json.loads(str(case["expected"]))

    found = score_tinyface(from_lists(*lists), features, data_sha256="")

    mated = found.counts["probes with a mate"]
    assert expected
    for rank, percent in expected.items():
        value = found[f"tinyface.tinyface_aligned_pad_0.1.{rank}"].value
        assert value * mated == pytest.approx(round(percent / 100 * mated), abs=1e-9)  # the origin's mean is float32
        assert 100 * value == pytest.approx(percent, rel=1e-6)


@pytest.mark.golden
@pytest.mark.skipif(not (GOLDEN / "tinyface.npz").is_file(), reason=f"no golden cases at {GOLDEN}")
def test_the_order_of_images_on_disk_does_not_matter():
    with np.load(GOLDEN / "tinyface.npz") as case:
        lists = [case[name].tolist() for name in ("probe_paths", "gallery_paths", "distractor_paths")]
        images, features = np.array(case["image_paths"].tolist()), case["features"]
    order = np.random.default_rng(0).permutation(len(images))

    plain = score_tinyface(from_lists(images, *lists), features, data_sha256="")
    shuffled = score_tinyface(from_lists(images[order], *lists), features[order], data_sha256="")

    assert shuffled.scores == plain.scores


def toy_scores(seed: int = 0):
    draw = np.random.default_rng(seed)
    people = draw.normal(size=(40, 16))
    probes = [f"{person}_p.jpg" for person in range(40)]
    gallery = [f"{person}_g.jpg" for person in range(0, 40, 2)]
    distractors = [f"d{number}.jpg" for number in range(100)]
    rows = [people, people[::2], draw.normal(size=(100, 16))]
    embeddings = np.concatenate(rows) + 0.8 * draw.normal(size=(160, 16))
    return from_lists([*probes, *gallery, *distractors], probes, gallery, distractors), embeddings


def test_a_result_carries_counts_intervals_protocol_and_worst_probes():
    tinyface, embeddings = toy_scores()
    found = score_tinyface(tinyface, embeddings, data_sha256="cd", seconds={"embed": 1.0})

    assert (found.kind, found.name, found.data_sha256) == ("tinyface", "tinyface_aligned_pad_0.1", "cd")
    assert found.headline == "tinyface.tinyface_aligned_pad_0.1.rank-1"
    assert found.counts == {
        "images": 160, "probes": 40, "gallery": 20, "distractors": 100, "probes with a mate": 20,
    }  # fmt: skip
    values = [score.value for score in found.scores]
    assert [score.label for score in found.scores] == ["rank-1", "rank-5", "rank-20"]
    assert values == sorted(values)
    for score in found.scores:
        low, high = score.interval
        assert 0 <= low <= score.value <= high <= 1
        assert "closed set" in score.protocol
        assert score.note.startswith("not the published set")
        assert "40 probes (3728)" in score.note
    ranks = [case["rank"] for case in found.errors]
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[-1] > 1
    assert set(found.seconds) == {"embed", "score"}
    again = score_tinyface(tinyface, embeddings, data_sha256="cd")
    assert again.scores == found.scores


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_embeddings_that_are_all_alike_have_no_ranks(value):
    tinyface, embeddings = toy_scores()
    found = score_tinyface(tinyface, np.full_like(embeddings, value), data_sha256="cd")
    for score in found.scores:
        assert (score.value, score.interval) == (None, None)
        assert "alike" in score.note
    assert found.errors == ()
    embeddings[3] = 0.0
    note = score_tinyface(tinyface, embeddings, data_sha256="cd").scores[0].note
    assert note.startswith("1 embeddings are zero")


def test_embeddings_that_are_not_finite_or_not_as_many_are_refused():
    tinyface, embeddings = toy_scores()
    with pytest.raises(ValueError, match=r"embeddings \(159, 16\) of 160 images"):
        score_tinyface(tinyface, embeddings[:-1], data_sha256="")
    embeddings[41, 3] = np.nan
    with pytest.raises(NonFiniteEmbeddingsError, match=r"1 of 160 .* first is of .*2_g\.jpg"):
        score_tinyface(tinyface, embeddings, data_sha256="")
