"""Copies of `metrics.jsonl` for TensorBoard and Weights & Biases, made by a process of their own.

A run writes its file and nothing else. Beside it a process reads the file's lines as they come and hands them on, so
that a server that does not answer, a full disk or a crash in either library can neither stop a run nor slow it; the
file stays the truth, from which a copy can be made again (`adadistill mirror`).
"""

from adadistill.core.metrics_mirror.config import MirrorConfig, MirrorError, WandbConfig
from adadistill.core.metrics_mirror.launcher import MetricsMirror

__all__ = ["MetricsMirror", "MirrorConfig", "MirrorError", "WandbConfig"]
