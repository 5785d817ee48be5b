"""Geometry-aware margin: asks more of samples where the student lags behind a teacher who is sure of itself.

The term is added to AdaFace's quality scaler before that is clipped, so it moves a lagging sample towards the margins
of a high-quality one: a larger additive part and a smaller angular one. It does not simply add an angle. It is made of
the confidence (cosine of the centre as it was before the step to the teacher's embedding) and of the student-teacher
cosine, and carries no gradient. A ramp over the first epochs keeps it out while neither of them means anything yet.
`headroom` is the same term of another confidence, that of slow centres (`core/method/slow_centres.py`).

Source: github.com/rayyichen310/adadistill_with_adaface_loss, re-derived from its description.
"""

from __future__ import annotations

from adadistill.kernels.head_margins import GeometryMarginConfig as GeometryMarginConfig  # its numbers and formulas


def geometry_ramp(config: GeometryMarginConfig, fractional_epoch: float) -> float:
    """Share of the term in force at `fractional_epoch` (epoch + step / steps per epoch), linear until full.

    `adaptive` and `headroom` start from 0, `static` (as it was published) from 1 / (warmup_epochs + 1); all are full
    after `warmup_epochs`.
    """
    if config.warmup_epochs == 0.0:
        return 1.0
    if config.mode == "static":
        return min(1.0, (fractional_epoch + 1.0) / (config.warmup_epochs + 1.0))
    return min(1.0, max(0.0, fractional_epoch / config.warmup_epochs))
