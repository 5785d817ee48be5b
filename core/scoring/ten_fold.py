"""The published numbers of a verification set, as insightface computes them and every paper quotes them.

Accuracy with the threshold chosen on the other nine tenths, and TAR at a FAR with an interpolated threshold, in ten
contiguous folds that are neither shuffled nor stratified. Each distance is put once into its threshold's bin and all
thresholds are read from cumulative counts: in integers, so that ties between thresholds are as exact as the definition.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adadistill.core.scoring.pair_metrics import Bools, Floats, check_far, check_pairs, meets

FOLDS = 10
ACCURACY_THRESHOLDS: npt.NDArray[np.float64] = np.arange(0, 4, 0.01)
"""(400,) squared distances tried for accuracy."""
TAR_THRESHOLDS: npt.NDArray[np.float64] = np.arange(0, 4, 0.001)
"""(4000,) squared distances that the false-accept rate is interpolated over."""


@dataclass(frozen=True, slots=True)
class FoldAccuracy:
    """Published ten-fold accuracy."""

    mean: float
    std: float
    """Population standard deviation over the folds."""
    per_fold: tuple[float, ...]
    thresholds: tuple[float, ...]
    """The squared distance chosen for each fold on the other nine."""


@dataclass(frozen=True, slots=True)
class FoldTar:
    """Published ten-fold TAR at a FAR."""

    mean: float
    std: float
    """Population standard deviation over the folds."""
    far: float
    """False-accept rate met on the left-out folds, mean; not the target."""
    missed: str | None = None
    """Why the rate means nothing: its thresholds miss the target on the very folds that chose them. Else None."""


def ten_fold_accuracy(distances: Floats, same: Bools) -> FoldAccuracy:
    """Accuracy as published: each contiguous tenth with the first best threshold of the other nine.

    Args:
        distances: (P,) squared L2 of unit embeddings; a pair counts as same when its distance is strictly smaller than
            the threshold.
        same: (P,) bool.

    Raises:
        ValueError: fewer pairs than folds, shapes disagree, or distances are not finite.

    Source: the LFW protocol as in insightface; equal to trying 400 thresholds one by one.
    """
    check_pairs(distances, same, at_least=FOLDS)
    folds = _fold_of_pair(len(same))
    correct = _correct_counts(distances, same, folds, ACCURACY_THRESHOLDS)  # (FOLDS, 400)
    best = (correct.sum(axis=0) - correct).argmax(axis=1)  # (FOLDS,), first best on the other nine
    per_fold = correct[np.arange(FOLDS), best] / np.bincount(folds)
    return FoldAccuracy(
        mean=float(per_fold.mean()),
        std=float(per_fold.std()),
        per_fold=tuple(per_fold.tolist()),
        thresholds=tuple(ACCURACY_THRESHOLDS[best].tolist()),
    )


def accuracy_interval(
    distances: Floats, same: Bools, *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap interval of the ten-fold accuracy: how far it would move had other pairs been drawn.

    Resampled, with replacement, are the pairs of each kind within each fold: the set fixes how many same and different
    pairs a fold has, and a pair never stands in the fold that judges it and in those that chose the threshold. The ten
    thresholds are chosen anew in every resample, as choosing them is part of the protocol. Only a pair's threshold bin
    matters to the accuracy, so a resample is a multinomial draw of bins: exact, and quick for any number of pairs.

    Args:
        distances, same: (P,), as for `ten_fold_accuracy`.
        resamples: 2000 give either end to some 2 % of the interval's width.
        confidence: share of the resampled accuracies between the ends, half of the rest on either side, in (0, 1).
        seed: of the draws; the same numbers give the same interval.

    Returns:
        Both ends. Pairs share images and people, which resampling pairs cannot know: read it as the least uncertainty.
        Without a wrong pair both ends are 1, whatever the set's size.

    Raises:
        ValueError: as `ten_fold_accuracy`, or no resamples, or a confidence out of range.
    """
    check_pairs(distances, same, at_least=FOLDS)
    if resamples < 1 or not 0.0 < confidence < 1.0:
        raise ValueError(f"resamples must be positive and confidence in (0, 1), got {resamples} and {confidence}")
    random = np.random.default_rng(seed)
    folds = _fold_of_pair(len(same))
    counts = [_bin_counts(distances[kind], folds[kind], ACCURACY_THRESHOLDS) for kind in (same, ~same)]
    correct = np.empty((resamples, FOLDS, len(ACCURACY_THRESHOLDS)), dtype=np.int32)
    for fold in range(FOLDS):
        true_accepts, false_accepts = (_resampled_accepts(count[fold], resamples, random) for count in counts)
        correct[:, fold] = true_accepts + (counts[1][fold].sum() - false_accepts)  # (resamples, 400)
    best = (correct.sum(axis=1, keepdims=True) - correct).argmax(axis=2)  # (resamples, FOLDS)
    judged = np.take_along_axis(correct, best[:, :, None], axis=2)[:, :, 0]
    accuracies = (judged / np.bincount(folds)).mean(axis=1)  # (resamples,)
    low, high = np.quantile(accuracies, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0])
    return float(low), float(high)


def best_threshold(distances: Floats, same: Bools) -> float:
    """The first of the 400 squared distances with the highest accuracy over all (P,) pairs."""
    check_pairs(distances, same, at_least=1)
    everything = np.zeros(len(same), dtype=np.int64)
    return float(ACCURACY_THRESHOLDS[_correct_counts(distances, same, everything, ACCURACY_THRESHOLDS)[0].argmax()])


def ten_fold_tar(distances: Floats, same: Bools, *, far: float = 1e-3) -> FoldTar:
    """TAR at a FAR as published: threshold interpolated linearly on nine folds, TAR and FAR met on the tenth.

    Where several thresholds give one FAR, the last of them stands for it; without that the interpolation is undefined.
    The threshold is 0 where no FAR of the nine folds reaches the target.

    Args:
        distances, same: (P,), as for `ten_fold_accuracy`.
        far: target, in (0, 1).

    Raises:
        ValueError: fewer pairs than folds, or a fold without same pairs (its TAR is undefined) or without different
            pairs (its FAR is).
    """
    check_pairs(distances, same, at_least=FOLDS)
    check_far(far)
    folds = _fold_of_pair(len(same))
    obstacle = one_sided_fold(same)
    if obstacle is not None:
        raise ValueError(obstacle)
    false_accepts = _accepted_counts(distances[~same], folds[~same], TAR_THRESHOLDS)  # (FOLDS, 4000)
    negatives = np.bincount(folds[~same], minlength=FOLDS)
    tars, fars = np.zeros(FOLDS), np.zeros(FOLDS)
    chosen = 0
    for fold in range(FOLDS):
        others = (false_accepts.sum(axis=0) - false_accepts[fold]) / (negatives.sum() - negatives[fold])  # (4000,)
        accepted = distances < _interpolated_threshold(others, far)
        chosen += int(accepted[(folds != fold) & ~same].sum())
        tars[fold] = accepted[(folds == fold) & same].mean()
        fars[fold] = accepted[(folds == fold) & ~same].mean()
    judged = (FOLDS - 1) * len(distances[~same])  # each different pair, by the thresholds of nine folds
    missed = None
    if not meets(chosen / FOLDS, far * judged / FOLDS):
        missed = (
            f"thresholds meet FAR {chosen / judged:.3g}, not {far:g}, on the folds that chose them: distances tie, or "
            f"differ by less than the grid's step of {TAR_THRESHOLDS[1]:g}"
        )
    return FoldTar(mean=float(tars.mean()), std=float(tars.std()), far=float(fars.mean()), missed=missed)


def empty_folds(same: Bools) -> dict[str, npt.NDArray[np.int64]]:
    """Kind -> the tenths of (P,) flags that hold none of it."""
    folds = _fold_of_pair(len(same))
    kinds = {"same": same, "different": ~same}
    return {name: np.flatnonzero(np.bincount(folds[of], minlength=FOLDS) == 0) for name, of in kinds.items()}


def one_sided_fold(same: Bools) -> str | None:
    """Which tenth of (P,) flags lacks same or different pairs, so that its TAR or FAR is undefined; None: none does."""
    if len(same) < FOLDS:
        return f"{len(same)} pairs cannot be cut into {FOLDS} folds"
    for kind, empty in empty_folds(same).items():
        if empty.size:
            return f"{empty.size} of {FOLDS} folds hold no {kind} pairs, the first is fold {empty[0]} (from 0)"
    return None


def _fold_of_pair(pairs: int) -> npt.NDArray[np.int64]:
    """(P,) contiguous tenths; the first P mod 10 of them have one pair more."""
    # scikit-learn's KFold cuts alike; one number a pair instead of ten lists lets bincount count all folds at once.
    sizes = np.full(FOLDS, pairs // FOLDS)
    sizes[: pairs % FOLDS] += 1
    return np.repeat(np.arange(FOLDS), sizes)


def _accepted_counts(distances: Floats, folds: npt.NDArray[np.int64], thresholds: Floats) -> npt.NDArray[np.int64]:
    """(FOLDS, T): how many of each fold's distances are strictly smaller than each threshold."""
    return _bin_counts(distances, folds, thresholds)[:, :-1].cumsum(axis=1)


def _bin_counts(distances: Floats, folds: npt.NDArray[np.int64], thresholds: Floats) -> npt.NDArray[np.int64]:
    """(FOLDS, T + 1): how many of each fold's distances each threshold is the first to accept, or none is."""
    bins = len(thresholds) + 1
    first_accepting = np.searchsorted(thresholds, distances.astype(np.float64), side="right")  # (P,) in [0, T]
    return np.bincount(folds * bins + first_accepting, minlength=FOLDS * bins).reshape(FOLDS, bins)


def _resampled_accepts(
    counts: npt.NDArray[np.int64], resamples: int, random: np.random.Generator
) -> npt.NDArray[np.int32]:
    """(T + 1,) pairs of one fold and kind by bin -> (resamples, T): accepted at each threshold, of as many drawn."""
    pairs = int(counts.sum())
    drawn = np.zeros((resamples, len(counts)), dtype=np.int32)
    if pairs:
        occupied = np.flatnonzero(counts)  # the others can only draw zero, and would cost as much
        drawn[:, occupied] = random.multinomial(pairs, counts[occupied] / pairs, size=resamples)
    return drawn[:, :-1].cumsum(axis=1, dtype=np.int32)


def _correct_counts(
    distances: Floats, same: Bools, folds: npt.NDArray[np.int64], thresholds: Floats
) -> npt.NDArray[np.int64]:
    """(FOLDS, T): pairs judged rightly, in integers, so that ties between thresholds are exact."""
    true_accepts = _accepted_counts(distances[same], folds[same], thresholds)
    false_accepts = _accepted_counts(distances[~same], folds[~same], thresholds)
    negatives = np.bincount(folds[~same], minlength=FOLDS)[:, None]
    return true_accepts + negatives - false_accepts


def _interpolated_threshold(false_rates: Floats, far: float) -> float:
    """Threshold at which the rising (T,) false-accept rates reach `far`; 0 where they never do."""
    if false_rates[-1] < far:
        return 0.0
    last_of_equals = np.append(false_rates[1:] > false_rates[:-1], True)
    return float(np.interp(far, false_rates[last_of_equals], TAR_THRESHOLDS[last_of_equals]))
