"""The combined margin of insightface: angular m2 and additive m3 on one target, cos(theta + m2) - m3.

m1, which multiplies the angle, is 1: arcface_torch's own code refuses other values together with an additive part.
"""

import torch

from adadistill.kernels.head_margins import Head, HeadNumbers, Margins, QualityFacts


def _margins(head: HeadNumbers, facts: QualityFacts) -> Margins:
    zeros = torch.zeros_like(facts.norms)
    return Margins.unscaled(zeros + head.margin, zeros + head.additive_margin)


COMBINED = Head(title="combined", margins=_margins, in_triton=False, two_margins=True)
