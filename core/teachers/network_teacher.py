"""Teachers: where the unit embeddings that students learn from come from.

Two kinds, behind two small protocols. A network embeds the images of the rank's own batch (its results are gathered); a
store of embeddings is read by record id and view, by every rank for the whole global batch, since the sample order is a
function. A teacher that does not load, or does not fit the student or the records, stops the run at the door.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adadistill.core.network_checkpoint import load_network


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherConfig:
    """Source of the teacher's embeddings; exactly one of the fields is set."""

    checkpoint: str | None = None
    """A checkpoint of ours: its directory, or a run folder, whose newest valid checkpoint is taken. The network runs
    on every batch. Foreign weights are brought in with `adadistill convert`."""
    embeddings: str | None = None
    """`.npy` file of stored embeddings, (N, V, D) floating point: row = record id, view 0 as stored, view 1 mirrored.
    The teacher then costs nothing; V = 1 serves recipes that never mirror."""

    def __post_init__(self) -> None:
        if (self.checkpoint is None) == (self.embeddings is None):
            raise ValueError("needs exactly one of checkpoint, embeddings")


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

    def rows(self, record_ids: npt.NDArray[np.int64], mirrored: npt.NDArray[np.bool_]) -> Tensor:
        """(n,) record ids and mirror flags -> (n, D) unit embeddings in float32 or better, on the training device."""
        ...


class NetworkTeacher:
    """A frozen network in evaluation mode, outside DDP.

    Args:
        network: images -> raw embeddings (B, D); its parameters are frozen here.
        autocast_dtype: of the backbone on CUDA, or None for the network's own precision.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        embedding_dim: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        autocast_dtype: torch.dtype | None = None,
        channels_last: bool = False,
    ) -> None:
        memory_format = torch.channels_last if channels_last else torch.preserve_format
        self.network = network.to(device=device, dtype=dtype, memory_format=memory_format)  # type: ignore[call-overload]
        self.network.eval().requires_grad_(False)
        self.embedding_dim = embedding_dim
        self._device = device
        self._autocast_dtype = autocast_dtype

    def embed(self, images: Tensor) -> Tensor:
        """See `ImageTeacher.embed`. A zero embedding stays zero."""
        autocast = torch.autocast(
            self._device.type, dtype=self._autocast_dtype, enabled=self._autocast_dtype is not None
        )
        with torch.no_grad(), autocast:
            embeddings = self.network(images)
        return F.normalize(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)), dim=1)


class StoredEmbeddings:
    """Rows of a memory-mapped `.npy` file, normalised again in float32 after reading.

    Args:
        path: (N, V, D) float16, float32 or float64.
        num_records: image records of the training file; must equal N.
        embedding_dim: of the student; must equal D.
        mirrors: whether training mirrors images, so that V must be at least 2.

    Raises:
        TeacherError: not such a file, or it does not fit; rows that are zero or not finite.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        num_records: int,
        embedding_dim: int,
        mirrors: bool,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.path = Path(path)
        self._rows = _open_embeddings(self.path)
        self._device = device
        self._dtype = dtype
        self.embedding_dim = embedding_dim
        records, views, dim = self._rows.shape
        if records != num_records:
            raise TeacherError(
                f"{path} holds embeddings of {records} records, the training file has {num_records} image records; "
                "embeddings must be made from the same records, row = record id"
            )
        if dim != embedding_dim:
            raise TeacherError(
                f"{path} holds {dim}-d embeddings, the student's are {embedding_dim}-d; set student.embedding_dim={dim}"
            )
        if mirrors and views < 2:
            raise TeacherError(
                f"{path} holds {views} view of each record, but data.mirror_probability is not 0: "
                "store the mirrored image's embedding as view 1, or set data.mirror_probability=0"
            )
        self._check_sample()

    def rows(self, record_ids: npt.NDArray[np.int64], mirrored: npt.NDArray[np.bool_]) -> Tensor:
        """See `RecordTeacher.rows`."""
        chosen = torch.from_numpy(self._rows[record_ids, mirrored.astype(np.int64)])
        if self._device.type == "cuda":
            chosen = chosen.pin_memory()  # from pageable memory the copy would wait for everything queued before it
        return F.normalize(chosen.to(self._device, non_blocking=True).to(self._dtype), dim=1)

    def _check_sample(self) -> None:
        sample = np.unique(np.linspace(0, len(self._rows) - 1, num=min(len(self._rows), 1000)).astype(np.int64))
        norms = np.linalg.norm(self._rows[sample].astype(np.float64), axis=2)  # (sample, V)
        bad = ~(np.isfinite(norms) & (norms > 0.0))
        if bad.any():
            record, view = (int(i) for i in np.argwhere(bad)[0])
            raise TeacherError(
                f"{self.path}: the embedding of record {sample[record]}, view {view}, has norm {norms[record, view]}"
            )


def build_teacher(
    config: TeacherConfig,
    *,
    num_records: int,
    image_size: int,
    embedding_dim: int,
    mirrors: bool,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    autocast_dtype: torch.dtype | None = None,
    channels_last: bool = False,
) -> ImageTeacher | RecordTeacher:
    """Load the teacher of a recipe and check that it fits student and records.

    Raises:
        TeacherError: it does not fit. Loading errors keep their own types, with the path in their text.
    """
    if config.embeddings is not None:
        return StoredEmbeddings(
            config.embeddings,
            num_records=num_records,
            embedding_dim=embedding_dim,
            mirrors=mirrors,
            device=device,
            dtype=dtype,
        )
    assert config.checkpoint is not None, "TeacherConfig has exactly one source"
    loaded = load_network(config.checkpoint, device=torch.device("cpu"))
    if loaded.backbone.embedding_dim != embedding_dim:
        raise TeacherError(
            f"teacher {config.checkpoint} gives {loaded.backbone.embedding_dim}-d embeddings, the student's are "
            f"{embedding_dim}-d; class centres live in one space, so set student.embedding_dim to the teacher's"
        )
    if loaded.image_size != image_size:
        raise TeacherError(
            f"teacher {config.checkpoint} takes {loaded.image_size} x {loaded.image_size} images, "
            f"the recipe's are {image_size} x {image_size}"
        )
    return NetworkTeacher(
        loaded.network,
        embedding_dim=embedding_dim,
        device=device,
        dtype=dtype,
        autocast_dtype=autocast_dtype,
        channels_last=channels_last,
    )


def _open_embeddings(path: Path) -> npt.NDArray[np.floating]:
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise TeacherError(f"{path}: no such file of teacher embeddings") from None
    except (OSError, ValueError, EOFError) as error:
        raise TeacherError(f"{path} is not an .npy file of embeddings: {error}") from None
    if not isinstance(rows, np.ndarray) or rows.ndim != 3 or rows.dtype.kind != "f" or 0 in rows.shape:
        found = f"{rows.shape} {rows.dtype}" if isinstance(rows, np.ndarray) else type(rows).__name__
        raise TeacherError(f"{path} must hold (N, V, D) floating point embeddings, found {found}")
    return rows
