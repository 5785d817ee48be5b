"""What a scored verification set shows: its numbers with their protocol, their uncertainty, curves and worst pairs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from adadistill.core.scoring.pair_metrics import Bools, Floats, pair_distances, roc_curve, tar_at_far
from adadistill.core.scoring.published import PUBLISHED_PAIRS
from adadistill.core.scoring.result import BenchmarkResult, Curve, Histogram, Score
from adadistill.core.scoring.ten_fold import accuracy_interval
from adadistill.core.scoring.verification_numbers import VerificationNumbers, verification_numbers

STRICT_FARS = (1e-1, 1e-2, 1e-3, 1e-4)
"""False-accept rates of the strict TARs. The published sets have 2,500 to 3,500 different pairs: 1e-4 needs 10,000."""

WORST_CASES = 10
"""Pairs of each kind listed as errors."""

HISTOGRAM_EDGES: npt.NDArray[np.float64] = np.linspace(-1.0, 1.0, 101)

_CURVE_POINTS = 2000
_FLIP = "flip-sum of raw embeddings, then L2-normalised"
_TEN_FOLD = f"{_FLIP}; ten contiguous folds, threshold of the other nine"
_ALL_PAIRS = f"{_FLIP}; all pairs"


def score_verification(
    name: str,
    unit_embeddings: Floats,
    same: Bools,
    *,
    xnorm: float | None = None,
    far: float = 1e-3,
    intervals: bool = True,
    seed: int = 0,
) -> BenchmarkResult:
    """All scores of a set.

    Args:
        name, unit_embeddings, same, xnorm, far: as for `verification_numbers`. Strict rates are given at `STRICT_FARS`
            too, each withheld where fewer than 1 / FAR different pairs could tell it.
        intervals: whether the accuracy gets its 95 % bootstrap interval of 2,000 resamples (`accuracy_interval`).
        seed: of the interval.

    Returns:
        The result, whose data have no hash yet. Its `details` are the fields of `VerificationNumbers`.

    Raises:
        NonFiniteEmbeddingsError, ValueError: as `verification_numbers`.
    """
    started = time.perf_counter()
    numbers = verification_numbers(name, unit_embeddings, same, xnorm=xnorm, far=far)
    distances, same = pair_distances(unit_embeddings), same.astype(np.bool_)
    interval = accuracy_interval(distances, same, seed=seed) if intervals and numbers.accuracy is not None else None
    prefix = f"verification.{name}."
    strict = (_strict_tar(prefix, distances, same, rate) for rate in sorted({*STRICT_FARS, far}, reverse=True))
    return BenchmarkResult(
        kind="verification",
        name=name,
        data_sha256="",
        counts={
            "images": 2 * numbers.pairs,
            "pairs": numbers.pairs,
            "same pairs": numbers.same_pairs,
            "different pairs": numbers.pairs - numbers.same_pairs,
        },
        scores=_scores(prefix, numbers, interval, strict),
        headline=prefix + "Accuracy-Flip",
        curves=(_curve(name, distances, same),) if numbers.auc is not None else (),
        histograms=(_histogram(name, distances, same),),
        errors=_worst_cases(distances, same, numbers.threshold),
        seconds={"score": time.perf_counter() - started},
        details=dataclasses.asdict(numbers),
        told=numbers.summary(),
    )


def _scores(
    prefix: str, numbers: VerificationNumbers, interval: tuple[float, float] | None, strict: Iterable[Score]
) -> tuple[Score, ...]:
    """Published ones first, then the strict rates, then those of the whole set."""
    notes, far = numbers.notes, numbers.far_target

    def of(key: str, label: str, value: float | None, protocol: str, note: str | None, **more: Any) -> Score:
        return Score(key=prefix + key, label=label, value=value, protocol=protocol, note=note, **more)

    return (
        of("Accuracy-Flip", "accuracy", numbers.accuracy, _TEN_FOLD, _accuracy_note(numbers, interval),
           deviation=numbers.accuracy_std, interval=interval),
        of("Accuracy-Std", "accuracy std", numbers.accuracy_std,
           f"{_TEN_FOLD}; population standard deviation over the folds", notes.get("accuracy")),
        of("Threshold", "threshold", numbers.threshold,
           f"{_ALL_PAIRS}; squared L2 distance, first of 400 with the highest accuracy", notes.get("threshold"),
           is_share=False),
        of(f"tpr_at_fpr_{far:g}_10fold", f"TAR@FAR={far:g} 10-fold", numbers.tar_10fold,
           f"{_TEN_FOLD}, interpolated; the FAR met may lie above its target", notes.get("tar_10fold"),
           deviation=numbers.tar_10fold_std),
        *strict,
        of("AUC", "AUC", numbers.auc, f"{_ALL_PAIRS}; area under the ROC curve, ties counted half", notes.get("auc"),
           is_share=False),
        of("EER", "EER", numbers.eer, f"{_ALL_PAIRS}; false accepts equal false rejects, linear between points",
           notes.get("eer")),
        of("XNorm", "XNorm", numbers.xnorm, "mean L2 norm of raw embeddings, of images as stored and mirrored",
           notes.get("xnorm") if numbers.xnorm is not None else "raw embeddings were not given", is_share=False),
    )  # fmt: skip


def _accuracy_note(numbers: VerificationNumbers, interval: tuple[float, float] | None) -> str | None:
    notes = [numbers.notes["accuracy"]] if "accuracy" in numbers.notes else []
    published = PUBLISHED_PAIRS.get(numbers.name, numbers.pairs)
    if published != numbers.pairs:
        notes.append(f"{numbers.pairs} pairs; the published set of this name has {published}")
    if interval == (1.0, 1.0) and "accuracy" not in numbers.notes:
        notes.append(f"no pair is wrong, so resampling shows no spread; up to {3.0 / numbers.pairs:.2%} may be")
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
