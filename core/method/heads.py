"""Margin heads: how hard each sample's own class is made, as two numbers per sample.

A head turns a batch into an angular and an additive margin, both without gradient, and names the limits its public
implementation puts on cosines and angles; `kernels/margin_softmax.py` does the rest:

    arcface   angular m                  additive 0
    cosface   angular 0                  additive m
    adaface   angular -m q               additive m (1 + q)
    with q = clip(h (norm - mean) / (std + 1e-3) + geometry, -1, 1)

A low-quality face (q = -1) gets the larger angular part, as in ArcFace; a high-quality one (q = +1) a negative angular
part and twice the additive. Norm and statistics are those of `core/method/norm_statistics.py`.

Source: AdaFace, arXiv:2204.00964; ArcFace and CosFace as in AdaDistill, arXiv:2407.01332.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from torch import Tensor

from adadistill.core.method.norm_statistics import NormStatistics, flat_norms
from adadistill.kernels.head_prologue import HEADS_IN_TRITON, Head, HeadLimits, HeadRule, Margins, margins_of
from adadistill.kernels.head_prologue import Directions as Directions  # offered here too: norms are a head's input
from adadistill.kernels.head_prologue import directions as directions

HEADS: Final[dict[str, Head]] = {
    **HEADS_IN_TRITON,
}
"""Every kind of head by the name that recipes give it; docs/extending.md adds one."""

_UNBRANCHED = [name for name, head in HEADS.items() if head.in_triton != (HEADS_IN_TRITON.get(name) is head)]
if _UNBRANCHED:
    raise ImportError(f"in_triton of {', '.join(_UNBRANCHED)} contradicts HEADS_IN_TRITON of kernels/head_prologue.py")

if TYPE_CHECKING:
    HeadName: TypeAlias = str
else:
    HeadName = Literal[tuple(HEADS)]


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadConfig:
    """Margin head of the student."""

    kind: HeadName = "adaface"
    """Which margins. `adaface` adapts them to the norm of the embedding."""
    margin: float = 0.4
    """Base margin: radians for arcface, cosine for cosface, both parts for adaface. In [0, 1)."""
    logit_scale: float = 64.0
    """Multiplies the cosine before the softmax. Positive. 64 in all published recipes."""
    quality_concentration: float = 0.333
    """AdaFace's h: spread of the scaler q, such that about two thirds of the norms lie inside its clip. At least 0."""
    norm_momentum: float = 0.01
    """Weight of the new batch in the norm statistics. In (0, 1]. The published 0.01 forgets in about 100 steps."""
    margin_grad: Literal["exact", "straight_through"] = "exact"
    """`exact` differentiates the margin; `straight_through` does not, as in insightface and CVLface."""

    def __post_init__(self) -> None:
        if self.kind not in HEADS:
            raise ValueError(f"kind must be one of {', '.join(HEADS)}, got {self.kind!r}")
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


def head_limits(config: HeadConfig) -> HeadLimits:
    """Limits of the public implementation that `config` stands for.

    AdaFace cuts cosines to 1 - 1e-3 and clips the angle; AdaDistill's ArcFace and CosFace, insightface's, and AdaFace
    as CVLface has it (straight_through) only cut cosines to 1.
    """
    head = HEADS[config.kind]
    return head.limits if config.margin_grad == "exact" else head.straight_through_limits


def head_rule(config: HeadConfig) -> HeadRule:
    """The head's numbers, limits included, as `kernels/head_prologue.py` takes them."""
    limits = head_limits(config)
    return HeadRule(
        kind=config.kind,
        head=HEADS[config.kind],
        margin=config.margin,
        quality_concentration=config.quality_concentration,
        norm_momentum=config.norm_momentum,
        logit_scale=config.logit_scale,
        cosine_limit=limits.cosine_limit,
        angle_limits=limits.angle_limits,
        margin_grad=config.margin_grad,
    )


def margins(
    config: HeadConfig, quality: Tensor, statistics: NormStatistics | None = None, geometry: Tensor | None = None
) -> Margins:
    """Per-sample margins of the head.

    Args:
        config: the head.
        quality: (B,) or (B, 1) norms of the student's raw embeddings. Detached here.
        statistics: of the global batch, already updated with this step's norms; only a head that does not read them
            (arcface, cosface) does without.
        geometry: (B,) or (B, 1) geometry term, see `core/method/geometry_margin.py`; for heads that heed it.

    Returns:
        Margins in float32, or float64 when the quality is.

    Raises:
        ValueError: shapes disagree, statistics are missing, or a head without a quality scaler is given a geometry
            term.
    """
    norms = flat_norms(quality).detach()  # (B,)
    term = None
    if geometry is not None:
        if not HEADS[config.kind].takes_geometry:
            raise ValueError(f"the geometry margin needs a head that heeds it, got a geometry term for {config.kind}")
        term = geometry.detach().squeeze(1) if geometry.ndim == 2 and geometry.shape[1] == 1 else geometry.detach()
        if term.shape != norms.shape:
            raise ValueError(f"geometry must be {tuple(norms.shape)}, got {tuple(geometry.shape)}")
    mean = std = norms.new_full((), math.nan)  # what reads statistics that are not there shows it
    if statistics is not None:
        mean, std = statistics.mean, statistics.std
    elif HEADS[config.kind].takes_geometry:
        raise ValueError(f"the {config.kind} head needs norm statistics")
    return margins_of(head_rule(config), norms, mean, std, term)
