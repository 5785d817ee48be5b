"""Margins of a batch in plain torch: the heads, the geometry term, and their numbers as recipes give them.

The configs live here, where both the method (`core/method`) and the fused operation (`head_prologue.py`) see them, so
that a recipe's numbers arrive as they were given. `core/method/heads.py` registers which heads there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import torch
from torch import Tensor

from adadistill.kernels.target_column import MarginGrad

LEAST_NORM = 0.001
MOST_NORM = 100.0
ADAFACE_EPS = 1e-3
"""AdaFace's one epsilon: it keeps cosines and angles off their ends and the spread off zero."""


@dataclass(frozen=True, slots=True)
class Margins:
    """Margins of a batch, all (B,) and without gradient."""

    angular: Tensor
    """Radians added to the target's angle."""
    additive: Tensor
    """Subtracted from the target's cosine."""
    scaler: Tensor
    """AdaFace's q in [-1, 1]; zeros for the other heads."""
    clipped: Tensor
    """Bool, q was outside [-1, 1] before its clip."""

    @staticmethod
    def unscaled(angular: Tensor, additive: Tensor) -> Margins:
        """Those of a head without a quality scaler."""
        return Margins(angular, additive, torch.zeros_like(angular), torch.zeros_like(angular, dtype=torch.bool))


@dataclass(frozen=True, slots=True)
class HeadLimits:
    """Where a head cuts cosines and angles; beyond, no gradient passes."""

    cosine_limit: float = 1.0
    """Every cosine is cut to [-limit, limit]."""
    angle_limits: tuple[float, float] | None = None
    """Radians the margined angle is clipped to, or None."""


@dataclass(frozen=True, slots=True)
class QualityFacts:
    """What a head may make its margins of, without gradient. Norms are (B,), within [0.001, 100]."""

    norms: Tensor
    mean: Tensor
    """0-dim, of the norms' statistics with this batch in them, in the dtype of the norms; `std` likewise."""
    std: Tensor
    geometry: Tensor | None
    """(B,) geometry term, in the dtype of the norms; None where the geometry margin is off."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """One kind of margin head: all that tells it from the others. `core/method/heads.py` registers them."""

    title: str
    """What pages call it."""
    margins: Callable[[HeadNumbers, QualityFacts], Margins]
    """Margins of a batch, in plain torch."""
    in_triton: bool
    """Whether `prologue_kernel` has a branch for it, and so `HEADS_IN_TRITON` a line. Where not, torch does its whole
    prologue on CUDA too: some sixty small launches a step in place of one."""
    two_margins: bool = False
    """Whether it reads `additive_margin` beside `margin`; else that is refused."""
    takes_geometry: bool = False
    """Whether the margins heed the geometry term; else the geometry margin is refused."""
    limits: HeadLimits = HeadLimits()
    straight_through_limits: HeadLimits = HeadLimits()
    """With `margin_grad: straight_through`."""


def _arcface(head: HeadNumbers, facts: QualityFacts) -> Margins:
    zeros = torch.zeros_like(facts.norms)
    return Margins.unscaled(zeros + head.margin, zeros)


def _cosface(head: HeadNumbers, facts: QualityFacts) -> Margins:
    zeros = torch.zeros_like(facts.norms)
    return Margins.unscaled(zeros, zeros + head.margin)


def _adaface(head: HeadNumbers, facts: QualityFacts) -> Margins:
    raw = head.quality_concentration * (facts.norms - facts.mean) / (facts.std + ADAFACE_EPS)
    if facts.geometry is not None:
        raw = raw + facts.geometry
    scaler = raw.clamp(-1.0, 1.0)
    return Margins(-head.margin * scaler, head.margin * (1.0 + scaler), scaler, raw.abs() > 1.0)


HEADS_IN_TRITON: Final[dict[str, Head]] = {
    "arcface": Head(title="ArcFace", margins=_arcface, in_triton=True),
    "cosface": Head(title="CosFace", margins=_cosface, in_triton=True),
    "adaface": Head(
        title="AdaFace",
        margins=_adaface,
        in_triton=True,
        takes_geometry=True,
        limits=HeadLimits(1.0 - ADAFACE_EPS, (ADAFACE_EPS, math.pi - ADAFACE_EPS)),
    ),
}
"""Heads that `prologue_kernel` computes: each has a branch there, and any other kind is refused when it is compiled."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadNumbers:
    """A kind of margin head and its numbers."""

    heads: ClassVar[Mapping[str, Head]] = HEADS_IN_TRITON
    """The kinds there are, by name; `HeadConfig` of `core/method/heads.py` has all of them."""
    kind: str = "adaface"
    """Which margins. `adaface` adapts them to the norm of the embedding."""
    margin: float = 0.4
    """Base margin: radians for arcface and combined, cosine for cosface, both parts for adaface. In [0, 1)."""
    logit_scale: float = 64.0
    """Multiplies the cosine before the softmax. Positive. 64 in all published recipes."""
    quality_concentration: float = 0.333
    """AdaFace's h: spread of the scaler q, such that about two thirds of the norms lie inside its clip. At least 0."""
    norm_momentum: float = 0.01
    """Weight of the new batch in the norm statistics. In (0, 1]. The published 0.01 forgets in about 100 steps."""
    margin_grad: MarginGrad = "exact"
    """`exact` differentiates the margin; `straight_through` does not, as in insightface and CVLface."""
    additive_margin: float = 0.0
    """Second margin of `combined`, subtracted from the cosine: insightface's m3, where `margin` is m2. In [0, 1)."""
    filter_above: float | None = None
    """Cosines to other identities above it are taken for those of one person under two labels, and count as 0: for
    noisy labels, insightface's interclass_filtering_threshold. In (0, 1]; left out, nothing is filtered. The softmax
    then runs in plain torch on CUDA too."""

    def __post_init__(self) -> None:
        if self.kind not in self.heads:
            raise ValueError(f"kind must be one of {', '.join(self.heads)}, got {self.kind!r}")
        if not 0.0 <= self.margin < 1.0:
            raise ValueError(f"margin must be in [0, 1), got {self.margin}")
        if not 0.0 < self.logit_scale < math.inf:
            raise ValueError(f"logit_scale must be positive and finite, got {self.logit_scale}")
        if not 0.0 <= self.quality_concentration < math.inf:
            raise ValueError(f"quality_concentration must be at least 0 and finite, got {self.quality_concentration}")
        if not 0.0 < self.norm_momentum <= 1.0:
            raise ValueError(f"norm_momentum must be in (0, 1], got {self.norm_momentum}")
        if self.margin_grad not in ("exact", "straight_through"):
            raise ValueError(f"margin_grad must be exact or straight_through, got {self.margin_grad!r}")
        if not 0.0 <= self.additive_margin < 1.0:
            raise ValueError(f"additive_margin must be in [0, 1), got {self.additive_margin}")
        if self.additive_margin > 0.0 and not self.head.two_margins:
            raise ValueError(f"additive_margin is for a head with two margins, got it with {self.kind}")
        if self.filter_above is not None and not 0.0 < self.filter_above <= 1.0:
            raise ValueError(f"filter_above must be in (0, 1] or left out, got {self.filter_above}")

    @property
    def head(self) -> Head:
        """What `kind` names."""
        return self.heads[self.kind]

    @property
    def limits(self) -> HeadLimits:
        """Limits of the public implementation that this head stands for.

        AdaFace cuts cosines to 1 - 1e-3 and clips the angle; AdaDistill's ArcFace and CosFace, insightface's, and
        AdaFace as CVLface has it (straight_through) only cut cosines to 1.
        """
        return self.head.limits if self.margin_grad == "exact" else self.head.straight_through_limits


@dataclass(frozen=True, kw_only=True, slots=True)
class GeometryMarginConfig:
    """Extra margin where the student lags behind a confident teacher; for the adaface head with adaptive or frozen
    centres."""

    mode: Literal["off", "adaptive", "static", "headroom"] = "off"
    """`adaptive` compares confidence with the student-teacher cosine; `static` looks at that cosine alone; `headroom`
    is `adaptive` with the confidence of a second, slow centre of each identity, which is not capped by the noise of
    adaptive centres (C D more numbers of memory; adaptive centres only; not in the published method)."""
    weight: float = 1.0
    """Multiplies the term after its ramp. At least 0. The origin's final recipe has 1."""
    scale: float = 3.0
    """Slope of the term in the lag. At least 0. The origin's final recipe has 3."""
    warmup_epochs: float = 1.0
    """Epochs, fractions allowed, over which the term is ramped up; 0 has it in full from the start."""
    mask: float = 0.8
    """`static` only: student-teacher cosines from here on get no term. In [-1, 1]."""
    baseline: float = 0.25
    """`static` only: subtracted from the term, negative results count as 0. In [0, 1]."""
    headroom_momentum: float = 0.99
    """`headroom` only: weight that a slow centre keeps at each image of its identity. In [0, 1); 0.99 averages about a
    hundred images, more than one epoch shows of a person in MS1MV2."""

    def __post_init__(self) -> None:
        if self.mode not in ("off", "adaptive", "static", "headroom"):
            raise ValueError(f"mode must be off, adaptive, static or headroom, got {self.mode!r}")
        for name in ("weight", "scale", "warmup_epochs"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be at least 0 and finite, got {getattr(self, name)}")
        if not -1.0 <= self.mask <= 1.0:
            raise ValueError(f"mask must be in [-1, 1], got {self.mask}")
        if not 0.0 <= self.baseline <= 1.0:
            raise ValueError(f"baseline must be in [0, 1], got {self.baseline}")
        if not 0.0 <= self.headroom_momentum < 1.0:
            raise ValueError(f"headroom_momentum must be in [0, 1), got {self.headroom_momentum}")

    @property
    def formula(self) -> Literal["off", "adaptive", "static"]:
        """The formula of the mode: `headroom` is `adaptive` with another confidence."""
        return "adaptive" if self.mode == "headroom" else self.mode


def clipped_norms(norms: Tensor) -> Tensor:
    """Norms within [0.001, 100], as both the statistics and the quality read them."""
    return norms.clamp(LEAST_NORM, MOST_NORM)


def geometry_values(geometry: GeometryMarginConfig, ramp: float, confidence: Tensor, cosine: Tensor) -> Tensor:
    """(B,) geometry term, at least 0, of which `ramp` is in force, from (B,) confidence and student-teacher cosine."""
    weight = geometry.weight * ramp
    if geometry.formula == "adaptive":
        return weight * geometry.scale * confidence * (confidence - cosine).clamp(min=0.0)
    if geometry.formula == "static":
        gap = torch.where(cosine < geometry.mask, (geometry.scale * (1.0 - cosine)).clamp(0.0, 1.0), 0.0)
        return weight * (gap - geometry.baseline).clamp(min=0.0)
    return torch.zeros_like(confidence)


def margins_of(head: HeadNumbers, norms: Tensor, mean: Tensor, std: Tensor, geometry: Tensor | None) -> Margins:
    """Margins from (B,) norms, the statistics and a (B,) geometry term.

    Raises:
        ValueError: the head returned another shape or dtype than that of the norms.
    """
    norms = clipped_norms(norms)
    term = None if geometry is None else geometry.to(norms.dtype)
    made = head.head.margins(head, QualityFacts(norms, mean.to(norms.dtype), std.to(norms.dtype), term))
    for name in ("angular", "additive", "scaler", "clipped"):
        value, dtype = getattr(made, name), torch.bool if name == "clipped" else norms.dtype
        if value.shape != norms.shape or value.dtype != dtype:  # a (B, 1) or a number would broadcast
            raise ValueError(
                f"head {head.kind} must give {name} as {tuple(norms.shape)} {dtype}, got {tuple(value.shape)} "
                f"{value.dtype}"
            )
    return made
