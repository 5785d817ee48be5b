"""Two ranks share the work of every kind of benchmark, in one launch, and hold the numbers of one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from evaluated_networks import write_tinyface
from rank_processes import run_ranks
from scored_networks import FLOAT64, TinyNetwork, pixels, write_set
from small_network import SmallNetwork

from adadistill.core.distributed import Ranks
from adadistill.core.scoring.benchmark import ScoringTerms
from adadistill.core.scoring.embedding import Forward, embed_images
from adadistill.core.scoring.evaluation_config import open_benchmarks
from adadistill.core.scoring.verification import open_verification

WORKER = Path(__file__).with_name("scoring_worker.py")


def test_two_ranks_give_what_one_gives(tmp_path):
    """Of one image the first of two ranks gets none; nine do not divide; the last blocks of both sets are short."""
    small_ijb = pytest.importorskip("small_ijb", reason="pyarrow (extra arrow) is not installed")
    pairs = write_set(tmp_path / "a.bin", 11)
    ijb = small_ijb.write_original(tmp_path / "IJBC", small_ijb.small_ijb())
    benchmarks = {"ijb": [str(ijb)], "tinyface": [str(write_tinyface(tmp_path / "tiny", side=112))]}
    plan = {
        "counts": [1, 9],
        "set": str(pairs),
        "benchmarks": benchmarks,
        "cache": str(tmp_path / "c"),
        "block_rows": 8,
    }
    (tmp_path / "plan.json").write_text(json.dumps(plan))

    first, second = (json.loads(out.splitlines()[-1]) for out in run_ranks([str(WORKER), str(tmp_path)], 2))

    assert first == second  # equal bits on all ranks
    network, forward = TinyNetwork().double(), Forward(precision=FLOAT64)
    for ours, count in zip(first["embeddings"], (1, 9), strict=True):
        alone = embed_images(network, pixels(count), forward)
        torch.testing.assert_close(torch.tensor(ours, dtype=torch.float64), alone, rtol=1e-12, atol=1e-12)
    numbers = open_verification(pairs, ScoringTerms(image_size=8, ranks=Ranks())).score(network, forward).details
    assert first["details"]["accuracy_per_fold"] == list(numbers["accuracy_per_fold"])
    assert first["details"]["xnorm"] == pytest.approx(numbers["xnorm"], rel=1e-12)
    for one in open_benchmarks(benchmarks, ScoringTerms(image_size=112, ranks=Ranks())):
        values = {score.key: score.value for score in one.score(SmallNetwork(), Forward()).scores}
        assert first[one.name] == pytest.approx(values, abs=1e-6)
    assert len(list((tmp_path / "c").glob("block-*.npy"))) == -(-len(small_ijb.small_ijb().names) // 8)
