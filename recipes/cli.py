"""`adadistill VERB ...`: finds the entry point of a verb and hands it the rest of the line.

Nothing else is imported here, so that `adadistill --help` answers at once; torch is loaded by the verb that needs it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from adadistill.core.training.stop_signal import leave_at_once
from adadistill.recipes.entry_point import entry_point, known_verb

VERBS = {
    "train": ("adadistill.recipes.train", "train a student (or a teacher) from a recipe, in one process"),
    "plan": ("adadistill.recipes.plan", "tell what memory a recipe needs on some devices, and what was measured"),
    "recipes": (
        "adadistill.recipes.recipe_tools",
        "list, show, copy, check and compare recipes; import a config.py",
    ),
    "ablate": ("adadistill.recipes.ablate", "train variants of a recipe with several seeds and compare them"),
    "evaluate": ("adadistill.recipes.evaluate", "score a network, or every one in a folder, on benchmarks"),
    "report": ("adadistill.recipes.report", "evaluations and a training run as one HTML page"),
    "mirror": ("adadistill.recipes.mirror", "copy a run's metrics to TensorBoard or Weights & Biases"),
    "teacher": ("adadistill.recipes.teacher", "check a recipe's teacher: identity, precision, speed, colour order"),
    "cache": ("adadistill.recipes.cache", "build, import, verify or describe a cache of teacher embeddings"),
    "data": ("adadistill.recipes.data", "inspect, verify, index, convert, pack, split, merge or count record files"),
    "centres": ("adadistill.recipes.centres", "export the class centres of a run, to be frozen in another"),
    "convert": ("adadistill.recipes.convert", "turn public weights into a checkpoint of ours, and back"),
    "bench": ("adadistill.bench.__main__", "measure this machine: loader, step, teacher, kernels, all; report on rows"),
    "demo": ("adadistill.recipes.demo", "distil on synthetic faces, from data to report, in minutes on a CPU"),
}


@entry_point("adadistill")
def main(argv: Sequence[str]) -> int:
    """Run a verb; returns its exit code."""
    code = known_verb("adadistill", argv, VERBS, _usage())
    if code is not None:
        return code
    verb, *rest = argv
    with leave_at_once():
        return int(importlib.import_module(VERBS[verb][0]).main(rest) or 0)


def _usage() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {what}" for verb, (_, what) in VERBS.items()]
    return "\n".join(
        [
            "usage: adadistill VERB ...",
            "",
            *lines,
            "",
            "`adadistill VERB --help` tells more. On several GPUs: torchrun -m adadistill.recipes.train RECIPE ...",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
