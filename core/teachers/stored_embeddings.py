"""Teacher embeddings read by record id: nothing runs, every rank reads the rows of the whole global batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from adadistill.core.npy_files import NpyFileError, open_npy
from adadistill.core.teachers.config import TeacherConfig
from adadistill.core.teachers.interface import BuiltTeacher, TeacherError, TeacherUse
from adadistill.kernels.device_copy import copied_to


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
        self._rows = open_embeddings(self.path)
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

    def rows(
        self, record_ids: npt.NDArray[np.int64], mirrored: npt.NDArray[np.bool_], view: int | None = None
    ) -> Tensor:
        """See `RecordTeacher.rows`; a file holds images as stored and mirrored, so the mirror flag says all."""
        chosen = torch.from_numpy(self._rows[record_ids, mirrored.astype(np.int64)])
        return F.normalize(copied_to(self._device, chosen).to(self._dtype), dim=1)

    def _check_sample(self) -> None:
        sample = np.unique(np.linspace(0, len(self._rows) - 1, num=min(len(self._rows), 1000)).astype(np.int64))
        norms = np.linalg.norm(self._rows[sample].astype(np.float64), axis=2)  # (sample, V)
        bad = ~(np.isfinite(norms) & (norms > 0.0))
        if bad.any():
            record, view = (int(i) for i in np.argwhere(bad)[0])
            raise TeacherError(
                f"{self.path}: the embedding of record {sample[record]}, view {view}, has norm {norms[record, view]}"
            )


def open_embeddings(path: Path) -> npt.NDArray[np.floating]:
    """Map a file of embeddings, (N, V, D), and check that it holds some.

    Raises:
        TeacherError: it is not there, or holds something else.
    """
    try:
        rows = open_npy(path)
    except FileNotFoundError:
        raise TeacherError(f"{path}: no such file of teacher embeddings") from None
    except (NpyFileError, OSError) as error:
        raise TeacherError(f"{path} is not an .npy file of embeddings: {error}") from None
    if rows.ndim != 3 or rows.dtype.kind != "f" or 0 in rows.shape:
        raise TeacherError(f"{path} must hold (N, V, D) floating point embeddings, found {rows.shape} {rows.dtype}")
    return rows


class _Embeddings:
    def open(self, config: TeacherConfig, use: TeacherUse) -> BuiltTeacher:
        path = config.embeddings
        assert path is not None
        if use.augmentation.alters_pixels:
            raise TeacherError(
                f"{path} holds embeddings of images as stored and mirrored, and the recipe augments images; build a "
                "cache of its views (teacher.cache, augment.views), or set augment.policy to none"
            )
        stored = StoredEmbeddings(
            path,
            num_records=len(use.records),
            embedding_dim=use.embedding_dim,
            mirrors=use.data.mirror_probability > 0.0,
            device=use.ranks.device,
            dtype=use.precision.dtype,
        )
        return BuiltTeacher(stored, Path(path).name, None)


SOURCE = _Embeddings()
