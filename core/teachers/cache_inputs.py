"""The network and the images that a cache of embeddings is made of, and the embeddings that they give."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adadistill.core.distributed import Ranks
from adadistill.core.precision import Precision, resolve_precision
from adadistill.core.recipe import Recipe
from adadistill.core.teachers import (
    LoadedTeacher,
    NetworkTeacher,
    TeacherConfig,
    TeacherError,
    compiles_in_loop,
    computes_in_torch,
    in_loop_teacher,
    load_source,
)
from adadistill.core.teachers.color_check import ColorResult, resolve_color
from adadistill.core.teachers.config import NETWORK_SOURCES
from adadistill.core.training.compiler_check import require_compilers, teacher_switches
from adadistill.loaders.augment.augment_policy import Augmentation
from adadistill.loaders.batch import Batch
from adadistill.loaders.block_store.teacher_cache import MIRRORED, PLAIN, CacheView
from adadistill.loaders.pipelines.pipeline import named_records, planned_batches
from adadistill.loaders.pipelines.rank_steps import StepPlan
from adadistill.loaders.records.image_source import ImageSource


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheInputs:
    """The network and the images that a cache is made of, found good."""

    recipe: Recipe
    config: TeacherConfig
    records: ImageSource
    loaded: LoadedTeacher
    colors: ColorResult | None
    precision: Precision
    device: torch.device

    @property
    def runs_in_torch(self) -> bool:
        """False for a network that another runtime computes, in float32."""
        return computes_in_torch(self.loaded.body)

    @property
    def image_dtype(self) -> torch.dtype:
        return self.precision.image_dtype if self.runs_in_torch else torch.float32

    @property
    def compiles(self) -> bool:
        return compiles_in_loop(self.loaded, self.config, self.device)

    def network_teacher(self, batch_size: int) -> NetworkTeacher:
        """The network, ready to embed batches of one size."""
        return in_loop_teacher(
            self.loaded, self.config, precision=self.precision, device=self.device, batch_size=batch_size
        )

    def batches(self, plans: Iterator[StepPlan], batch_size: int) -> AbstractContextManager[Iterator[Batch]]:
        """The images of the plans; see `planned_batches`."""
        return planned_batches(
            self.recipe.data,
            self.records,
            plans,
            batch_size=batch_size,
            device=self.device,
            dtype=self.image_dtype,
            channels_last=self.precision.channels_last,
        )


def config_of_network(recipe: Recipe) -> TeacherConfig:
    """The recipe's teacher, which must name a network. Raises TeacherError."""
    if recipe.teacher is None or recipe.teacher.source is None:
        raise TeacherError(
            f"recipe {recipe.name} names no network to embed with; set teacher.{', '.join(NETWORK_SOURCES)}. "
            "Embeddings that exist already become a cache with: adadistill cache import"
        )
    return recipe.teacher


def open_inputs(recipe: Recipe, config: TeacherConfig, ranks: Ranks) -> CacheInputs:
    """Open records and network; whatever is wrong with one is said here."""
    if recipe.deterministic:
        torch.use_deterministic_algorithms(True)
    elif ranks.device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    require_compilers(teacher_switches(config, ranks.device), ranks)
    size = recipe.data.image_size
    records = named_records(recipe.data)
    loaded = load_source(config, image_size=size, ranks=ranks)
    loaded, colors = resolve_color(
        loaded, config, records=records, image_size=size, ranks=ranks, sets=recipe.evaluation.sets
    )
    return CacheInputs(
        recipe=recipe,
        config=config,
        records=records,
        loaded=loaded,
        colors=colors,
        precision=resolve_precision(recipe.precision, ranks.device),
        device=ranks.device,
    )


def plans_of_views(
    plans: Iterator[StepPlan], views: Sequence[CacheView], augmentation: Augmentation
) -> Iterator[StepPlan]:
    """What has to be loaded for each plan: its images as they are stored, if a view is made of them, then augmented."""
    for plan in plans:
        if PLAIN in views or MIRRORED in views:
            yield plan
        for view in views:
            if view.view is not None:
                yield replace(
                    plan,
                    epoch=view.view,
                    view=view.view,
                    global_mirrored=augmentation.mirrored(view.view, plan.global_record_ids),
                    parameters=augmentation.parameters(view.view, plan.record_ids),
                )


def embedded(
    teacher: NetworkTeacher, batches: Iterator[Batch], views: Sequence[CacheView]
) -> Iterator[tuple[npt.NDArray[np.int64], Tensor]]:
    """(B,) record ids and (B, V, D) unit embeddings of all their views, for the batches of `plans_of_views`."""
    loads_stored = PLAIN in views or MIRRORED in views
    for first in batches:
        columns: list[Tensor] = []
        for number, view in enumerate(views):
            if view == PLAIN:
                columns.append(teacher.embed(first.images))
            elif view == MIRRORED:
                columns.append(teacher.embed(first.images.flip(3)))
            else:
                batch = first if number == 0 and not loads_stored else next(batches)
                columns.append(teacher.embed(batch.images))
        yield first.record_ids.cpu().numpy(), torch.stack(columns, dim=1)
