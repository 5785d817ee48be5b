"""What a benchmark hands out, whichever it is: numbers with their protocol, and the curves behind them.

Verification sets, IJB and TinyFace measure different things; tables, CSV, JSON and reports read them all through this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """One number."""

    key: str
    """The name that the field's CSV files use, dotted: `verification.lfw.Accuracy-Flip`,
    `ijb.IJBC_gt_aligned.Norm:True_Det:True_tpr_at_fpr_0.0001`, `tinyface.tinyface_aligned_pad_0.1.rank-1`."""
    label: str
    """What a table calls it, short."""
    value: float | None
    """A share in [0, 1] unless `is_share` is False; None where it is withheld."""
    is_share: bool = True
    deviation: float | None = None
    """Standard deviation over folds, where there are any."""
    interval: tuple[float, float] | None = None
    """95 % bootstrap interval, where one was computed."""
    protocol: str
    """How it was made, in words that tell it from its neighbours: pooling mode, flip, nearest or strict FAR."""
    note: str | None = None
    """Why it is withheld, or to be read with care."""

    def __post_init__(self) -> None:
        if self.is_share and self.value is not None and not -1e-9 <= self.value <= 1.0 + 1e-9:
            raise ValueError(f"a share must be in [0, 1], got {self.value:g}")

    def line(self) -> str:
        """For a log: the label and the value of a share, or why it is withheld."""
        return f"{self.label} " + (f"withheld ({self.note})" if self.value is None else f"{100.0 * self.value:.2f} %")


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """Rates over thresholds, thinned for drawing: a few thousand points at most."""

    name: str
    """Set and mode."""
    false_accept_rates: npt.NDArray[np.float64]
    """(n,) ascending."""
    true_accept_rates: npt.NDArray[np.float64]
    """(n,)."""

    def __post_init__(self) -> None:
        fars, tars = self.false_accept_rates, self.true_accept_rates
        if len(fars) != len(tars) or (np.diff(fars) < 0.0).any():
            raise ValueError("needs as many true as false accept rates, the latter ascending")
        for rates in (fars, tars):
            if ((rates < 0.0) | (rates > 1.0)).any():
                raise ValueError("a rate must be in [0, 1]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Histogram:
    """Scores of same and of different pairs, counted in common bins."""

    name: str
    edges: npt.NDArray[np.float64]
    """(bins + 1,) cosines."""
    same: npt.NDArray[np.int64]
    """(bins,)."""
    different: npt.NDArray[np.int64]
    """(bins,)."""

    def __post_init__(self) -> None:
        bins = len(self.edges) - 1
        if bins < 1 or not len(self.same) == len(self.different) == bins or (np.diff(self.edges) <= 0.0).any():
            raise ValueError("needs rising edges, and a count of each kind between two edges")


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkResult:
    """Everything that one benchmark says of one network."""

    kind: str
    """Name of a `BenchmarkKind`."""
    name: str
    """Of the set, as in its scores' keys: `lfw`, `IJBC_gt_aligned`."""
    data_sha256: str
    """Of the files that were read, so that two reports can be told to be of the same data."""
    counts: Mapping[str, int]
    """Images, templates, pairs, probes ..., by name."""
    scores: tuple[Score, ...]
    headline: str
    """Key of the score that stands for the set."""
    curves: tuple[Curve, ...] = ()
    histograms: tuple[Histogram, ...] = ()
    errors: tuple[Mapping[str, Any], ...] = ()
    """Worst cases by index (never images): same pairs with the lowest scores, different ones with the highest."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """By stage: decode, embed, score."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Fields of its own, JSON values, of kinds that are `flat`; empty for the others."""
    told: str = ""
    """What a log says of it; empty where that is the headline."""

    def __getitem__(self, key: str) -> Score:
        """The score of a key."""
        return next(score for score in self.scores if score.key == key)

    def summary(self) -> str:
        """One line for a log."""
        return self.told or self[self.headline].line()

    def log_fields(self) -> Mapping[str, Any]:
        """What `metrics.jsonl` holds of it, beside its name."""
        if self.details:
            return self.details
        scores = {score.key: score.value for score in self.scores}
        return {"kind": self.kind, "data_sha256": self.data_sha256, "headline": self.headline, "scores": scores}
