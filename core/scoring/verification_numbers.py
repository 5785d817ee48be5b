"""Every number of one verification set: the published and the strict ones, and why one of them is missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from adadistill.core.scoring.pair_metrics import (
    ALIKE,
    Bools,
    Floats,
    all_equal,
    area_under_roc,
    check_finite,
    equal_error_rate,
    pair_distances,
    tar_at_far,
    too_few,
)
from adadistill.core.scoring.ten_fold import (
    ACCURACY_THRESHOLDS,
    FOLDS,
    best_threshold,
    empty_folds,
    one_sided_fold,
    ten_fold_accuracy,
    ten_fold_tar,
)

PROTOCOL = (
    "flip-sum of raw embeddings, then L2-normalised; squared L2 distance; ten contiguous unshuffled folds; "
    "accuracy thresholds 0 to 4 step 0.01, strict <, first best; tar_10fold thresholds step 0.001, interpolated; "
    "tar_strict and eer over all pairs, false-accept rate never above its target"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class VerificationNumbers:
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


def verification_numbers(
    name: str, unit_embeddings: Floats, same: Bools, *, xnorm: float | None = None, far: float = 1e-3
) -> VerificationNumbers:
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
    lopsided = one_sided_fold(same)
    accuracy = ten_fold_accuracy(distances, same) if len(same) >= FOLDS else None
    tar = ten_fold_tar(distances, same, far=far) if lopsided is None else None
    strict = tar_at_far(-distances, same, far=far)
    withheld = _obstacles(distances, same) | {"tar_strict": strict.reason}
    withheld["tar_10fold"] = withheld["tar_10fold"] or (tar.missed if tar else None)
    zeros = int((~unit_embeddings.any(axis=1)).sum())
    care = {
        "accuracy": lopsided,
        "tar_10fold": _coarse_note(same, far),
        "threshold": _edge_note(distances, threshold) if same.any() and not same.all() else None,
        "xnorm": f"{zeros} of {len(unit_embeddings)} embeddings are zero and have no direction" if zeros else None,
    }
    accuracy = None if withheld["accuracy"] else accuracy
    tar = None if withheld["tar_10fold"] else tar
    return VerificationNumbers(
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


def _obstacles(distances: Floats, same: Bools) -> dict[str, str | None]:
    """Field -> why it means nothing, as pairs are all alike or not of both kinds; None where it does mean something."""
    one_class = "no different pairs" if same.all() else "no same pairs" if not same.any() else None
    alike_pairs = ALIKE if len(same) > 1 and all_equal(distances) else None
    return {
        "accuracy": alike_pairs or _accuracy_obstacle(same, one_class),
        "tar_10fold": alike_pairs or one_sided_fold(same),
        "auc": alike_pairs or one_class,
        "eer": alike_pairs or one_class,
    }


def _accuracy_obstacle(same: Bools, one_class: str | None) -> str | None:
    """Why ten-fold accuracy means nothing whatever the scores are; None where it does mean something."""
    if len(same) < FOLDS:
        return f"{len(same)} pairs cannot be cut into {FOLDS} folds"
    if one_class is not None:
        return f"{one_class}: judging every pair alike scores 100 %"
    mixed = FOLDS - sum(map(len, empty_folds(same).values()))
    if mixed < FOLDS / 2:
        return (
            f"{FOLDS - mixed} of {FOLDS} folds hold one kind of pairs only, thresholds being chosen on another mix; "
            "let same and different pairs take turns in the list, and have enough of both"
        )
    return None


def _coarse_note(same: Bools, far: float) -> str | None:
    different = int((~same).sum())
    if not too_few(different, far):
        return None
    return f"{different} different pairs: interpolated between none and one false accept"


def _edge_note(distances: Floats, threshold: float) -> str | None:
    """What is said of a threshold that accepts no pair, or every one, or is the last that is tried."""
    low, high = float(distances.min()), float(distances.max())
    if low < threshold <= high and threshold < ACCURACY_THRESHOLDS[-1]:
        return None
    return (
        f"{threshold:g} accepts {'no pair' if threshold <= low else 'every pair'}, at the edge of what is tried (0 to "
        f"{ACCURACY_THRESHOLDS[-1]:g}, step {ACCURACY_THRESHOLDS[1]:g}): distances are {low:.3g} to {high:.3g}"
    )


def _percent(rate: float | None, deviation: float | None) -> str:
    if rate is None or deviation is None:
        return "withheld"
    return f"{100.0 * rate:.2f} +- {100.0 * deviation:.2f} %"
