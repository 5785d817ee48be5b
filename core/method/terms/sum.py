"""All terms of a recipe, added up: the regression and those of `terms`, with what they keep in checkpoints."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from adadistill.core.distributed import Ranks
from adadistill.core.method.gathered_facts import GatheredFacts
from adadistill.core.method.lesson import Lesson
from adadistill.core.method.terms.config import TermsConfig
from adadistill.core.method.terms.regression import CosineRegression, RegressionConfig
from adadistill.core.method.terms.term import Term, TermCentres, TermFacts
from adadistill.kernels.head_prologue import Directions


class TermSum:
    """Terms by name; empty where a recipe has none."""

    def __init__(self, terms: Mapping[str, Term] | None = None) -> None:
        self._terms = dict(terms or {})

    def __bool__(self) -> bool:
        return bool(self._terms)

    def added_to(
        self,
        loss: Tensor,
        student: Directions,
        lesson: Lesson,
        labels: Tensor,
        gathered: GatheredFacts,
        ranks: Ranks,
        *,
        centres: TermCentres | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The 0-dim loss with every term added, and what to report of the teacher: each term before its weight."""
        metrics = {"student_teacher_cosine": lesson.cosine.mean()}
        if not self._terms:
            return loss, metrics
        facts = TermFacts(
            student=student.unit_embeddings, teacher=lesson.teacher_embeddings, labels=labels,
            global_cosine=gathered.cosine, global_labels=gathered.labels, ranks=ranks, centres=centres,
        )  # fmt: skip
        for name, term in self._terms.items():
            value = term.loss(facts)
            loss = loss + term.weight * value
            metrics[name] = value.detach()
        return loss, metrics

    def commit_(self, finite: Tensor) -> None:
        """See `Term.commit_`."""
        for term in self._terms.values():
            term.commit_(finite)

    def tensors(self) -> dict[str, Tensor]:
        """State of all terms, `term.NAME.KEY`."""
        return {
            f"term.{name}.{key}": tensor for name, term in self._terms.items() for key, tensor in term.tensors().items()
        }

    def load_(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Put back what `tensors` returned; what belongs to no term is returned.

        Raises:
            ValueError: a term's state is missing or of another shape.
        """
        rest = dict(tensors)
        for name, term in self._terms.items():
            lead = f"term.{name}."
            term.load_({key.removeprefix(lead): rest.pop(key) for key in tensors if key.startswith(lead)})
        return rest


NO_TERMS = TermSum()


def build_terms(
    regression: RegressionConfig, terms: TermsConfig, *, dim: int, dtype: torch.dtype, device: torch.device
) -> TermSum:
    """What a recipe asks for.

    Args:
        dim: of student and teacher.
        dtype: of what terms keep; float32 or float64.
    """
    built: dict[str, Term] = {} if regression.weight == 0.0 else {"regression": CosineRegression(regression)}
    return TermSum(built | {name: one.build(dim=dim, dtype=dtype, device=device) for name, one in terms.chosen.items()})
