"""A set's score is that of the flip sums of its images; sets that cannot be scored are refused when they are opened."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pytest
import simplejpeg
import torch
from scored_networks import FLOAT64, TinyNetwork, pixels, write_set
from torch import nn

from adadistill.core.distributed import Ranks, rank_share
from adadistill.core.scoring.benchmark import ScoringTerms
from adadistill.core.scoring.embedding import Forward, embed_images
from adadistill.core.scoring.pair_metrics import NonFiniteEmbeddingsError
from adadistill.core.scoring.published import PUBLISHED_PAIRS
from adadistill.core.scoring.verification import open_verification
from adadistill.core.scoring.verification_numbers import verification_numbers
from adadistill.loaders.evaluation_sets.verification_pairs import write_verification_bin

SMALL = ScoringTerms(image_size=8, ranks=Ranks())


def rank(number: int, world_size: int) -> ScoringTerms:
    return dataclasses.replace(SMALL, ranks=Ranks(rank=number, world_size=world_size))


def test_sets_are_scored_by_the_flip_sum_of_raw_embeddings(tmp_path):
    one, network = open_verification(write_set(tmp_path / "a.bin", 30), SMALL), TinyNetwork().double()

    result = one.score(network, Forward(batch_size=7, precision=FLOAT64))

    plain, mirrored = (
        embed_images(network, one.images_u8, Forward(precision=FLOAT64), mirrored=flip).numpy()
        for flip in (False, True)
    )
    fused = plain + mirrored
    expected = verification_numbers("a", fused / np.linalg.norm(fused, axis=1, keepdims=True), one.same)
    assert result.details["accuracy_per_fold"] == expected.accuracy_per_fold
    assert result.details["auc"] == expected.auc
    assert result.details["xnorm"] == pytest.approx(np.linalg.norm(np.concatenate([plain, mirrored]), axis=1).mean())
    assert result.data_sha256 == one.data_sha256
    assert len(one.data_sha256) == 64
    assert list(result.seconds) == ["decode", "embed", "score"]


def test_embeddings_that_are_not_finite_name_set_and_image(tmp_path):
    network = TinyNetwork()
    with torch.no_grad():
        network.body[2].bias[3] = float("nan")
    with pytest.raises(NonFiniteEmbeddingsError, match=r"set faces: 24 of 24 .* first image 0 \(pair 0\)"):
        open_verification(write_set(tmp_path / "faces.bin", 12), SMALL).score(network, Forward())


def test_images_of_another_size_are_fitted_to_the_network(tmp_path):
    assert open_verification(write_set(tmp_path / "large.bin", 3, side=20), SMALL).images_u8.shape == (6, 8, 8, 3)


def test_a_published_name_with_another_count_is_warned_about_once_over_the_ranks(tmp_path, caplog):
    path = write_set(tmp_path / "cfp_fp.bin", 3)
    with caplog.at_level(logging.WARNING):
        open_verification(path, SMALL)
        open_verification(path, rank(1, 2))
        open_verification(write_set(tmp_path / "mine.bin", 3), SMALL)
    assert len(caplog.messages) == 1
    assert f"holds 3 pairs, the published set cfp_fp has {PUBLISHED_PAIRS['cfp_fp']}" in caplog.messages[0]


def test_a_rank_decodes_its_share_and_says_when_another_is_asked_for(tmp_path):
    path = write_set(tmp_path / "a.bin", 5)
    whole, last = open_verification(path, SMALL), open_verification(path, rank(2, 3))
    start, stop = rank_share(10, 2, 3)
    assert torch.equal(last.images_u8, whole.images_u8[start:stop])
    with pytest.raises(ValueError, match=r"set a holds images \[6, 10\), this rank needs \[0, 10\)"):
        last.score(TinyNetwork(), Forward())


def test_bin_and_arrow_folder_of_the_same_images_score_alike(tmp_path):
    arrow_folders = pytest.importorskip("arrow_folders", reason="pyarrow (extra arrow) is not installed")
    draw = np.random.default_rng(0)
    bodies = [simplejpeg.encode_jpeg(image.numpy()) for image in pixels(40)]
    same = [pair % 3 == 0 for pair in range(20)]
    write_verification_bin(tmp_path / "lfw.bin", bodies, same)
    order = draw.permutation(40).tolist()  # rows in any order: column index says which image each is
    columns = {"image": [bodies[index] for index in order], "index": order}
    arrow_folders.write_arrow_folder(
        tmp_path / "arrow" / "lfw", {**columns, "is_same": [same[index // 2] for index in order]}
    )
    one, other = (
        open_verification(path, SMALL).score(TinyNetwork(), Forward())
        for path in (tmp_path / "lfw.bin", tmp_path / "arrow" / "lfw")
    )
    assert one.scores == other.scores
    assert one.errors == other.errors
    assert np.array_equal(one.histograms[0].same, other.histograms[0].same)


@pytest.mark.realdata
def test_real_sets_are_scored_and_lopsided_ones_say_what_they_cannot_define(data_dir):
    paths = sorted((data_dir / "faces").glob("*.bin"))
    if not paths:
        pytest.skip(f"no .bin files in {data_dir / 'faces'}")
    blurred_pixels = nn.Sequential(nn.AvgPool2d(2), nn.Flatten())
    for path in paths:
        one = open_verification(path, dataclasses.replace(SMALL, image_size=16, intervals=False))
        numbers = one.score(blurred_pixels, Forward(batch_size=512)).details
        assert numbers["pairs"] == len(one.same)
        if one.same.all() or not one.same.any():
            assert numbers["auc"] is None
            assert {"accuracy", "auc", "eer"} <= set(numbers["notes"])
        else:
            assert 0.5 < numbers["auc"] < 0.95  # even blurred pixels know something, but no one
