"""What the teacher says of a step's samples, from a network in the loop or from stored rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from adadistill.core.distributed import Ranks, gather_rows
from adadistill.core.teachers import ImageTeacher, RecordTeacher
from adadistill.loaders.batch import Batch
from adadistill.loaders.named_ranges import in_range

Teacher: TypeAlias = ImageTeacher | RecordTeacher


@in_range("teacher")
def global_teacher_embeddings(teacher: Teacher, batch: Batch, ranks: Ranks) -> Tensor:
    """(G, D) unit embeddings of the global batch: gathered from a network, read from a store."""
    if isinstance(teacher, ImageTeacher):
        return gather_rows(teacher.embed(batch.images), ranks)
    return teacher.rows(batch.global_record_ids, batch.global_mirrored, batch.view)


@in_range("teacher")
def own_teacher_embeddings(teacher: Teacher, batch: Batch, ranks: Ranks) -> Tensor:
    """(B, D) unit embeddings of this rank's samples, without communication."""
    if isinstance(teacher, ImageTeacher):
        return teacher.embed(batch.images)
    own = slice(ranks.rank * len(batch.labels), (ranks.rank + 1) * len(batch.labels))
    return teacher.rows(batch.global_record_ids[own], batch.global_mirrored[own], batch.view)


@dataclass(frozen=True, slots=True)
class Lesson:
    """What the teacher says of the rank's own samples."""

    teacher_embeddings: Tensor  # (B, D) unit
    cosine: Tensor  # (B,) student-teacher, without gradient
