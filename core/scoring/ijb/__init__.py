"""IJB-B and IJB-C, 1:1 and 1:N, from images to rates."""

from adadistill.core.scoring.ijb.evaluation import evaluate_ijb
from adadistill.core.scoring.ijb.pooling import ALL_MODES, PoolingMode
from adadistill.core.scoring.ijb.scoring import score_ijb

__all__ = ["ALL_MODES", "PoolingMode", "evaluate_ijb", "score_ijb"]
