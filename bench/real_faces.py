"""Trains on a small set of real faces and scores the held-out pairs: the method and its baseline in the same budget.

Isolates nothing: loader, student, head, update and evaluation run as `adadistill train` runs them. The set is 4,145
faces of 816 identities with the stored embeddings of a real teacher, so small that a distillation gain is not to be
expected; what is compared is the accuracy and speed of the origin's own code with exactly these settings.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adadistill.bench.bench_parser import bench_parser
from adadistill.bench.rows import append_row
from adadistill.core.distributed import distributed_session
from adadistill.core.host_memory import keep_freed_memory
from adadistill.core.recipe import Recipe, parse_recipe, recipe_hash
from adadistill.core.scoring.result import BenchmarkResult
from adadistill.core.training.run import run_training

TINY = (
    "FOLDER data.image_size=32 data.global_batch_size=8 'student={width: 0.125, embedding_dim: 16}' "
    "'optim={epochs: 1, milestones: [], warmup_epochs: 0}' --kinds distilled --device cpu"
)

_RECIPE = """
name: real_faces_{kind}
seed: {seed}
data: {{records: '{data}/train.rec', global_batch_size: 128, decoder: {decoder}, workers: 2}}
student: {{arch: mobilefacenet, embedding_dim: 512}}
optim: {{lr: 0.1, epochs: 20, milestones: [12, 17], warmup_epochs: 1}}
evaluation: {{sets: ['{data}/faces_holdout.bin'], every_epochs: {evaluate_every}}}
checkpoint: {{every_epochs: 5}}
log: {{every: 32}}
"""

_KINDS = {
    "distilled": """
teacher: {{embeddings: '{data}/teacher_embeddings.npy'}}
head: {{kind: adaface, margin: 0.4, quality_concentration: 0.333}}
geometry_margin: {{mode: adaptive, weight: 1.0, scale: 3.0, warmup_epochs: 1}}
""",
    "baseline": """
centres: {{kind: trainable}}
head: {{kind: arcface, margin: 0.5}}
""",
}


def build_recipe(
    kind: str, data: Path, *, seed: int, decoder: str, evaluate_every: int = 20, overrides: Sequence[str] = ()
) -> Recipe:
    """`distilled`: AdaDistill + AdaFace + adaptive geometry; `baseline`: ArcFace without a teacher."""
    text = (_RECIPE + _KINDS[kind]).format(
        kind=kind, data=data, seed=seed, decoder=decoder, evaluate_every=evaluate_every
    )
    return parse_recipe(text, overrides=overrides)


def main(argv: Sequence[str] | None = None) -> int:
    """Train, print and append rows, one for each kind and seed."""
    parser = bench_parser("real_faces", __doc__)
    parser.set_defaults(device=None)
    parser.add_argument("data", type=Path, help="folder with train.rec, teacher_embeddings.npy, faces_holdout.bin")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    parser.add_argument("--kinds", nargs="+", choices=sorted(_KINDS), default=sorted(_KINDS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--decoder", choices=["cpu", "dali"], default="cpu")
    parser.add_argument("--runs", type=Path, help="folder for the run folders (default: a temporary one)")
    arguments = parser.parse_intermixed_args(argv)
    keep_freed_memory()
    logging.basicConfig(format="%(asctime)s  %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    with tempfile.TemporaryDirectory() as temporary, distributed_session(arguments.device) as ranks:
        runs = arguments.runs or Path(temporary)
        for seed in arguments.seeds:
            for kind in arguments.kinds:
                recipe = build_recipe(
                    kind, arguments.data, seed=seed, decoder=arguments.decoder, overrides=arguments.overrides
                )
                result = run_training(recipe, runs / f"{kind}-seed{seed}", ranks=ranks, resume="auto")
                row = {
                    "bench": "real_faces",
                    "device": ranks.device,
                    "kind": kind,
                    "seed": seed,
                    "epochs": recipe.optim.epochs,
                    "overrides": arguments.overrides,
                    "recipe_hash": recipe_hash(recipe),
                    "decoder": arguments.decoder,
                    "images_per_s": result.images_per_s,
                    "metrics": result.metrics,
                }
                scores = [_score(evaluation) for evaluation in result.evaluations.values()]
                for score in scores or [{}]:  # a run without verification sets still measured its speed
                    append_row(arguments.rows, **row, **score)
    return 0


def _score(evaluation: BenchmarkResult) -> dict[str, Any]:
    numbers = evaluation.details
    return {
        "set": evaluation.name,
        "accuracy": numbers["accuracy"],
        "accuracy_std_over_folds": numbers["accuracy_std"],
        "auc": numbers["auc"],
    }


if __name__ == "__main__":
    sys.exit(main())
