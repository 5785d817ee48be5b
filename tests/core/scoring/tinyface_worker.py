"""One rank of test_tinyface.py: scores a small set and prints its scores. Argument: folder of the set."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

import tests_support

tests_support.make_importable()

import torch
from small_network import SmallNetwork

from adadistill.core.distributed import distributed_session
from adadistill.core.scoring.tinyface import evaluate_tinyface, open_tinyface


def main(folder: str) -> None:
    torch.set_num_threads(1)
    with distributed_session("cpu") as ranks:
        result = evaluate_tinyface(open_tinyface(folder), SmallNetwork(), ranks=ranks, threads=1, block_rows=4)
        print(json.dumps({score.key: score.value for score in result.scores}))


main(*sys.argv[1:])
