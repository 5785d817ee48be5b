"""Prints how many MiB one loss and gradient at B 512, C 30,000, D 512 take beside inputs and outputs.

Also the seconds over the first 10,000 centres, beside a dense head with fixed centres and one as published, which makes
the centres' gradient too.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tests_support

tests_support.make_importable()

import torch

from adadistill.bench.kernels.bench_margin_softmax import Problem, origin_step, seam_step
from adadistill.bench.timing import extra_mib
from adadistill.kernels.margin_softmax import margin_softmax, margin_softmax_reference


def main() -> None:
    draw = torch.Generator().manual_seed(0)
    centres = torch.empty(30_000, 512).normal_(generator=draw)
    centres.div_(torch.linalg.vector_norm(centres, dim=1, keepdim=True))
    embeddings = torch.nn.functional.normalize(torch.randn(512, 512, generator=draw))
    labels = torch.randint(len(centres), (512,), generator=draw)
    problem = Problem(embeddings, centres, labels, torch.full((512,), 0.1), torch.full((512,), 0.3))
    small = replace(problem, class_centres=centres[:10_000], labels=labels % 10_000)
    seam_step(small, margin_softmax)  # threads and buffers come up
    extra = extra_mib(lambda: seam_step(problem, margin_softmax), torch.device("cpu"))
    seconds = {}
    for name, run in (
        ("chunked", lambda: seam_step(small, margin_softmax)),
        ("dense", lambda: seam_step(small, margin_softmax_reference)),
        ("origin", lambda: origin_step(small)),
    ):
        times = []
        for _ in range(2):
            began = time.perf_counter()
            run()
            times.append(time.perf_counter() - began)
        seconds[name] = min(times)
    print(json.dumps({"extra_mib": extra, "seconds": seconds}))


if __name__ == "__main__":
    main()
