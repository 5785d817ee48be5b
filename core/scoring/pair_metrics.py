"""1:1 verification metrics over pairs of embeddings, each with its protocol in its name.

Two families that must not be mixed:

* The published ten-fold numbers, as insightface computes them and every paper quotes them: accuracy with the threshold
  chosen on the other nine tenths, and TAR at a FAR with an interpolated threshold (`tar_10fold`). Reproduced exactly.
  `accuracy_interval` adds how uncertain that accuracy is.
* Strict numbers over all pairs: `tar_at_far` with the false-accept rate really at or under its target, withheld where
  the set has too few different pairs to know, AUC and equal error rate.

A number that means nothing is None, and a reason stands in its place: embeddings that are all alike, folds of one kind
of pairs, or a false-accept rate that scores cannot meet (`misses_target`).

Pairs are compared by the squared L2 distance of unit embeddings, 2 - 2 cos, in [0, 4]. Everything runs in float64 on
the host: each distance is put once into its threshold's bin and all thresholds are read from cumulative counts, so the
thresholds of 6,000 pairs cost milliseconds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]

from adadistill.loaders.errors import WorkFailed

FOLDS = 10
ACCURACY_THRESHOLDS: npt.NDArray[np.float64] = np.arange(0, 4, 0.01)
"""(400,) squared distances tried for accuracy."""
TAR_THRESHOLDS: npt.NDArray[np.float64] = np.arange(0, 4, 0.001)
"""(4000,) squared distances that the false-accept rate is interpolated over."""
ALIKE = "all pairs score alike, up to rounding, as those of a network that is constant or all zero"
"""Why nothing is reported of such a network."""
_ROUNDING = 1e-6
"""Squared distance below which unit embeddings are the same: what float32 leaves of equal rows is 1e-7 at most."""
PROTOCOL = (
    "flip-sum of raw embeddings, then L2-normalised; squared L2 distance; ten contiguous unshuffled folds; "
    "accuracy thresholds 0 to 4 step 0.01, strict <, first best; tar_10fold thresholds step 0.001, interpolated; "
    "tar_strict and eer over all pairs, false-accept rate never above its target"
)


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


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """Strict true-accept rate over all pairs at a bounded false-accept rate."""

    tar: float | None
    """Share of same pairs accepted; None where it is withheld."""
    far: float | None
    """Share of different pairs accepted, at most the target."""
    threshold: float | None
    """A pair is accepted when its score is greater than this."""
    reason: str | None
    """Why the rate is withheld; None where it is given."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VerificationResult:
    """Every number of one verification set. None marks what is not defined; `notes` says why."""

    name: str
    pairs: int
    same_pairs: int
    protocol: str
    accuracy: float | None
    """Ten-fold accuracy in [0, 1], mean."""
    accuracy_std: float | None
    accuracy_per_fold: tuple[float, ...]
    threshold: float
    """Squared distance, the first of the 400 with the highest accuracy over all pairs."""
    far_target: float
    tar_10fold: float | None
    """TAR at `far_target` as published: threshold interpolated on nine folds, applied to the tenth, mean."""
    tar_10fold_std: float | None
    far_10fold: float | None
    """FAR that went with it on the left-out folds; may lie above the target."""
    tar_strict: float | None
    """TAR over all pairs with FAR at or under `far_target`; withheld with fewer different pairs than 1 / FAR."""
    auc: float | None
    """Area under the ROC curve."""
    eer: float | None
    """Rate at which false accepts equal false rejects."""
    xnorm: float | None
    """Mean L2 norm of the raw embeddings of both versions of every image; 20 to 25 for a healthy network."""
    notes: Mapping[str, str]
    """Field -> why it is None, or why to read it with care."""

    def summary(self) -> str:
        """One line for a log: ten-fold accuracy and TAR with their notes, mean norm."""
        why, why_tar = self.notes.get("accuracy"), self.notes.get("tar_10fold")
        parts = [f"accuracy {_percent(self.accuracy, self.accuracy_std)}{f' ({why})' if why else ''}"]
        how = f"10-fold; {why_tar}" if why_tar and why_tar != why else "10-fold"
        parts.append(f"TAR@FAR={self.far_target:g} {_percent(self.tar_10fold, self.tar_10fold_std)} ({how})")
        if self.xnorm is not None:
            parts.append(f"XNorm {self.xnorm:.4g}")
        return "  ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON types."""
        return dataclasses.asdict(self)


class NonFiniteEmbeddingsError(WorkFailed, ValueError):
    """Embeddings of a verification set are NaN or infinite; no score can be trusted."""


def flip_sum(embeddings: Floats, mirrored_embeddings: Floats) -> npt.NDArray[np.float64]:
    """Fuse both versions of each image as published: sum of the raw embeddings, then unit length.

    Args:
        embeddings: (N, D) raw, of the images as stored.
        mirrored_embeddings: (N, D) raw, of the images flipped left to right.

    Returns:
        (N, D) float64 unit rows; a sum of exactly zero stays zero.
    """
    return _unit_rows(embeddings.astype(np.float64) + mirrored_embeddings.astype(np.float64))


def _unit_rows(embeddings: Floats) -> npt.NDArray[np.float64]:
    rows = embeddings.astype(np.float64)  # (N, D)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms == 0.0, 1.0, norms)


def mean_norm(embeddings: Floats, mirrored_embeddings: Floats) -> float:
    """XNorm: mean L2 norm over the raw (N, D) embeddings of both versions."""
    both = np.concatenate([embeddings, mirrored_embeddings]).astype(np.float64)  # (2N, D)
    return float(np.linalg.norm(both, axis=1).mean())


def check_finite(name: str, embeddings: Floats) -> None:
    """Refuse (2P, D) embeddings with a NaN or an infinity, naming set, image and pair.

    Raises:
        NonFiniteEmbeddingsError: names the first of them and says how many there are.
    """
    damaged = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if damaged.size:
        first = int(damaged[0])
        raise NonFiniteEmbeddingsError(
            f"verification set {name}: {damaged.size} of {len(embeddings)} embeddings are not finite, first image "
            f"{first} (pair {first // 2}). The network gives NaN or infinity; its weights are the place to look"
        )


def alike(embeddings: Floats) -> bool:
    """Whether several (N, D) rows all have one direction, up to rounding, or none: no score then tells anything."""
    first = _unit_rows(embeddings[:1])
    blocks = (_unit_rows(embeddings[start : start + 4096]) for start in range(0, len(embeddings), 4096))
    return len(embeddings) > 1 and all(
        bool((np.square(rows - first).sum(axis=1) <= _ROUNDING).all()) for rows in blocks
    )


def all_equal(scores: Floats) -> bool:
    """Whether the scores of several pairs, squared distances or cosines, are one but for rounding."""
    return bool(np.ptp(scores) <= _ROUNDING)


def misses_target(negatives: Floats, rate: float, *, kind: str = "different pairs", name: str = "FAR") -> str | None:
    """Why no threshold meets a false-accept rate; None where one does.

    Scores that tie are accepted together, so that the count of false accepts jumps over the target. A rate is missed
    where the nearest count lies beyond a factor of two of the one asked for, and is not its neighbour: one pair more
    or less is what the size of a set leaves open, and published protocols report it.

    Args:
        negatives: (n,) scores of different pairs, or of probes that are not in a gallery, descending.
        rate: target, in (0, 1].
    """
    count, wanted = len(negatives), rate * len(negatives)
    if count == 0:
        return f"no {kind}"
    score = negatives[max(math.floor(wanted + 1e-9), 1) - 1]
    ascending = negatives[::-1]
    reachable = [count - int(np.searchsorted(ascending, score, side=side)) for side in ("right", "left")]
    if any(_meets(found, wanted) for found in reachable):
        return None
    return (
        f"{reachable[1] - reachable[0]} of {count} {kind} have the same score: {name} can be "
        f"{reachable[0] / count:.3g} or {reachable[1] / count:.3g}, not {rate:g}"
    )


def too_few(count: int, rate: float, *, kind: str = "different pairs", name: str = "FAR") -> str | None:
    """Why `count` scores cannot tell a false-accept rate: one accept exceeds it; None where they can."""
    if count * rate >= 1.0 - 1e-9:
        return None
    return f"{count} {kind}, {math.ceil(1.0 / rate - 1e-9)} are needed for {name} {rate:g}"


def _meets(count: float, wanted: float) -> bool:
    """The rule of `misses_target`."""
    return abs(count - wanted) <= 1.0 + 1e-9 or wanted / 2 <= count <= wanted * 2


def pair_distances(unit_embeddings: Floats) -> npt.NDArray[np.float64]:
    """(2P, D) unit rows -> (P,) squared L2 distance of rows 2i and 2i + 1."""
    rows = unit_embeddings.astype(np.float64)
    return np.square(rows[0::2] - rows[1::2]).sum(axis=1)


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
    _check_pairs(distances, same, at_least=FOLDS)
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
    _check_pairs(distances, same, at_least=FOLDS)
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
    _check_pairs(distances, same, at_least=1)
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
    _check_pairs(distances, same, at_least=FOLDS)
    _check_far(far)
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
    if not _meets(chosen / FOLDS, far * judged / FOLDS):
        missed = (
            f"thresholds meet FAR {chosen / judged:.3g}, not {far:g}, on the folds that chose them: distances tie, or "
            f"differ by less than the grid's step of {TAR_THRESHOLDS[1]:g}"
        )
    return FoldTar(mean=float(tars.mean()), std=float(tars.std()), far=float(fars.mean()), missed=missed)


def tar_at_far(scores: Floats, same: Bools, *, far: float = 1e-4) -> OperatingPoint:
    """Verification rate over all pairs at a false-accept rate that is met, never exceeded.

    Args:
        scores: (P,) similarities, larger for more alike (for distances, their negatives).
        same: (P,) bool.
        far: target, in (0, 1]. Among equal scores all are accepted or none.

    Returns:
        The rate, or the reason why it is withheld: no same pairs, or fewer different pairs than 1 / far, so that one
        false accept would already exceed the target and the rate would be a guess, or ties (`misses_target`).
    """
    _check_pairs(scores, same, at_least=0)
    _check_far(far)
    return operating_point(-np.sort(-scores[~same].astype(np.float64)), scores[same].astype(np.float64), far=far)


def operating_point(negatives: Floats, positives: Floats, *, far: float) -> OperatingPoint:
    """`tar_at_far` of scores that are apart already.

    Args:
        negatives: of different pairs, descending.
        positives: of same pairs, in any order.
        far: target, in (0, 1].
    """
    _check_far(far)
    # 1e-9 keeps a product such as 0.001 * 3000, which may round below 3, at 3 allowed accepts.
    allowed = math.floor(far * len(negatives) + 1e-9)
    if len(positives) == 0:
        return OperatingPoint(None, None, None, "no same pairs")
    if allowed < 1:
        return OperatingPoint(None, None, None, too_few(len(negatives), far))
    if all_equal(np.array([negatives[0], negatives[-1], positives.min(), positives.max()])):
        return OperatingPoint(None, None, None, ALIKE)
    threshold = negatives[allowed] if allowed < len(negatives) else -math.inf
    met = float((negatives > threshold).mean())
    if not _meets(met * len(negatives), allowed):
        reason = misses_target(negatives, far) or f"different pairs tie: FAR is {met:.3g} where {far:g} is asked for"
        return OperatingPoint(None, None, None, reason)
    return OperatingPoint(
        tar=float((positives > threshold).mean()),
        far=met,
        threshold=float(threshold),
        reason=None,
    )


def area_under_roc(scores: Floats, same: Bools) -> float:
    """Probability that a same pair scores above a different pair, ties counted half.

    Args:
        scores: (P,) similarities.
        same: (P,) bool.

    Raises:
        ValueError: there are only same or only different pairs.
    """
    false_rates, true_rates = roc_curve(scores, same)
    return float((np.diff(false_rates) * (true_rates[1:] + true_rates[:-1])).sum() / 2.0)


def roc_curve(scores: Floats, same: Bools) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """False- and true-accept rates from accepting nothing to accepting everything, one point per distinct score.

    Args:
        scores: (P,) similarities.
        same: (P,) bool.

    Returns:
        Two ascending arrays of one length; among equal scores all are accepted or none.

    Raises:
        ValueError: there are only same or only different pairs.
    """
    _check_pairs(scores, same, at_least=0)
    if same.all() or not same.any():
        raise ValueError(f"a ROC curve needs same and different pairs, got {int(same.sum())} same of {len(same)}")
    order = np.argsort(-scores, kind="stable")
    last_of_equals = np.append(np.diff(scores[order]) != 0, True)
    true_accepts = np.cumsum(same[order])[last_of_equals]
    false_accepts = np.cumsum(~same[order])[last_of_equals]
    return (
        np.concatenate([[0.0], false_accepts / false_accepts[-1]]),
        np.concatenate([[0.0], true_accepts / true_accepts[-1]]),
    )


def equal_error_rate(scores: Floats, same: Bools) -> float:
    """Error rate where false accepts equal false rejects, linear between neighbouring operating points.

    Args:
        scores: (P,) similarities.
        same: (P,) bool.

    Raises:
        ValueError: there are only same or only different pairs.
    """
    false_accepts, true_accepts = roc_curve(scores, same)
    false_rejects = 1.0 - true_accepts
    excess = false_accepts - false_rejects  # rises from -1 to 1
    after = int(np.argmax(excess >= 0.0))
    step = excess[after] - excess[after - 1]
    weight = -excess[after - 1] / step  # 0: the point before, 1: the point after
    return float(false_accepts[after - 1] + weight * (false_accepts[after] - false_accepts[after - 1]))


def verification_result(
    name: str, unit_embeddings: Floats, same: Bools, *, xnorm: float | None = None, far: float = 1e-3
) -> VerificationResult:
    """All metrics of one set; what a set cannot define is None with its reason.

    Args:
        name: of the set, in errors and reports.
        unit_embeddings: (2P, D) unit rows, pair i = rows 2i and 2i + 1.
        same: (P,) bool.
        xnorm: mean norm of the raw embeddings, if known.
        far: false-accept rate for both TARs.

    Raises:
        NonFiniteEmbeddingsError: an embedding is NaN or infinite.
        ValueError: shapes disagree, or there are no pairs.
    """
    if unit_embeddings.ndim != 2 or len(unit_embeddings) != 2 * len(same) or same.ndim != 1:
        raise ValueError(
            f"verification set {name}: a pair has two rows, but embeddings are {unit_embeddings.shape} "
            f"and flags {same.shape}"
        )
    check_finite(name, unit_embeddings)
    distances = pair_distances(unit_embeddings)
    same = same.astype(np.bool_)
    threshold = best_threshold(distances, same)
    one_class = "no different pairs" if same.all() else "no same pairs" if not same.any() else None
    alike_pairs = ALIKE if len(same) > 1 and all_equal(distances) else None
    lopsided = one_sided_fold(same)
    accuracy = ten_fold_accuracy(distances, same) if len(same) >= FOLDS else None
    tar = ten_fold_tar(distances, same, far=far) if lopsided is None else None
    strict = tar_at_far(-distances, same, far=far)
    withheld = {
        "accuracy": alike_pairs or _accuracy_obstacle(same, one_class),
        "tar_10fold": alike_pairs or lopsided or (tar.missed if tar else None),
        "tar_strict": strict.reason,
        "auc": alike_pairs or one_class,
        "eer": alike_pairs or one_class,
    }
    different, zeros = int((~same).sum()), int((~unit_embeddings.any(axis=1)).sum())
    care = {
        "accuracy": lopsided,
        "tar_10fold": f"{different} different pairs: interpolated between none and one false accept"
        if too_few(different, far)
        else None,
        "threshold": None if one_class else _edge_note(distances, threshold),
        "xnorm": f"{zeros} of {len(unit_embeddings)} embeddings are zero and have no direction" if zeros else None,
    }
    if withheld["accuracy"]:
        accuracy = None
    if withheld["tar_10fold"]:
        tar = None
    return VerificationResult(
        name=name,
        pairs=len(same),
        same_pairs=int(same.sum()),
        protocol=PROTOCOL,
        accuracy=accuracy.mean if accuracy else None,
        accuracy_std=accuracy.std if accuracy else None,
        accuracy_per_fold=accuracy.per_fold if accuracy else (),
        threshold=threshold,
        far_target=far,
        tar_10fold=tar.mean if tar else None,
        tar_10fold_std=tar.std if tar else None,
        far_10fold=tar.far if tar else None,
        tar_strict=strict.tar,
        auc=None if withheld["auc"] else area_under_roc(-distances, same),
        eer=None if withheld["eer"] else equal_error_rate(-distances, same),
        xnorm=xnorm,
        notes={field: why for field in {**withheld, **care} if (why := withheld.get(field) or care.get(field))},
    )


def _accuracy_obstacle(same: Bools, one_class: str | None) -> str | None:
    """Why ten-fold accuracy means nothing whatever the scores are; None where it does mean something."""
    if len(same) < FOLDS:
        return f"{len(same)} pairs cannot be cut into {FOLDS} folds"
    if one_class is not None:
        return f"{one_class}: judging every pair alike scores 100 %"
    mixed = FOLDS - sum(map(len, _empty_folds(same).values()))
    if mixed < FOLDS / 2:
        return (
            f"{FOLDS - mixed} of {FOLDS} folds hold one kind of pairs only, thresholds being chosen on another mix; "
            "let same and different pairs take turns in the list, and have enough of both"
        )
    return None


def _edge_note(distances: Floats, threshold: float) -> str | None:
    """What is said of a threshold that accepts no pair, or every one, or is the last that is tried."""
    low, high = float(distances.min()), float(distances.max())
    if low < threshold <= high and threshold < ACCURACY_THRESHOLDS[-1]:
        return None
    return (
        f"{threshold:g} accepts {'no pair' if threshold <= low else 'every pair'}, at the edge of what is tried (0 to "
        f"{ACCURACY_THRESHOLDS[-1]:g}, step {ACCURACY_THRESHOLDS[1]:g}): distances are {low:.3g} to {high:.3g}"
    )


def _empty_folds(same: Bools) -> dict[str, npt.NDArray[np.int64]]:
    """Kind -> the tenths of (P,) flags that hold none of it."""
    folds = _fold_of_pair(len(same))
    kinds = {"same": same, "different": ~same}
    return {name: np.flatnonzero(np.bincount(folds[of], minlength=FOLDS) == 0) for name, of in kinds.items()}


def one_sided_fold(same: Bools) -> str | None:
    """Which tenth of (P,) flags lacks same or different pairs, so that its TAR or FAR is undefined; None: none does."""
    if len(same) < FOLDS:
        return f"{len(same)} pairs cannot be cut into {FOLDS} folds"
    for kind, empty in _empty_folds(same).items():
        if empty.size:
            return f"{empty.size} of {FOLDS} folds hold no {kind} pairs, the first is fold {empty[0]} (from 0)"
    return None


def _percent(rate: float | None, deviation: float | None) -> str:
    if rate is None or deviation is None:
        return "withheld"
    return f"{100.0 * rate:.2f} +- {100.0 * deviation:.2f} %"


def _fold_of_pair(pairs: int) -> npt.NDArray[np.int64]:
    """(P,) contiguous tenths; the first P mod 10 of them have one pair more."""
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


def _check_pairs(values: Floats, same: Bools, *, at_least: int) -> None:
    if values.shape != same.shape or values.ndim != 1 or same.dtype != np.bool_:
        raise ValueError(f"values {values.shape} and flags {same.shape} {same.dtype} must be (P,) and (P,) bool")
    if len(same) < at_least:
        raise ValueError(f"{len(same)} pairs; at least {at_least} are needed")
    if not np.isfinite(values).all():
        raise ValueError(f"{int((~np.isfinite(values)).sum())} of {len(values)} values are not finite")


def _check_far(far: float) -> None:
    if not 0.0 < far <= 1.0:
        raise ValueError(f"far must be in (0, 1], got {far}")
