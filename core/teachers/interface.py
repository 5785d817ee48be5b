"""What training asks of a teacher: unit embeddings, of images or of records, and an account of where they come from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from adadistill.core.teachers.preprocessing import Color, Preprocessing, TeacherNetwork


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
