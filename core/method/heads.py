"""Margin heads: how hard each sample's own class is made, as two numbers per sample.

A head turns a batch into an angular and an additive margin, both without gradient, and names the limits its public
implementation puts on cosines and angles; `kernels/margin_softmax.py` does the rest:

    arcface   angular m                  additive 0
    cosface   angular 0                  additive m
    combined  angular m                  additive m3
    adaface   angular -m q               additive m (1 + q)
    with q = clip(h (norm - mean) / (std + 1e-3) + geometry, -1, 1)

A low-quality face (q = -1) gets the larger angular part, as in ArcFace; a high-quality one (q = +1) a negative angular
part and twice the additive. Norm and statistics are those of `core/method/norm_statistics.py`.

Source: AdaFace, arXiv:2204.00964; ArcFace and CosFace as in AdaDistill, arXiv:2407.01332.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, Literal, TypeAlias

from torch import Tensor

from adadistill.core.method.combined_margin import COMBINED
from adadistill.core.method.norm_statistics import NormStatistics, flat_norms
from adadistill.kernels.head_margins import HEADS_IN_TRITON, Head, HeadNumbers, Margins, margins_of
from adadistill.kernels.head_prologue import Directions as Directions  # offered here too: norms are a head's input
from adadistill.kernels.head_prologue import directions as directions

HEADS: Final[dict[str, Head]] = {
    **HEADS_IN_TRITON,
    "combined": COMBINED,
}
"""Every kind of head by the name that recipes give it; docs/extending.md adds one."""

_UNBRANCHED = [name for name, head in HEADS.items() if head.in_triton != (HEADS_IN_TRITON.get(name) is head)]
if _UNBRANCHED:
    raise ImportError(f"in_triton of {', '.join(_UNBRANCHED)} contradicts HEADS_IN_TRITON of kernels/head_margins.py")

if TYPE_CHECKING:
    HeadName: TypeAlias = str
else:
    HeadName = Literal[tuple(HEADS)]


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadConfig(HeadNumbers):
    """Margin head of the student."""

    heads: ClassVar[Mapping[str, Head]] = HEADS
    kind: HeadName = "adaface"
    """Which margins. `adaface` adapts them to the norm of the embedding."""


def margins(
    config: HeadConfig, quality: Tensor, statistics: NormStatistics | None = None, geometry: Tensor | None = None
) -> Margins:
    """Per-sample margins of the head, for centres that are spread over the ranks; others take `head_prologue`.

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
        if not config.head.takes_geometry:
            raise ValueError(f"the geometry margin needs a head that heeds it, got a geometry term for {config.kind}")
        term = geometry.detach().squeeze(1) if geometry.ndim == 2 and geometry.shape[1] == 1 else geometry.detach()
        if term.shape != norms.shape:
            raise ValueError(f"geometry must be {tuple(norms.shape)}, got {tuple(geometry.shape)}")
    mean = std = norms.new_full((), math.nan)  # a head that reads statistics nobody gave makes NaN, which stops the run
    if statistics is not None:
        mean, std = statistics.mean, statistics.std
    elif config.head.takes_geometry:
        raise ValueError(f"the {config.kind} head needs norm statistics")
    return margins_of(config, norms, mean, std, term)
