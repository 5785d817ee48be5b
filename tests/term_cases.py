"""Small global batches for tests of terms: what a term sees, in one process, in float64 unless told otherwise."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from adadistill.core.distributed import Ranks
from adadistill.core.method.terms.config import TermsConfig
from adadistill.core.method.terms.regression import RegressionConfig
from adadistill.core.method.terms.sum import TermSum, build_terms
from adadistill.core.method.terms.term import TermCentres, TermFacts

EVERY_TERM = {
    "terms__distances__weight": 5.0,
    "terms__angles__weight": 5.0,
    "terms__angles__group": 4,
    "terms__similarities__weight": 5.0,
    "terms__similarities__bank": 24,
    "terms__teacher_classes__weight": 1.0,
    "terms__teacher_classes__classes": 3,
}
"""Overrides of a tiny recipe with adaptive centres, in which each term has work to do."""


def unit_rows(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=-1)


def term_facts(student: Tensor, teacher: Tensor, labels: Tensor, centres: Tensor | None = None) -> TermFacts:
    """Of raw student embeddings, which are made unit here."""
    unit = normalize(student, dim=1)
    return TermFacts(
        student=unit,
        teacher=teacher,
        labels=labels,
        global_cosine=(unit.detach() * teacher).sum(1),
        global_labels=labels,
        ranks=Ranks(),
        centres=None if centres is None else TermCentres(centres, None),
    )


def regression_terms(weight: float) -> TermSum:
    """Cosine regression and nothing else; no term at all where the weight is 0."""
    regression = RegressionConfig(weight=weight)
    return build_terms(regression, TermsConfig(), dim=1, dtype=torch.float64, device=torch.device("cpu"))
