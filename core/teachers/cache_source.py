"""Teachers whose embeddings are read from a cache: of this very teacher, these records and the views needed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from adadistill.core.distributed import Ranks, rank_share
from adadistill.core.teachers.cache_views import needed_views
from adadistill.core.teachers.cached_teacher import CachedTeacher
from adadistill.core.teachers.config import TeacherConfig
from adadistill.core.teachers.interface import BuiltTeacher, TeacherUse, refuse_other_dim
from adadistill.core.teachers.preprocessing import Color
from adadistill.core.teachers.sources import load_source
from adadistill.loaders.block_store.teacher_cache import TeacherCache
from adadistill.loaders.records.image_source import ImageSource

logger = logging.getLogger(__name__)


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
