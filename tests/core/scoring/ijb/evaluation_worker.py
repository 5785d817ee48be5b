"""One rank of test_evaluation.py: scores a small set and prints its scores.

Arguments: folder of the set, folder of the cache.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[3])]

import tests_support

tests_support.make_importable()

import torch
from small_network import SmallNetwork

from adadistill.core.distributed import distributed_session
from adadistill.core.scoring.embedding_cache import EmbeddingCache
from adadistill.core.scoring.ijb import evaluate_ijb
from adadistill.loaders.evaluation_sets.ijb import open_ijb


def main(folder: str, cache: str) -> None:
    torch.set_num_threads(1)
    with distributed_session("cpu") as ranks:
        kept = EmbeddingCache(folder=Path(cache), network_sha256="a")
        result = evaluate_ijb(open_ijb(folder), SmallNetwork(), ranks=ranks, cache=kept, threads=1, block_rows=8)
        print(json.dumps({score.key: score.value for score in result.scores}))


main(*sys.argv[1:])
