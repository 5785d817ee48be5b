"""Embeddings of a teacher that ran once: rows of a verified cache, by record id and view.

Ownership: read-only. Every rank reads the rows of the whole global batch, since the sample order is a function, so that
no embedding travels between ranks. Nothing is held in memory beyond the pages that the system keeps of the file, unless
the cache is asked to live on the device.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from adadistill.core.teachers.cache_views import needed_views
from adadistill.kernels.device_copy import copied_to
from adadistill.loaders.augment.augment_policy import Augmentation
from adadistill.loaders.block_store.teacher_cache import TeacherCache

_COPY_ROWS = 1 << 16
"""Rows moved to the device at once: 64 MiB of float16 rows of 512."""


class CachedTeacher:
    """A `RecordTeacher` on a cache.

    Args:
        cache: open, and fitting the recipe (`TeacherCache.require`).
        augmentation: of the images that the rows are of; the cache must hold its views (`needed_views`).
        device: where rows arrive.
        dtype: float32 or float64, of the rows.
        on_device: copy the whole cache (N x V x D x 2 bytes) to the device first; a step then moves ids alone.
    """

    def __init__(
        self,
        cache: TeacherCache,
        *,
        augmentation: Augmentation,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        on_device: bool = False,
    ) -> None:
        self.embedding_dim = cache.header.embedding_dim
        self._cache = cache
        self._device = device
        self._dtype = dtype
        columns = [cache.column(view) for view in needed_views(augmentation)]
        if None in columns:
            raise ValueError(f"{cache.folder} lacks a view that was required of it")  # `require` comes first
        self._columns = np.array(columns, dtype=np.int64)  # by number of the view, or by mirror flag
        self._augmented = augmentation.alters_pixels
        self._views = len(cache.header.views)
        self._resident = _copy_to(device, cache) if on_device else None

    def rows(
        self, record_ids: npt.NDArray[np.int64], mirrored: npt.NDArray[np.bool_], view: int | None = None
    ) -> Tensor:
        """See `RecordTeacher.rows`. Normalised again after reading, as float16 rows are off by up to 2^-11."""
        if self._augmented:
            assert view is not None, "augmented views have numbers"
            columns = np.full(len(record_ids), self._columns[view])  # (n,)
        else:
            columns = self._columns[mirrored.astype(np.int64)]  # (n,)
        if self._resident is not None:
            places = copied_to(self._device, torch.from_numpy(record_ids * self._views + columns))
            chosen = self._resident.index_select(0, places)  # (n, D)
        else:
            chosen = copied_to(self._device, torch.from_numpy(self._cache.gather(record_ids, columns)))
        return F.normalize(chosen.to(self._dtype), dim=1)


def _copy_to(device: torch.device, cache: TeacherCache) -> Tensor:
    """(N * V, D) float16 rows of the whole cache on the device."""
    header = cache.header
    views = len(header.views)
    resident = torch.empty(header.num_records * views, header.embedding_dim, dtype=torch.float16, device=device)
    for first in range(0, len(resident), _COPY_ROWS):
        places = np.arange(first, min(first + _COPY_ROWS, len(resident)))
        rows = cache.gather(places // views, places % views)
        resident[first : first + len(rows)].copy_(torch.from_numpy(rows))
    return resident
