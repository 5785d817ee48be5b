"""Verification sets as a benchmark: the published and the strict numbers, their uncertainty, curves and worst pairs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from adadistill.core.distributed import Ranks
from adadistill.core.precision import Precision
from adadistill.core.scoring.evaluation import FLOAT32, PUBLISHED_PAIRS, DecodedSet, score_set
from adadistill.core.scoring.pair_metrics import (
    Bools,
    Floats,
    VerificationResult,
    accuracy_interval,
    roc_curve,
    tar_at_far,
)
from adadistill.core.scoring.result import BenchmarkResult, Curve, Histogram, Score

STRICT_FARS = (1e-1, 1e-2, 1e-3, 1e-4)
"""False-accept rates of the strict TARs. The published sets have 2,500 to 3,500 different pairs: 1e-4 needs 10,000."""

WORST_CASES = 10
"""Pairs of each kind listed as errors."""

HISTOGRAM_EDGES: npt.NDArray[np.float64] = np.linspace(-1.0, 1.0, 101)

_CURVE_POINTS = 2000
_FLIP = "flip-sum of raw embeddings, then L2-normalised"
_TEN_FOLD = f"{_FLIP}; ten contiguous folds, threshold of the other nine"
_ALL_PAIRS = f"{_FLIP}; all pairs"


def evaluate_verification(
    one: DecodedSet,
    network: nn.Module,
    *,
    ranks: Ranks,
    batch_size: int = 256,
    precision: Precision = FLOAT32,
    far: float = 1e-3,
) -> tuple[VerificationResult, BenchmarkResult]:
    """Score a network on one set. All ranks of a process group call this together and get equal numbers.

    Args:
        one: of `VerificationSets.load`.
        network, ranks, batch_size, precision, far: as for `adadistill.core.scoring.evaluation.evaluate_sets`.

    Returns:
        The set's own numbers, and the same and more in the shape of all benchmarks.

    Raises:
        NonFiniteEmbeddingsError: on every rank, naming set and image.
    """
    started = time.perf_counter()
    scored = score_set(network, one, ranks=ranks, batch_size=batch_size, precision=precision, far=far)
    seconds = {"decode": one.decode_s, "embed": time.perf_counter() - started}
    benchmark = verification_benchmark(
        scored.result, scored.distances, one.same, data_sha256=one.data_sha256, seconds=seconds
    )
    return scored.result, benchmark


def verification_benchmark(
    result: VerificationResult,
    distances: Floats,
    same: Bools,
    *,
    data_sha256: str,
    seconds: Mapping[str, float] | None = None,
    fars: Sequence[float] = STRICT_FARS,
    seed: int = 0,
) -> BenchmarkResult:
    """What a report shows of a scored set.

    Args:
        result: the set's numbers; they carry over as they are.
        distances: (P,) squared L2 of unit embeddings, which the result was made of.
        same: (P,) bool.
        data_sha256: of the set's file or files.
        seconds: spent so far, by stage; `score` is added.
        fars: of the strict TARs, beside the result's own. Each is withheld where fewer than 1 / FAR different pairs
            could tell it.
        seed: of the accuracy's bootstrap interval, 95 %, 2,000 resamples (`accuracy_interval`).

    Raises:
        ValueError: the result is of another number of pairs.
    """
    if len(distances) != result.pairs or len(same) != result.pairs:
        raise ValueError(
            f"verification set {result.name}: a result of {result.pairs} pairs does not fit {len(distances)} distances"
        )
    started = time.perf_counter()
    prefix = f"verification.{result.name}."
    interval = accuracy_interval(distances, same, seed=seed) if result.accuracy is not None else None
    scores = (
        Score(
            key=prefix + "Accuracy-Flip",
            label="accuracy",
            value=result.accuracy,
            deviation=result.accuracy_std,
            interval=interval,
            protocol=_TEN_FOLD,
            note=_accuracy_note(result, interval),
        ),
        Score(
            key=prefix + "Accuracy-Std",
            label="accuracy std",
            value=result.accuracy_std,
            protocol=f"{_TEN_FOLD}; population standard deviation over the folds",
            note=result.notes.get("accuracy"),
        ),
        Score(
            key=prefix + "Threshold",
            label="threshold",
            value=result.threshold,
            is_share=False,
            protocol=f"{_ALL_PAIRS}; squared L2 distance, first of 400 with the highest accuracy",
            note=result.notes.get("threshold"),
        ),
        Score(
            key=f"{prefix}tpr_at_fpr_{result.far_target:g}_10fold",
            label=f"TAR@FAR={result.far_target:g} 10-fold",
            value=result.tar_10fold,
            deviation=result.tar_10fold_std,
            protocol=f"{_TEN_FOLD}, interpolated; the FAR met may lie above its target",
            note=result.notes.get("tar_10fold"),
        ),
        *(_strict_tar(prefix, distances, same, far) for far in sorted({*fars, result.far_target}, reverse=True)),
        Score(
            key=prefix + "AUC",
            label="AUC",
            value=result.auc,
            is_share=False,
            protocol=f"{_ALL_PAIRS}; area under the ROC curve, ties counted half",
            note=result.notes.get("auc"),
        ),
        Score(
            key=prefix + "EER",
            label="EER",
            value=result.eer,
            protocol=f"{_ALL_PAIRS}; false accepts equal false rejects, linear between points",
            note=result.notes.get("eer"),
        ),
        Score(
            key=prefix + "XNorm",
            label="XNorm",
            value=result.xnorm,
            is_share=False,
            protocol="mean L2 norm of raw embeddings, of images as stored and mirrored",
            note=result.notes.get("xnorm") if result.xnorm is not None else "raw embeddings were not given",
        ),
    )
    curves = (_curve(result.name, distances, same),) if result.auc is not None else ()
    return BenchmarkResult(
        kind="verification",
        name=result.name,
        data_sha256=data_sha256,
        counts={
            "images": 2 * result.pairs,
            "pairs": result.pairs,
            "same pairs": result.same_pairs,
            "different pairs": result.pairs - result.same_pairs,
        },
        scores=scores,
        headline=prefix + "Accuracy-Flip",
        curves=curves,
        histograms=(_histogram(result.name, distances, same),),
        errors=_worst_cases(distances, same, result.threshold),
        seconds={**(seconds or {}), "score": time.perf_counter() - started},
    )


def _accuracy_note(result: VerificationResult, interval: tuple[float, float] | None) -> str | None:
    notes = [result.notes["accuracy"]] if "accuracy" in result.notes else []
    published = PUBLISHED_PAIRS.get(result.name, result.pairs)
    if published != result.pairs:
        notes.append(f"{result.pairs} pairs; the published set of this name has {published}")
    if interval == (1.0, 1.0) and "accuracy" not in result.notes:
        notes.append(f"no pair is wrong, so resampling shows no spread; up to {3.0 / result.pairs:.2%} may be")
    return "; ".join(notes) or None


def _strict_tar(prefix: str, distances: Floats, same: Bools, far: float) -> Score:
    point = tar_at_far(-distances, same, far=far)
    return Score(
        key=f"{prefix}tpr_at_fpr_{far:g}_strict",
        label=f"TAR@FAR={far:g} strict",
        value=point.tar,
        protocol=f"{_ALL_PAIRS}; false-accept rate never above its target",
        note=point.reason,
    )


def _curve(name: str, distances: Floats, same: Bools) -> Curve:
    """The ROC curve's corners, thinned to what can be drawn; both ends are kept."""
    false_rates, true_rates = roc_curve(-distances, same)
    rises, runs = np.diff(true_rates) > 0, np.diff(false_rates) > 0  # of each step, to the next point
    # Within a run of steps straight up, or straight to the right, the points between draw nothing.
    straight = (rises[1:] == rises[:-1]) & (runs[1:] == runs[:-1]) & (rises[1:] != runs[1:])
    kept = np.flatnonzero(np.concatenate([[True], ~straight, [True]]))
    if len(kept) > _CURVE_POINTS:
        kept = kept[np.linspace(0, len(kept) - 1, _CURVE_POINTS).round().astype(np.int64)]
    return Curve(name=name, false_accept_rates=false_rates[kept], true_accept_rates=true_rates[kept])


def _histogram(name: str, distances: Floats, same: Bools) -> Histogram:
    cosines = np.clip(1.0 - distances / 2.0, -1.0, 1.0)
    same_counts, different_counts = (np.histogram(cosines[kind], HISTOGRAM_EDGES)[0] for kind in (same, ~same))
    return Histogram(name=name, edges=HISTOGRAM_EDGES, same=same_counts, different=different_counts)


def _worst_cases(distances: Floats, same: Bools, threshold: float) -> tuple[Mapping[str, Any], ...]:
    """The same pairs that lie farthest apart, then the different ones that lie nearest: the worst first, by index."""
    worst = []
    for is_same, pairs, sign in ((True, np.flatnonzero(same), -1.0), (False, np.flatnonzero(~same), 1.0)):
        for pair in pairs[np.argsort(sign * distances[pairs], kind="stable")][:WORST_CASES]:
            accepted = bool(distances[pair] < threshold)
            worst.append(
                {
                    "pair": int(pair),
                    "images": [2 * int(pair), 2 * int(pair) + 1],
                    "same": is_same,
                    "cosine": float(1.0 - distances[pair] / 2.0),
                    "wrong": accepted != is_same,
                }
            )
    return tuple(worst)
