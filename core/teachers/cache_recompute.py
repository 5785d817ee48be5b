"""Embeds some records of a cache again, to see whether the cache holds what the recipe's teacher says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from adadistill.core.distributed import Ranks
from adadistill.core.recipe import Recipe, recipe_augmentation
from adadistill.core.teachers.cache_inputs import config_of_network, embedded, open_inputs, plans_of_views
from adadistill.core.teachers.cache_views import needed_views
from adadistill.loaders.block_store.teacher_cache import MIRRORED, PLAIN, CacheView, TeacherCache
from adadistill.loaders.pipelines.rank_steps import record_plans


@dataclass(frozen=True, kw_only=True, slots=True)
class RecomputedRows:
    """Stored embeddings against fresh ones."""

    records: int
    least_cosine: float
    record_id: int
    """Where the least cosine is."""
    view: CacheView
    """Where the least cosine is."""


def recompute_rows(recipe: Recipe, cache: TeacherCache, *, records: int, ranks: Ranks) -> RecomputedRows:
    """Embed evenly spread records again, with the recipe's teacher, and compare with what the cache holds of them.

    Args:
        cache: found to fit the recipe (`TeacherCache.require`).
        records: how many, at most all.

    Raises:
        ValueError: `records` is not positive, or the cache holds views that the recipe does not show.
        As `build_cache` where teacher or records cannot be read.
    """
    if records < 1:
        raise ValueError(f"the number of records to recompute must be positive, got {records}")
    views = cache.header.views
    augmentation = recipe_augmentation(recipe)
    known = {PLAIN, MIRRORED, *(needed_views(augmentation) if augmentation.views is not None else ())}
    if not known.issuperset(views):
        raise ValueError(f"{cache.folder} holds views that the recipe does not show, such as {views[-1]}")
    config = config_of_network(recipe)
    if config.color == "auto":
        config = replace(config, color=_color_of(cache), color_set=None)
    source = open_inputs(recipe, config, ranks)
    batch_size = min(records, len(source.records), 64)
    teacher = source.network_teacher(batch_size)
    chosen = np.unique(np.linspace(0, len(source.records) - 1, records).astype(np.int64))
    found: list[tuple[float, int, CacheView]] = []
    plans = record_plans(chosen, batch_size=batch_size)
    with source.batches(plans_of_views(plans, views, augmentation), batch_size) as batches:
        for ids, rows in embedded(teacher, batches, views):
            fresh = rows.double().cpu().numpy()  # (B, V, D)
            for place, view in enumerate(views):
                cosines = _cosines(fresh[:, place], cache.gather(ids, np.full(len(ids), cache.column(view))))
                worst = int(np.argmin(cosines))
                found.append((float(cosines[worst]), int(ids[worst]), view))
    least, record_id, view = min(found, key=lambda entry: entry[0])
    return RecomputedRows(records=len(chosen), least_cosine=least, record_id=record_id, view=view)


def _color_of(cache: TeacherCache) -> Literal["rgb", "bgr"] | None:
    """The channel order that a cache was built with, None where its header does not say."""
    preprocessing = cache.header.teacher.get("preprocessing")
    color = preprocessing.get("color") if isinstance(preprocessing, dict) else None
    return color if color in ("rgb", "bgr") else None  # type: ignore[return-value]


def _cosines(fresh: npt.NDArray[np.float64], stored: npt.NDArray[np.float16]) -> npt.NDArray[np.float64]:
    """(n,) cosines of rows; -1 where there is none, since one of them is zero or not finite."""
    wide = stored.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = np.einsum("nd,nd->n", fresh, wide) / np.linalg.norm(wide, axis=1) / np.linalg.norm(fresh, axis=1)
    return np.nan_to_num(cosines, nan=-1.0)
