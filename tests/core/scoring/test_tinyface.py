"""Ranks are those of sorting the whole score matrix, ties and all, and no more than a block of it is ever held."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rank_processes import run_ranks
from small_network import SmallNetwork
from tests_support import GOLDEN, golden_files
from torch import nn

from adadistill.core.distributed import Ranks
from adadistill.core.precision import resolve_precision
from adadistill.core.scoring.embedding_cache import EmbeddingCache
from adadistill.core.scoring.pair_metrics import NonFiniteEmbeddingsError
from adadistill.core.scoring.tinyface import (
    TinyFaceError,
    evaluate_tinyface,
    mate_ranks,
    open_tinyface,
    tinyface_benchmark,
)
from adadistill.loaders.evaluation_sets.tinyface import ImageFiles, TinyFace, tinyface_of_lists

CPU = Ranks()
FLOAT64 = resolve_precision("float64", torch.device("cpu"))


def slow_ranks(embeddings, probes, probe_labels, gallery, gallery_labels):
    """The definition: sort every probe's scores ascending and stably, reverse, and look for the first mate."""
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    units = embeddings / np.where(norms == 0, 1, norms)
    scores = units[probes] @ units[gallery].T
    ranks = []
    for row, label in zip(scores, probe_labels, strict=True):
        order = np.argsort(row, kind="stable")[::-1]
        hits = np.flatnonzero(gallery_labels[order] == label)
        ranks.append(hits[0] + 1 if hits.size else 0)
    return np.array(ranks)


def random_search(seed: int, *, levels: int = 0, probes: int = 30, matched: int = 25, distractors: int = 60):
    """Arguments of `mate_ranks`; with levels, embeddings of few small integers, whose cosines tie exactly often."""
    draw = np.random.default_rng(seed)
    count = probes + matched + distractors
    if levels:
        # One non-zero coordinate each: every cosine is exactly -1, 0 or 1.
        embeddings = np.zeros((count, levels))
        embeddings[np.arange(count), draw.integers(0, levels, count)] = draw.choice([-2.0, 0.0, 1.0, 4.0], count)
    else:
        embeddings = draw.normal(size=(count, 8))
    rows = draw.permutation(count)
    labels = np.concatenate([draw.integers(0, 15, matched), np.full(distractors, -100)])
    return embeddings, rows[:probes], draw.integers(0, 20, probes), rows[probes:], labels


# Everything in one block, a score at a time, blocks that do not divide; without and with exact ties.
@pytest.mark.parametrize("levels", [0, 1, 3])
@pytest.mark.parametrize("block_scores", [1, 26, 333, 1 << 20])
def test_ranks_are_those_of_sorting_all_scores(levels, block_scores):
    for seed in range(4):
        search = random_search(seed, levels=levels)
        assert mate_ranks(*search, block_scores=block_scores).tolist() == slow_ranks(*search).tolist()


def test_of_equal_scores_the_later_one_comes_first():
    embeddings = np.ones((6, 4))  # a dead network: everything is everyone
    probes, gallery = np.array([0]), np.array([1, 2, 3, 4, 5])
    assert mate_ranks(embeddings, probes, np.array([7]), gallery, np.array([7, 8, 7, -100, -100])).tolist() == [3]
    assert mate_ranks(np.zeros((6, 4)), probes, np.array([7]), gallery, np.array([7, 8, 7, -100, -100])).tolist() == [3]


def test_a_probe_without_a_mate_has_no_rank():
    embeddings = np.eye(3)
    ranks = mate_ranks(embeddings, np.array([0, 1]), np.array([5, 6]), np.array([1, 2]), np.array([6, -100]))
    assert ranks.tolist() == [0, 1]
    assert mate_ranks(embeddings, np.array([0]), np.array([5]), np.array([1, 2]), np.array([6, -100])).tolist() == [0]


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), levels=st.sampled_from([0, 2]))
def test_permuting_the_probes_permutes_their_ranks(seed, levels):
    embeddings, probes, labels, gallery, gallery_labels = random_search(seed, levels=levels)
    order = np.random.default_rng(seed).permutation(len(probes))
    ranks = mate_ranks(embeddings, probes, labels, gallery, gallery_labels, block_scores=200)
    permuted = mate_ranks(embeddings, probes[order], labels[order], gallery, gallery_labels, block_scores=90)
    assert permuted.tolist() == ranks[order].tolist()


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 20))
def test_far_distractors_change_no_rank_and_near_ones_never_improve_one(seed, count):
    embeddings, probes, labels, gallery, gallery_labels = random_search(seed)
    ranks = mate_ranks(embeddings, probes, labels, gallery, gallery_labels)
    draw = np.random.default_rng(seed)
    added = len(embeddings) + np.arange(count)
    wider = np.concatenate([gallery, added]), np.concatenate([gallery_labels, np.full(count, -100)])

    # A coordinate of their own, in which probes lean the other way a little: no cosine is lower than theirs.
    lean = np.append(np.zeros(len(embeddings)), np.full(count, 1.0))[:, None]
    lean[probes] = -1e3
    far = np.hstack([np.vstack([embeddings, np.zeros((count, 8))]), lean])
    base = mate_ranks(far[: len(embeddings)], probes, labels, gallery, gallery_labels)
    assert mate_ranks(far, probes, labels, *wider).tolist() == base.tolist()

    near = np.vstack([embeddings, draw.normal(size=(count, 8))])
    worse = mate_ranks(near, probes, labels, *wider)
    assert (worse >= ranks).all()
    assert (worse <= ranks + count).all()


def test_scale_and_precision_of_embeddings_do_not_matter_to_the_ranks():
    embeddings, *rest = random_search(0)
    ranks = mate_ranks(embeddings, *rest)
    scales = np.random.default_rng(1).uniform(0.01, 100, (len(embeddings), 1))
    assert mate_ranks(embeddings * scales, *rest).tolist() == ranks.tolist()
    assert mate_ranks(embeddings.astype(np.float32), *rest).tolist() == ranks.tolist()


def test_the_score_matrix_is_never_whole(monkeypatch):
    held = []
    real = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: held.append(out := real(a, b)) or out)
    search = random_search(0, probes=300, matched=40, distractors=5000)

    mate_ranks(*search, block_scores=20_000)

    assert max(scores.numel() for scores in held) <= 20_000
    assert sum(scores.numel() for scores in held) == 300 * 5040


# --- golden --------------------------------------------------------------------------------------------------------


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

    found = tinyface_benchmark(from_lists(*lists), features, data_sha256="")

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

    plain = tinyface_benchmark(from_lists(images, *lists), features, data_sha256="")
    shuffled = tinyface_benchmark(from_lists(images[order], *lists), features[order], data_sha256="")

    assert shuffled.scores == plain.scores


# --- results -------------------------------------------------------------------------------------------------------


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
    found = tinyface_benchmark(tinyface, embeddings, data_sha256="cd", seconds={"embed": 1.0})

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
    again = tinyface_benchmark(tinyface, embeddings, data_sha256="cd")
    assert again.scores == found.scores


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_embeddings_that_are_all_alike_have_no_ranks(value):
    tinyface, embeddings = toy_scores()
    found = tinyface_benchmark(tinyface, np.full_like(embeddings, value), data_sha256="cd")
    for score in found.scores:
        assert (score.value, score.interval) == (None, None)
        assert "alike" in score.note
    assert found.errors == ()
    embeddings[3] = 0.0
    note = tinyface_benchmark(tinyface, embeddings, data_sha256="cd").scores[0].note
    assert note.startswith("1 embeddings are zero")


def test_embeddings_that_are_not_finite_or_not_as_many_are_refused():
    tinyface, embeddings = toy_scores()
    with pytest.raises(ValueError, match=r"embeddings \(159, 16\) of 160 images"):
        tinyface_benchmark(tinyface, embeddings[:-1], data_sha256="")
    embeddings[41, 3] = np.nan
    with pytest.raises(NonFiniteEmbeddingsError, match=r"1 of 160 .* first is of .*2_g\.jpg"):
        tinyface_benchmark(tinyface, embeddings, data_sha256="")


# --- from images ---------------------------------------------------------------------------------------------------


class TinyNetwork(nn.Module):
    """8 x 8 images to embeddings, different for an image and its mirror image."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(192, 12))
        self.batches: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(images))
        return self.body(images)


def write_folders(root: Path, *, side: int = 8) -> Path:
    draw = np.random.default_rng(0)
    for folder, names in (
        ("Probe", [f"{person}_1.jpg" for person in range(6)]),
        ("Gallery_Match", [f"{person}_2.jpg" for person in range(5)]),
        ("Gallery_Distractor", [f"{number}.jpg" for number in range(7)]),
    ):
        (root / folder).mkdir(parents=True)
        for name in names:
            pixels = draw.integers(0, 256, (side, side, 3), dtype=np.uint8)
            (root / folder / name).write_bytes(simplejpeg.encode_jpeg(pixels, quality=95, colorsubsampling="444"))
    return root


def test_images_are_embedded_twice_summed_and_searched(tmp_path):
    tinyface = open_tinyface(write_folders(tmp_path / "tiny"))
    network = TinyNetwork().double().train()

    found = evaluate_tinyface(tinyface, network, ranks=CPU, image_size=8, batch_size=5, precision=FLOAT64)

    assert network.training
    assert sum(network.batches) == 2 * 18
    pixels = [
        simplejpeg.decode_jpeg(body, colorspace="RGB") for body in tinyface.images.bodies(0, len(tinyface.images))
    ]
    with torch.no_grad():
        images = (torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).double() - 127.5) / 127.5
        sums = (network(images) + network(images.flip(3))).numpy()
    expected = tinyface_benchmark(tinyface, sums, data_sha256=tinyface.inspect(8))
    assert found.scores == expected.scores
    assert found.errors == expected.errors
    assert found.data_sha256 == expected.data_sha256
    assert set(found.seconds) == {"inspect", "embed", "score"}


def test_bad_images_are_named_before_the_network_runs(tmp_path):
    root = write_folders(tmp_path / "tiny")
    small = simplejpeg.encode_jpeg(np.zeros((9, 8, 3), np.uint8))
    (root / "Gallery_Match" / "3_2.jpg").write_bytes(small)
    (root / "Gallery_Distractor" / "2.jpg").write_bytes(b"GIF89a")
    network = TinyNetwork()
    with pytest.raises(
        TinyFaceError, match=r"2 of 18 images cannot be used; .*3_2\.jpg: is 9 x 8 pixels, and the network takes 8 x 8"
    ):
        evaluate_tinyface(open_tinyface(root), network, ranks=CPU, image_size=8)
    assert network.batches == []


def test_two_ranks_share_the_work_and_hold_the_scores_of_one(tmp_path):
    root = write_folders(tmp_path / "tiny", side=112)
    alone = evaluate_tinyface(open_tinyface(root), SmallNetwork(), ranks=CPU)
    worker = Path(__file__).with_name("tinyface_worker.py")
    for output in run_ranks([str(worker), str(root)], 2):
        assert json.loads(output.splitlines()[-1]) == {score.key: score.value for score in alone.scores}


def test_embeddings_that_are_kept_are_not_computed_again(tmp_path):
    tinyface = open_tinyface(write_folders(tmp_path / "tiny", side=112))
    cache, network = EmbeddingCache(folder=tmp_path / "cache", network_sha256="a"), SmallNetwork()
    first = evaluate_tinyface(tinyface, network, ranks=CPU, cache=cache, block_rows=7)
    assert evaluate_tinyface(tinyface, network, ranks=CPU, cache=cache, block_rows=7).scores == first.scores
    assert network.seen == 2 * 18


def test_a_network_that_gives_nan_is_named(tmp_path):
    tinyface = open_tinyface(write_folders(tmp_path / "tiny", side=112))
    network = SmallNetwork()
    network.map.data[3] = torch.nan
    with pytest.raises(NonFiniteEmbeddingsError, match="image 0 is NaN or infinite"):
        evaluate_tinyface(tinyface, network, ranks=CPU)


def test_the_hash_is_of_images_and_roles(tmp_path):
    tinyface = open_tinyface(write_folders(tmp_path / "tiny"))
    same = open_tinyface(write_folders(tmp_path / "copy"))
    assert tinyface.inspect(8) == same.inspect(8)
    assert dataclasses.replace(tinyface, probe_labels=tinyface.probe_labels + 1).inspect(8) != same.inspect(8)
    path = tmp_path / "copy" / "Probe" / "0_1.jpg"
    path.write_bytes(path.read_bytes() + b"\0")
    assert tinyface.inspect(8) != same.inspect(8)
