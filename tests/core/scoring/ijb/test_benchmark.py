"""From files to scores: the same in both layouts, on every number of ranks, and from what was kept on disk."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("pyarrow", reason="pyarrow (extra arrow) is not installed")

import dataclasses

from small_ijb import small_ijb, write_original, write_prepared
from small_network import SmallNetwork

from adadistill.core.distributed import Ranks
from adadistill.core.scoring.benchmark import ScoringTerms
from adadistill.core.scoring.embedding import Forward, embed_set
from adadistill.core.scoring.embedding_cache import EmbeddingCache
from adadistill.core.scoring.ijb.benchmark import IJB, IjbBenchmark
from adadistill.core.scoring.pair_metrics import NonFiniteEmbeddingsError
from adadistill.core.scoring.result import BenchmarkResult

IMAGES = len(small_ijb().names)


def opened(folder: Path) -> IjbBenchmark:
    one = IJB.open(folder, ScoringTerms(image_size=112, ranks=Ranks()))
    assert isinstance(one, IjbBenchmark)
    return dataclasses.replace(one, block_rows=8)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> IjbBenchmark:
    return opened(write_original(tmp_path_factory.mktemp("ijb") / "IJBC", small_ijb()))


def _values(result: BenchmarkResult) -> Mapping[str, float | None]:
    return {score.key.replace("_gt_aligned", ""): score.value for score in result.scores}


def test_both_layouts_give_the_same_numbers(original: IjbBenchmark, tmp_path: Path):
    prepared = opened(write_prepared(tmp_path / "IJBC_gt_aligned", small_ijb()))
    one, other = (benchmark.score(SmallNetwork(), Forward()) for benchmark in (original, prepared))
    assert other.headline == "ijb.IJBC_gt_aligned.Norm:False_Det:True_tpr_at_fpr_0.0001"
    assert _values(one) == pytest.approx(_values(other), abs=1e-6)
    assert _values(one)["ijb.IJBC.Norm:True_Det:True_rank-10"] == 1.0
    assert (_values(one)["ijb.IJBC.Norm:True_Det:True_tpr_at_fpr_0.1"] or 0.0) > 0.2
    assert one.counts["probes"] == 12
    assert set(one.seconds) == {"embed", "score"}


def test_detector_scores_of_zero_are_said_at_opening_and_end_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    small = small_ijb()
    small.detector_scores[small.templates == small.templates[0]] = 0.0
    one = opened(write_original(tmp_path / "IJBC", small))
    assert f"templates have detector scores of 0 alone, the first is {small.templates[0]}" in caplog.text
    found = one.score(SmallNetwork(), Forward())
    assert found[found.headline].value is None
    assert "withheld (1 templates have detector scores" in found.summary()
    assert found["ijb.IJBC.Norm:True_Det:False_tpr_at_fpr_0.1"].value is not None


def test_the_sum_of_both_mirror_images_is_scored(original: IjbBenchmark):
    network, images = SmallNetwork(), original.dataset.images
    found = embed_set("small", images, network, Forward(batch_size=5), image_size=112, data_sha256="")
    assert found is not None
    pixels = torch.from_numpy(np.stack([read() for read in images.readers(0, IMAGES, 112)]))
    floats = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
    expected = network(floats) + network(floats.flip(3))
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-4, atol=1e-4)


def test_what_is_kept_is_not_embedded_again_and_what_is_missing_or_damaged_is(
    original: IjbBenchmark, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    cache, network = EmbeddingCache(folder=tmp_path / "cache", network_sha256="a"), SmallNetwork()
    first = original.score(network, Forward(), cache=cache)
    assert network.seen == 2 * IMAGES
    assert _values(original.score(network, Forward(), cache=cache)) == _values(first)
    assert network.seen == 2 * IMAGES
    (tmp_path / "cache" / "block-000001.npy").unlink()
    damaged = tmp_path / "cache" / "block-000000.npy"
    damaged.write_bytes(damaged.read_bytes()[:-4])
    with caplog.at_level(logging.WARNING):
        assert _values(original.score(network, Forward(), cache=cache)) == _values(first)
    assert network.seen == 2 * IMAGES + 2 * 16
    assert "is computed again" in caplog.text


def test_embeddings_of_another_network_and_folders_of_other_things_are_refused(original: IjbBenchmark, tmp_path: Path):
    folder, other = tmp_path / "cache", SmallNetwork(seed=1)
    original.score(SmallNetwork(), Forward(), cache=EmbeddingCache(folder=folder, network_sha256="a"))
    with pytest.raises(ValueError, match=r"network_sha256 a \(here b\)"):
        original.score(other, Forward(), cache=EmbeddingCache(folder=folder, network_sha256="b"))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        original.score(other, Forward(), cache=EmbeddingCache(folder=tmp_path, network_sha256="b"))
    assert other.seen == 0


def test_a_network_that_gives_nan_is_named_with_the_image(original: IjbBenchmark):
    network = SmallNetwork()
    with torch.no_grad():
        network.map.fill_(torch.nan)
    with pytest.raises(NonFiniteEmbeddingsError, match="embedding of image 0 is NaN"):
        original.score(network, Forward())
