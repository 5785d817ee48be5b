"""From files to scores: the same in both layouts, on every number of ranks, and from what was kept on disk."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("pyarrow", reason="pyarrow (extra arrow) is not installed")

from rank_processes import run_ranks
from small_ijb import small_ijb, write_original, write_prepared
from small_network import SmallNetwork

import adadistill.core.scoring.extraction as extraction
from adadistill.core.distributed import Ranks
from adadistill.core.precision import resolve_precision
from adadistill.core.scoring.embedding_cache import EmbeddingCache, EmbeddingCacheError
from adadistill.core.scoring.ijb import evaluate_ijb
from adadistill.core.scoring.pair_metrics import NonFiniteEmbeddingsError
from adadistill.core.scoring.result import BenchmarkResult
from adadistill.core.scoring.suite import BenchmarkPaths, open_benchmarks
from adadistill.loaders.evaluation_sets.ijb import open_ijb

CPU = Ranks()
IMAGES = len(small_ijb().names)
BLOCKS = -(-IMAGES // 8)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_original(tmp_path_factory.mktemp("ijb") / "IJBC", small_ijb())


def _values(result: BenchmarkResult) -> Mapping[str, float | None]:
    return {score.key.replace("_gt_aligned", ""): score.value for score in result.scores}


def test_both_layouts_give_the_same_numbers(original: Path, tmp_path: Path):
    prepared = write_prepared(tmp_path / "IJBC_gt_aligned", small_ijb())
    one = evaluate_ijb(open_ijb(original), SmallNetwork(), ranks=CPU)
    other = evaluate_ijb(open_ijb(prepared), SmallNetwork(), ranks=CPU)
    assert other.headline == "ijb.IJBC_gt_aligned.Norm:False_Det:True_tpr_at_fpr_0.0001"
    assert _values(one) == pytest.approx(_values(other), abs=1e-6)
    assert _values(one)["ijb.IJBC.Norm:True_Det:True_rank-10"] == 1.0
    assert (_values(one)["ijb.IJBC.Norm:True_Det:True_tpr_at_fpr_0.1"] or 0.0) > 0.2
    assert one.counts["probes"] == 12
    assert set(one.seconds) == {"embed", "score"}


def test_detector_scores_of_zero_are_said_at_opening_and_end_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    small = small_ijb()
    small.detector_scores[small.templates == small.templates[0]] = 0.0
    folder = write_original(tmp_path / "IJBC", small)
    (opened,) = open_benchmarks(BenchmarkPaths(ijb=(folder,)), 112, CPU)
    assert f"templates have detector scores of 0 alone, the first is {small.templates[0]}" in caplog.text
    precision = resolve_precision("float32", torch.device("cpu"))
    found, _ = opened.evaluate(SmallNetwork(), ranks=CPU, batch_size=8, precision=precision)
    assert found[found.headline].value is None
    assert "withheld (1 templates have detector scores" in found[found.headline].line()
    assert found["ijb.IJBC.Norm:True_Det:False_tpr_at_fpr_0.1"].value is not None


def test_the_sum_of_both_mirror_images_is_scored(original: Path):
    opened = open_ijb(original)
    embedder = extraction.Embedder(
        network=SmallNetwork(), ranks=CPU, batch_size=5, precision=extraction.Precision(torch.float64, None, False),
        image_size=112,
    )  # fmt: skip
    embedder.network.double()
    found = extraction.embed_set("small", opened.images, embedder, stored=None)
    assert found is not None
    readers = opened.images.readers(0, IMAGES, 112)
    pixels = torch.from_numpy(np.stack([read() for read in readers])).permute(0, 3, 1, 2).double() / 127.5 - 1
    expected = embedder.network(pixels) + embedder.network(pixels.flip(3))
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_work_and_hold_the_scores_of_one_process(original: Path, tmp_path: Path, world_size: int):
    alone = evaluate_ijb(open_ijb(original), SmallNetwork(), ranks=CPU)
    worker = Path(__file__).with_name("evaluation_worker.py")
    outputs = run_ranks([str(worker), str(original), str(tmp_path / "cache")], world_size)
    assert len(list((tmp_path / "cache").glob("block-*.npy"))) == BLOCKS
    for output in outputs:
        assert json.loads(output.splitlines()[-1]) == pytest.approx(_values(alone), abs=1e-6)


def test_what_is_kept_is_not_embedded_again_and_what_is_missing_is(original: Path, tmp_path: Path):
    opened, cache = open_ijb(original), EmbeddingCache(folder=tmp_path / "cache", network_sha256="a")
    network = SmallNetwork()
    first = evaluate_ijb(opened, network, ranks=CPU, cache=cache, block_rows=8)
    assert network.seen == 2 * IMAGES
    assert _values(evaluate_ijb(opened, network, ranks=CPU, cache=cache, block_rows=8)) == _values(first)
    assert network.seen == 2 * IMAGES
    (tmp_path / "cache" / "block-000001.npy").unlink()
    assert _values(evaluate_ijb(opened, network, ranks=CPU, cache=cache, block_rows=8)) == _values(first)
    assert network.seen == 2 * IMAGES + 2 * 8


def test_a_damaged_block_is_computed_again_and_said(original: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    opened, cache = open_ijb(original), EmbeddingCache(folder=tmp_path / "cache", network_sha256="a")
    network = SmallNetwork()
    first = evaluate_ijb(opened, network, ranks=CPU, cache=cache, block_rows=8)
    path = tmp_path / "cache" / "block-000000.npy"
    path.write_bytes(path.read_bytes()[:-4])
    with caplog.at_level(logging.WARNING):
        assert _values(evaluate_ijb(opened, network, ranks=CPU, cache=cache, block_rows=8)) == _values(first)
    assert "is computed again" in caplog.text
    assert network.seen == 2 * IMAGES + 2 * 8


def test_embeddings_of_another_network_are_refused_or_visibly_replaced(
    original: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    opened, folder = open_ijb(original), tmp_path / "cache"
    evaluate_ijb(opened, SmallNetwork(), ranks=CPU, cache=EmbeddingCache(folder=folder, network_sha256="a"))
    other = SmallNetwork(seed=1)
    with pytest.raises(EmbeddingCacheError, match=r"network_sha256 a \(here b\)"):
        evaluate_ijb(opened, other, ranks=CPU, cache=EmbeddingCache(folder=folder, network_sha256="b"))
    assert other.seen == 0
    with caplog.at_level(logging.WARNING):
        again = EmbeddingCache(folder=folder, network_sha256="b", rebuild=True)
        found = evaluate_ijb(opened, other, ranks=CPU, cache=again, block_rows=8)
    assert "rebuilding" in caplog.text
    assert other.seen == 2 * IMAGES
    assert _values(found) == _values(evaluate_ijb(opened, SmallNetwork(seed=1), ranks=CPU))


def test_a_folder_of_other_things_is_not_taken_for_a_cache(original: Path, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(EmbeddingCacheError, match="is not empty"):
        evaluate_ijb(
            open_ijb(original), SmallNetwork(), ranks=CPU, cache=EmbeddingCache(folder=tmp_path, network_sha256="a")
        )


def test_a_network_that_gives_nan_is_named_with_the_image(original: Path):
    network = SmallNetwork()
    with torch.no_grad():
        network.map.fill_(torch.nan)
    with pytest.raises(NonFiniteEmbeddingsError, match="embedding of image 0 is NaN"):
        evaluate_ijb(open_ijb(original), network, ranks=CPU)
