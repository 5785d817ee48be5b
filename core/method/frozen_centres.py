"""Class centres taken from a file and never moved.

AdaDistill's baseline: the student learns against the centres that the teacher's own head was trained with, so its
target is the class from the first step on, never the image. No teacher has to run for that; where one does, the
geometry margin's confidence is the cosine of the frozen centre to the teacher's embedding.

Source: ArcDistill and CosDistill in AdaDistill, arXiv:2407.01332.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from adadistill.core.checkpoints import RowArray
from adadistill.core.distributed import Ranks, broadcast_text
from adadistill.core.method.centre_files import CentresFileError, StoredCentres, read_centres
from adadistill.core.method.class_centres import centre_confidence, softmax_dtype, write_unit_rows_
from adadistill.core.precision import Precision
from adadistill.kernels.head_prologue import CentreStore
from adadistill.loaders.command_text import quoted
from adadistill.loaders.records.image_source import ImageSource

logger = logging.getLogger(__name__)


class FrozenCentres:
    """Unit class centres without gradient and without update.

    Ownership: replicated and constant. Every rank reads the same file; that it did is checked where they are loaded.
    Checkpoints do not hold them again, only their sha256, to which a resumed run is held.

    Memory: (C, D) unit rows in `dtype`, and a copy in `unit_dtype` where the softmax reads another one.
    """

    def __init__(
        self,
        stored: StoredCentres,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        unit_dtype: torch.dtype | None = None,
    ) -> None:
        """Take over `stored.rows`, which are normalised in place where they are of that dtype and device already.

        Args:
            dtype: float32 or float64, in which the rows are kept.
            unit_dtype: what the softmax reads; None takes `softmax_dtype`.
        """
        self.name = stored.name
        self.sha256 = stored.sha256
        rows = stored.rows.detach().to(device=device, dtype=torch.promote_types(stored.rows.dtype, dtype))
        write_unit_rows_(rows, rows)
        self.class_centres = rows.to(dtype)
        self._unit_centres = self.class_centres.to(unit_dtype or softmax_dtype(self.class_centres))

    def unit_centres(self) -> Tensor:
        """(C, D) unit rows that the softmax reads; not to be written."""
        return self._unit_centres

    def target_store(self) -> CentreStore:
        """Where target rows are read; both copies hold unit rows."""
        return CentreStore(self.class_centres, unit=True)

    def confidence(self, labels: Tensor, teacher_embeddings: Tensor) -> Tensor:
        """(B,) cosine of each label's centre to the teacher's embedding (B, D), in [1e-6, 1]; 0 for ignored samples."""
        confidence = centre_confidence(self.class_centres[labels.clamp(min=0)], teacher_embeddings.detach())
        return torch.where(labels >= 0, confidence, 0.0)

    def state_dict(self) -> dict[str, RowArray]:
        """Nothing: the file holds them."""
        return {}

    def load_state_dict(self, state: Mapping[str, RowArray]) -> None:
        """Accept what `state_dict` gave.

        Raises:
            ValueError: the checkpoint holds centres, so it is none of frozen ones.
        """
        if state:
            raise ValueError(f"frozen class centres come from {self.name}, but the checkpoint holds {sorted(state)}")


def load_frozen_centres(
    path: str | Path, *, records: ImageSource, embedding_dim: int, precision: Precision, ranks: Ranks
) -> FrozenCentres:
    """Read the class centres of a recipe and check that they are of these records' people. All ranks call it together.

    Args:
        path: as `centre_files.read_centres`.
        records: labels of these are the rows' numbers.
        embedding_dim: of the student.

    Raises:
        CentresFileError: they cannot be read, or do not fit records, student or the other ranks.
    """
    stored = read_centres(path)
    _check_fit(stored, path, records, embedding_dim)
    if broadcast_text(stored.sha256, ranks) != stored.sha256:
        raise CentresFileError(
            f"{path} holds other class centres on rank {ranks.rank} than on rank 0; all ranks must read the same file"
        )
    if ranks.is_main:
        bound = "trained on these records" if stored.records else "it does not say on which records they were trained"
        count, dim = stored.rows.shape
        logger.info("frozen centres: %d x %d from %s (%s), sha256 %s", count, dim, stored.name, bound, stored.sha256)
    return FrozenCentres(
        stored,
        dtype=precision.dtype,
        device=ranks.device,
        # As with adaptive centres: under autocast the softmax may read half precision, else it reads exact rows.
        unit_dtype=None if precision.autocast_dtype is not None else precision.dtype,
    )


def _check_fit(stored: StoredCentres, path: str | Path, records: ImageSource, embedding_dim: int) -> None:
    count, dim = stored.rows.shape
    if dim != embedding_dim:
        raise CentresFileError(
            f"{path} holds {dim}-d class centres, the student's embeddings are {embedding_dim}-d; "
            f"set student.embedding_dim={dim}"
        )
    if count != records.num_classes:
        raise CentresFileError(
            f"{path} holds {count} class centres, {records.path} has {records.num_classes} identities; "
            "row and label must mean the same person, so both must come from the same records"
        )
    if stored.records not in (None, records.fingerprint()):
        raise CentresFileError(
            f"{path} holds the class centres of other records ({stored.records:.12}...) than {records.path} "
            f"({records.fingerprint():.12}...), where its rows would mean other people. Point data.records at the file "
            "they were trained on. If you know that the labels agree, say so by exporting them unbound: "
            f"adadistill centres export {quoted(path)} --out OUT.safetensors --drop-records, and set centres.path to it"
        )
