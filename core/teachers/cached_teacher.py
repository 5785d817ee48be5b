"""Embeddings of a teacher that ran once: rows of a verified cache, by record id and view.

The cache must be of this very teacher, these records and the views needed. Every rank reads the rows of the whole
global batch, since the sample order is a function, so that no embedding travels between ranks. Nothing is held in
memory beyond the pages that the system keeps of the file, unless the cache is asked to live on the device.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from adadistill.core.distributed import Ranks, rank_share
from adadistill.core.teachers.cache_views import needed_views
from adadistill.core.teachers.config import TeacherConfig
from adadistill.core.teachers.interface import BuiltTeacher, TeacherUse, refuse_other_dim
from adadistill.core.teachers.preprocessing import Color
from adadistill.core.teachers.sources import load_source
from adadistill.kernels.device_copy import copied_to
from adadistill.loaders.augment.augment_policy import Augmentation
from adadistill.loaders.block_store.teacher_cache import TeacherCache
from adadistill.loaders.records.image_source import ImageSource

logger = logging.getLogger(__name__)

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


class _Cache:
    def open(self, config: TeacherConfig, use: TeacherUse) -> BuiltTeacher:
        assert config.cache is not None
        cache, ranks = TeacherCache(config.cache), use.ranks
        refuse_other_dim(f"cache {config.cache}", cache.header.embedding_dim, use.embedding_dim)
        cache.require(
            teacher=None if config.source is None else expected_identity(config, cache, use.data.image_size, ranks),
            records=record_binding(use.records),
            views=needed_views(use.augmentation),
        )
        if config.cache_verify:
            cache.check(*rank_share(cache.header.num_blocks, ranks.rank, ranks.world_size))
        if ranks.is_main:
            logger.info(
                "teacher: cache %s of %s, %d views, digest %s%s",
                config.cache,
                cache.header.teacher.get("name"),
                len(cache.header.views),
                cache.digest()[:12],
                "" if config.cache_verify else ", checksums not verified",
            )
        teacher = CachedTeacher(
            cache,
            augmentation=use.augmentation,
            device=ranks.device,
            dtype=use.precision.dtype,
            on_device=config.cache_on_device,
        )
        return BuiltTeacher(teacher, str(cache.header.teacher.get("name")), str(cache.header.teacher["sha256"]))


SOURCE = _Cache()


def expected_identity(config: TeacherConfig, cache: TeacherCache, image_size: int, ranks: Ranks) -> dict[str, Any]:
    """What the header of a cache of the recipe's network must say of its teacher.

    The weights are read and hashed, the network does not run. With `color: auto` the order that was found when the
    cache was built stands.
    """
    identity = load_source(config, image_size=image_size, ranks=ranks).identity
    if config.color == "auto":
        built_with = cache.header.teacher.get("preprocessing")
        if isinstance(built_with, Mapping) and built_with.get("color") in ("rgb", "bgr"):
            color: Color = "rgb" if built_with["color"] == "rgb" else "bgr"
            identity = replace(identity, preprocessing=replace(identity.preprocessing, color=color))
    return identity.to_json()


def record_binding(records: ImageSource) -> dict[str, Any]:
    """What binds a cache to the records it was made from."""
    return {
        "fingerprint": records.fingerprint(),
        "num_records": len(records),
        "num_classes": records.num_classes,
        "name": records.path.name,
    }
