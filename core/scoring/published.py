"""Published results that a report sets beside ours: what was reported, by whom, under which protocol.

TAR on IJB depends on how templates are pooled: weighting by embedding norms alone moves it by 0.7 points. So every row
of IJB names its pooling, and `comparable` gives rows of one pooling only. Training sets, networks and schedules differ
between rows: the description of a row says which.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

VERIFICATION: Final = "ten-fold accuracy, flip sum"
NORM_AND_DETECTOR: Final = "Norm:True_Det:True"
"""Templates pooled with embedding norms and detector scores, as insightface's and the origin's tables."""
NORM: Final = "Norm:True_Det:False"
"""Templates pooled with embedding norms. AdaFace's own evaluation is closest to it, by its way of adding flips."""
DETECTOR: Final = "Norm:False_Det:True"
"""Templates pooled with detector scores of unit embeddings: CVLface's headline."""
RANKS: Final = "identification rate of closed-set ranks, flip sum"

ADADISTILL: Final = "AdaDistill, ECCV 2024, tables"
ADAFACE: Final = "AdaFace, arXiv:2204.00964, tables"
ORIGIN: Final = "the origin's logs, one seed"

PUBLISHED_PAIRS: Mapping[str, int] = {
    "lfw": 6000,
    "cfp_fp": 7000,
    "cfp_ff": 7000,
    "agedb_30": 6000,
    "calfw": 6000,
    "cplfw": 6000,
    "vgg2_fp": 5000,
}
"""Pairs of the sets everybody reports; another count under such a name is another protocol."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedRow:
    """Some numbers of one network under one protocol."""

    network: str
    trained_on: str
    protocol: str
    percent: Mapping[str, float]
    """By benchmark: `lfw`, `IJBC 1e-4`, `tinyface rank-1`; percent as printed."""
    source: str


def _accuracies(network: str, trained_on: str, source: str, **percent: float) -> PublishedRow:
    return PublishedRow(network=network, trained_on=trained_on, protocol=VERIFICATION, percent=percent, source=source)


def _adaface(network: str, trained_on: str, *values: float) -> PublishedRow:
    names = ("lfw", "cfp_fp", "cplfw", "calfw", "agedb_30")
    return _accuracies(network, trained_on, ADAFACE, **dict(zip(names, values, strict=True)))


def _ijb(
    network: str,
    trained_on: str,
    source: str,
    protocol: str = NORM_AND_DETECTOR,
    *,
    b4: float | None = None,
    b5: float | None = None,
    c4: float | None = None,
    c5: float | None = None,
) -> PublishedRow:
    given = {"IJBB 1e-4": b4, "IJBB 1e-5": b5, "IJBC 1e-4": c4, "IJBC 1e-5": c5}
    percent = {name: value for name, value in given.items() if value is not None}
    return PublishedRow(network=network, trained_on=trained_on, protocol=protocol, percent=percent, source=source)


def _tinyface(network: str, trained_on: str, source: str, **ranks: float) -> PublishedRow:
    percent = {f"tinyface {name.replace('_', '-')}": value for name, value in ranks.items()}
    return PublishedRow(network=network, trained_on=trained_on, protocol=RANKS, percent=percent, source=source)


_STUDENT = "MobileFaceNet (0.22 GMAC)"
_R50 = "MS1MV2; teacher R50"
_IR50 = "MS1MV2; teacher IR-50 of WebFace4M"

PUBLISHED: Final[tuple[PublishedRow, ...]] = (
    _accuracies(
        f"{_STUDENT}, no teacher", "MS1MV2", f"{ORIGIN}; its AgeDB-30 stands in two rows and may belong to the other",
        lfw=99.52, cfp_fp=91.66, agedb_30=95.82, cplfw=87.93,
    ),
    _accuracies(
        f"{_STUDENT}, AdaArcDistill, released weights", _R50, f"{ORIGIN}; measured again from the released weights",
        lfw=99.467, cfp_fp=95.143, cfp_ff=99.60, agedb_30=96.683, calfw=95.50, cplfw=89.50, vgg2_fp=93.30,
    ),
    _accuracies(
        f"{_STUDENT}, adaptive centres with AdaFace", _IR50, ORIGIN,
        lfw=99.50, cfp_fp=95.24, agedb_30=95.82, calfw=94.92, cplfw=89.73, vgg2_fp=92.60,
    ),
    _accuracies(
        f"{_STUDENT}, the same with static geometry margin", _IR50, ORIGIN,
        lfw=99.50, cfp_fp=94.33, agedb_30=96.07, cplfw=89.83,
    ),
    _accuracies(
        f"{_STUDENT}, the same with adaptive geometry margin", _IR50, ORIGIN,
        lfw=99.48, cfp_fp=95.10, agedb_30=96.20, calfw=95.27, cplfw=90.22, vgg2_fp=93.14,
    ),
    _adaface("R18", "CASIA-WebFace", 99.13, 92.59, 87.00, 92.65, 92.72),
    _adaface("R18", "VGGFace2", 99.47, 97.13, 91.72, 93.90, 94.07),
    _adaface("R18", "WebFace4M", 99.53, 97.26, 92.28, 95.52, 96.47),
    _adaface("R50", "CASIA-WebFace", 99.42, 96.41, 89.97, 93.23, 94.38),
    _adaface("R50", "MS1MV2", 99.82, 97.86, 92.83, 96.07, 97.85),
    _adaface("R50", "WebFace4M", 99.78, 98.97, 94.17, 95.98, 97.78),
    _adaface("R100", "MS1MV2", 99.82, 98.49, 93.53, 96.08, 98.05),
    _adaface("R100", "MS1MV3", 99.78, 98.91, 93.93, 96.02, 98.17),
    _adaface("R100", "WebFace4M", 99.80, 99.17, 94.63, 96.05, 97.90),
    _adaface("R100", "WebFace12M", 99.82, 99.26, 94.57, 96.12, 98.00),
    _ijb(f"{_STUDENT}, ArcFace, no teacher", "MS1MV2", ADADISTILL, b4=87.07, c4=89.13, c5=81.65),
    _ijb(f"{_STUDENT}, MarginDistillation", _R50, ADADISTILL, c4=85.71),
    _ijb(f"{_STUDENT}, EKD", _R50, ADADISTILL, b4=88.35, c4=90.48, c5=84.00),
    _ijb(f"{_STUDENT}, ReFO+", _R50, ADADISTILL, c4=92.41, c5=87.80),
    _ijb(f"{_STUDENT}, AdaArcDistill", _R50, ADADISTILL, b4=91.21, c4=93.27, c5=89.32),
    _ijb("R50, the teacher of these", "MS1MV2", ADADISTILL, c4=96.05),
    _ijb(
        f"{_STUDENT}, AdaArcDistill, released weights", _R50, f"{ORIGIN}; measured again from the released weights",
        b4=91.217, b5=84.138, c4=93.256, c5=89.313,
    ),
    _ijb(f"{_STUDENT}, adaptive centres with AdaFace", _IR50, ORIGIN, b4=91.67, b5=83.76, c4=93.82, c5=90.00),
    _ijb(f"{_STUDENT}, the same with static geometry margin", _IR50, ORIGIN, c4=93.77, c5=90.17),
    _ijb(f"{_STUDENT}, the same with adaptive geometry margin", _IR50, ORIGIN, b4=91.95, b5=84.96, c4=93.98, c5=90.33),
    _ijb(f"{_STUDENT}, AdaArcDistill, released weights", _R50, ORIGIN, DETECTOR, c4=92.45),
    _ijb(f"{_STUDENT}, adaptive centres with AdaFace", _IR50, ORIGIN, DETECTOR, b4=90.89, c4=93.05),
    _ijb(f"{_STUDENT}, the same with adaptive geometry margin", _IR50, ORIGIN, DETECTOR, b4=91.21, c4=93.27),
    _ijb("R18", "VGGFace2", ADAFACE, NORM, b4=90.67, c4=92.95),
    _ijb("R18", "WebFace4M", ADAFACE, NORM, b4=93.03, c4=94.99),
    _ijb("R50", "MS1MV2", ADAFACE, NORM, b4=94.82, c4=96.27),
    _ijb("R50", "WebFace4M", ADAFACE, NORM, b4=95.44, c4=96.98),
    _ijb("R100", "MS1MV2", ADAFACE, NORM, b4=95.67, c4=96.89),
    _ijb("R100", "MS1MV3", ADAFACE, NORM, b4=95.84, c4=97.09),
    _ijb("R100", "WebFace4M", ADAFACE, NORM, b4=96.03, c4=97.39),
    _ijb("R100", "WebFace12M", ADAFACE, NORM, b4=96.41, c4=97.66),
    _tinyface(
        f"{_STUDENT}, AdaArcDistill, released weights", _R50, f"{ORIGIN}; measured again from the released weights",
        rank_1=57.216, rank_5=63.117, rank_20=67.087,
    ),
    _tinyface(f"{_STUDENT}, adaptive centres with AdaFace", _IR50, ORIGIN, rank_1=58.69, rank_5=64.03, rank_20=68.45),
    _tinyface(f"{_STUDENT}, the same with static geometry margin", _IR50, ORIGIN, rank_1=58.93, rank_5=63.30),
    _tinyface(
        f"{_STUDENT}, the same with adaptive geometry margin", _IR50, ORIGIN,
        rank_1=59.31, rank_5=64.43, rank_20=68.29,
    ),
    _tinyface("R100", "MS1MV2", ADAFACE, rank_1=68.21, rank_5=71.54),
    _tinyface("R100", "WebFace4M", ADAFACE, rank_1=72.02, rank_5=74.52),
    _tinyface("R100", "WebFace12M", ADAFACE, rank_1=72.29, rank_5=74.97),
)  # fmt: skip


def comparable(protocol: str) -> tuple[PublishedRow, ...]:
    """Rows of one protocol."""
    return tuple(row for row in PUBLISHED if row.protocol == protocol)
