"""TinyFace: closed-set identification of low-resolution faces among 153,428 distractors."""

from adadistill.core.scoring.tinyface.evaluation import evaluate_tinyface, tinyface_benchmark
from adadistill.core.scoring.tinyface.mate_ranks import mate_ranks
from adadistill.loaders.evaluation_sets.tinyface import TinyFace, TinyFaceError, open_tinyface

__all__ = ["TinyFace", "TinyFaceError", "evaluate_tinyface", "mate_ranks", "open_tinyface", "tinyface_benchmark"]
