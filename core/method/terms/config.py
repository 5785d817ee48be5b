"""The `terms` section of a recipe, whose fields are the registry of terms beside the regression.

A new term is a file of its own, with its config and its class, and a field here (docs/extending.md).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, Protocol

import torch

from adadistill.core.method.terms.relations import AnglesConfig, DistancesConfig
from adadistill.core.method.terms.similarities import SimilaritiesConfig
from adadistill.core.method.terms.teacher_classes import TeacherClassesConfig
from adadistill.core.method.terms.term import Term


class TermConfig(Protocol):
    """The numbers of one term."""

    needs_centres: ClassVar[bool]
    """Whether it compares with class centres in the teacher's space: adaptive ones, or frozen ones."""
    weight: float

    def build(self, *, dim: int, dtype: torch.dtype, device: torch.device) -> Term:
        """The term, for embeddings of `dim` numbers; `dtype` is that of its state, float32 or float64."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TermsConfig:
    """Further losses of the student against the teacher, added up by their weights, beside the margin softmax and the
    regression or, with `centres.kind: none`, without the first."""

    distances: DistancesConfig | None = None
    """Relational distillation: relative distances of all pairs of images of a batch."""
    angles: AnglesConfig | None = None
    """Relational distillation: angles at every vertex of all triples of images."""
    similarities: SimilaritiesConfig | None = None
    """Similarities of each image to those of earlier steps, in a memory bank."""
    teacher_classes: TeacherClassesConfig | None = None
    """The teacher's softmax over its class centres; needs adaptive or frozen centres."""

    @property
    def chosen(self) -> dict[str, TermConfig]:
        """Those that a recipe names, by name."""
        found = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: config for name, config in found.items() if config is not None}
