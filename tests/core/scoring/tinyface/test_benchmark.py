"""From a folder to scores: images are embedded twice and summed, bad ones are named before the network runs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import simplejpeg
import torch
from evaluated_networks import write_tinyface
from scored_networks import FLOAT64
from small_network import SmallNetwork
from torch import nn

from adadistill.core.distributed import Ranks
from adadistill.core.scoring.benchmark import ScoringTerms
from adadistill.core.scoring.embedding import Forward
from adadistill.core.scoring.embedding_cache import EmbeddingCache
from adadistill.core.scoring.pair_metrics import NonFiniteEmbeddingsError
from adadistill.core.scoring.tinyface.benchmark import TINYFACE
from adadistill.core.scoring.tinyface.scoring import score_tinyface
from adadistill.loaders.evaluation_sets.image_sets import ImageSetError
from adadistill.loaders.evaluation_sets.tinyface import open_tinyface


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


def opened(root, *, side: int = 8):
    return TINYFACE.open(root, ScoringTerms(image_size=side, ranks=Ranks()))


def test_images_are_embedded_twice_summed_and_searched(tmp_path):
    one, network = opened(write_tinyface(tmp_path / "tiny", side=8)), TinyNetwork().double().train()

    found = one.score(network, Forward(batch_size=5, precision=FLOAT64))

    assert network.training
    assert sum(network.batches) == 2 * 18
    pixels = [simplejpeg.decode_jpeg(body, colorspace="RGB") for body in one.dataset.images.bodies(0, 18)]
    with torch.no_grad():
        images = (torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).double() - 127.5) / 127.5
        sums = (network(images) + network(images.flip(3))).numpy()
    expected = score_tinyface(one.dataset, sums, data_sha256=one.dataset.inspect(8))
    assert (found.scores, found.errors) == (expected.scores, expected.errors)
    assert found.data_sha256 == one.data_sha256 == expected.data_sha256
    assert set(found.seconds) == {"inspect", "embed", "score"}


def test_bad_images_are_named_when_the_set_is_opened(tmp_path):
    root = write_tinyface(tmp_path / "tiny", side=8)
    (root / "Gallery_Match" / "3_2.jpg").write_bytes(simplejpeg.encode_jpeg(np.zeros((9, 8, 3), np.uint8)))
    (root / "Gallery_Distractor" / "2.jpg").write_bytes(b"GIF89a")
    with pytest.raises(
        ImageSetError, match=r"2 of 18 images cannot be used; .*3_2\.jpg: is 9 x 8 pixels, and the network takes 8 x 8"
    ):
        opened(root)


def test_embeddings_that_are_kept_are_not_computed_again(tmp_path):
    one = dataclasses.replace(opened(write_tinyface(tmp_path / "tiny", side=112), side=112), block_rows=7)
    cache, network = EmbeddingCache(folder=tmp_path / "cache", network_sha256="a"), SmallNetwork()
    first = one.score(network, Forward(), cache=cache)
    assert one.score(network, Forward(), cache=cache).scores == first.scores
    assert network.seen == 2 * 18
    network.map.data[3] = torch.nan
    with pytest.raises(NonFiniteEmbeddingsError, match="image 0 is NaN or infinite"):
        one.score(network, Forward())


def test_the_hash_is_of_images_and_roles(tmp_path):
    tinyface = open_tinyface(write_tinyface(tmp_path / "tiny", side=8))
    same = open_tinyface(write_tinyface(tmp_path / "copy", side=8))
    assert tinyface.inspect(8) == same.inspect(8)
    assert dataclasses.replace(tinyface, probe_labels=tinyface.probe_labels + 1).inspect(8) != same.inspect(8)
    path = tmp_path / "copy" / "Probe" / "0_1.jpg"
    path.write_bytes(path.read_bytes() + b"\0")
    assert tinyface.inspect(8) != same.inspect(8)
