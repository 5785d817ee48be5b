"""One rank of the scoring tests: FOLDER/plan.json says what is embedded and scored; prints it as one line of JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

import tests_support

tests_support.make_importable()

import dataclasses

import torch
from scored_networks import FLOAT64, TinyNetwork, pixels
from small_network import SmallNetwork

from adadistill.core.distributed import distributed_session
from adadistill.core.scoring.benchmark import ScoringTerms
from adadistill.core.scoring.embedding import Forward, embed_images
from adadistill.core.scoring.embedding_cache import EmbeddingCache
from adadistill.core.scoring.evaluation_config import open_benchmarks
from adadistill.core.scoring.verification import open_verification


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    plan = json.loads((folder / "plan.json").read_text())
    found: dict[str, object] = {}
    with distributed_session("cpu") as ranks:
        if "counts" in plan:
            network, forward = TinyNetwork().double(), Forward(ranks=ranks, batch_size=2, precision=FLOAT64)
            found["embeddings"] = [embed_images(network, pixels(count), forward).tolist() for count in plan["counts"]]
            opened = open_verification(plan["set"], ScoringTerms(image_size=8, ranks=ranks))
            found["details"] = dict(opened.score(network, forward).details)
        cache = EmbeddingCache(folder=Path(plan["cache"]), network_sha256="a") if "cache" in plan else None
        for one in open_benchmarks(plan.get("benchmarks", {}), ScoringTerms(image_size=112, ranks=ranks)):
            result = dataclasses.replace(one, block_rows=plan["block_rows"]).score(
                SmallNetwork(), Forward(ranks=ranks), cache=cache
            )
            found[one.name] = {score.key: score.value for score in result.scores}
            cache = None  # a cache is of one set
    print(json.dumps(found))


main(Path(sys.argv[1]))
