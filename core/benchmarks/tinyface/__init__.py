"""TinyFace: closed-set identification of low-resolution faces among 153,428 distractors."""

from adadistill.core.benchmarks.tinyface.evaluation import evaluate_tinyface, tinyface_benchmark
from adadistill.core.benchmarks.tinyface.mate_ranks import mate_ranks
from adadistill.loaders.tinyface import TinyFace, TinyFaceError, open_tinyface

__all__ = ["TinyFace", "TinyFaceError", "evaluate_tinyface", "mate_ranks", "open_tinyface", "tinyface_benchmark"]
