"""What training asks of a teacher: unit embeddings, of images or of records, and an account of where they come from."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from adadistill.core.distributed import Ranks
from adadistill.core.precision import Precision
from adadistill.core.teachers.config import TeacherConfig
from adadistill.core.teachers.preprocessing import Color, Preprocessing, TeacherNetwork
from adadistill.loaders.augment.augment_policy import Augmentation
from adadistill.loaders.pipelines.pipeline import DataConfig
from adadistill.loaders.records.image_source import ImageSource


class TeacherError(ValueError):
    """A teacher cannot be loaded, or does not fit the student or the records."""


@runtime_checkable
class ImageTeacher(Protocol):
    """A teacher that looks at images."""

    embedding_dim: int

    def embed(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) network input -> (B, D) unit embeddings in float32 or better, without gradient."""
        ...


@runtime_checkable
class RecordTeacher(Protocol):
    """A teacher whose embeddings are known by record."""

    embedding_dim: int

    def rows(
        self, record_ids: npt.NDArray[np.int64], mirrored: npt.NDArray[np.bool_], view: int | None = None
    ) -> Tensor:
        """(n,) record ids and mirror flags -> (n, D) unit embeddings in float32 or better, on the training device.

        `view` is the number of the fixed augmented view that is shown; where there are such views, it says all.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherIdentity:
    """What makes a teacher's embeddings what they are, as caches, reports and checkpoints record it."""

    kind: str
    """checkpoint, weights, cvlface, onnx or embeddings."""
    name: str
    """Where it came from, for people: a file name, a repository at a revision. Never a whole path."""
    arch: str
    """Our architecture name, or `onnx`."""
    sha256: str
    """Of the weights, 64 hex digits."""
    embedding_dim: int
    image_size: int
    """Side of the square input, in pixels."""
    preprocessing: Preprocessing

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    def summary(self) -> str:
        """One line for people: what the network is, and how it wants its images."""
        wants = self.preprocessing
        mean, std = (" ".join(f"{value:g}" for value in values) for values in (wants.mean, wants.std))
        return (
            f"{self.kind} {self.name}  {self.arch}, {self.embedding_dim}-d, sha256 {self.sha256[:16]}, "
            f"images {self.image_size} x {self.image_size} {wants.color}, mean {mean}, std {std}"
        )


@dataclass(frozen=True, slots=True)
class LoadedTeacher:
    """A teacher's network as loaded: float32, on the CPU, in evaluation mode."""

    body: nn.Module
    """The network alone: images as *it* wants them (`identity.preprocessing`) -> raw embeddings (B, D)."""
    identity: TeacherIdentity
    stated_color: Color | None
    """What the source itself says of its colour order (metadata, publisher); None where it says nothing."""

    def network(self) -> nn.Module:
        """Project images (B, 3, H, W), RGB in [-1, 1] -> raw embeddings (B, D).

        Raises:
            TeacherError: the network says how it normalises images itself, and the preprocessing contradicts it.
        """
        own = getattr(self.body, "own_normalisation", None)
        if own is not None:
            own.check(self.identity.preprocessing, f"teacher {self.identity.name}")
        return TeacherNetwork(self.body, self.identity.preprocessing)


def teacher_of_file(
    path: Path,
    body: nn.Module,
    *,
    kind: str,
    arch: str,
    embedding_dim: int,
    image_size: int,
    stated_color: Color | None,
    sha256: str | None = None,
) -> LoadedTeacher:
    """A network that was read from one file, which is hashed where its `sha256` is not known yet."""
    identity = TeacherIdentity(
        kind=kind,
        name=path.name,
        arch=arch,
        sha256=sha256 or file_sha256(path),
        embedding_dim=embedding_dim,
        image_size=image_size,
        preprocessing=Preprocessing(color=stated_color or "rgb"),
    )
    return LoadedTeacher(body.eval(), identity, stated_color)


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, 64 hex digits, read as a stream."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherUse:
    """What a teacher must fit: the student, the records and how they are shown."""

    records: ImageSource
    """The training images; `data` and `augmentation` say how they are read and what is done to them."""
    data: DataConfig
    augmentation: Augmentation
    embedding_dim: int
    """Of the student."""
    precision: Precision
    ranks: Ranks


@dataclass(frozen=True, slots=True)
class BuiltTeacher:
    """The teacher of a run, and which one it is."""

    teacher: ImageTeacher | RecordTeacher
    name: str
    """For people; never a whole path."""
    sha256: str | None
    """Of its weights, also where only their embeddings are read; None for rows that nothing binds."""


class NetworkSource:
    """One place that a teacher's network can come from. A subclass reads the field that the recipe names it by."""

    def load(self, config: TeacherConfig, image_size: int, ranks: Ranks) -> LoadedTeacher:
        """Read the network, for images of so many pixels a side. All ranks call it together."""
        raise NotImplementedError

    def writes(self, config: TeacherConfig) -> bool:
        """Whether loading would write something outside the run folder: a download, a lock. Nothing is loaded."""
        return False


class RowSource(Protocol):
    """One place that a teacher's embeddings can be read from, record by record."""

    def open(self, config: TeacherConfig, use: TeacherUse) -> BuiltTeacher:
        """Open the rows and hold them against student, records and views. All ranks call it together."""
        ...


def refuse_other_dim(who: str, teacher_dim: int, student_dim: int) -> None:
    """Refuse a teacher whose embeddings have another length than the student's."""
    if teacher_dim != student_dim:
        raise TeacherError(
            f"{who} gives {teacher_dim}-d embeddings, the student's are {student_dim}-d; class centres live in one "
            "space, so set student.embedding_dim to the teacher's"
        )
